"""What the values of rows may be: a data set holds each column, and each part of one, as values of one kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sasr.errors import InputError
from sasr.tasks.text import one_line

# Both are given in two forms, text and messages, and brought into one when the tokenizer is known.
_TWO_FORMS = ("prompt", "completion")
# Reward functions have arguments of these names, and TRL reads pictures from the last two.
_RESERVED = ("prompts", "completions", "completion_ids", "image", "images")
_DEEPEST = 20
_LARGEST = 2**63
_EXACT = 2**53  # the largest whole number up to which a float has them all


class Columns:
    """The kinds of values seen so far, by column (`meta`, and its parts: `meta.source`, `meta.tags[]`)."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def add(self, row: Mapping[str, Any], where: str) -> None:
        """Take a row in. Raises `InputError`, and takes nothing in, for a value that no column can hold, or that is of
        another kind than those before: the message names both places."""
        found: dict[str, str] = {}
        for name, value in row.items():
            if name in _RESERVED:
                raise InputError(f"{where}: a column cannot be named '{name}', which rewards and TRL use: rename it")
            _kind(str(name), str(name), where)  # a name is text too
            _look(str(name), value, found, where, 0)
        for path, kind in found.items():
            before, place = self._seen.get(path, (kind, where))
            if kind != before and path not in _TWO_FORMS:
                raise InputError(
                    f"{where}: column '{one_line(path, 60)}' is {kind} here, but {before} in {place}: write it alike in"
                    " all rows"
                )
        for path, kind in found.items():
            self._seen.setdefault(path, (kind, where))


def _look(path: str, value: Any, found: dict[str, str], where: str, depth: int) -> None:
    """Note the kind of a value and of its parts."""
    if value is None:
        return
    if depth > _DEEPEST:
        raise InputError(f"{where}: column '{one_line(path, 60)}' is nested more than {_DEEPEST} levels deep")
    kind = _kind(path, value, where)
    if found.setdefault(path, kind) != kind:
        raise InputError(
            f"{where}: column '{one_line(path, 60)}' has {found[path]} beside {kind}: write its values alike"
        )
    if isinstance(value, Mapping):
        for name, part in value.items():
            _kind(f"{path}.{name}", str(name), where)
            _look(f"{path}.{name}", part, found, where, depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            _look(f"{path}[]", part, found, where, depth + 1)


def _kind(path: str, value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise InputError(f"{where}: column '{one_line(path, 60)}' has a number beyond 64 bits: write it as text")
        # Beside fractions a column is of floats, which do not have this number.
        return "a number" if abs(value) <= _EXACT else "a whole number beyond 2^53"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: column '{one_line(path.encode('ascii', 'backslashreplace').decode(), 60)}' has half of a"
                f" surrogate pair (\\u{ord(value[error.start]):04x}), which is no text: correct or drop the row"
            ) from None
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"of type {type(value).__name__}"
