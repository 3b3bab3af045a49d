"""Control for SASR: a coin with a fixed bias, that of another run if its share of SFT is given.

If SASR does not beat this with its own share, adaptivity is not what helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan, coin


@dataclass(frozen=True)
class Random:
    """p_t = sft_share.

    Args:
        sft_share (`float`): Probability of SFT in each step after the warm-up, in [0, 1].
    """

    sft_share: float = 0.5
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return coin(self.sft_share, signals)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or (hybrid and self.sft_share > 0), hybrid and self.sft_share < 1
