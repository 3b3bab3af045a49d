"""A time limit for code that is called in this process, such as a reward function of the user's."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# After the limit code is interrupted again and again, as it may catch everything; after this many, the process ends.
_AGAIN = 5.0
_LAST = 3


class TooLate(BaseException):
    """The limit has passed. No `Exception`, which the code may well catch."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise [`TooLate`] in what runs here after so many seconds; 0 for no limit.

    Python code is interrupted, on the main thread. What hangs elsewhere (in a library written in C, on another thread)
    is ended with the process after three times as long, with a traceback on standard error: a run can be resumed, one
    that waits for ever cannot be noticed.
    """
    if not seconds:
        yield
        return
    interruptible = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")

    over = False

    def interrupt(number: int, frame: Any) -> None:
        if not over:
            raise TooLate

    stderr = sys.__stderr__
    if stderr is not None:
        faulthandler.dump_traceback_later(_LAST * seconds, exit=True, file=stderr)
    old = signal.signal(signal.SIGALRM, interrupt) if interruptible else None
    try:
        if interruptible:
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
        try:
            yield
        finally:
            over = True  # an alarm from here on would keep the timer from being stopped, and end another's work
    finally:
        if interruptible:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        if stderr is not None:
            faulthandler.cancel_dump_traceback_later()
