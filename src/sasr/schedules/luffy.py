"""LUFFY: a demonstration joins the rollouts of its question (Yan et al. 2025, arXiv 2504.14945)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Signals, StepPlan


@dataclass(frozen=True)
class Luffy:
    """The demonstration gets a reward like any rollout, advantages are relative to the group with it, and its loss is
    -f(pi) A per token with f(x) = x / (x + c), without clipping; the mean is over all tokens, rollouts' and
    demonstrations'. The group has `num_generations` rollouts and the demonstration (7 + 1 in the paper).

    Args:
        luffy_shaping (`float`): c > 0; 0.1 in the paper. The gradient's factor c pi / (pi + c)^2 keeps tokens
            alive that the policy would hardly write, which pi itself (c to infinity) would not.
    """

    luffy_shaping: float = 0.1
    needs_warmup: ClassVar[bool] = False
    needs_fresh_rollouts: ClassVar[bool] = True

    def plan(self, signals: Signals) -> StepPlan:
        # The demonstrations' share of the tokens is known after the rollouts, and then logged as the probability.
        return StepPlan(
            1.0, 1.0, sft_probability=0.5, demonstrations="group", pooled=True,
            token_weight="shaped_ratio", token_parameter=self.luffy_shaping,
        )  # fmt: skip

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        hybrid = total_steps > warmup_steps
        return warmup_steps > 0 or hybrid, hybrid
