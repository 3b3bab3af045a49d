"""CHORD-phi: both losses in every step, the tokens of the SFT loss weighted by p (1 - p) (2025, arXiv 2508.11408)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan


@dataclass(frozen=True)
class ChordPhi:
    """L = mu L_SFT-phi + (1 - mu) L_GRPO with a constant mu, where L_SFT-phi weights each demonstration token by
    p (1 - p), p the policy's probability of it.

    Args:
        mu (`float`): Weight of the SFT loss, in [0, 1]; 0.1 in the paper.
    """

    mu: float = 0.1
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return StepPlan(sft_weight=self.mu, grpo_weight=1 - self.mu, sft_probability=self.mu, token_weight="phi")

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or (hybrid and self.mu > 0), hybrid and self.mu < 1
