"""ReLIFT: GRPO, interleaved with SFT on the questions that it cannot solve (Ma et al. 2025, arXiv 2506.07527)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import GRPO_STEP, Signals, StepPlan


@dataclass(frozen=True)
class Relift:
    """A GRPO step puts the questions without a correct rollout into a queue; as soon as they fill an SFT batch, the
    next step is SFT on their demonstrations, which leave the queue."""

    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        if signals.failed_batches < 1:
            return GRPO_STEP
        return StepPlan(1.0, 0.0, sft_probability=1.0, demonstrations="failed")

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or hybrid, hybrid
