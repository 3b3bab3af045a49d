"""What can go wrong in a run without an error: warnings with numbers, from the measurements of each step. No torch.

The rules look at windows of steps, so that one odd step says nothing, and are silent for a while after they have
spoken. GRPO has collapsed when the mean reward of a window lies below half of the best window's, by more than the noise
of both, or when the entropy has fallen to a tenth of what it was while the reward is below its best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean, median, pstdev
from typing import Any

WINDOW = 20  # GRPO steps, or norms of one kind
QUIET = 100  # steps for which a rule says nothing more
_EXPLODED = 20.0  # times the median norm
_KEPT_NORMS = 50
_STUCK = 50  # steps of the schedule
_ENTROPY_LEFT = 0.1
_ALL_CUT = 0.9
_SOLVED = 0.85


@dataclass(frozen=True)
class Measured:
    """One optimizer step. What it did not measure is `None`.

    Attributes:
        step (`int`): Its number, from 1.
        kind (`str`): `"sft"`, `"grpo"` or `"both"`.
        norm (`float`, *optional*): Global gradient norm before clipping.
        loss (`float`, *optional*): Of SFT, nats per token.
        reward (`float`, *optional*): Mean over the rollouts.
        entropy (`float`, *optional*): Of the policy on its rollouts, nats per token.
        unsolved (`float`, *optional*): Share of questions none of whose rollouts is correct.
        flat (`float`, *optional*): Share of groups without a spread of rewards.
        cut (`float`, *optional*): Share of rollouts cut at the token limit.
        sft_probability (`float`, *optional*): Of a schedule that adapts it, after the warm-up.
        success (`Mapping[float, float]`): Success rate of each difficulty in the last rollouts, the easiest first, if
            questions are asked whatever theirs is.
        gets_harder (`bool`): The questions do, level by level, so that a reward that falls is no collapse.
    """

    step: int
    kind: str
    norm: float | None = None
    loss: float | None = None
    reward: float | None = None
    entropy: float | None = None
    unsolved: float | None = None
    flat: float | None = None
    cut: float | None = None
    sft_probability: float | None = None
    success: Mapping[float, float] = field(default_factory=dict)
    gets_harder: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether an optimizer can use the step."""
        return all(value is None or math.isfinite(value) for value in (self.norm, self.loss))


