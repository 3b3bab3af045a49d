"""Control: supervised fine-tuning only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import SFT_STEP, Signals, StepPlan


@dataclass(frozen=True)
class Sft:
    """Every step is SFT."""

    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return SFT_STEP

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return True, False
