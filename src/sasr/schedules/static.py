"""The usual pipeline in one run: SFT up to a fixed step, GRPO from then on. The baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import GRPO_STEP, SFT_STEP, Signals, StepPlan


@dataclass(frozen=True)
class Static:
    """SFT while step < switch_step, then GRPO.

    Args:
        switch_step (`int`): First GRPO step, counted from the start of the run and never before the end of the warm-up.
    """

    switch_step: int
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return SFT_STEP if signals.step < self.switch_step else GRPO_STEP

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return max(warmup_steps, self.switch_step) > 0, total_steps > max(warmup_steps, self.switch_step)
