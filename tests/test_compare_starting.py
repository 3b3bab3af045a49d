"""What the runs of a comparison are started with, and what is cleared away for one that begins anew."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from refusals import error_of
from sasr import InputError, locks
from sasr.compare import starting
from sasr.compare.check import check_earlier_runs
from sasr.compare.measures import is_finished
from sasr.compare.plan import Comparison, Run
from sasr.compare.reading import read
from sasr.flags import set_environment

SETTINGS = {"task": "stories", "sft_warmup_steps": 4, "max_steps": 10, "learning_rate": 1e-4}
SETTINGS |= {"model_name_or_path": "tiny-llama", "lr_scheduler_type": "constant", "use_cpu": True}


def comparison(section=None, **settings):
    return read({**SETTINGS, **settings, "compare": section or {}}, "r.yaml", {}, {})


def final(made, name):
    return next(run for run in made.runs({}) if run.path == f"runs/{name}/seed-1")


@pytest.mark.parametrize("tuned", [False, True])
def test_a_matched_share_is_one_of_steps(tuned):
    """As it is measured, whatever the method that it is of takes p for."""
    sasr = {"tune": {"share_of": ["flops", "seconds"]}} if tuned else {}
    section = {"methods": {"sasr": sasr, "random": {"match_run": "sasr"}}}
    made = comparison(section, **({} if tuned else {"share_of": "flops"}))
    runs = {run.path: run for run in made.runs({"sasr": {"share_of": "seconds"}} if tuned else {})}
    random, sasr = runs["runs/random/seed-1"], runs["runs/sasr/seed-1"]
    assert random.settings["share_of"] == "steps" and random.warmup == sasr.warmup is not None
    assert sasr.settings["share_of"] == ("seconds" if tuned else "flops")
    section["methods"]["random"]["share_of"] = "flops"
    with pytest.raises(InputError, match="share of SFT of sasr, of its steps: remove share_of"):
        comparison(section)


def test_the_date_in_prompts_is_that_of_the_runs_before(tmp_path):
    made = comparison({"methods": ["grpo", "sft"]})
    runs = made.runs({})
    (tmp_path / runs[-1].path).mkdir(parents=True)
    dated = {"chat_template_kwargs": {"date_string": "03 Feb 2031", "other": 1}}
    (tmp_path / runs[-1].path / "config.yaml").write_text(yaml.safe_dump(dated))
    recipe = starting.recipe_of(runs[0], tmp_path, {}, runs, False)
    assert recipe["chat_template_kwargs"] == {"date_string": "03 Feb 2031"}
    own = Run("runs/x/seed-1", "final", "x", 1, {"chat_template_kwargs": {"date_string": "26 Jul 2024"}})
    recipe = starting.recipe_of(own, tmp_path, {}, runs, False)
    assert recipe["chat_template_kwargs"] == {"date_string": "26 Jul 2024"}
    assert "chat_template_kwargs" not in starting.recipe_of(runs[0], tmp_path, {}, runs[:1], False)


def test_a_device_of_ones_own_is_not_the_recipes(tmp_path):
    run = Run("runs/x/seed-1", "final", "x", 1, {"env": {"CUDA_VISIBLE_DEVICES": "1,2", "A": "b"}})
    assert starting.recipe_of(run, tmp_path, {}, [], True)["env"] == {"A": "b"}
    assert starting.recipe_of(run, tmp_path, {}, [], False)["env"] == run.settings["env"]


def test_a_finished_run_whose_exam_is_lost_is_not_trained_anew(tmp_path):
    run = Run("runs/x/seed-1", "final", "x", 1, {})
    where = tmp_path / run.path
    where.mkdir(parents=True)
    (where / "model.safetensors").touch()
    (where / locks.LOCK_FILE).write_text("finished")
    assert "has the model.safetensors of a finished run" in error_of(starting.clear, tmp_path, run)
    assert (where / "model.safetensors").is_file()
    (where / "exam.json").write_text('{"final": ')
    assert is_finished(tmp_path, run), "what cannot be read is not nothing: the figures say what is wrong"
    (where / "exam.json").unlink()
    (where / "model.safetensors").unlink()
    starting.clear(tmp_path, run)
    assert not where.exists()


@pytest.mark.parametrize("said", ["sasr: error: it is so", "sasr: failed: it is so"])
def test_why_a_run_failed(tmp_path, said):
    (tmp_path / "log").write_text(f"before\n{said}\nwarning: leaked semaphore\n")
    assert starting.why(tmp_path / "log", 0, 1) == "it is so"
    assert starting.why(tmp_path / "log", len(f"before\n{said}\n"), 1) == "warning: leaked semaphore"


def test_runs_of_other_settings_by_the_same_name(tmp_path):
    """As when a default is another since they were made, which no comparison.yaml shows."""
    made = comparison({"methods": ["sasr", "static"], "budget": "seconds=9"}, share_of="auto")
    run = final(made, "sasr")
    where = tmp_path / run.path
    where.mkdir(parents=True)
    (where / "exam.json").write_text(json.dumps({"final": {}}))
    own = {"seed": 1, "warmup_from": "elsewhere", "chat_template_kwargs": {"date_string": "03 Feb 2031"}}
    (where / "config.yaml").write_text(yaml.safe_dump({**run.settings, **own}))
    check_earlier_runs(tmp_path, made)
    (where / "config.yaml").write_text(yaml.safe_dump({**run.settings, "share_of": "steps", "gamma": 2.0}))
    message = error_of(check_earlier_runs, tmp_path, made)
    assert "runs of method sasr were made with other settings" in message
    assert "share_of: steps then, seconds now" in message and "gamma: 2.0 then, 1.0 now" in message
    (where / "exam.json").unlink()
    check_earlier_runs(tmp_path, made)


def test_runs_of_another_model_or_exam_by_the_same_name(tmp_path):
    """Which no fingerprint has: a row of the table would be the mean of two models, or of two exams."""
    more = {"methods": {"sasr": {"tune": {"lora_r": [4, 8]}}}, "tune_seeds": 9}
    options = {"task_options": {"steps": 3, "api_key": "secret"}}
    settings = {"use_peft": True, "lora_alpha": 16, "exam_samples": 4, **options}
    made = comparison(more, **settings)
    run = next(r for r in made.runs({"sasr": {"lora_r": 8}}) if r.path == "runs/sasr/seed-1")
    where = tmp_path / run.path
    where.mkdir(parents=True)
    (where / "exam.json").write_text(json.dumps({"final": {}}))
    (where / "config.yaml").write_text(yaml.safe_dump(run.settings))
    check_earlier_runs(tmp_path, made)
    for name, then, now in (
        ("model_name_or_path", "tiny-llama", "tiny-qwen2"),
        ("lora_alpha", "16", "32"),
        ("exam_samples", "4", "8"),
        ("task_options.steps", "3", "2"),
    ):
        changed = {"task_options": {"steps": 2}} if "." in name else {name: int(now) if now.isdigit() else now}
        message = error_of(check_earlier_runs, tmp_path, comparison(more, **{**settings, **changed}))
        assert f"{name}: {then} then, {now} now" in message and "secret" not in message
    other_key = {"task_options": {"steps": 3, "api_key": "another"}}
    check_earlier_runs(tmp_path, comparison(more, **{**settings, **other_key}))
    # A setting that the version of then did not have, or that was None.
    (where / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in run.settings.items() if k != "exam_samples"}))
    check_earlier_runs(tmp_path, made)


def test_a_model_may_be_elsewhere_since_but_no_other_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/lm", "b/lm", "c/lm"):
        Path(name).mkdir(parents=True)
        Path(name, "model.safetensors").write_text("weights of b" if name[0] == "b" else "weights")
    for name in ("a/rows.jsonl", "c/rows.jsonl"):
        Path(name).write_text("{}")

    def made(folder: str) -> Comparison:
        return comparison({"methods": ["sasr"]}, model_name_or_path=f"{folder}/lm", data=f"{folder}/rows.jsonl")

    run = final(made("a"), "sasr")
    Path(run.path).mkdir(parents=True)
    Path(run.path, "exam.json").write_text(json.dumps({"final": {}}))
    absolute = {name: str(tmp_path / run.settings[name]) for name in ("model_name_or_path", "data")}
    Path(run.path, "config.yaml").write_text(yaml.safe_dump({**run.settings, **absolute}))
    check_earlier_runs(tmp_path, made("a"))
    check_earlier_runs(tmp_path, made("c"))  # a copy
    shutil.copy("a/rows.jsonl", "b")
    assert "model_name_or_path: " in error_of(check_earlier_runs, tmp_path, made("b"))
    Path("b/rows.jsonl").write_text("{ }")
    assert "data: " in error_of(check_earlier_runs, tmp_path, made("b"))
    shutil.rmtree("a")
    check_earlier_runs(tmp_path, made("c"))
    hub = comparison({"methods": ["sasr"]}, model_name_or_path="owner/lm", data="c/rows.jsonl")
    assert "owner/lm now" in error_of(check_earlier_runs, tmp_path, hub)


def test_variables_of_a_comparison_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("A", "STRAY"):
        monkeypatch.setenv(name, "before")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.yaml").write_text("env: {A: after}\n")
    (tmp_path / "config.yaml").write_text("env: {STRAY: after}\n")  # of something else
    monkeypatch.setenv("HOME", str(tmp_path))
    resumed = ["--output_dir", "out", "--resume_from_checkpoint"]
    for flags in (resumed, [resumed[2], *resumed[:2]], ["--output_dir=~/out", resumed[2]]):
        monkeypatch.setenv("A", "before")
        set_environment(["compare", *flags])
        assert (os.environ["A"], os.environ["STRAY"]) == ("after", "before")
    set_environment(["train", "--resume_from_checkpoint", "true", "--output_dir", "none"])
    assert os.environ["STRAY"] == "before"
