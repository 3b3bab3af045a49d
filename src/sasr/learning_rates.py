"""Learning rates of their own for SFT in the warm-up, SFT after it, and GRPO, under one shape.

The shape of `lr_scheduler_type` spans the steps after the warm-up. In the warm-up the rate is constant: a decaying one
would make the warm-up's gradient norm, the scale of SASR's rule, meaningless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LambdaLR

from .errors import InputError

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def begin_after_warmup(trainer: SASRTrainer, scheduler: LambdaLR) -> None:
    """Shift a scheduler's shape to begin after the warm-up. Raises `InputError` if it is no function of the step."""
    if not isinstance(scheduler, LambdaLR):
        raise InputError(f"lr_scheduler_type {trainer.args.lr_scheduler_type} depends on its history: use another")
    if getattr(scheduler, "begins_after_warmup", False):
        return  # the user's own, which transformers keeps where the same trainer goes on
    warmup, shapes = trainer.warmup, scheduler.lr_lambdas
    scheduler.lr_lambdas = [lambda step, shape=shape: shape(max(step - warmup.bound, 0)) for shape in shapes]
    scheduler.begins_after_warmup = True


def apply(trainer: SASRTrainer) -> None:
    """Set the optimizer's learning rate for the step that is planned."""
    args, step = trainer.args, trainer.state.global_step
    rate, shaped = args.learning_rate, True
    if trainer.plan.kind == "sft":
        shaped = step >= trainer.warmup.bound
        rate = args.sft_hybrid_learning_rate if trainer.warmup.annealing(step) else args.sft_learning_rate
    scheduler = trainer.lr_scheduler
    for group, shape in zip(trainer.optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        # `initial_lr` is learning_rate unless the user's own optimizer gave groups rates of their own: keep ratios.
        scale = rate / args.learning_rate
        group["lr"] = group["initial_lr"] * scale * (shape(scheduler.last_epoch) if shaped else 1.0)
