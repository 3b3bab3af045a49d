"""A step that fails loses nothing that was trained before it, and says with what the run goes on."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

import toy
from sasr import InputError, host_memory, out_of_memory
from sasr.checkpoints import all_checkpoints, last_checkpoint
from sasr.cli import main
from test_resume import assert_same, build, outcome

STEPS = 14


def fail(trained, place: str, step: int, error: Exception) -> None:
    """Have the optimizer step with this index fail where it decides, at its last loss, or with all gradients there."""

    def broken(method):
        def replacement(*arguments, **options):
            result = method(*arguments, **options)
            # Of several micro-batches the last: what comes before it has been done.
            if trained.state.global_step == step and trained.accelerator.sync_gradients:
                raise error
            return result

        return replacement

    name = {"decision": "_decide", "loss": "compute_loss", "gradients": "_get_grad_norm"}[place]
    setattr(trained, name, broken(getattr(trained, name)))


@pytest.mark.parametrize(
    "variant",
    [
        "mid-rollout-buffer", "divergence-probe", "sparse-logs", "beta", "lora", "held-out", "failed-and-probed",
        "adaptive-and-resampled",
    ],
)  # fmt: skip
def test_a_run_that_fails_three_times_is_the_one_that_never_did(tmp_path, variant):
    build(tmp_path / "whole", variant, save_steps=STEPS).train()
    directory = tmp_path / "failing"
    for place, step in (("decision", 4), ("loss", 7), ("gradients", 11)):
        trained = build(directory, variant, save_steps=STEPS)
        fail(trained, place, step, ZeroDivisionError(place))
        with pytest.raises(ZeroDivisionError, match=place):
            trained.train(resume_from_checkpoint=last_checkpoint(directory))
        assert last_checkpoint(directory).name == f"checkpoint-{step}"
    build(directory, variant, save_steps=STEPS).train(resume_from_checkpoint=True)
    assert_same(outcome(directory, STEPS), outcome(tmp_path / "whole", STEPS))


def test_weights_that_may_be_half_changed_are_not_saved(tmp_path, monkeypatch):
    trained = build(tmp_path, "aligned", save_steps=5)
    step = torch.optim.AdamW.step

    def broken(self, *arguments, **options):
        step(self, *arguments, **options)
        if trained.state.global_step == 7:
            raise ZeroDivisionError

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(ZeroDivisionError):
        trained.train()
    assert [c.name for c in all_checkpoints(tmp_path)] == ["checkpoint-5"]


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    trained = toy.trainer(tmp_path)
    fail(trained, "decision", 0, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        trained.train()
    assert all_checkpoints(tmp_path) == []


# ---- in less memory ----


HALVES = {"per_device_train_batch_size": 4, "per_device_sft_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("changes", [{}, {"loss_type": "grpo"}, {"steps_per_generation": 2}], ids=str)
def test_a_run_goes_on_with_smaller_parts_of_its_batch(tmp_path, changes):
    """The same rollouts, losses and norms as with all rows at a time, but for rounding."""
    more = {"steps_per_generation": 4} if "steps_per_generation" in changes else {}
    changes = {"num_iterations": 1, "save_strategy": "steps", "save_steps": 6, **changes}
    whole = toy.trainer(tmp_path / "whole", **changes)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "parts" / "checkpoint-6")
    parts = toy.trainer(tmp_path / "parts", gradient_checkpointing=True, **{**changes, **HALVES, **more})
    parts.train(resume_from_checkpoint=True)
    keys = ("step", "grad_norm", "sasr/p_sft", "sasr/sft_loss", "reward", "sasr/rollout_tokens")
    expected, found = toy.history(whole, *keys), toy.history(parts, *keys)
    assert len(found) == len(expected) == 12
    assert {bool(line[3]) for line in expected[6:]} == {True, False}, "steps of both kinds"
    for a, b in zip(expected, found, strict=True):
        assert [v is None for v in a] == [v is None for v in b]
        assert [v or 0 for v in a] == pytest.approx([v or 0 for v in b], rel=1e-3, nan_ok=True)
    a, b = (load_file(tmp_path / name / "checkpoint-12" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {**HALVES, "gradient_accumulation_steps": 1}, "generation_batch_size: 8 then, 4 now"),
        # 16 demonstrations a step instead of 8.
        ({}, {**HALVES, "per_device_sft_batch_size": 8}, "per_device_train_batch_size: 8 then, 4 now"),
        ({"loss_type": "bnpo"}, HALVES, "gradient_accumulation_steps: 1 then, 2 now"),
        ({"top_entropy_quantile": 0.5}, HALVES, "gradient_accumulation_steps: 1 then, 2 now"),
        ({"entropy_coef": 0.01}, HALVES, "gradient_accumulation_steps: 1 then, 2 now"),
        ({"use_adaptive_entropy": True}, HALVES, "gradient_accumulation_steps: 1 then, 2 now"),
        # Rollouts wait that were cut for the old parts.
        ({"steps_per_generation": 4}, {**HALVES, "steps_per_generation": 8}, "gradient_accumulation_steps"),
    ],
)  # fmt: skip
def test_other_parts_are_refused_where_they_would_be_another_run(tmp_path, before, after, named):
    values = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "schedule": "grpo", "sft_warmup_steps": 0}
    toy.trainer(tmp_path, **values, **before).train()
    with pytest.raises(InputError, match=named):
        toy.trainer(tmp_path, **{**values, **before, **after}).train(tmp_path / "checkpoint-2")


def no_memory() -> RuntimeError:
    """What torch says, by itself, when there is none."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    return caught.value


