"""Settings and checkpoints' fingerprints, without a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import sasr.setting_checks
from sasr import InputError, SASRConfig, TaskConfig, checkpoints, train_help
from sasr.errors import RunFailed
from sasr.parsing import RECIPES, Parser, parse, read_recipe, recipe_path
from sasr.run import config_text
from sasr.schedules import SCHEDULES, ChordMu, Hpt, Luffy, Random, Sasr, Static, Uft


def config(**changes) -> SASRConfig:
    return SASRConfig(**{"output_dir": "unused", "sft_warmup_steps": 4, "max_steps": 10, "use_cpu": True, **changes})


def test_defaults_that_follow_others():
    given = config(learning_rate=3e-4, per_device_train_batch_size=16)
    assert (given.sft_learning_rate, given.sft_hybrid_learning_rate) == (3e-4, 3e-4)
    assert given.per_device_sft_batch_size == 16
    assert config(sft_learning_rate=1e-3).sft_hybrid_learning_rate == 1e-3
    assert (given.bf16, given.gradient_checkpointing, given.logging_steps) == (False, False, 1)


def test_bf16_can_be_asked_for_without_an_accelerator():
    """transformers refuses it unless use_cpu is set too."""
    given = config(bf16=True, use_cpu=False)
    assert given.bf16 and given.use_cpu != torch.accelerator.is_available()
    assert not config(use_cpu=False).use_cpu


def test_task_options_from_flag_and_recipe(tmp_path):
    """In config.yaml, where a resumed run and an exam read them, they are a mapping either way."""
    flags = ["--output_dir", "unused", "--use_cpu"]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("task_options: {steps: [1, 2]}\nsft_warmup_steps: 4\nmax_steps: 10\n")
    for given in (["--task_options", '{"steps": [1, 2]}'], ["--config", str(recipe)]):
        settings = parse([*flags, *given])
        assert settings.task.task_options == {"steps": [1, 2]}
        written = yaml.safe_load(config_text(settings))
        assert written["task_options"] == {"steps": [1, 2]}
        assert parse(flags, defaults=written).task.task_options == {"steps": [1, 2]}
    assert "task_options" not in yaml.safe_load(config_text(parse(flags)))


def test_schedules_take_their_settings():
    assert config(schedule="random", sft_share=0.2).build_schedule() == Random(0.2)
    chord = config(schedule="chord_mu", mu_peak=0.5, mu_valley=0.1, mu_decay_steps=7).build_schedule()
    assert chord == ChordMu(0.5, 0.1, 7)
    assert config(gamma=2.0, divergence_weight=0.3).build_schedule() == Sasr(2.0, 0.3, 0.1)
    assert config(schedule="hpt", hpt_gate=2).build_schedule() == Hpt(2)
    assert config(schedule="luffy", luffy_shaping=0.5).build_schedule() == Luffy(0.5)
    assert config(schedule="uft", hint_steps=7, hint_weight=0.2).build_schedule() == Uft(7, 0.2)
    assert config(schedule="static").build_schedule() == Static(switch_step=4)
    assert config(schedule="static", switch_step=7).build_schedule() == Static(switch_step=7)
    fields = SASRConfig.__dataclass_fields__
    for name, (_, settings) in SCHEDULES.items():
        assert all(setting in fields for setting in settings), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "sasrr"}, "unknown schedule 'sasrr': .*did you mean sasr"),
        ({"gamma": 0.0}, "gamma is 0.0: it must be a number above 0"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma": True}, "gamma is True"),
        ({"sft_warmup_steps": 0}, "set sft_warmup_steps to 1 or more"),
        ({"sft_warmup_steps": -1}, "sft_warmup_steps is -1"),
        ({"sft_warmup_steps": 11}, "longer than the run"),
        ({"schedule": "static", "sft_warmup_steps": 0}, "static needs"),
        ({"switch_step": 5}, "switch_step is a setting of schedule static, not of sasr"),
        ({"sft_share": 0.3}, "sft_share is a setting of schedule random, not of sasr"),
        ({"schedule": "chord_mu", "gamma": 2.0}, "gamma is a setting of schedule sasr, not of chord_mu"),
        ({"schedule": "chord_mu", "mu_peak": 1.2}, "mu_peak is 1.2: it must be between 0 and 1"),
        ({"schedule": "chord_mu", "mu_valley": -0.1}, "mu_valley is -0.1: it must be between 0 and 1"),
        ({"schedule": "chord_phi", "mu": 1.5}, "mu is 1.5: it must be between 0 and 1"),
        ({"schedule": "chord_mu", "mu_decay_steps": 0}, "mu_decay_steps is 0"),
        ({"sft_hybrid_learning_rate": -1e-3}, "sft_hybrid_learning_rate is -0.001"),
        ({"divergence_target": 0.0}, "divergence_target is 0.0: it must be a number above 0"),
        ({"useful_passes": -1.0}, "useful_passes is -1.0: it must be 0 or more"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0: it must be at least 0 and below 1"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}, "is not supported"),
        ({"schedule": "random", "sft_share": -0.1}, "sft_share is -0.1"),
        ({"schedule": "nowhere:Rule"}, "schedule 'nowhere:Rule': cannot import nowhere"),
        ({"schedule": "math:pi"}, "must be a schedule with plan"),
        ({"max_grad_norm": None}, "max_grad_norm is None"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"divergence_weight": 1.5}, "between 0 and 1"),
        ({"divergence_every": 0}, "divergence_every is 0"),
        ({"sft_norm_ema": 1.0}, "below 1"),
        ({"warmup_norm": "max"}, "unknown warmup_norm"),
        ({"reference_model": "final"}, "unknown reference_model"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"sft_learning_rate": -1e-3}, "sft_learning_rate is -0.001"),
        ({"per_device_sft_batch_size": 0}, "per_device_sft_batch_size is 0"),
        ({"schedule": "hpt", "hpt_gate": -1}, r"hpt_gate is -1: it must be between 0 and num_generations - 1 \(7\)"),
        ({"schedule": "hpt", "hpt_gate": 8}, r"hpt_gate is 8: it must be between 0 and num_generations - 1 \(7\)"),
        ({"hpt_gate": 2}, "hpt_gate is a setting of schedule hpt, not of sasr"),
        ({"schedule": "luffy", "luffy_shaping": 0.0}, "luffy_shaping is 0.0: it must be a number above 0"),
        ({"schedule": "luffy", "loss_type": "dr_grpo"}, "one mean over the tokens.*one of dapo, cispo, vespo"),
        ({"schedule": "hpt", "luffy_shaping": 0.2}, "luffy_shaping is a setting of schedule luffy, not of hpt"),
        ({"schedule": "uft", "hint_steps": 0}, "hint_steps is 0: it must be 1 or more"),
        ({"schedule": "uft", "hint_weight": -0.1}, "hint_weight is -0.1: it must be 0 or more"),
        ({"schedule": "uft", "hint_weight": float("inf")}, "hint_weight is inf"),
        ({"hint_steps": 5}, "hint_steps is a setting of schedule uft, not of sasr"),
        ({"sft_questions": "fialed"}, "unknown sft_questions 'fialed'.*did you mean failed"),
        ({"schedule": "grpo", "sft_questions": "failed"}, "schedule grpo, which takes no SFT steps: set it to all"),
        ({"schedule": "sft", "sft_questions": "failed"}, "schedule sft, which makes no rollouts"),
        ({"schedule": "static", "sft_questions": "failed"}, "takes no SFT step after a rollout"),
        ({"schedule": "hpt", "sft_questions": "failed"}, "hpt, which chooses demonstrations by the rollouts"),
        ({"failed_decay": 0.5}, "failed_decay says which failed questions.*set sft_questions failed"),
        ({"schedule": "alternate", "failed_threshold": 0.5}, "failed_threshold says which"),
        ({"sft_questions": "failed", "failed_threshold": 1.0}, "failed_threshold is 1.0.*at least 0 and below 1"),
        ({"sft_questions": "failed", "failed_decay": -0.1}, "failed_decay is -0.1.*between 0 and 1"),
        ({"flat_groups": "drop"}, "unknown flat_groups 'drop'.*keep, skip, resample"),
        ({"flat_groups": "skip", "beta": 0.1}, "with beta a group without a spread.*set beta to 0.0, or"),
        ({"flat_groups": "skip", "entropy_coef": 0.1}, "with entropy_coef a group"),
        ({"flat_groups": "resample", "top_entropy_quantile": 0.5}, "top_entropy_quantile to 1.0"),
        ({"flat_groups": "skip", "use_adaptive_entropy": True}, "with use_adaptive_entropy a group"),
        ({"flat_groups": "resample", "scale_rewards": "batch"}, "advantages within groups"),
        ({"flat_groups": "resample", "multi_objective_aggregation": "normalize_then_sum"}, "within groups"),
        ({"schedule": "luffy", "flat_groups": "resample"}, "luffy studies flat groups too"),
        ({"curriculum": "hard_to_easy"}, "unknown curriculum 'hard_to_easy'.*auto, none, easy_to_hard, adaptive"),
        (
            {"curriculum": "easy_to_hard", "max_seconds": 9.0, "lr_scheduler_type": "constant"},
            "max_seconds.*curriculum easy_to_hard is spread over all",
        ),
        ({"sft_norm_every": -1}, "sft_norm_every is -1: it must be 0 or more"),
        ({"sft_norm_every": None}, "sft_norm_every is None"),
        ({"schedule": "luffy", "multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        ({"match_run": "run"}, "match_run is for schedule random, in place of sft_share"),
        ({"schedule": "random", "sft_share": 0.3, "match_run": "run"}, "in place of sft_share: remove one"),
        (
            {"schedule": "random", "match_run": "nowhere"},
            "cannot read metrics file nowhere/metrics.jsonl: No such file",
        ),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2, "num_generations": 4}, "divide one another"),
        ({"enable_jit_checkpoint": True}, "in the middle of a step.*set it to false; sasr train saves at SIGTERM"),
        ({"bf16_full_eval": True}, "bf16_full_eval leaves the model on the CPU.*set it to false"),
        ({"fp16_full_eval": True}, "fp16_full_eval leaves the model on the CPU.*set it to false"),
        ({"optim": "lomo"}, "optim lomo moves the weights in the backward pass.*set it to another"),
        ({"optim": "adalomo"}, "optim adalomo moves the weights in the backward pass"),
        ({"optim": "galore_adamw_layerwise"}, "optim galore_adamw_layerwise moves the weights in the backward pass"),
        (
            {"optim": "schedule_free_sgd", "separate_optimizer_states": True},
            "_free_sgd keeps weights.*optimizer_states to false",
        ),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_share_of_another_run(tmp_path):
    """Of its steps after the warm-up; where both losses acted, by p_sft."""
    lines = [
        {"step": 1, "phase": "warm-up", "kind": "sft", "p_sft": 1.0},
        {"step": 2, "phase": "hybrid", "kind": "sft", "p_sft": 0.4},
        {"step": 3, "phase": "hybrid", "kind": "grpo", "p_sft": 0.6},
        {"step": 4, "phase": "hybrid", "kind": "both", "p_sft": 0.25},
        {"step": 5, "phase": "hybrid", "kind": "both", "p_sft": 0.15},
    ]
    written = tmp_path / "metrics.jsonl"
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    matched = config(schedule="random", match_run=str(tmp_path))
    assert matched.build_schedule() == Random(pytest.approx(1.4 / 4))
    written.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match="has no steps after its warm-up, so no share of SFT"):
        config(schedule="random", match_run=str(tmp_path))


@pytest.mark.parametrize("changes", [{"train_rows": 0}, {"exam_rows": -1}, {"exam_samples": 0}])
def test_impossible_task_settings(changes):
    with pytest.raises(InputError, match="it must be"):
        TaskConfig(**changes)


def test_every_setting_of_ours_has_help_and_documentation():
    for cls in (SASRConfig, TaskConfig):
        for name in cls.__annotations__:
            assert cls.__dataclass_fields__[name].metadata.get("help"), name
            assert name in cls.__doc__, name


def test_the_help_is_that_of_the_parser():
    """It is made without TRL, from the source of `SASRConfig` and a list of TRL's settings."""
    actions, shown = Parser().actions(), {}
    for title, settings in train_help.groups().items():
        shown |= settings
        for name, (default, text) in settings.items():
            assert actions[name].default == default, name
            assert title in train_help.COMMON or actions[name].help == text, name
    assert {*SASRConfig.__annotations__, *TaskConfig.__dataclass_fields__} <= set(shown)
    assert f"{', '.join(SCHEDULES)}, or your own" in shown["schedule"][1]
    printed = train_help.train_help("usage")
    assert printed.startswith("usage") and all(f"--{name} " in printed for name in shown)
    assert "[initial warmup final]" in " ".join(printed.split())


