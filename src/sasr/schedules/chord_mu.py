"""CHORD-mu: both losses in every step, the weight of SFT falling along a cosine (2025, arXiv 2508.11408)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan


@dataclass(frozen=True)
class ChordMu:
    """L = mu L_SFT + (1 - mu) L_GRPO, mu = valley + (peak - valley) (1 + cos(pi t / D)) / 2 for the first D steps after
    the warm-up and valley from then on. Each loss keeps its own global denominator. The SFT warm-up takes the place of
    the paper's rise of mu from 0.

    Args:
        mu_peak (`float`): mu at t = 0, in [0, 1]; 0.9 in the paper.
        mu_valley (`float`): mu from step D on, in [0, 1]; 0.05 in the paper.
        mu_decay_steps (`int`): D; 200 in the paper's ablation.
    """

    mu_peak: float = 0.9
    mu_valley: float = 0.05
    mu_decay_steps: int = 200
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        progress = min((signals.step - signals.warmup_steps) / self.mu_decay_steps, 1.0)
        mu = self.mu_valley + (self.mu_peak - self.mu_valley) * (1 + math.cos(math.pi * progress)) / 2
        return StepPlan(sft_weight=mu, grpo_weight=1 - mu, sft_probability=mu)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        sft, grpo = max(self.mu_peak, self.mu_valley) > 0, min(self.mu_peak, self.mu_valley) < 1
        return warmup_steps > 0 or (hybrid and sft), hybrid and grpo
