"""R3: RL from states along the demonstration, a reverse curriculum (Xi et al. 2024, arXiv 2402.05808), as GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan


@dataclass(frozen=True)
class R3:
    """Each rollout continues a prefix of its question's demonstration; nothing learns the prefix itself. All stages are
    mixed: of a demonstration's 5 parts 0 to 4 are shown, each number as often, for each question anew."""

    needs_warmup: ClassVar[bool] = False
    needs_fresh_rollouts: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        return StepPlan(0.0, 1.0, sft_probability=0.0, demonstrations="hints", hint=None)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or hybrid, hybrid  # without demonstrations it would be plain GRPO