@pytest.mark.parametrize(
    ("place", "said", "flags"),
    [
        ("loss", "step 8: not enough memory on {} for 8 rollouts at a time",
         "--gradient_checkpointing true --per_device_train_batch_size 4 --per_device_sft_batch_size 2 "
         "--gradient_accumulation_steps 2"),
        ("generation", "step 8: not enough memory on {} for 8 rollouts of up to 4 tokens at a time: fewer are", ""),
    ],
)  # fmt: skip
def test_what_is_said_of_too_little_memory(tmp_path, place, said, flags):
    trained = toy.trainer(tmp_path, schedule="static", per_device_sft_batch_size=4)
    if place == "loss":
        fail(trained, "loss", 7, no_memory())
    else:

        def full(*arguments):
            if trained.state.global_step == 7:
                torch.empty(1 << 60)

        trained.model.register_forward_pre_hook(full)  # the first pass of a GRPO step is its generation's
    with pytest.raises(RuntimeError) as caught:
        trained.train()
    assert out_of_memory.is_out_of_memory(caught.value)
    failure = out_of_memory.told(caught.value, trained, False)
    assert str(failure).startswith(said.format(trained.accelerator.device)) and failure.flags == flags


def test_smaller_parts_would_not_help_the_optimizer(tmp_path, monkeypatch):
    trained = toy.trainer(tmp_path)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *arguments: torch.empty(1 << 60))
    with pytest.raises(RuntimeError) as caught:
        trained.train()
    failure = out_of_memory.told(caught.value, trained, False)
    said = f"step 1: not enough memory on {trained.accelerator.device} for the optimizer's moments"
    assert str(failure).startswith(said) and not failure.flags


def test_no_flags_are_named_that_would_be_refused(tmp_path):
    for changes in ({"loss_type": "bnpo"}, {"steps_per_generation": 4}, {"per_device_sft_batch_size": 3}):
        trained = toy.trainer(tmp_path, **changes)
        assert out_of_memory.told(no_memory(), trained, False).flags == "--gradient_checkpointing true"
    trained = toy.trainer(tmp_path, gradient_accumulation_steps=2, steps_per_generation=1, gradient_checkpointing=True)
    assert out_of_memory.told(no_memory(), trained, True).flags.endswith("_steps 4 --steps_per_generation 2")
    trained.args.use_vllm, trained.args.vllm_mode = True, "colocate"
    assert "--vllm_enable_sleep_mode true" in out_of_memory.told(no_memory(), trained, False).flags
    trained.args.vllm_enable_sleep_mode = True
    assert "sleep" not in out_of_memory.told(no_memory(), trained, False).flags


# ---- on the command line ----

RULE = """
import pathlib, torch
from dataclasses import dataclass
from typing import ClassVar
from sasr import StepPlan

@dataclass(frozen=True)
class Greedy:
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals):
        if signals.step == 3 and pathlib.Path("short").exists():
            torch.empty(int(pathlib.Path("short").read_text()))
        if signals.step == 3 and pathlib.Path("wrong").exists():
            1 / 0
        return StepPlan(0.0, 1.0, 0.0)

    def uses(self, warmup_steps, total_steps):
        return True, True
"""
FLAGS = [
    *("--schedule", "rule.py:Greedy", "--train_rows", "40", "--exam_rows", "4", "--exam_at", "final"),
    *("--max_steps", "4", "--sft_warmup_steps", "2", "--per_device_train_batch_size", "8", "--output_dir", "run"),
    *("--per_device_sft_batch_size", "4", "--num_generations", "4", "--max_completion_length", "8"),
    *("--lr_scheduler_type", "constant"),
]


