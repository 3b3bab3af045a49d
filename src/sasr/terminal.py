"""What the terminal views of training, exams and comparisons share: one display that redraws itself, or plain lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import IO, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text


def is_main() -> bool:
    """Whether this process writes and prints, known before torch starts its process group."""
    return int(os.environ.get("RANK", "0")) == 0


def _is_terminal(file: IO[str]) -> bool:
    try:
        return bool(file.isatty())
    except (AttributeError, ValueError):  # an object that can only write; a closed file
        return False


class TerminalView:
    """Base of the views; use as a context manager, which ends the display on every way out.

    Args:
        console (`rich.console.Console`, *optional*): Where to write; standard output by default. Whether it is a
            terminal decides the form; of a console that is given, whether it says so.
        clock (`Callable[[], float]`, *optional*, defaults to `time.monotonic`): Seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic):
        self._console = console if console is not None else Console()
        self._clock = clock
        # With FORCE_COLOR rich takes every file for a terminal, and a log would be filled with displays.
        trusted = console is not None or self._console.is_jupyter or _is_terminal(self._console.file)
        # Block characters on an ASCII terminal would raise UnicodeEncodeError.
        self._rich = (
            trusted
            and self._console.is_terminal
            and not self._console.is_dumb_terminal
            and not self._console.options.ascii_only
        )
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the display, leaving its last state on the screen. May be called twice."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    @property
    def width(self) -> int:
        """Columns that a line may take; without a terminal as many as it likes."""
        return self._console.width if self._rich else 1000

    def message(self, text: str) -> None:
        """A line of its own, above the display."""
        text = self._clean(text)
        if self._rich:
            self._console.print(Text(text))  # Text, not str: brackets in it are not markup
        else:
            self._print(text)

    def _clean(self, text: str) -> str:
        """Without what outside text could move the cursor with."""
        return "".join(c for c in text if c.isprintable())

    def _redraw(self, times_a_second: float) -> None:
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=times_a_second)
        self._live.start()

    def _render(self) -> RenderableType:
        raise NotImplementedError

    def _print(self, line: str) -> None:
        encoding = getattr(self._console.file, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self._console.file, flush=True)
