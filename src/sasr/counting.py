"""Long counts in a terminal: one bar with pace and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from sasr.live import format_count
from sasr.terminal import TerminalView, is_main

_PLAIN_SECONDS = 30.0
_PATIENT_SECONDS = 2.0  # what is done sooner needs no bar
_Item = TypeVar("_Item")


class CountView(TerminalView):
    """Shows how many of a known number of things are done. What they are is the attribute `unit`.

    Arguments are those of [`TerminalView`].
    """

    unit = "done"

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(console, clock)
        self._total = self._done = self._first = 0
        self._started = self._printed_at = clock()

    def start(self, total: int, done: int) -> None:
        """Begin to count, `done` of `total` being from an earlier start."""
        self._total, self._done, self._first = total, done, done
        self._started = self._printed_at = self._clock()
        if self._rich:
            self._redraw(4)

    def update(self, done: int) -> None:
        """Show that so many are there."""
        self._done = done
        now = self._clock()
        if not self._rich and (done >= self._total or now - self._printed_at >= _PLAIN_SECONDS):
            self._printed_at = now
            self._print(self._state())

    def _state(self) -> str:
        seconds = self._clock() - self._started
        return format_count(self._done, self._total, self._done - self._first, seconds, self.unit)

    def _render(self) -> Text:
        tail = f" {self._state()}"
        cells = max(0, self._console.width - len(tail))
        filled = int(cells * self._done / self._total) if self._total else 0
        bar = Text.assemble(("━" * filled, "green"), ("─" * (cells - filled), "bright_black"), tail)
        bar.no_wrap = True
        return bar


def counted(
    items: Iterable[_Item],
    total: int,
    unit: str,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[_Item]:
    """The items as they come. If they take more than two seconds it shows on standard error how many are there, which
    leaves standard output to what a command prints."""
    started, there, view = clock(), 0, None
    try:
        for item in items:
            yield item
            there += 1
            if view is None and there < total and is_main() and clock() - started > _PATIENT_SECONDS:
                view = CountView(console if console is not None else Console(stderr=True), clock)
                view.unit = unit
                view.start(total, there)
            if view is not None:
                view.update(there)
    finally:
        if view is not None:
            view.stop()
