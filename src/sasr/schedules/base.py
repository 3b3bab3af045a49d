"""The interface of a schedule: `Signals` in, `StepPlan` out. Pure Python, so that it runs by the thousand in a test
and can be reused in another trainer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Protocol

from sasr.errors import InputError, unknown

# Names of which demonstrations (`sasr.selection`), by whether the rollouts of the same step decide it, and of what a
# token counts (`sasr.token_weights`).
BEFORE_THE_STEP = ("all", "failed")
TIED_TO_ROLLOUTS = ("hints", "gated", "group")
TOKEN_WEIGHTS = ("uniform", "phi", "shaped_ratio", "sft_and_ratio")


@dataclass(frozen=True)
class Signals:
    """What a schedule may look at before an optimizer step. The same on every rank.

    Args:
        step (`int`): Index of the optimizer step about to be taken, from 0.
        total_steps (`int`): Optimizer steps of the whole run.
        warmup_steps (`int`): Length W of the SFT warm-up, in optimizer steps.
        draw (`float`): u in [0, 1), a function of seed and step only (see [`draw`]).
        sft_grad_norm (`float` or `None`): g_last, the global SFT gradient norm before clipping, of the last SFT step or
            its exponential mean; `None` before the first SFT step.
        warmup_grad_norm (`float` or `None`): g_warmup, the scale of that norm at the end of the warm-up; `None` during
            the warm-up.
        divergence (`float` or `None`): d_t, KL of the policy from the reference, nats per token; `None` when it is not
            measured.
        entropy (`float` or `None`): Mean entropy of the policy's next-token distribution in the last step, nats per
            token: over the rollouts if it had any, else over the demonstrations; `None` before the first step.
        failed_batches (`float`): SFT batches that the waiting failed questions would fill.
        spent (`float`): Share of a budget of seconds that is spent since the warm-up, in [0, 1]; 0 without one.
        passes (`float`): How often SFT has gone through the demonstrations so far.
        carry_over (`float` or `None`): Loss of demonstrations that SFT studies over that of others, against what it was
            before the first step, the lowest so far, in [0, 1]: near 0 they are learnt by heart; `None` when it is not
            measured.
        left_to_learn (`float` or `None`): 1 - the likelihood of a whole demonstration, of the last SFT step or its
            exponential mean, in [0, 1]; `None` before the first SFT step.
        grpo_cost (`float`): What a GRPO step costs in SFT steps, where p is a share of that cost; 1 where it is one of
            the steps.
    """

    step: int
    total_steps: int
    warmup_steps: int
    draw: float
    sft_grad_norm: float | None = None
    warmup_grad_norm: float | None = None
    divergence: float | None = None
    entropy: float | None = None
    failed_batches: float = 0.0
    spent: float = 0.0
    passes: float = 0.0
    carry_over: float | None = None
    left_to_learn: float | None = None
    grpo_cost: float = 1.0

    @property
    def progress(self) -> float:
        """Share of what follows the warm-up that is over, in [0, 1]: of the steps, or of the seconds, whichever end the
        run sooner."""
        steps = (self.step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return min(max(steps, self.spent), 1.0)


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step as a composition: how much of it is SFT and how much GRPO (step level), which demonstrations
    (prompt level), how much each token counts (token level).

    Args:
        sft_weight (`float`): Weight of the SFT loss; 0 costs no forward pass.
        grpo_weight (`float`): Weight of the GRPO loss; 0 makes no rollouts.
        sft_probability (`float`): p_t, what the draw was compared with (1 or 0 when nothing was drawn); where both
            losses act, the share of SFT in the mixture, which is what p_t is in expectation.
        token_weight (`str`, *optional*, defaults to `"uniform"`): Weight of each token in the SFT loss, by name (see
            `sasr.token_weights`).
        token_parameter (`float`, *optional*, defaults to `0.0`): The parameter of that function, if it has one.
        demonstrations (`str`, *optional*, defaults to `"all"`): Which demonstrations, by name (see `sasr.selection`).
        gate (`int`, *optional*, defaults to `0`): For `"gated"`: the number of correct rollouts up to which a question
            counts as failed.
        hint (`float` or `None`, *optional*, defaults to `0.0`): For `"hints"`: expected share of the demonstration that
            is put in front of a rollout. `None`: each part but the last is the end as often, for each question anew.
        pooled (`bool`, *optional*, defaults to `False`): For `"group"`: both losses are divided by the number of all
            tokens, the demonstrations' and the rollouts'. Otherwise each keeps its own global denominator.
        positive_weight (`float`, *optional*, defaults to `1.0`): For `"group"`: factor of the rollouts with a positive
            advantage.
    """

    sft_weight: float
    grpo_weight: float
    sft_probability: float
    token_weight: str = "uniform"
    token_parameter: float = 0.0
    demonstrations: str = "all"
    gate: int = 0
    hint: float | None = 0.0
    pooled: bool = False
    positive_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.sft_weight < 0 or self.grpo_weight < 0 or self.sft_weight + self.grpo_weight == 0:
            raise InputError(f"a step needs weights >= 0 and at least one above 0, not {self}")
        for name, known in (
            ("demonstrations", BEFORE_THE_STEP + TIED_TO_ROLLOUTS),
            ("token_weight", TOKEN_WEIGHTS),
        ):
            if getattr(self, name) not in known:
                raise unknown(f"{name} of a StepPlan", getattr(self, name), known)
        if self.demonstrations in TIED_TO_ROLLOUTS and not self.grpo_weight:
            raise InputError(
                f"demonstrations {self.demonstrations!r} of a StepPlan go with the rollouts of its step: give it a "
                f"grpo_weight above 0, not {self.grpo_weight}"
            )

    @property
    def kind(self) -> str:
        """`"sft"`, `"grpo"` or `"both"`."""
        if self.grpo_weight == 0:
            return "sft"
        return "grpo" if self.sft_weight == 0 else "both"


