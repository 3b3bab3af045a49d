"""HPT: SFT for the questions that the policy fails, GRPO for the others (Lv et al. 2025, arXiv 2509.04419)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan


@dataclass(frozen=True)
class Hpt:
    """Per question SFT if at most `hpt_gate` of its rollouts are correct, else GRPO. SFT counts by its share of the
    questions, GRPO by its share of the tokens, where the paper has the mean of one loss per question. A failed question
    without demonstration stays with GRPO.

    Args:
        hpt_gate (`int`): Correct rollouts up to which a question is studied, 0 or 2 of 8 in the paper.
    """

    hpt_gate: int = 0
    needs_warmup: ClassVar[bool] = False
    needs_fresh_rollouts: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        # What was really gated is known after the rollouts, and then logged in place of this probability.
        return StepPlan(1.0, 1.0, sft_probability=0.5, demonstrations="gated", gate=self.hpt_gate)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or hybrid, hybrid
