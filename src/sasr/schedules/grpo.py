"""Control: GRPO only (Shao et al. 2024, arXiv 2402.03300), after the warm-up if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import GRPO_STEP, Signals, StepPlan


@dataclass(frozen=True)
class Grpo:
    """Every step after the warm-up is GRPO."""

    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return GRPO_STEP

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return warmup_steps > 0, total_steps > warmup_steps
