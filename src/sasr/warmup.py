"""How long the SFT warm-up is: a number of steps, or until SFT has done what it can do. No torch.

The agreement rule: every 5 steps a is the mean agreement of the SFT gradients with those before them (`agreement.py`)
over the window. When a has fallen to a quarter of the highest a so far, the gradients no longer point anywhere
together: what is left is the noise of the batches.

The plateau rule: every 5 steps b is minus the least-squares slope of ln(SFT batch loss) over the last steps, a window
that scales with the longest warm-up allowed. When b has fallen to a quarter of the steepest b so far, the warm-up
has learnt quickly and does no longer. The logarithm makes the rule the same for losses of any size.

The held-out rule: the loss of demonstrations that SFT never sees (`held_out.py`) has had no new minimum for a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import agreement
from .errors import InputError, require, unknown

if TYPE_CHECKING:
    from .config import SASRConfig

AUTO = "auto"
UNTIL = ("steps", "plateau", "agreement", "held_out")
EVERY = 5
FRACTION = 0.25  # of the highest; with the slope, 0.12 was similar in toy studies and 0.4 too early
_WINDOWS, _LEAST_WINDOW = 8, 10
_LEAST_LONGEST = 3 * _LEAST_WINDOW


def resolve_auto(args: SASRConfig) -> None:
    """Put what `sft_warmup_steps="auto"` means in its place: at most half of the run, until SFT no longer teaches what
    carries over; where that cannot be seen, until the gradients no longer agree, or until the plateau."""
    if args.sft_warmup_steps != AUTO:
        return
    if args.max_steps < 1 or args.max_seconds is not None or args.max_rollout_tokens is not None:
        raise InputError(
            "sft_warmup_steps auto allows half of max_steps, which must decide the length of the run: otherwise set "
            "the longest warm-up as a number, and warmup_until to plateau or agreement"
        )
    args.sft_warmup_steps = args.max_steps // 2
    if args.warmup_until == "steps" and args.held_out_demonstrations:
        args.warmup_until = "held_out"
    elif args.warmup_until == "steps":
        args.warmup_until = "agreement" if agreement.is_possible(args) else "plateau"


def check_settings(args: SASRConfig) -> None:
    """Raise `InputError` for settings of the warm-up's length that do not go together."""
    if args.warmup_until not in UNTIL:
        raise unknown("warmup_until", args.warmup_until, UNTIL)
    for name in ("warmup_min_steps", "warmup_anneal"):
        require(name, getattr(args, name), lambda v: v >= 0, "0 or more")
        if getattr(args, name) and args.warmup_until == "steps":
            raise InputError(f"{name} is for a warm-up that ends by itself: remove it, or set sft_warmup_steps to auto")
    if args.warmup_until == "steps":
        return
    if args.sft_warmup_steps < _LEAST_LONGEST:
        raise InputError(
            f"a warm-up with warmup_until {args.warmup_until} may have {args.sft_warmup_steps} steps, too few to see "
            f"its end: allow {_LEAST_LONGEST} or more with sft_warmup_steps (auto: half of max_steps)"
        )
    if args.warmup_min_steps > args.sft_warmup_steps:
        raise InputError(
            f"warmup_min_steps ({args.warmup_min_steps}) is more than the longest warm-up ({args.sft_warmup_steps})"
        )
    shape = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if shape not in ("constant", "constant_with_warmup") or 0 < args.warmup_steps < 1:
        raise InputError(
            f"with warmup_until {args.warmup_until} nobody knows how many steps come after the warm-up: set "
            "lr_scheduler_type to constant, or constant_with_warmup with a number of warmup_steps"
        )
    if args.warmup_from is not None:
        raise InputError(
            "warmup_from takes over a warm-up of a chosen length: set sft_warmup_steps to its steps, or leave "
            "warmup_from out if it was automatic too"
        )