@dataclass
class Watch:
    """The rules and what they remember. The fields are the whole state, JSON-safe."""

    norms: dict[str, list[float]] = field(default_factory=lambda: {"sft": [], "grpo": [], "both": []})
    rewards: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    first_entropy: float | None = None
    best_reward: float | None = None
    streaks: dict[str, int] = field(default_factory=dict)
    quiet_until: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    collapsed_at: int | None = None

    def observe(self, seen: Measured) -> list[str]:
        """Take in a step. Returns what there is to say about it."""
        said = self._not_finite(seen)
        if seen.is_finite:
            said += self._exploding(seen) + self._stuck(seen)
            if seen.reward is not None:
                said += self._teaches_nothing(seen) + self._too_easy_or_too_hard(seen)
                said += [] if seen.gets_harder else self._collapse(seen.step, seen.reward, seen.entropy)
        return said

    @property
    def skipped_in_a_row(self) -> int:
        """Steps up to now whose gradient was no finite number."""
        return self.streaks.get("skipped", 0)

    def begin_again(self) -> None:
        """Forget the windows that a collapse was seen in."""
        self.rewards, self.entropies = [], []

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave. Whoever resumes a run that had stopped for its gradients tries again."""
        for key, value in state.items():
            setattr(self, key, value)
        self.streaks.pop("skipped", None)

    # ---- rules ----

    def _not_finite(self, seen: Measured) -> list[str]:
        row = self._streak("skipped", not seen.is_finite)
        if not row:
            return []
        self.skipped += 1
        loss = f", its loss {seen.loss:g}" if seen.loss is not None else ""
        return [f"step {seen.step}, {seen.kind}: gradient norm {seen.norm}{loss}: step skipped ({row} in a row)"]

    def _exploding(self, seen: Measured) -> list[str]:
        if not seen.norm:  # rollouts without a spread have none
            return []
        norms = self.norms[seen.kind]
        usual = median(norms) if len(norms) >= WINDOW else math.inf
        self.norms[seen.kind] = [*norms, seen.norm][-_KEPT_NORMS:]
        if seen.norm <= _EXPLODED * usual or not self._may_speak("norm", seen.step):
            return []
        return [
            f"step {seen.step}: gradient norm {seen.norm:.3g}, {seen.norm / usual:.0f} times the median of the last "
            f"{len(norms)} {seen.kind.upper()} steps: is the learning rate too high?"
        ]

    def _stuck(self, seen: Measured) -> list[str]:
        p = seen.sft_probability
        for end, holds in (("0", p is not None and p <= 0.01), ("1", p is not None and p >= 0.99)):
            row = self._streak(f"p_sft {end}", holds)
            if row >= _STUCK and self._may_speak(f"p_sft {end}", seen.step):
                pull = "a smaller" if end == "0" else "a larger"
                return [f"step {seen.step}: p_sft has been {end} for {row} steps: {pull} gamma mixes in the other kind"]
        return []

    def _teaches_nothing(self, seen: Measured) -> list[str]:
        unsolved = self._streak("unsolved", seen.unsolved == 1)
        flat = self._streak("flat", seen.flat == 1)
        cut = self._streak("cut", seen.cut is not None and seen.cut >= _ALL_CUT)
        if cut >= WINDOW and self._may_speak("cut", seen.step):
            return [
                f"step {seen.step}: {seen.cut:.0%} of the rollouts are cut at the token limit, for {cut} GRPO steps: "
                "set max_completion_length higher, or warm up longer, so that answers come to an end"
            ]
        if unsolved >= WINDOW and self._may_speak("unsolved", seen.step):
            return [
                f"step {seen.step}: no rollout was correct in {unsolved} GRPO steps: read completions (sasr report), "
                "check the task's answers (sasr check), warm up longer, or begin with easier questions (curriculum)"
            ]
        if flat >= WINDOW and self._may_speak("flat", seen.step):
            return [
                f"step {seen.step}: in {flat} GRPO steps all rollouts of each question had the same reward, which "
                "gives no gradient: take more generations, a higher temperature, or questions of another difficulty"
            ]
        return []

    def _too_easy_or_too_hard(self, seen: Measured) -> list[str]:
        solved = [level for level, rate in seen.success.items() if rate >= _SOLVED]
        unsolved = [level for level, rate in seen.success.items() if rate <= 1 - _SOLVED]
        row = self._streak("levels", bool(solved and unsolved))
        if row < WINDOW or not self._may_speak("levels", seen.step):
            return []
        easy, hard = solved[0], unsolved[-1]
        return [
            f"step {seen.step}: {seen.success[easy]:.0%} of the rollouts are correct at difficulty {easy:g}, "
            f"{seen.success[hard]:.0%} at {hard:g}, for {row} GRPO steps: neither teaches GRPO much; "
            "--curriculum adaptive asks most what is solved now and then"
        ]

    def _collapse(self, step: int, reward: float, entropy: float | None) -> list[str]:
        self.rewards = [*self.rewards, reward][-WINDOW:]
        if entropy is not None and math.isfinite(entropy):
            self.entropies = [*self.entropies, entropy][-WINDOW:]
        if min(len(self.rewards), len(self.entropies)) < WINDOW:
            return []
        reward, entropy = fmean(self.rewards), fmean(self.entropies)
        self.best_reward = best = reward if self.best_reward is None else max(reward, self.best_reward)
        self.first_entropy = first = entropy if self.first_entropy is None else self.first_entropy
        noise = 3 * math.sqrt(2 / WINDOW) * pstdev(self.rewards)
        if best - reward > max(abs(best) / 2, noise):
            what = f"the mean reward of the last {WINDOW} GRPO steps is {reward:.3g}, after {best:.3g} at its best"
        elif entropy < _ENTROPY_LEFT * first and reward < best:
            what = f"the entropy is {entropy:.2g} nats per token after {first:.2g}, and the reward below its best"
        else:
            return []
        if not self._may_speak("collapse", step):
            return []
        self.collapsed_at = step
        return [f"step {step}: GRPO collapses: {what}"]

    def _streak(self, name: str, holds: bool) -> int:
        self.streaks[name] = self.streaks.get(name, 0) + 1 if holds else 0
        return self.streaks[name]

    def _may_speak(self, name: str, step: int) -> bool:
        if step < self.quiet_until.get(name, 0):
            return False
        self.quiet_until[name] = step + QUIET
        return True
