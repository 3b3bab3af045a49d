"""What an optimizer step changes besides weights and moments: part of every checkpoint, and what a step that failed is
undone with.

A step that runs out of memory, whose vLLM server is gone or whose rule raises an error has drawn rows and random
numbers, but has not changed a weight. With what it drew put back, the checkpoint of the step before can still be
written, and a run that is gone on with from there is the run that nothing happened to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from . import randomness
from .checkpoints import last_checkpoint, step_of

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def collect(trainer: SASRTrainer) -> dict[str, Any]:
    """JSON-safe, the same on all ranks; it may share parts with the trainer."""
    return {
        **rows(trainer),
        "warmup": trainer.warmup.state_dict(),
        "signals": trainer.tracker.state_dict(),
        "asked": trainer.selection.asked,
        "asked_before": trainer.selection.asked_before,
        "outcomes": trainer.selection.outcomes,
        "counts": trainer.counts,
        "watch": trainer.watch.state_dict(),
        "budget": trainer.budget.state_dict(),
        "work": trainer.work.state_dict(),
        "costs": trainer.costs.state_dict(),
    }


def load(trainer: SASRTrainer, state: Mapping[str, Any]) -> None:
    """Take over what `collect` gave. Checkpoints of earlier versions lack what has a default here."""
    load_rows(trainer, state)
    trainer.warmup.load_state_dict(state.get("warmup", {}))
    trainer.watch.load_state_dict(state.get("watch", {}))
    trainer.tracker.load_state_dict(state["signals"])
    for name in ("asked", "asked_before", "outcomes"):
        setattr(trainer.selection, name, state.get(name, []))
    trainer.counts.update({"demonstrations": state["sft_position"]} | state["counts"])
    trainer.budget.load(state)
    trainer.work.load_state_dict(state.get("work", {}))
    trainer.costs.load_state_dict(state.get("costs", {}))
    # What a step had gathered that an interruption ended, where the same trainer goes on.
    trainer.sft_sums.zero_()
    trainer.work.begin_step()
    trainer._entropy_window_stats = None


def rows(trainer: SASRTrainer) -> dict[str, Any]:
    """Which rows come next. JSON-safe."""
    return {
        "sft_position": trainer.sft_stream.position,
        "rl_position": trainer.rl_stream.position,
        **trainer.selection.state_dict(),
        "curriculum": None if trainer.curriculum is None else trainer.curriculum.state_dict(),
    }


def load_rows(trainer: SASRTrainer, state: Mapping[str, Any]) -> None:
    """Take over what `rows` gave."""
    trainer.sft_stream.position, trainer.rl_stream.position = state["sft_position"], state["rl_position"]
    trainer.selection.load_state_dict(state)
    # Checkpoints of earlier versions, and those at the end of a warm-up without a curriculum, lack it.
    if trainer.curriculum is not None and state.get("curriculum") is not None:
        trainer.curriculum.load_state_dict(state["curriculum"])


class BeforeStep(TrainerCallback):
    """Keeps the state of the beginning of a step until the step changes the weights.

    Args:
        trainer ([`SASRTrainer`]): The trainer it serves and adds itself to.
    """

    def __init__(self, trainer: SASRTrainer):
        self.trainer = trainer
        self._kept: tuple[Any, ...] | None = None
        args = trainer.args
        # One of several processes cannot write a checkpoint alone, and rollouts made ahead are not made again.
        sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        self._applies = args.world_size == 1 and not sharded and not args.rollouts_ahead
        trainer.add_callback(self)

    def begin(self) -> None:
        """The next step begins: keep what it will change."""
        trainer = self.trainer
        if self._applies:
            self._kept = (
                json.dumps(collect(trainer)),
                {name: list(values) for name, values in trainer._metrics["train"].items()},
                (trainer._step, trainer._tr_loss.clone(), trainer.current_flos, trainer.state.num_input_tokens_seen),
                trainer.reference.probe,
                randomness.state(trainer.accelerator.device),
                (trainer.entropy_coef, trainer._last_world_entropy, trainer._entropy_window_stats),
            )

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._kept = None

    def save(self) -> None:
        """After an error: write the checkpoint of the step before the one that failed, unless nothing is kept, or it is
        there."""
        trainer, kept, step = self.trainer, self._kept, self.trainer.state.global_step
        self._kept = None
        newest = last_checkpoint(trainer.args.output_dir)
        if kept is None or not step or (newest is not None and step_of(newest) >= step):
            return
        state, metrics, numbers, trainer.reference.probe, randoms, entropy = kept
        load(trainer, json.loads(state))
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(metrics)
        trainer._step, trainer._tr_loss, trainer.current_flos, trainer.state.num_input_tokens_seen = numbers
        trainer.entropy_coef, trainer._last_world_entropy, trainer._entropy_window_stats = entropy
        randomness.restore(randoms, trainer.accelerator.device)
        trainer.model.zero_grad()
        trainer._save_checkpoint(trainer.model, None)
        trainer.tell(f"step {step + 1} failed: all that was before it is saved in checkpoint-{step}")
