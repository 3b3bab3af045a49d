"""UFT: rollouts begin with a hint, a prefix of the demonstration that shrinks (Liu et al. 2025, arXiv 2505.16984)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import GRPO_STEP, Signals, StepPlan


@dataclass(frozen=True)
class Uft:
    """L = L_GRPO on what follows the hint + hint_weight * L_SFT on the hint's tokens. The demonstration is cut into 5
    parts; of each question's, Binomial(5, p) are shown, with p = low + (high - low) (1 + cos(pi (t + 1) / T)) / 2, low
    .05, high .95, for the first T steps after the warm-up. From then on it is GRPO.

    Args:
        hint_steps (`int`): T >= 1; 300 of 500 steps in the paper.
        hint_weight (`float`): Weight of the hint's likelihood, >= 0; 0.001 in the paper.
    """

    hint_steps: int = 300
    hint_weight: float = 0.001
    needs_warmup: ClassVar[bool] = False
    needs_fresh_rollouts: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        t = signals.step - signals.warmup_steps
        if t >= self.hint_steps:
            return GRPO_STEP
        share = 0.05 + 0.9 * (1 + math.cos(math.pi * (t + 1) / self.hint_steps)) / 2
        p = self.hint_weight / (1 + self.hint_weight)
        return StepPlan(self.hint_weight, 1.0, sft_probability=p, demonstrations="hints", hint=share)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or hybrid, hybrid
