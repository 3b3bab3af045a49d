"""A candidate for a better rule, as a schedule of one's own:

sasr train --schedule docs/results/rule-study/rules.py:SasrCosine
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from sasr import Signals, StepPlan


@dataclass(frozen=True)
class SasrCosine:
    """SASR's odds times those of a cosine: p / (1 - p) = g_last / g_warmup x c / (1 - c), c falling from 1 to 0 over
    the hybrid phase. With an undiminished norm it is the cosine schedule; from any warm-up, it begins with SFT and ends
    with GRPO."""

    needs_warmup: ClassVar[bool] = True
    needs_total_steps: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        length = max(signals.total_steps - signals.warmup_steps, 1)
        c = (1 + math.cos(math.pi * min((signals.step - signals.warmup_steps) / length, 1.0))) / 2
        s = signals.sft_grad_norm / signals.warmup_grad_norm
        p = s * c / (s * c + 1 - c)
        sft = signals.draw < p
        return StepPlan(float(sft), float(not sft), p)

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return True, total_steps > warmup_steps


@dataclass(frozen=True)
class SasrWorn(SasrCosine):
    """SASR with the growing pull, whose demonstrations wear out: their pull falls to 1/e with every `PASSES` passes
    over them, about the rate at which repeated data lose their value in Muennighoff et al. (arXiv 2305.16264)."""

    PASSES: ClassVar[float] = 16.0

    def plan(self, signals: Signals) -> StepPlan:
        worth = math.exp(-signals.passes / self.PASSES)
        return super().plan(replace(signals, sft_grad_norm=signals.sft_grad_norm * worth))


@dataclass(frozen=True)
class SasrLeft(SasrCosine):
    """SASR with the growing pull, its p times what is left to learn: 1 - the likelihood of a whole demonstration."""

    def plan(self, signals: Signals) -> StepPlan:
        left = 1.0 if signals.left_to_learn is None else signals.left_to_learn
        p = super().plan(signals).sft_probability * left
        sft = signals.draw < p
        return StepPlan(float(sft), float(not sft), p)
