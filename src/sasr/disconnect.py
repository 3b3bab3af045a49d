"""A terminal, or the program that reads the output, may end before a long command does: it goes on, or saves and stops.

`sasr train | tee log` is the common case. Ctrl-C reaches both and ends tee at once; what the run then prints, while it
finishes its step and saves, has no reader, and an exception for that would cost the steps since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# What asks a command to stop: Ctrl-C, SIGTERM, and a terminal that is closed.
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def stop_signals() -> list[signal.Signals]:
    """Those of `STOPS` that a command is to take: a closed terminal is nothing to one that `nohup` started."""
    return [number for number in STOPS if not (is_hangup(number) and signal.getsignal(number) == signal.SIG_IGN)]


def is_hangup(number: int) -> bool:
    """Whether a signal tells of a closed terminal. The shell and the kernel may both send it, so a second one does not
    ask for more than the first."""
    return number == getattr(signal, "SIGHUP", None)


class _Lasting:
    """A text stream whose reader may go, or whose disk may be full: what cannot be written is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno in (errno.EPIPE, errno.EIO):  # for good; what is in the buffer would fail again at exit
            with contextlib.suppress(OSError, ValueError):  # no file beneath it
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, nothing fails because standard output or standard error cannot be written."""
    before = {name: stream for name in ("stdout", "stderr") if (stream := getattr(sys, name)) is not None}
    lasting = {name: _Lasting(stream) for name, stream in before.items()}
    for name, stream in lasting.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in lasting.items():
            stream.flush()
            if getattr(sys, name) is stream:  # else something within has set its own, and keeps it
                setattr(sys, name, before[name])
