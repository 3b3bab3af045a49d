"""Ending a run by what it has cost, wall-clock seconds or rollout tokens, rather than by its number of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from .errors import InputError

if TYPE_CHECKING:
    from .config import SASRConfig
    from .trainer import SASRTrainer

SETTINGS = ("max_seconds", "max_rollout_tokens")


def check_budget(args: SASRConfig, schedule: Any) -> None:
    """Raise `InputError` if a budget is set together with what needs to know the number of steps beforehand."""
    given = [name for name in SETTINGS if getattr(args, name) is not None]
    if not given:
        return
    unknown_end = f"with {given[0]} the number of steps is not known beforehand"
    shape = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if shape not in ("constant", "constant_with_warmup"):
        raise InputError(
            f"{unknown_end}, but lr_scheduler_type {shape} ends with the last one: set it to constant or "
            "constant_with_warmup"
        )
    if 0 < args.warmup_steps < 1:
        raise InputError(f"{unknown_end}, but warmup_steps {args.warmup_steps} is a share of them: give a number")
    if args.curriculum == "easy_to_hard":
        raise InputError(f"{unknown_end}, but curriculum easy_to_hard is spread over all: use another, or max_steps")
    name = type(schedule).__name__
    if getattr(schedule, "needs_progress", False) and args.max_rollout_tokens is not None:
        raise InputError(
            f"{name} goes from SFT to GRPO as the run goes on, but SFT spends nothing of max_rollout_tokens: take "
            "another schedule, for sasr gamma_schedule constant, or another budget"
        )
    if getattr(schedule, "needs_total_steps", False):
        raise InputError(f"{unknown_end}, but schedule {name} is spread over all of them: use another, or max_steps")


def depends_on_length(args: SASRConfig, schedule: Any) -> bool:
    """Whether what a step does depends on how far it is from the end, so that a longer run is another one from its
    first step on."""
    marks = ("needs_progress", "needs_total_steps")
    return args.curriculum == "easy_to_hard" or any(getattr(schedule, mark, False) for mark in marks)


class Budget(TrainerCallback):
    """Counts the seconds inside optimizer steps, and stops the run after the step in which a budget is spent.

    Args:
        trainer ([`SASRTrainer`]): The trainer it serves and adds itself to; its `budget_spent` is set.

    Attributes:
        seconds (`float`): Spent so far by this process, earlier parts of a resumed run included.
        step_seconds (`float`): Of them, those of the last step: its decision, its probes and all that follows.
        line_seconds (`float`): Of them, those of all steps of the last log, with `logging_steps` above 1 several.
        warmup_seconds (`float`): Of them, those of the warm-up.
    """

    def __init__(self, trainer: SASRTrainer):
        self.trainer = trainer
        self.seconds = self.step_seconds = self.line_seconds = self.warmup_seconds = 0.0
        self._unlogged = 0.0
        self._begun = 0.0
        check_budget(trainer.args, trainer.schedule)
        trainer.add_callback(self)

    def begin_step(self) -> None:
        """Start the clock of a step."""
        self._begun = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within this context is no part of the step."""
        left = time.monotonic()
        yield
        self._begun += time.monotonic() - left

    def on_step_end(self, args, state, control, **kwargs):
        self.step_seconds = time.monotonic() - self._begun
        self.seconds += self.step_seconds
        self._unlogged += self.step_seconds
        self.trainer.work.add_seconds(self.step_seconds)
        self.trainer.costs.observe(self.trainer.plan.kind, seconds=self.step_seconds)
        if state.global_step <= self.trainer.tracker.warmup_steps:
            self.warmup_seconds = self.seconds
        seconds = self.seconds
        if args.max_seconds is not None and args.world_size > 1:
            # Each rank has a clock of its own; all must stop at the same step.
            seconds = broadcast_object_list([seconds])[0]
        self.trainer.budget_spent = self._spent(seconds, self.trainer.counts["rollout_tokens"]) is not None
        if self.trainer.budget_spent:
            control.should_training_stop = control.should_save = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "grad_norm" in logs:  # of steps, and not of an evaluation
            self.line_seconds, self._unlogged = self._unlogged, 0.0

    @property
    def share(self) -> float:
        """Share of `max_seconds` that is spent since the warm-up, in [0, 1]; 0 without such a budget."""
        limit = self.trainer.args.max_seconds
        if limit is None or limit <= self.warmup_seconds:
            return 0.0
        return min((self.seconds - self.warmup_seconds) / (limit - self.warmup_seconds), 1.0)

    @property
    def spent(self) -> dict[str, tuple[float, float]]:
        """What is spent of each budget that is set, and its limit."""
        values = zip(SETTINGS, (self.seconds, float(self.trainer.counts["rollout_tokens"])), strict=True)
        limits = ((name, value, getattr(self.trainer.args, name)) for name, value in values)
        return {name: (value, float(limit)) for name, value, limit in limits if limit is not None}

    def _spent(self, seconds: float, rollout_tokens: int) -> str | None:
        for name, value in zip(SETTINGS, (seconds, rollout_tokens), strict=True):
            limit = getattr(self.trainer.args, name)
            if limit is not None and value >= limit:
                return name
        return None

    def is_spent(self, state: Mapping[str, Any]) -> bool:
        """Whether the state of a checkpoint has spent the budget that is set now, which may be a larger one."""
        return self._spent(_seconds_of(state), state["counts"]["rollout_tokens"]) is not None

    def reason(self) -> str:
        """What ended the run, in words."""
        name = self._spent(self.seconds, self.trainer.counts["rollout_tokens"]) or SETTINGS[0]
        return f"{name} ({getattr(self.trainer.args, name)}) reached at step {self.trainer.state.global_step}"

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "seconds": self.seconds,
            "warmup_seconds": self.warmup_seconds,
            "unlogged": self._unlogged,
            "spent": self.trainer.budget_spent,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self.seconds = _seconds_of(state)
        self.warmup_seconds = float(state.get("budget", {}).get("warmup_seconds", 0.0))
        self._unlogged = float(state.get("budget", {}).get("unlogged", 0.0))
        self.trainer.budget_spent = self.is_spent(state)


def _seconds_of(state: Mapping[str, Any]) -> float:
    return float(state.get("budget", {}).get("seconds", 0.0))  # older checkpoints have none
