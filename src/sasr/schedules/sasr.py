"""SASR: a step-wise coin whose bias follows the training state (Chen et al. 2025, arXiv 2505.13026, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sasr.errors import InputError

from .base import Signals, StepPlan, coin
from .cosine import cosine_share


@dataclass(frozen=True)
class Sasr:
    """p_t = s_t / (s_t + gamma) with s_t = (1 - w) * g_last / g_warmup + w * d_t / d_target.

    With w = 0 this is the gradient-norm rule p_t = g_last / (g_last + gamma * g_warmup). The SFT gradient norm is a
    two-sided proxy for KL(pi_data || pi): when GRPO moves the policy off the demonstrations it grows, and SFT becomes
    more likely; d_t adds the drift from the reference policy.

    With `gamma_schedule` `"cosine"` gamma becomes gamma (1 - c_t) / c_t, c_t falling from 1 to 0 along a cosine over
    the steps (or seconds) after the warm-up: the odds of the rule times those of the cosine schedule. A run then begins
    with SFT and ends with GRPO from whatever warm-up it had, and the signal shifts what lies between.

    The pull of demonstrations that are repeated wears out: s_t is multiplied by exp(-n_t / `useful_passes`) after n_t
    passes over them, the form in which repeated data lose their value in Muennighoff et al. (arXiv 2305.16264). Without
    it a long run with few demonstrations keeps going back to what it knows by heart, and loses what GRPO taught it.
    Where demonstrations are kept from SFT, what they show takes the place of this guess: p_t is multiplied by the
    measured `carry_over`, not s_t, because c_t makes p_t 1 at first whatever s_t is.

    Args:
        gamma (`float`): Pull towards GRPO, > 0; p = 1 / (1 + gamma) when g_last = g_warmup and w = 0.
        divergence_weight (`float`): w in [0, 1].
        divergence_target (`float`): d_target > 0, nats per token: the drift that counts as much as g_last = g_warmup.
        gamma_schedule (`str`): `"cosine"`, or `"constant"`, the paper's.
        useful_passes (`float`): Passes over the demonstrations after which their pull has fallen to 1/e; 0, as in the
            paper: it never falls.
    """

    gamma: float = 1.0
    divergence_weight: float = 0.0
    divergence_target: float = 0.1
    gamma_schedule: str = "cosine"
    useful_passes: float = 16.0
    needs_warmup: ClassVar[bool] = True

    @property
    def needs_progress(self) -> bool:
        """The cosine must know how far the run is."""
        return self.gamma_schedule == "cosine"

    def plan(self, signals: Signals) -> StepPlan:
        return coin(self.probability(signals), signals)

    def probability(self, signals: Signals) -> float:
        """p_t in [0, 1]. Raises `InputError` if a norm or the divergence that w asks for is missing."""
        last, warmup, w = signals.sft_grad_norm, signals.warmup_grad_norm, self.divergence_weight
        if w < 1 and (last is None or warmup is None):
            raise InputError(
                "no SFT gradient norm was measured in the warm-up, so SASR cannot decide (DeepSpeed stage 0 in fp32 "
                "reports none; use ZeRO stage 1 or higher, or another engine)"
            )
        if w > 0 and signals.divergence is None:
            raise InputError("no divergence was measured, but divergence_weight > 0")
        norm_ratio = 0.0 if w == 1 else _ratio(last, warmup)
        drift = max(signals.divergence or 0.0, 0.0) / self.divergence_target
        s = (1 - w) * norm_ratio + w * drift
        measured = signals.carry_over is not None
        carry_over = 1.0 if signals.carry_over is None else signals.carry_over
        c = cosine_share(signals) if self.gamma_schedule == "cosine" else 0.5
        if math.isinf(s) or (warmup == 0 and w < 1 and self.gamma_schedule == "cosine"):
            # A warm-up that ended at a zero gradient. The limit of s / (s + gamma) is 1; the cosine, which takes a run
            # to GRPO from whatever warm-up it had, goes on alone.
            return carry_over * (c if self.gamma_schedule == "cosine" else 1.0)
        worth = math.exp(-signals.passes / self.useful_passes) if self.useful_passes and not measured else 1.0
        study, pull = s * c * worth, self.gamma * (1 - c)
        return carry_over * study / (study + pull) if study else 0.0

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return True, total_steps > warmup_steps


def _ratio(last: float | None, warmup: float | None) -> float:
    assert last is not None and warmup is not None
    if warmup == 0:
        return 0.0 if last == 0 else math.inf
    return last / warmup
