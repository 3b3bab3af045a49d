"""What the trainer does about a step that cannot be used, and about GRPO that collapses ([`sasr.watch`])."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoints import all_checkpoints, step_of
from .errors import Diverged, InputError, require, unknown
from .schedules import SFT_STEP, StepPlan, draw
from .watch import WINDOW, Measured

if TYPE_CHECKING:
    from .config import SASRConfig
    from .trainer import SASRTrainer

Tell = Callable[[str], None]
ANSWERS = ("warn", "sft", "rollback")
_SFT_SHARE = 0.5  # at least, after a collapse
_SFT_STEPS = 2 * WINDOW  # for so many steps


def check_settings(args: SASRConfig) -> None:
    """Raise `InputError` for settings that cannot be."""
    require("max_skipped_steps", args.max_skipped_steps, lambda v: v >= 1, "1 or more")
    if args.on_collapse not in ANSWERS:
        raise unknown("on_collapse", args.on_collapse, ANSWERS)
    if args.on_collapse != "warn" and args.curriculum == "easy_to_hard":
        raise InputError(
            f"on_collapse {args.on_collapse} goes by the reward, which falls with every level of curriculum "
            "easy_to_hard: set one of them otherwise"
        )


def notes(args: SASRConfig, exam_split: str) -> list[str]:
    """A line to print if a rollback would choose by the exams that the run is judged by."""
    if args.on_collapse != "rollback" or exam_split != "test":
        return []
    return [
        "note: on_collapse rollback goes by the exams that are reported too, so after a rollback they flatter: with "
        "--validation_rows N --exam_split validation the test rows are left for the end (sasr exam --data)"
    ]


def before_step(trainer: SASRTrainer) -> None:
    """Give up, or go back to better weights, if the steps before ask for it. Raises [`Diverged`]."""
    watch, args = trainer.watch, trainer.args
    # DeepSpeed takes the step together with the backward pass: nothing is left to be skipped.
    most = 1 if trainer.is_deepspeed_enabled else args.max_skipped_steps
    if watch.skipped_in_a_row >= most:
        raise Diverged(_diagnosis(trainer))
    if watch.collapsed_at is None:
        return
    if args.on_collapse == "rollback":
        if trainer.generates_at(trainer._step):  # rollouts of the weights that are given up are not trained on
            _roll_back(trainer)
    elif args.on_collapse == "warn" or trainer.state.global_step >= watch.collapsed_at + _SFT_STEPS:
        watch.collapsed_at = None


def adjusted(trainer: SASRTrainer, plan: StepPlan) -> StepPlan:
    """The plan of a step: with `on_collapse="sft"` half of the GRPO steps after a collapse are SFT."""
    if trainer.args.on_collapse != "sft" or trainer.watch.collapsed_at is None or plan.kind != "grpo":
        return plan
    # A coin of its own: the schedule's has fallen already.
    p = max(_SFT_SHARE, plan.sft_probability)
    studies = draw(trainer.args.seed, trainer.state.global_step, "collapse") < _SFT_SHARE
    return replace(SFT_STEP if studies else plan, sft_probability=p)


def after_gradients(trainer: SASRTrainer, norm: float | None, sft_loss: float | None) -> None:
    """Judge the step whose gradients are there, and throw them away if they are no finite numbers.

    Args:
        trainer ([`SASRTrainer`]): Its metrics of this step are complete.
        norm (`float`, *optional*): Global gradient norm before clipping.
        sft_loss (`float`, *optional*): nats per token, of a step with demonstrations.
    """
    if _is_of_the_scaler(trainer, norm, sft_loss):
        return
    metrics, plan, step = trainer._metrics["train"], trainer.plan, trainer.state.global_step
    of_rollouts = {
        name: _mean_of_last(metrics, key, trainer.generations) if plan.grpo_weight else None
        for name, key in (
            ("reward", "reward"), ("flat", "frac_reward_zero_std"), ("cut", "completions/clipped_ratio"),
        )
    }  # fmt: skip
    for name, key in (("entropy", "entropy"), ("unsolved", "sasr/unsolved")):
        of_rollouts[name] = _mean_of_last(metrics, key) if plan.grpo_weight else None
    # A pull that grows begins and ends with p near 1 and 0 by itself.
    constant = trainer.args.schedule == "sasr" and trainer.args.gamma_schedule == "constant"
    adapts = constant and step >= trainer.warmup.bound
    seen = Measured(
        step=step + 1,
        kind=plan.kind,
        norm=norm,
        loss=sft_loss,
        sft_probability=plan.sft_probability if adapts else None,
        gets_harder=trainer.args.curriculum == "easy_to_hard",
        success=trainer.levels.success() if trainer.curriculum is None else {},
        **of_rollouts,
    )
    for text in trainer.watch.observe(seen):
        trainer.tell(text)
    if not seen.is_finite:
        for parameter in trainer.model.parameters():
            parameter.grad = None
    if trainer.watch.skipped:
        metrics["sasr/skipped_steps"] = [float(trainer.watch.skipped)]


def _is_of_the_scaler(trainer: SASRTrainer, norm: float | None, sft_loss: float | None) -> bool:
    """Whether gradients are no finite numbers because fp16's loss scaler tries out how far it can go; it skips such
    steps itself. A loss that is no number, or a scale that came to nothing, is not its doing."""
    if not trainer.args.fp16 or norm is None or math.isfinite(norm):
        return False
    return trainer.accelerator.scaler.get_scale() >= 1 and (sft_loss is None or math.isfinite(sft_loss))


def best_checkpoint(directory: Path, exams: dict, step: int) -> tuple[Path, float] | None:
    """The checkpoint, up to a step, of the run's best exam by sampled pass@1, and that; `None` if none is there."""
    found = [
        (exam["pass_at"]["1"], exam["step"])
        for exam in exams.values()
        if 0 < exam["step"] <= step and (directory / f"checkpoint-{exam['step']}").is_dir()
    ]
    if not found:
        return None
    score, best = max(found)
    return directory / f"checkpoint-{best}", score


