"""What makes no comparison ends with one line that names it, status 2, and before any process is started."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

import sasr.cli
from refusals import JSONL, ROW, checked
from sasr.compare import runner
from sasr.compare.check import check_runs
from sasr.compare.reading import read
from sasr.parsing import RECIPES, read_recipe

pytestmark = pytest.mark.usefixtures("clean")
SMALL = ["--output_dir", "out", "--train_rows", "40", "--exam_rows", "4", "--sft_warmup_steps", "2"]
STEPS = [*SMALL, "--budget", "steps=4"]


@pytest.fixture
def started(monkeypatch):
    def start(*args, **kwargs):
        raise AssertionError("a run was started before the error was found")

    monkeypatch.setattr(runner.subprocess, "Popen", start)


@pytest.fixture
def error(started, capsys):
    def refused(*flags: str) -> str:
        status = sasr.cli.main(["compare", *flags])
        return checked(status, *capsys.readouterr())

    return refused


FLAGS = {
    "unknown-method": (["--methods", "sassr"], ["unknown method 'sassr'", "did you mean sasr?"]),
    "method-twice": (["--methods", "sasr", "sft", "sasr"], ["method sasr is given twice"]),
    "no-methods": (["--methods"], ["--methods", "expected at least one argument"]),
    "seed-twice": (["--seeds", "1-3", "2"], ["seeds", "seed 2 is given twice"]),
    "seed-no-number": (["--seeds", "one"], ["'one' is no seed", "1-8"]),
    "seeds-empty": (["--seeds", ""], ["there are no seeds"]),
    "budget-0": (["--budget", "steps=0"], ["budget steps=0", "whole number above 0"]),
    "budget-kind": (["--budget", "step=5"], ["unknown kind of budget 'step'", "did you mean steps?"]),
    "budget-text": (["--budget", "steps=many"], ["budget steps=many", "above 0"]),
    "budget-part": (["--budget", "steps=2.5"], ["budget steps=2.5", "whole number"]),
    "budget-nan": (["--budget", "seconds=nan"], ["budget seconds=nan", "above 0"]),
    "budget-inf": (["--budget", "seconds=inf"], ["budget seconds=inf", "above 0"]),
    "budget-bare": (["--budget", "300"], ["'300'", "write steps=N"]),
    "budget-shorter-than-warm-up": (["--budget", "steps=1"], ["sft_warmup_steps (2)", "max_steps 1"]),
    "tokens-without-rollouts": (["--budget", "rollout_tokens=50"], ["method sft", "no rollouts", "another budget"]),
    "tokens-and-cosine": (["--budget", "rollout_tokens=9", "--methods", "cosine"], ["method cosine", "another budget"]),
    "baseline": (["--baseline", "grpo"], ["unknown baseline 'grpo'", "static"]),
    "jobs-0": (["--jobs", "0"], ["--jobs is 0", "from 1"]),
    "jobs-of-one-server": (
        ["--jobs", "2", "--use_vllm", "true", "--vllm_mode", "server"],
        ["vllm_mode server", "weights of one run at a time", "--jobs 1"],
    ),
    "jobs-text": (["--jobs", "two"], ["--jobs is two"]),
    "max-steps": (["--max_steps", "5"], ["--max_steps", "budget instead"]),
    "seed": (["--seed", "5"], ["--seed", "seeds instead"]),
    "schedule": (["--schedule", "sasr"], ["--schedule", "--methods"]),
    "unknown-flag": (["--method", "sasr"], ["unknown argument --method", "did you mean --methods?"]),
    "bad-value": (["--gamma", "-1"], ["method sasr", "gamma is -1.0"]),
    "no-exam": (["--exam_rows", "0"], ["exam_rows is 0"]),
    "task": (["--task", "storis"], ["storis"]),
    "task-option": (["--task_options", '{"stps": 5}'], ["option of task stories 'stps'"]),
    "missing-data": ([*JSONL, "--data", "r.jsonl", "--budget", "steps=4"], ["r.jsonl", "no such file"]),
    "recipe": (["--config", "compare-storis"], ["no recipe 'compare-storis'", "compare-stories"]),
    "resume-and-config": (["--config", "stories", "--resume_from_checkpoint"], ["--output_dir", "without --config"]),
    "resume-nothing": (["--resume_from_checkpoint"], ["no comparison to go on with in out"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_flags(error, name):
    flags, fragments = FLAGS[name]
    message = error(*SMALL, *flags)
    assert [f for f in fragments if f not in message] == [], message
    assert os.listdir(".") == [], "a refused comparison leaves nothing behind"


def test_a_recipe_without_a_budget(error):
    Path("recipe.yaml").write_text("task: jsonl\n")
    message = error(*SMALL, "--config", "recipe.yaml")
    assert "no budget" in message and "--budget steps=300" in message


COMPARE = {
    "text": ("sasr", ["compare is 'sasr'", "name: value"]),
    "push": ({"methods": {"sft": {"push_to_hub": True}}}, ["method sft", "push_to_hub: all runs would be pushed"]),
    "only-the-model": ({"methods": {"sft": {"save_only_model": True}}}, ["method sft: save_only_model"]),
    "model-init": (
        {"methods": {"sft": {}, "grpo": {"model_init_kwargs": {"dtype": "bfloat16"}}}},
        ["method grpo: model_init_kwargs: dtype"],
    ),
    "no-vllm": ({"methods": {"sft": {}, "grpo": {"use_vllm": True}}}, ["method grpo: use_vllm"]),
    "unknown-key": ({"method": ["sft"]}, ["unknown key 'method'", "did you mean methods?"]),
    "setting-inside": ({"task": "stories"}, ["unknown key 'task'", "put it above"]),
    "no-methods": ({"methods": {}}, ["there are no methods"]),
    "methods-text": ({"methods": {"sft": 3}}, ["methods: sft is 3", "name: value"]),
    "method-twice": ({"methods": ["sft", "sft"]}, ["method sft is given twice"]),
    "unknown-method": ({"methods": {"fast": {"gamma": 2}}}, ["unknown method 'fast'", "a name with its schedule"]),
    "unknown-schedule": ({"methods": {"x": {"schedule": "sassr"}}}, ["unknown schedule 'sassr'", "did you mean sasr?"]),
    "name": ({"methods": {"a/b": {"schedule": "sft"}}}, ["'a/b'", "letters"]),
    "name-dots": ({"methods": {"..": {"schedule": "sft"}}}, ["'..'", "letters"]),
    "unknown-setting": ({"methods": {"sasr": {"gama": 2}}}, ["method sasr", "unknown setting 'gama'", "gamma?"]),
    "foreign-setting": ({"methods": {"sft": {"gamma": 2.0}}}, ["method sft", "gamma is a setting of schedule sasr"]),
    "type": ({"methods": {"sasr": {"gamma": "big"}}}, ["method sasr", "gamma is 'big'", "a number"]),
    "value": ({"methods": {"sasr": {"gamma": 0}}}, ["method sasr", "gamma is 0"]),
    "max-steps": ({"methods": {"sasr": {"max_steps": 9}}}, ["method sasr", "max_steps", "budget"]),
    "task-options": ({"methods": {"sasr": {"task_options": {"steps": 2}}}}, ["method sasr", "examined alike"]),
    "exam-rows": ({"methods": {"sasr": {"exam_rows": 9}}}, ["method sasr", "exam_rows", "examined alike"]),
    "exam-every": ({"methods": {"sasr": {"exam_every": 9}}}, ["method sasr", "exam_every", "examined alike"]),
    "method-seed": ({"methods": {"sasr": {"seed": 9}}}, ["method sasr", "seed cannot be set here", "seeds"]),
    "method-seeds": ({"methods": {"sasr": {"seeds": "1 1"}}}, ["method sasr: seeds", "seed 1 is given twice"]),
    "seeds-null": ({"methods": {"sasr": {"seeds": []}}}, ["method sasr: seeds", "there are no seeds"]),
    "match-nobody": ({"methods": {"random": {"match_run": "sasr"}, "sft": {}}}, ["random", "names 'sasr'", "sft"]),
    "match-itself": ({"methods": {"random": {"match_run": "random"}}}, ["names itself"]),
    "match-other-schedule": ({"methods": {"static": {"match_run": "sasr"}, "sasr": {}}}, ["for schedule random"]),
    "match-and-share": ({"methods": {"random": {"match_run": "sasr", "sft_share": 0.1}}}, ["remove sft_share"]),
    "match-matched": (
        {"methods": {"a": {"schedule": "random", "match_run": "random"}, "random": {"match_run": "sasr"}, "sasr": {}}},
        ["method a", "names random, which itself matches sasr"],
    ),
    "match-seed": (
        {"methods": {"random": {"match_run": "sasr", "seeds": "1-3"}, "sasr": {"seeds": "1-2"}}},
        ["names sasr, which has no seed 3"],
    ),
    "match-tuned": (
        {"methods": {"random": {"match_run": "sasr", "tune": {"learning_rate": [1, 2]}}, "sasr": {}}},
        ["method random", "remove tune"],
    ),
    "tune-text": ({"tune": {"learning_rate": 1e-4}}, ["tune: learning_rate is 0.0001", "list of the values"]),
    "tune-empty": ({"tune": {"learning_rate": []}}, ["tune: learning_rate is []", "list of the values"]),
    "tune-twice": ({"tune": {"learning_rate": [1e-4, 1e-4]}}, ["learning_rate has 0.0001 twice"]),
    "tune-unknown": ({"tune": {"lerning_rate": [1e-4]}}, ["unknown setting 'lerning_rate'", "learning_rate?"]),
    "tune-budget": ({"tune": {"max_steps": [3, 4]}}, ["max_steps", "budget"]),
    "tune-schedule": ({"tune": {"schedule": ["sft", "sasr"]}}, ["schedule cannot be set here", "cannot be tuned"]),
    "tune-bad-point": (
        {"methods": {"sasr": {"tune": {"gamma": [1.0, -2.0]}}}},
        ["method sasr with gamma -2.0: gamma is -2.0"],
    ),
    "tune-foreign": ({"tune": {"gamma": [1.0, 2.0]}}, ["method sft with gamma 2.0", "schedule sasr, not of sft"]),
    "tune-and-set": (
        {"methods": {"sasr": {"gamma": 2.0}}, "tune": {"gamma": [1.0, 2.0]}},
        ["method sasr: gamma is set and tuned"],
    ),
    "tune-large": ({"tune": {"gamma": list(range(1, 200)), "beta": list(range(200))}}, ["more than 10000 points"]),
    "tune-seeds": ({"tune": {"learning_rate": [1e-4]}, "tune_seeds": [2]}, ["seed 2 is in seeds and in tune_seeds"]),
    "budget": ({"budget": {"steps": 0}}, ["budget steps=0"]),
    "budget-null": ({"budget": {"steps": None}}, ["budget steps=None"]),
    "jobs-inside": ({"jobs": 3}, ["unknown key 'jobs'"]),
    "rollback": (
        {"methods": {"sft": {}, "sasr": {"on_collapse": "rollback"}}},
        ["method sasr: on_collapse rollback", "test rows", "warn or sft"],
    ),
    "sparse-logs": ({"methods": {"sft": {}, "sasr": {"logging_steps": 10}}}, ["method sasr", "--logging_steps 1"]),
    # As many kinds of steps as the method before it, so that the rows are read once.
    "second-weights": (
        {"methods": {"static": {}, "sasr": {"reward_weights": [1.0, 1.0, 1.0]}}}, ["method sasr", "reward_weights"]
    ),
    "second-model": (
        {"methods": {"static": {}, "sasr": {"model_name_or_path": "./nowhere"}}}, ["method sasr", "./nowhere"]
    ),
    "second-held-out": (
        {"methods": {"static": {}, "sasr": {"tune": {"held_out_demonstrations": [4, 400]}}}},
        ["method sasr with held_out_demonstrations 400", "held_out_demonstrations"],
    ),
    "rollback-tuned": (
        {"methods": {"sasr": {"tune": {"on_collapse": ["warn", "rollback"]}}}},
        ["method sasr with on_collapse rollback", "test rows"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARE)
def test_recipes(error, name):
    section, fragments = COMPARE[name]
    recipe = {"task": "stories", "model_name_or_path": "tiny-llama", "sft_warmup_steps": 2, "max_steps": 4}
    recipe |= {"train_rows": 40, "exam_rows": 4, "compare": section}
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    message = error("--config", "r.yaml", "--output_dir", "out")
    assert [f for f in fragments if f not in message] == [], message
    assert os.listdir(".") == ["r.yaml"]


def test_settings_that_compare_gives_itself(error):
    for setting in ("max_seconds: 3", "warmup_from: x", "match_run: x"):
        Path("r.yaml").write_text(f"task: stories\n{setting}\n")
        assert "does not fit sasr compare" in error("--config", "r.yaml")


def test_a_method_that_is_there_twice(error):
    Path("r.yaml").write_text("task: stories\ncompare:\n  methods:\n    sft: {}\n    sasr: {}\n    sft: {}\n")
    assert "r.yaml:6: sft is given twice" in error("--config", "r.yaml")


def test_rollback_by_flag(error):
    """Its exams would choose checkpoints by the rows that decide the table."""
    lines = [json.dumps({"quiz": f"q{i}", "names": ["A", "B"], "solution": [True, False]}) for i in range(40)]
    Path("rows.jsonl").write_text("\n".join(lines))
    message = error(
        "--task", "kk", "--data", "rows.jsonl", "--model_name_or_path", "tiny-llama", "--budget", "steps=90",
        "--on_collapse", "rollback",
    )  # fmt: skip
    assert "on_collapse rollback" in message and "--on_collapse warn or sft" in message


def test_other_data_is_another_exam(error):
    for name in ("a", "b"):
        lines = [ROW.replace("1+1=", f"{name}{i}+1=") for i in range(40)]
        Path(f"{name}.jsonl").write_text("".join(lines))
    methods = {"sft": {}, "sasr": {"data": "b.jsonl"}}
    recipe = {"task": "jsonl", "data": "a.jsonl", "model_name_or_path": "tiny-llama", "sft_warmup_steps": 2}
    recipe |= {"max_steps": 4, "compare": {"methods": methods}}
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    assert "sasr and sft are examined on different rows" in error("--config", "r.yaml")


def test_a_home_that_no_shell_has_filled_in(error, monkeypatch):
    """transformers does, and so the runs would be elsewhere."""
    home = Path("home").resolve()
    monkeypatch.setenv("HOME", str(home))
    (home / "out").mkdir(parents=True)
    (home / "out" / "notes.txt").write_text("mine")
    Path("r.yaml").write_text("task: stories\noutput_dir: ~/out\n")
    for flags in (["--output_dir=~/out"], ["--config", "r.yaml"], ["--config=~/../r.yaml"]):
        assert f"{home}/out is not empty: choose another" in error(*flags, *STEPS[2:])
    (home / "out" / "comparison.yaml").write_text("{")
    assert f"{home}/out/comparison.yaml:" in error("--output_dir=~/out", "--resume_from_checkpoint")
    assert sorted(os.listdir(".")) == ["home", "r.yaml"]


@pytest.mark.parametrize("value", ["7", "0", "2026-01-31", "[out]"])
def test_an_output_dir_that_is_no_text(error, value):
    Path("r.yaml").write_text(f"task: stories\noutput_dir: {value}\n")
    message = error("--config", "r.yaml", *STEPS[2:])
    assert "r.yaml: output_dir is " in message and "must be text" in message
    assert os.listdir(".") == ["r.yaml"]


def test_directories(error):
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    assert "out is not empty: choose another" in error(*STEPS)
    assert os.listdir("out") == ["notes.txt"]
    Path("out/comparison.yaml").write_text("task: stories\ncompare: {budget: steps=3}\n")
    message = error(*STEPS, "--methods", "sft")
    assert "out holds another comparison" in message and "compare.budget: steps=3 then, steps=4 now" in message
    recipe = {"task": "stories", "compare": {"methods": {"sft": {"schedule": "sft", "seeds": [1, 4]}}}}
    Path("out/comparison.yaml").write_text(yaml.safe_dump(recipe))
    assert "compare.methods.sft.seeds: [1, 4] then, [1, 2, 3] now" in error(*STEPS, "--methods", "sft", "sasr")
    Path("out/comparison.yaml").write_text("{")
    assert "out/comparison.yaml cannot be read" in error(*STEPS)


def test_training_by_the_recipe_of_a_comparison(capsys):
    recipes = sorted(path.stem for path in RECIPES.glob("compare-*.yaml"))
    assert recipes == ["compare-ahead", "compare-stories", "compare-study", "compare-switch"]
    for recipe in recipes:
        status = sasr.cli.main(["train", "--config", recipe, "--output_dir", "run"])
        message = checked(status, *capsys.readouterr())
        assert f"use sasr compare --config {recipe}" in message


def test_recipes_are_those_of_the_task():
    """They differ from the recipe of the task in what a shorter run with smaller steps needs, and in nothing else."""
    smaller = {"sft_warmup_steps", "learning_rate", "per_device_train_batch_size", "mu_decay_steps", "hint_steps"}
    base = read_recipe("stories")
    for path in RECIPES.glob("compare-*.yaml"):
        recipe = read_recipe(path.stem)
        assert recipe.pop("compare")["budget"].startswith("steps=")
        own = set()
        if path.stem == "compare-study":
            # Levels to order, and groups without a spread: with a reward for the format there are none.
            assert recipe.pop("task_options") == {"steps": [1, 2, 3, 4, 5]} and recipe["schedule"] == "sasr"
            own = {"reward_weights", "exam_rows", "schedule"}
        assert {k: v for k, v in recipe.items() if k not in smaller | own} == {
            k: v for k, v in base.items() if k not in {"schedule", "max_steps", *smaller, *own}
        }


def test_help(capsys):
    assert sasr.cli.main(["compare", "--help"]) == 0
    assert "--baseline" in capsys.readouterr().out
    assert sasr.cli.main(["--help"]) == 0
    assert "sasr compare" in capsys.readouterr().out


def test_not_under_torchrun(error, monkeypatch):
    monkeypatch.setattr(sasr.cli, "_leave", lambda status: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in error(*STEPS)


def test_methods_of_other_seeds_ask_the_same_rows_of_a_seed():
    """Stories are made by the seed: those of seed 2 are others than those of seed 1, for each method alike."""
    for seeds in ("2-8", "4-5"):  # with a seed in common, and without
        methods = {"sft": {}, "sasr": {"seeds": seeds}}
        recipe = {"task": "stories", "model_name_or_path": "tiny-llama", "sft_warmup_steps": 2, "train_rows": 40}
        recipe |= {"exam_rows": 4, "compare": {"budget": "steps=4", "seeds": "1-3", "methods": methods}}
        digests, _ = check_runs(read(recipe, "r.yaml", {}, {}))
        assert len(digests) == 2, "sft reads no answers"