def test_the_help_is_there_at_once():
    code = "import sys, sasr.cli; sasr.cli.main(['train', '--help']); sys.exit('trl' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0 and "--sft_warmup_steps" in finished.stdout, finished.stderr


TRAINING = [path for path in sorted(RECIPES.glob("*.yaml")) if not path.stem.startswith("compare-")]


@pytest.mark.parametrize("recipe", TRAINING, ids=lambda path: path.stem)
def test_recipes_parse(recipe, tmp_path):
    settings = parse(["--config", str(recipe), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"])
    assert settings.training.schedule == "sasr"
    assert settings.training.sft_warmup_steps < settings.training.max_steps
    assert settings.model.load_in_4bit == recipe.stem.startswith("qlora")
    assert settings.model.use_peft == ("lora" in recipe.stem)


def test_a_schedule_by_flag_takes_nothing_from_the_recipe_s_own(tmp_path):
    out = ["--config", "gsm8k", "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    out[1] = "paper"
    assert parse(out).training.gamma_schedule == "constant"
    assert parse([*out, "--schedule", "sasr"]).training.gamma_schedule == "constant"
    static = parse([*out, "--schedule", "static"]).training
    assert (static.schedule, static.gamma_schedule) == ("static", "cosine"), "the default"
    with pytest.raises(InputError, match="gamma_schedule is a setting of schedule sasr"):
        parse([*out, "--schedule", "static", "--gamma_schedule", "constant"])


def test_flags_override_the_recipe_and_the_task_chooses_it(tmp_path):
    out = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert parse([*out, "--gamma", "2.5"]).training.gamma == 2.5
    assert parse(out).task.task == "stories"
    assert parse([*out, "--task", "gsm8k"]).model.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
    for task in ("jsonl", "my_task.py:MyTask"):
        own = parse([*out, "--task", task, "--sft_warmup_steps", "1"])
        assert own.task.task == task and own.model.model_name_or_path is None, "as in the recipe for one's own, but:"
        assert (own.training.sft_warmup_steps, own.training.reward_weights) == (1, [1.0, 0.1])
        questions = own.training.generation_batch_size // own.training.num_generations
        assert (questions, own.training.sft_learning_rate, own.training.lr_scheduler_type) == (8, 1e-5, "constant")


def test_epochs_that_a_recipe_s_steps_would_overrule_are_refused(tmp_path):
    """transformers goes by max_steps then, and says nothing."""
    out = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--num_train_epochs", "3"]
    message = r"num_train_epochs 3 does not count beside max_steps 700 \(recipe stories\): give --max_steps -1 too"
    with pytest.raises(InputError, match=message):
        parse(out)
    with pytest.raises(InputError, match="beside max_steps 20: give"):
        parse([*out, "--max_steps", "20", "--sft_warmup_steps", "2"])
    settings = parse([*out, "--max_steps", "-1"])
    assert (settings.training.max_steps, settings.training.num_train_epochs) == (-1, 3)


def test_a_mapping_given_as_json_is_a_mapping_in_config_yaml(tmp_path):
    """`sasr exam` reads it there, for the chat template of the run."""
    flags = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    settings = parse([*flags, "--chat_template_kwargs", '{"enable_thinking": false}'])
    assert yaml.safe_load(config_text(settings))["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("given", ["flags", "list", "one"])
def test_several_trackers(tmp_path, monkeypatch, given):
    monkeypatch.setattr(sasr.setting_checks, "check_report_to", lambda args: None)
    flags = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    names = ["tensorboard"] if given == "one" else ["tensorboard", "trackio"]
    if given == "flags":
        settings = parse([*flags, "--report_to", *names, "--max_steps", "300"])
    else:
        recipe = {"report_to": names if given == "list" else names[0], "schedule": "grpo"}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        settings = parse([*flags, "--config", str(tmp_path / "r.yaml"), "--max_steps", "300"])
    assert settings.training.report_to == names
    assert yaml.safe_load(config_text(settings))["report_to"] == names
    assert parse([*flags, "--report_to", "none"]).training.report_to == []


def test_a_file_or_directory_with_the_name_of_a_recipe_is_not_that_of_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "stories").write_text("not: a recipe")
    assert recipe_path("gsm8k") == RECIPES / "gsm8k.yaml" and read_recipe("gsm8k")["task"] == "gsm8k"
    assert parse(["--output_dir", "run", "--use_cpu", "true"]).training.sft_warmup_steps == 250


def test_grpo_is_grpo_alone_whatever_warm_up_the_recipe_has(tmp_path):
    out = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    assert parse(out).training.sft_warmup_steps == 250
    assert parse([*out, "--schedule", "grpo"]).training.sft_warmup_steps == 0
    assert parse([*out, "--schedule", "static"]).training.sft_warmup_steps == 250
    assert parse([*out, "--schedule", "grpo", "--sft_warmup_steps", "9"]).training.sft_warmup_steps == 9


def test_fingerprint_ignores_where_and_how_often():
    one = checkpoints.fingerprint(config().to_dict())
    moved = config(output_dir="elsewhere", save_steps=7, report_to="none", per_device_eval_batch_size=3)
    assert checkpoints.fingerprint(moved.to_dict()) == one
    for changes in ({"gamma": 2.0}, {"learning_rate": 1e-3}, {"seed": 1}, {"temperature": 0.9}):
        assert checkpoints.fingerprint(config(**changes).to_dict()) != one


def test_a_run_may_go_on_without_what_has_been_refused_since():
    settings = config().to_dict()
    for had in ({"label_smoothing_factor": 0.1}, {"enable_jit_checkpoint": True}, {"bf16_full_eval": True}):
        assert checkpoints.fingerprint(settings | had) == checkpoints.fingerprint(settings)


def test_rows_digest_sees_contents_and_order():
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]
    digest = checkpoints.digest_rows(rows)
    assert digest == checkpoints.digest_rows([dict(reversed(row.items())) for row in rows])
    assert digest != checkpoints.digest_rows(rows[::-1])
    assert digest != checkpoints.digest_rows([rows[0], {**rows[1], "answer": "3"}])


def test_publish_replaces_and_leaves_nothing_behind(tmp_path):
    for text in ("old", "new"):
        staged = tmp_path / checkpoints.STAGING / "checkpoint-3"
        staged.mkdir(parents=True)
        (staged / "weights").write_text(text)
        (staged / checkpoints.STATE_FILE).write_text("{}")
        checkpoints.publish(staged, tmp_path / "checkpoint-3")
        assert (tmp_path / "checkpoint-3" / "weights").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def test_last_checkpoint_is_the_newest_whole_one(tmp_path):
    for step in (5, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 100:
            (tmp_path / f"checkpoint-{step}" / checkpoints.STATE_FILE).write_text("{}")
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-20"
    assert checkpoints.last_checkpoint(tmp_path / "nothing") is None


def published(run: Path, step: int) -> Path:
    staged = run / checkpoints.STAGING / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "weights").write_bytes(bytes(range(256)) * step)
    (staged / checkpoints.STATE_FILE).write_text("{}")
    checkpoints.publish(staged, run / staged.name)
    return run / staged.name


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file.unlink(), "missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "cut short"),
        (lambda file: file.write_bytes(file.read_bytes() + b"0"), "longer than it was"),
        (lambda file: file.write_bytes(b"1" + file.read_bytes()[1:]), "damaged (its checksum is another)"),
    ],
    ids=["missing", "short", "long", "flipped"],
)
def test_newest_whole_checkpoint(tmp_path, change, problem):
    old, new = published(tmp_path, 2), published(tmp_path, 10)
    said: list[str] = []
    assert checkpoints.newest_whole(tmp_path, said.append) == new and said == []
    change(new / "weights")
    assert checkpoints.newest_whole(tmp_path, said.append) == old
    assert said == [f"checkpoint-10 is passed over: {new / 'weights'} is {problem}"]
    change(old / "weights")
    with pytest.raises(InputError, match=r"^no checkpoint of .* is whole; .*checkpoint-2/weights is"):
        checkpoints.newest_whole(tmp_path, said.append)
    assert checkpoints.newest_whole(tmp_path / "nothing", said.append) is None


def test_checkpoints_of_earlier_versions_are_whole_by_size(tmp_path):
    (checkpoint := published(tmp_path, 2)).joinpath(checkpoints.MANIFEST).write_text('{"weights": 512}')
    checkpoints.check_whole(checkpoint)
    (checkpoint / "weights").write_bytes(b"")
    with pytest.raises(InputError, match="cut short"):
        checkpoints.check_whole(checkpoint)


def test_what_fails_to_be_written_is_told_and_nothing_else(tmp_path):
    for error in (OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:603]")):
        told = pytest.raises(RunFailed, match=r"^checkpoint-3 cannot be written to .* \([\d,]+ MB free\): ")
        with told, checkpoints.writing("checkpoint-3", tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="a mistake in the code"), checkpoints.writing("checkpoint-3", tmp_path):
        raise RuntimeError("a mistake in the code")


def test_processes_that_would_not_train_together(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes .* add --use_cpu true"):
        SASRConfig(output_dir=str(tmp_path), report_to="none", schedule="sft")
