"""SRFT: SFT and RL on demonstrations and rollouts, weighted by entropy (Fu et al. 2025, arXiv 2506.19767)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan


@dataclass(frozen=True)
class Srft:
    """L = mean over demonstration tokens of -(w_SFT + A pi) log pi, the factor without gradient, plus L_GRPO in which
    rollouts with a positive advantage count w_RL times; w_SFT = exp(-H) / 2 and w_RL = exp(H) / 10, H the policy's
    entropy. The term A pi is the policy gradient on the demonstration, whose advantage A is relative to the group with
    it. The rollouts keep GRPO's advantages where the paper has rewards of 1 and -1. H is that of the step before.
    """

    needs_warmup: ClassVar[bool] = False
    needs_fresh_rollouts: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        entropy = signals.entropy or 0.0  # unknown only in a first step without warm-up
        sft = 0.5 * math.exp(-entropy)
        return StepPlan(
            1.0, 1.0, sft_probability=sft / (1 + sft), demonstrations="group",
            token_weight="sft_and_ratio", token_parameter=sft, positive_weight=0.1 * math.exp(entropy),
        )  # fmt: skip

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or hybrid, hybrid
