"""A run in a notebook cell: the live display, redrawn in place and kept as the cell's output."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from sasr.live import LiveView

_WIDTH, _SECONDS = 100, 0.5


class NotebookView(LiveView):
    """[`LiveView`] for a cell; no widgets needed.

    Args:
        clock (`Callable[[], float]`, *optional*, defaults to `time.monotonic`): Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        # Kernels set FORCE_COLOR, which would make a terminal of it.
        super().__init__(Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, force_jupyter=False), clock)
        self._handle: Any = None
        self._drawn_at = -_SECONDS

    def start(self, *args: Any, **kwargs: Any) -> None:
        super().start(*args, **kwargs)
        self._handle, self._drawn_at = None, -_SECONDS  # of an earlier train(), whose output another cell has

    def step(self, metrics: Mapping[str, Any]) -> None:
        super().step(metrics)
        self._draw(self._done >= self._total)

    def exam(self, label: str, done: int, total: int) -> None:
        super().exam(label, done, total)
        self._draw(done >= total)

    def stop(self) -> None:
        super().stop()
        self._draw(True)

    def message(self, text: str) -> None:
        print(self._clean(text))

    def _print(self, line: str) -> None:
        """The plain lines of a log file are drawn instead."""

    def _draw(self, now: bool) -> None:
        if not self._total or (not now and self._clock() - self._drawn_at < _SECONDS):
            return
        from IPython.display import HTML, display

        self._drawn_at = self._clock()
        canvas = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False, color_system="truecolor")
        canvas.print(self._render())
        page = HTML(canvas.export_html(inline_styles=True, code_format="<pre>{code}</pre>"))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)
