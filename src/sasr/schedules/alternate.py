"""SFT and GRPO in turn, the simplest hybrid that looks at nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import GRPO_STEP, SFT_STEP, Signals, StepPlan


@dataclass(frozen=True)
class Alternate:
    """GRPO first after the warm-up, then SFT, and so on."""

    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return SFT_STEP if (signals.step - signals.warmup_steps) % 2 else GRPO_STEP

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return warmup_steps > 0 or total_steps > warmup_steps + 1, total_steps > warmup_steps