@pytest.fixture
def place(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rule.py").write_text(RULE)
    return tmp_path


# The second is given by the system, had we not asked how much there is; on an accelerator we do not.
@pytest.mark.parametrize("numbers", [1 << 60] if toy.ON_DEVICE else [1 << 60, 1 << 29])
def test_the_command_says_what_to_go_on_with_and_that_works(place, capsys, monkeypatch, numbers):
    monkeypatch.setattr(host_memory, "available", lambda: 1 << 30)
    (place / "short").write_text(str(numbers))
    assert main(["train", *FLAGS]) == 1
    error = capsys.readouterr().err
    told = "checkpoint-3 is safe; go on with: sasr "
    said = f"sasr: failed: step 4: not enough memory on {PartialState().device} for "
    assert error.startswith(said) and error.count("\n") == 1, error
    assert told in error
    again = error.rpartition(told)[2].split()
    assert again[-6:] == [
        *("--per_device_train_batch_size", "4", "--per_device_sft_batch_size", "2"),
        *("--gradient_accumulation_steps", "2"),
    ]
    (place / "short").unlink()
    assert main(again) == 0
    lines = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((place / "run" / "exam.json").read_text())["final"]["step"] == 4


def test_an_error_of_ones_own_rule_keeps_its_traceback(place, capsys):
    (place / "wrong").touch()
    with pytest.raises(ZeroDivisionError) as caught:
        main(["train", *FLAGS])
    (note,) = caught.value.__notes__
    assert note.startswith("sasr: checkpoint-3 is safe; when this is mended, go on with: sasr train")
    (place / "wrong").unlink()
    capsys.readouterr()
    assert main(["train", "--output_dir", "run", "--resume_from_checkpoint"]) == 0


def test_an_exam_that_fails_after_a_step_leaves_the_step_saved(place, capsys, monkeypatch):
    import sasr.callbacks

    examine = sasr.callbacks.examine_rows

    def examine_rows(*arguments, **options):
        if (place / "full").exists():
            torch.empty(1 << 60)
        return examine(*arguments, **options)

    monkeypatch.setattr(sasr.callbacks, "examine_rows", examine_rows)
    (place / "full").touch()
    assert main(["train", *FLAGS, "--exam_every", "3", "--per_device_eval_batch_size", "8"]) == 1
    error = capsys.readouterr().err
    said = f"sasr: failed: exam at step 3: not enough memory on {PartialState().device} for 8 completions at a time"
    assert error.startswith(said), error
    assert error.endswith("--resume_from_checkpoint --per_device_eval_batch_size 4\n")
    (place / "full").unlink()
    assert main(error.rpartition("go on with: sasr ")[2].split()) == 0
    assert sorted(json.loads((place / "run" / "exam.json").read_text())) == ["final", "step-3"]


@pytest.mark.parametrize(
    ("flags", "less"),
    [
        ([], "--use_peft true --dtype bfloat16, with --load_in_4bit true too, or a smaller model"),
        (["--use_peft", "true"], "--dtype bfloat16, with --load_in_4bit true too, or a smaller model"),
        (["--use_peft", "true", "--dtype", "bfloat16"], "--load_in_4bit true, or a smaller model"),
    ],
    ids=["all weights", "adapter", "narrow base"],
)
@pytest.mark.parametrize("where", ["sasr.run.load_model", "sasr.trainer.SASRTrainer"])
def test_a_model_that_does_not_fit_is_told_in_one_line(place, capsys, monkeypatch, where, flags, less):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(where, full)
    assert main(["train", *FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    dtype = "bfloat16" if "bfloat16" in flags else "float32"
    size = rf", 0\.00\d+ GB in {dtype}" if "SASRTrainer" in where else ""
    said = f"sasr: error: model 'tiny-llama': not enough memory on {PartialState().device} for its weights"
    assert re.fullmatch(f"{re.escape(said)}{size}: use {re.escape(less)}\n", error), error
