"""A coin whose bias falls from SFT to GRPO along a cosine, whatever the model does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan, coin


@dataclass(frozen=True)
class Cosine:
    """p_t = (1 + cos(pi t / T)) / 2 over the T steps (or seconds) after the warm-up, t from 0: from 1 down to almost 0,
    half on average."""

    needs_warmup: ClassVar[bool] = False
    needs_progress: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        return coin(cosine_share(signals), signals)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return True, total_steps > warmup_steps


def cosine_share(signals: Signals) -> float:
    """(1 + cos(pi t)) / 2 in [0, 1], t being the share of what follows the warm-up that is over."""
    return (1 + math.cos(math.pi * signals.progress)) / 2