def _mean_of_last(metrics: dict, key: str, count: int = 1) -> float | None:
    """Of the last values that are numbers: a generation of which no completion could be judged has none."""
    values = [value for value in (metrics.get(key) or [])[-count:] if not math.isnan(value)]
    return sum(values) / len(values) if values else None


def _roll_back(trainer: SASRTrainer) -> None:
    step, best = trainer.state.global_step, trainer.best_checkpoint()
    trainer.watch.collapsed_at = None
    if best is None:
        trainer.tell(f"step {step}: no exam with a checkpoint yet to go back to (exam_every)")
        return
    checkpoint, score = best
    trainer._load_from_checkpoint(str(checkpoint))
    optimizer: Any = trainer.optimizer
    if trainer.optimizer_states is not None:
        trainer.optimizer_states.clear()
    else:
        getattr(optimizer, "optimizer", optimizer).state.clear()  # under accelerate's wrapper
    trainer.watch.begin_again()
    trainer.ahead.outdate()
    trainer.tell(f"step {step}: back to the weights of {checkpoint.name}, the best exam so far (pass@1 {score:.3f})")


def _diagnosis(trainer: SASRTrainer) -> str:
    args, row, step = trainer.args, trainer.watch.skipped_in_a_row, trainer.state.global_step
    model = trainer.accelerator.unwrap_model(trainer.model)
    bad = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    # Not packed 4-bit weights, nor the empty shards of ZeRO-3.
    weighed = [p.detach() for p in model.parameters() if p.is_floating_point() and p.numel()]
    largest = max((float(p.abs().max()) for p in weighed), default=0.0)
    weights = f"and so are the weights ({bad})" if bad else f"the largest weight is {largest:.3g}"
    before = [c for c in all_checkpoints(args.output_dir) if step_of(c) <= step - row]
    start = f", from {before[0]} (--model_name_or_path)" if before else ""
    return (
        f"the gradients of {row} steps in a row, up to step {step}, were no finite numbers, {weights}, {model.dtype}: "
        f"lower the learning rates (SFT {args.sft_learning_rate:g}, then {args.sft_hybrid_learning_rate:g}; GRPO "
        f"{args.learning_rate:g}) or max_grad_norm ({args.max_grad_norm:g}), and begin a new run{start}"
    )
