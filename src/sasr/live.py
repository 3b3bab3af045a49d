"""The terminal view of a training run.

On a terminal a display of at most six lines that redraws itself; elsewhere (a log file, CI, a dumb or ASCII-only
terminal) plain lines, few enough to read. It only shows what it is given: no torch and no trainer here.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from sasr.terminal import TerminalView

_LETTERS = {"sft": "S", "grpo": "G", "both": "B"}
_COLOURS = {"S": "cyan", "G": "magenta", "B": "yellow"}
_PLAIN_SECONDS, _PLAIN_LINES = 30.0, 20


def format_duration(seconds: float | None) -> str:
    """`42s`, `1m58s`, `2h05m` or `3d04h`; `?` for what is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` characters, from their least to their greatest.

    Longer series are averaged in buckets, so that the line is always of the whole run. Values that are not finite
    are left out.
    """
    finite = [value for value in values if math.isfinite(value)]
    columns = min(width, len(finite))
    if columns < 1:
        return ""
    cuts = [column * len(finite) // columns for column in range(columns + 1)]
    means = [sum(finite[start:stop]) / (stop - start) for start, stop in pairwise(cuts)]
    low, span = min(means), max(means) - min(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (mean - low) / span) if span else 3] for mean in means)


def strip(kinds: Iterable[str | None], width: int) -> str:
    """The last `width` steps, newest at the right: `S` for SFT, `G` for GRPO, `B` for both, `.` for unknown."""
    return "".join(_LETTERS.get(kind or "", ".") for kind in kinds)[-width:] if width > 0 else ""


def format_pace(seconds: float | None) -> str:
    """`0.42 s/step`, or `25 steps/s` when a step takes less than 0.1 s."""
    if seconds is None:
        return ""
    return f"{1 / seconds:.0f} steps/s" if 0 < seconds < 0.1 else f"{seconds:.2f} s/step"


def format_count(done: int, total: int, new: int, seconds: float, unit: str = "") -> str:
    """`64/192`, with pace and time left once some are done: `new` of them in so many seconds."""
    state = f"{done}/{total} {unit}".rstrip()
    if new <= 0 or seconds <= 0:
        return state
    left = (total - done) * seconds / new
    pace = f"{new / seconds:.1f} a second" if new >= seconds else f"{seconds / new:.1f} s each"
    return f"{state}  {pace}" + (f"  {format_duration(left)} left" if left else "")


def format_number(value: float) -> str:
    """Three or so digits: `1.31`, `143`, `2.0e-05`, `1.2e+04`, `nan`."""
    size = abs(value)
    if math.isfinite(value) and (size >= 1e4 or 0 < size < 0.01):
        return f"{value:.1e}"
    return f"{value:.0f}" if size >= 100 else f"{value:.2f}"


class _Mean:
    """Mean at first, then exponential: a slow first step (compilation, caches) does not linger."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        weight = max(0.1, 1 / self._count)
        self.value = value if self.value is None else self.value + weight * (value - self.value)


class LiveView(TerminalView):
    """Shows a training run.

    Arguments are those of [`TerminalView`].
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock)
        self._lock = threading.Lock()  # the display redraws from a thread of its own
        self._title = ""
        self._total = self._done = self._warmup = 0
        self._last: dict[str, Any] = {}
        self._kinds: deque[str | None] = deque(maxlen=200)
        self._rewards: list[float] = []
        self._pace, self._chance = _Mean(), _Mean()
        self._costs = {kind: _Mean() for kind in _LETTERS}
        self._spent: dict[str, tuple[float, float]] = {}
        self._tokens = _Mean()  # that a step with rollouts spends
        self._told: tuple[float, float] | None = None  # such steps, and tokens spent, when last told
        self._exam: tuple[str, int, int] | None = None
        self._exam_began = 0.0
        self._started = self._mark = self._printed_at = self._exam_printed_at = clock()
        self._printed_step = -1

    def start(self, total_steps: int, done_steps: int, warmup_steps: int, title: str) -> None:
        """Begin; `done_steps` is more than 0 when a run resumes. All are optimizer steps."""
        self._total, self._done, self._warmup, self._title = total_steps, done_steps, warmup_steps, _one_line(title)
        self._started = self._mark = self._printed_at = self._exam_printed_at = self._clock()
        self._told = None if done_steps else (0.0, 0.0)
        if not self._rich:
            resumed = f", resumed after step {done_steps}" if done_steps else ""
            self._print(f"{self._title}  {total_steps} steps, {warmup_steps} of them warm-up{resumed}")
            return
        self._redraw(4)

    def budget(self, spent: Mapping[str, tuple[float, float]]) -> None:
        """What is spent of each budget that ends the run, and what it may spend: `max_seconds`, `max_rollout_tokens`.
        To be told before `start` and before each step."""
        with self._lock:
            self._spent = dict(spent)

    def warmup_ended(self, steps: int, reason: str) -> None:
        """A warm-up whose length was open has ended after so many steps."""
        self._warmup = steps
        self.message(f"warm-up ended at step {steps}: {reason}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Take in the metrics of one optimizer step; any of them may be missing or `None`."""
        with self._lock:
            now = self._clock()
            kind, seconds = metrics.get("kind"), _number(metrics.get("step_seconds"))
            seconds = now - self._mark if seconds is None else seconds
            self._mark, self._exam = now, None
            # An SFT step has no reward and a GRPO step no SFT loss: the last ones stay in view.
            self._last.update({key: value for key, value in metrics.items() if value is not None}, kind=kind)
            step = _number(metrics.get("step"))
            self._done = self._done + 1 if step is None else int(step)
            self._kinds.append(kind)
            self._pace.add(seconds)
            if kind in self._costs:
                self._costs[kind].add(seconds)
            if (reward := _number(metrics.get("reward"))) is not None:
                self._rewards.append(reward)
            # In the warm-up it is 1, which says nothing about the steps to come.
            if metrics.get("phase") != "warm-up" and (p_sft := _number(metrics.get("p_sft"))) is not None:
                self._chance.add(p_sft)
            self._count_tokens(_number(metrics.get("grpo_steps")))
        if not self._rich:
            before, every = self._printed_step, self._total / _PLAIN_LINES
            due = before < 0 or self._done >= self._total or now - self._printed_at >= _PLAIN_SECONDS
            if due or self._done // every > before // every:
                self._print_step()

    def _count_tokens(self, steps: float | None) -> None:
        if steps is None or "max_rollout_tokens" not in self._spent:
            return
        tokens = self._spent["max_rollout_tokens"][0]
        if self._told is not None and steps > self._told[0]:
            self._tokens.add((tokens - self._told[1]) / (steps - self._told[0]))
        self._told = (steps, tokens)

    def _clean(self, text: str) -> str:
        return _clean(text)

    def exam(self, label: str, done: int, total: int) -> None:
        """Progress of an exam in completions, from 0 on; its time does not count as time of steps."""
        with self._lock:
            now = self._mark = self._clock()
            if done == 0:
                self._exam_began = self._exam_printed_at = now
            self._exam = (_one_line(label), done, total) if done < total else None
        if not self._rich and (done >= total or now - self._exam_printed_at >= _PLAIN_SECONDS):
            self._exam_printed_at = now
            self._print(f"exam {_one_line(label)} {self._examined(done, total)}")

    def _examined(self, done: int, total: int) -> str:
        return format_count(done, total, done, self._mark - self._exam_began)

    def stop(self) -> None:
        """End the display, leaving its last state on the screen. May be called twice."""
        super().stop()
        if not self._rich and self._last and self._printed_step != self._done:
            self._print_step()

    def _print_step(self) -> None:
        self._printed_step, self._printed_at = self._done, self._clock()
        fields = [f"step {self._done}/{self._total}", self._last.get("phase"), self._last.get("kind")]
        fields += [self._field("p_sft"), self._norms(), self._field("reward"), self._field("sft_loss")]
        fields += [format_pace(self._pace.value), self._left()]
        self._print("  ".join(str(field) for field in fields if field))

    def _field(self, key: str, label: str | None = None) -> str:
        value = _number(self._last.get(key))
        return "" if value is None else f"{label or key} {format_number(value)}"

    def _norms(self) -> str:
        norm, reference = self._field("sft_grad_norm", "norm"), self._field("warmup_grad_norm", "warm-up")
        return f"{norm} ({reference})" if norm and reference else norm or reference

    def _left(self) -> str:
        """Time left, from the recent cost of each kind of step, until the steps or a budget end the run. Before the
        first GRPO step, which costs many times an SFT step, only the time to the end of the warm-up is known, and the
        seconds that a budget leaves."""
        if self._done >= self._total or self._share() >= 1:
            return ""
        sft, grpo, both = (self._costs[kind].value for kind in ("sft", "grpo", "both"))
        warmup = max(0, self._warmup - self._done)
        p_sft = 0.5 if self._chance.value is None else self._chance.value
        per_step = sft if both is None and p_sft == 1 else both
        if both is None and grpo is not None:
            per_step = grpo if sft is None else p_sft * sft + (1 - p_sft) * grpo
        hybrid = min(max(0, self._total - self._done - warmup), self._affordable(p_sft if both is None else 0.0))
        seconds, most = self._spent.get("max_seconds", (0.0, math.inf))
        bound = most - seconds
        if (warmup and sft is None) or (hybrid and per_step is None):
            if math.isfinite(bound):
                return f"{format_duration(bound)} left"
            return f"{format_duration(warmup * sft)} to hybrid" if warmup and sft is not None else ""
        return f"{format_duration(min(bound, warmup * (sft or 0) + hybrid * (per_step or 0)))} left"

    def _affordable(self, p_sft: float) -> float:
        """Steps after the warm-up that the budget of rollout tokens is enough for, if so many have none."""
        spent, most = self._spent.get("max_rollout_tokens", (0.0, math.inf))
        per_step = (1 - p_sft) * (self._tokens.value or 0.0)
        return (most - spent) / per_step if per_step > 0 else math.inf

    def _share(self) -> float:
        """How far the run is, by its steps or by the budget of which most is spent."""
        steps = self._done / self._total if self._total else 0.0
        return min(1.0, max(steps, *(spent / most for spent, most in self._spent.values()), 0.0))

    def _render(self) -> RenderableType:
        with self._lock:
            width = self._console.width
            lines = [self._head(width), self._bar(width)]
            if self._last:
                lines += [self._state(width), self._scores(width), self._history(width)]
            if self._exam is not None:
                label, done, total = self._exam
                lines.append(_fit([(f"exam {label}", "bold"), (self._examined(done, total), "")], width))
        return Group(*lines)

    def _head(self, width: int) -> Text:
        elapsed = f"  elapsed {format_duration(self._clock() - self._started)}"
        title, room = Text(self._title, style="bold"), width - len(elapsed)
        title.truncate(max(room, 1), overflow="ellipsis", pad=room > 0)
        return _one(Text.assemble(title, (elapsed, "dim")), width)

    def _bar(self, width: int) -> Text:
        share = self._share()
        tail = f" {share:4.0%}  step {self._done}/{self._total}"
        left = self._left()
        tail += f"  {left}" if left and width - len(tail) - len(left) >= 8 else ""
        cells = max(0, width - len(tail))
        filled = int(cells * share)
        return _one(Text.assemble(("━" * filled, "green"), ("─" * (cells - filled), "bright_black"), tail), width)

    def _state(self, width: int) -> Text:
        kind = str(self._last.get("kind") or "")
        parts = [(str(self._last.get("phase") or ""), "bold"), (kind, _COLOURS.get(_LETTERS.get(kind, ""), ""))]
        parts += [(self._field("p_sft"), ""), (self._norms(), ""), (format_pace(self._pace.value), "dim")]
        return _fit([*parts, (self._field("learning_rate", "lr"), "dim")], width)

    def _scores(self, width: int) -> Text:
        curve = sparkline(self._rewards, max(4, min(24, width // 4)))
        parts = [(f"{self._field('reward')} {curve}".strip(), "green")]
        parts += [(self._field("sft_loss", "sft loss"), "cyan"), (self._field("entropy"), "")]
        return _fit([*parts, (self._field("completion_length", "length"), "")], width)

    def _history(self, width: int) -> Text:
        counts = [(kind, _number(self._last.get(f"{kind}_steps"))) for kind in ("sft", "grpo")]
        tail = "".join(f"  {kind} {int(count)}" for kind, count in counts if count is not None)
        if width - len(tail) < 20:
            tail = ""
        letters = strip(self._kinds, min(60, width - len(tail)))
        coloured = [(letter, _COLOURS.get(letter, "dim")) for letter in letters]
        return _one(Text.assemble(*coloured, (tail, "dim")), width)


def _number(value: Any) -> float | None:
    # NaN stays: a loss that is no number is what the reader must see.
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _clean(text: str) -> str:
    """Without control characters, with which outside text could move the cursor; tabs and line breaks stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


def _one_line(text: str) -> str:
    return " ".join(_clean(text).split())


def _one(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def _fit(parts: Sequence[tuple[str, str]], width: int) -> Text:
    """The parts, most important first, as far as they fit."""
    line = Text()
    for text, style in parts:
        gap = "   " if line else ""
        if text and (not line or line.cell_len + len(gap) + len(text) <= width):
            line.append(gap).append(text, style=style)
    return _one(line, width)
