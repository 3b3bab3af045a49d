"""The SFT gradient norm without an SFT step (`sft_norm_every`): between SFT steps the last norm grows stale."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import Trainer
from trl import GRPOTrainer

from . import agreement, randomness, step_state
from .schedules import SFT_STEP
from .sft_loss import measured

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def before_step(trainer: SASRTrainer, count: int) -> None:
    """If the last norm is `sft_norm_every` steps old: the norm that the next SFT step, of `count` micro-batches, would
    have. Its demonstrations stay next in line, and no step is taken."""
    args, step = trainer.args, trainer.state.global_step
    age = step - max(trainer.tracker.norm_step, trainer.warmup.bound - 1)
    if not args.sft_norm_every or age <= args.sft_norm_every:
        return
    trainer.plan = replace(SFT_STEP, demonstrations=args.sft_questions)
    state = step_state.rows(trainer)
    batches = trainer.draw_batches(count, counted=False)
    step_state.load_rows(trainer, state)
    device, model = trainer.accelerator.device, trainer.model_wrapped
    with randomness.kept(device):
        # For dropout: transformers restores a checkpoint's random state only after this.
        randomness.seed((args.seed * 2**20 + step) * args.world_size + args.process_index, device)
        for i, batch in enumerate(batches):
            last = i == count - 1
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else trainer.accelerator.no_sync(model):
                Trainer.training_step(trainer, model, batch)  # GRPOTrainer's would move its cursor into the rollouts
    # The weights are those after the step before, so that a probe counts like an SFT step taken there.
    agreement.observe(trainer, step - 1, as_float(GRPOTrainer._get_grad_norm(trainer, model)))
    model.zero_grad()
    trainer.tracker.observe_likelihood(measured(trainer)[2])


def as_float(norm) -> float | None:
    """A gradient norm as transformers returns it, as a number."""
    if norm is None:
        return None
    if hasattr(norm, "full_tensor"):  # FSDP2 gives a DTensor
        norm = norm.full_tensor()
    return float(norm)