SFT_STEP = StepPlan(sft_weight=1.0, grpo_weight=0.0, sft_probability=1.0)
GRPO_STEP = StepPlan(sft_weight=0.0, grpo_weight=1.0, sft_probability=0.0)


class Schedule(Protocol):
    """A rule for the steps after the warm-up. It holds settings only, never state: the plan is a pure function of the
    signals, which is what makes a run resumable and all ranks agree."""

    needs_warmup: ClassVar[bool]
    """The rule reads `warmup_grad_norm`, so a warm-up of at least one step is required. A rule that reads `total_steps`
    has `needs_total_steps = True` as well: then the run cannot end on a budget of seconds or tokens. One that reads
    `progress` has `needs_progress = True`: then it cannot end on one of tokens, which SFT steps do not spend. A run
    with either cannot be made longer when it is resumed."""

    def plan(self, signals: Signals) -> StepPlan:
        """The plan of one step after the warm-up. Raises `ValueError` when a signal that it needs is missing."""
        ...

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        """Whether a run can contain (SFT, GRPO) steps at all, the warm-up included: what data must be there."""
        ...


def draw(seed: int, step: int, purpose: str = "") -> float:
    """u of one step. A function of (seed, step), so there is no random state to save and none to differ by rank. What
    is drawn for another purpose than the schedule's is independent of it."""
    return random.Random(f"{seed}:{step}{purpose}").random()


def coin(share: float, signals: Signals) -> StepPlan:
    """One SFT step or one GRPO step, drawn so that SFT gets this share of what the steps cost: p r / (p r + 1 - p) of
    them, a GRPO step costing r = `grpo_cost` SFT steps."""
    probability, studied = share, share * signals.grpo_cost
    if signals.grpo_cost != 1:  # else rounding might change the share by its last digit
        probability = studied / (studied + 1 - share)
    sft = signals.draw < probability
    return StepPlan(float(sft), float(not sft), probability)


def decide(schedule: Schedule, signals: Signals) -> StepPlan:
    """The plan of a step: SFT during the warm-up, afterwards what the schedule says. Raises `InputError` if it returns
    anything else than a plan."""
    if signals.step < signals.warmup_steps:
        return SFT_STEP
    plan = schedule.plan(signals)
    if not isinstance(plan, StepPlan):
        name = type(schedule).__qualname__
        raise InputError(f"schedule {name}: its plan() must return a StepPlan, not {plan!r:.80}: correct it")
    return plan