def window_of(longest: int) -> int:
    """Steps over which the slope is taken: an eighth of the longest warm-up allowed, at least 10."""
    return max(longest // _WINDOWS, _LEAST_WINDOW)


def slope(values: Sequence[float]) -> float:
    """Least-squares slope of equally spaced values, per step. Needs two or more."""
    middle = (len(values) - 1) / 2
    covariance = sum((i - middle) * value for i, value in enumerate(values))
    return covariance / sum((i - middle) ** 2 for i in range(len(values)))


@dataclass
class Warmup:
    """The warm-up of one run. Its fields are its whole state: numbers, saved as JSON.

    Args:
        longest (`int`): W, or the longest it may be; it ends there at the latest.
        until (`str`): `"steps"`: after `longest` steps; `"plateau"`: when the loss stops improving; `"agreement"`:
            when the gradients no longer agree; `"held_out"`: when the loss of held-out demonstrations stops falling.
        shortest (`int`): With the latter three: no earlier than this, and than two windows.
        anneal (`float`): With the latter three: further steps at the rate of the hybrid phase, as a share of those
            before.

    Attributes:
        steps (`int` or `None`): Its length in steps, the anneal included; `None` while that is open.
        plateau (`int` or `None`): Steps before the anneal; `None` while that is open.
        reason (`str`): Why it ended, in words.
    """

    longest: int
    until: str = "steps"
    shortest: int = 0
    anneal: float = 0.0
    steps: int | None = None
    plateau: int | None = None
    reason: str = ""
    highest: float = 0.0  # slope or agreement so far
    # ln of losses, or agreements: the last window of them. Held-out losses: the lowest and all since.
    recent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.until == "steps":
            self.steps = self.plateau = self.longest

    @property
    def bound(self) -> int:
        """The step that the hybrid phase begins with, as far as known: until then every step is SFT."""
        return self.longest if self.steps is None else self.steps

    def ends_at(self, step: int) -> bool:
        """Whether `step` steps are exactly the warm-up, and there is one."""
        return step > 0 and step == self.steps

    def annealing(self, step: int) -> bool:
        """Whether the step with this index is past the plateau."""
        return self.plateau is not None and step >= self.plateau

    def observe(self, step: int, loss: float, agrees: float | None = None, held_out: float | None = None) -> None:
        """Take the SFT loss of the warm-up step with this index and, for `"agreement"`, how far its gradient agrees
        with those before, for `"held_out"` the last loss of held-out demonstrations. A loss that is not finite or not
        positive, and what is not there, are ignored."""
        if self.steps is not None:
            return
        window, done = window_of(self.longest), step + 1
        if self.until == "held_out":
            self._observe_held_out(done, window, held_out)
            return
        by_loss = self.until == "plateau"
        if by_loss and math.isfinite(loss) and loss > 0:
            self.recent = [*self.recent, math.log(loss)][-window:]
        elif not by_loss and agrees is not None and math.isfinite(agrees):
            self.recent = [*self.recent, agrees][-window:]
        if done >= self.longest:
            goes_on = "the loss still improved" if by_loss else "the gradients still agreed"
            self._end(done, f"{goes_on} after {done} steps, the longest warm-up allowed")
            return
        if len(self.recent) < window or done % EVERY:
            return
        level = -slope(self.recent) if by_loss else sum(self.recent) / window
        self.highest = max(self.highest, level)
        if done < max(self.shortest, 2 * window) or self.highest <= 0 or level >= FRACTION * self.highest:
            return
        share = f"{max(level / self.highest, 0.0):.0%}"
        if by_loss:
            self._end(done, f"the loss improves at {share} of its steepest slope")
        else:
            self._end(done, f"the gradients agree at {share} of their most")

    def _observe_held_out(self, done: int, window: int, loss: float | None) -> None:
        if done % EVERY == 0 and loss is not None:
            self.recent = [loss] if not self.recent or loss < self.recent[0] else [*self.recent, loss]
        since = (len(self.recent) - 1) * EVERY
        if done >= self.longest:
            self._end(done, f"the held-out loss still fell after {done} steps, the longest warm-up allowed")
        elif since >= window and done >= max(self.shortest, 2 * window):
            self._end(done, f"the held-out loss has not fallen for {since} steps")

    def _end(self, done: int, reason: str) -> None:
        self.plateau = done
        self.steps = min(done + round(self.anneal * done), self.longest)
        self.reason = reason + (f", then {self.steps - done} steps at the lower rate" if self.steps > done else "")
        self.recent = []

    def state_dict(self) -> dict[str, Any]:
        """All fields, JSON-safe."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for key, value in state.items():
            setattr(self, key, value)
