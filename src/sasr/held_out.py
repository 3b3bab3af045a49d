"""Does SFT still teach what carries over? Demonstrations that SFT never sees tell it (`held_out_demonstrations`).

Every 5 steps the loss of as many demonstrations that SFT studies is measured beside that of those kept from it, by the
same weights. While SFT teaches the task both fall together. When it learns its demonstrations by heart only theirs goes
on falling: the ratio of the two, against what it was before the first step, is the share of SFT that carries over.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list

from .demonstrations import Demonstration, collate
from .errors import InputError, require
from .sft_loss import log_likelihoods
from .streams import RowStream
from .warmup import EVERY

if TYPE_CHECKING:
    from .config import SASRConfig
    from .schedules import Schedule
    from .trainer import SASRTrainer


def check_settings(args: SASRConfig, schedule: Schedule) -> None:
    """Raise `InputError` for settings that would measure nothing, or have nothing to measure with."""
    require("held_out_demonstrations", args.held_out_demonstrations, lambda v: v >= 0, "0 or more")
    if args.warmup_until == "held_out" and not args.held_out_demonstrations:
        raise InputError(
            "warmup_until held_out needs demonstrations kept from SFT: set held_out_demonstrations, for example 16"
        )
    if args.held_out_demonstrations and not args.kinds_of_steps(schedule)[0]:
        raise InputError(
            f"held_out_demonstrations are kept from SFT steps, and schedule {args.schedule} takes none: set it to 0"
        )


def kept_from_sft(prompts: Sequence[Hashable], args: SASRConfig) -> list[int]:
    """Which demonstrations are kept from SFT, by index into their prompts: those of one prompt all or none. Raises
    `InputError` if more would be kept than are left to study."""
    wanted = args.held_out_demonstrations
    if not wanted:
        return []
    of_prompt: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(i)
    groups, chosen = list(of_prompt.values()), list[int]()
    for i in RowStream(len(groups), args.seed + 3).take(len(groups)):
        if len(chosen) >= wanted:
            break
        chosen += groups[i]
    if 2 * len(chosen) > len(prompts):
        raise InputError(
            f"held_out_demonstrations ({wanted}) would keep {len(chosen)} of {len(prompts)} demonstrations from "
            "SFT: set it to at most half of them"
        )
    return sorted(chosen)


class HeldOut:
    """Measures both losses in one run.

    Args:
        trainer ([`SASRTrainer`]): The trainer it belongs to, with its rows collected.
        kept (`list[Demonstration]`): The demonstrations kept from SFT; may be none.
    """

    def __init__(self, trainer: SASRTrainer, kept: list[Demonstration]):
        self.trainer, self.kept = trainer, kept
        studied = RowStream(len(trainer.demonstrations), trainer.args.seed + 3)
        self.studied = [trainer.demonstrations[i] for i in studied.take(len(kept))]

    def before_step(self, step: int) -> None:
        """Called before each optimizer step with its index: has the tracker take both losses when it is time."""
        trainer = self.trainer
        if self.kept and step % EVERY == 0:
            losses = [self._loss(self.kept), self._loss(self.studied)]
            if trainer.args.world_size > 1:
                losses = broadcast_object_list(losses)
            trainer.tracker.observe_held_out(*losses)

    @torch.no_grad()
    def _loss(self, demonstrations: list[Demonstration]) -> float:
        """Negative log-likelihood, nats per completion token."""
        trainer, model = self.trainer, self.trainer.model
        was_training, size = model.training, trainer.args.per_device_sft_batch_size
        trainer.work.forward(sum(d.length for d in demonstrations) * trainer.args.world_size)  # all ranks do the same
        model.eval()  # no dropout: it would add noise and move the random state
        total = 0.0
        for start in range(0, len(demonstrations), size):
            batch = collate(demonstrations[start : start + size], trainer._tokenizer.pad_token_id)
            logps, _ = log_likelihoods(trainer, model, trainer._prepare_input(batch))
            total -= float(logps.sum())
        model.train(was_training)
        return total / sum(len(d.completion_ids) for d in demonstrations)
