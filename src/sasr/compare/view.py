"""The terminal view of a comparison: a table that redraws itself, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sasr.live import format_duration
from sasr.terminal import TerminalView

from .plan import Run

_PLAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Row:
    """One method as it stands."""

    method: str
    done: int
    total: int
    failed: int = 0
    tuned: str = ""
    pass_at_1: float | None = None


@dataclass(frozen=True)
class Progress:
    """A comparison as it stands.

    Args:
        rows (`Sequence[Row]`): The methods; runs of both tuning and test.
        running (`Sequence[str]`): What each process does, in words.
        done, total (`int`): Runs, warm-ups included.
        left (`float`, *optional*): Seconds, if known.
    """

    rows: Sequence[Row] = ()
    running: Sequence[str] = field(default_factory=list)
    done: int = 0
    total: int = 0
    left: float | None = None


class CompareView(TerminalView):
    """Shows a comparison.

    Arguments are those of [`TerminalView`].
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock)
        self._progress = Progress()
        self._printed_at = clock()

    def __enter__(self) -> CompareView:
        if self._rich:
            self._redraw(2)
        return self

    def update(self, progress: Progress) -> None:
        """Show how things stand; without a terminal about once a minute."""
        self._progress = progress
        if not self._rich and self._clock() - self._printed_at >= _PLAIN_SECONDS:
            self.message("; ".join([_summary(progress), *progress.running]))
            self._printed_at = self._clock()

    def _render(self) -> Group:
        progress = self._progress
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("method", "runs", "pass@1"):
            table.add_column(title, no_wrap=True, justify="left" if title == "method" else "right")
        if any(row.tuned for row in progress.rows):
            table.add_column("tuned", no_wrap=True, overflow="ellipsis")
        for row in progress.rows:
            runs = Text(f"{row.done}/{row.total}", style="green" if row.done == row.total else "")
            runs.append(f" {row.failed} failed" if row.failed else "", style="red")
            mean = "" if row.pass_at_1 is None else f"{row.pass_at_1:.3f}"
            tuned = [Text(row.tuned)] if len(table.columns) > 3 else []
            table.add_row(Text(row.method, style="bold"), runs, mean, *tuned)
        lines = [Text(line, no_wrap=True, overflow="ellipsis", style="cyan") for line in progress.running]
        return Group(table, *lines, Text(_summary(progress), style="dim"))


def _summary(progress: Progress) -> str:
    left = "" if progress.left is None else f", about {format_duration(progress.left)} left"
    return f"{progress.done} of {progress.total} runs done, {len(progress.running)} at work{left}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text under one another, for any terminal; the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def name_of(run: Run) -> str:
    """What a run is called in messages."""
    if run.stage == "warmup":
        return f"warm-up of seed {run.seed}"
    tried = ", ".join(f"{name} {value}" for name, value in run.point.items())
    return f"{run.method}{f' ({tried})' if tried else ''}, {'tuning ' * (run.stage == 'tuning')}seed {run.seed}"
