"""The exceptions that users see as a single line instead of a traceback, and how they name what was meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something that the user gave cannot be used: a setting, a file, a checkpoint, a model.

    The message is one line that says what is wrong, where, and what to do about it. The command line prints it
    after `sasr: error:` and exits with status 2; in Python it is an ordinary `ValueError`.
    """


class RunFailed(RuntimeError):
    """A run cannot go on, by no fault of what the user gave: the disk is full, every step has a loss that is no number.

    The message is one line that says what happened, what is safe and how to go on. The command line prints it after
    `sasr: failed:` and exits with status 1.

    Args:
        message (`str`): The line.
        flags (`str`): What the command to go on with needs besides, so that it does not fail again.
    """

    def __init__(self, message: str, flags: str = ""):
        super().__init__(message)
        self.flags = flags


class Diverged(RunFailed):
    """The numbers of a run are beyond use: to go on with it would not help."""


@contextmanager
def disk_failures_told(what_is_safe: Callable[[], str]) -> Iterator[None]:
    """Turns what a disk does to a command at work into a [`RunFailed`] that says what is safe, and how to go on."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunFailed(f"{where}{error.strerror or error}; {what_is_safe()}") from error


def unknown(what: str, given: str, known: Iterable[str], also: str = "") -> InputError:
    """`unknown schedule 'sasrr': use one of sasr, sft, ... (did you mean sasr?)`, as an exception to raise.

    Args:
        what (`str`): What kind of thing was named.
        given (`str`): The name.
        known (`Iterable[str]`): The names there are.
        also (`str`, *optional*): Another way to give one, put after the names.
    """
    names = list(known)
    listed = ", ".join(names) + (f", or {also}" if also else "")
    return InputError(f"unknown {what} {given!r}: use one of {listed}{did_you_mean(given, names)}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean sasr?)` or nothing."""
    close = difflib.get_close_matches(str(given), list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def require(name: str, value, holds, wanted: str) -> None:
    """Raise `InputError` unless the value of a setting is a finite number of which `holds` is true."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not holds(value):
        raise InputError(f"{name} is {value!r}: it must be {wanted}")
