"""Text and numbers of models and data on their way into a page: everything passes through here."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

_LONGEST = 20_000  # characters of any one text
_DIGITS = 5


def visible(text: str, limit: int = _LONGEST) -> str:
    """The text with every sign that cannot be seen as an escape (`\\u202e`, `\\u0007`), cut after `limit` characters
    with a note of how many are missing.

    Such signs can reverse what is read, hide it, or break the file; line breaks, tabs and spaces stay.
    """
    text = text.replace("\r\n", "\n")
    shown = text[:limit]
    if not shown.replace("\n", "").isprintable():
        shown = "".join(_visible(sign) for sign in shown)
    rest = len(text) - limit
    return f"{shown} \u2026 [{rest:,} more characters]" if rest > 0 else shown


def _visible(sign: str) -> str:
    if sign.isprintable() or sign in "\n\t" or unicodedata.category(sign) == "Zs":
        return sign
    return f"\\u{ord(sign):04x}" if ord(sign) <= 0xFFFF else f"\\U{ord(sign):08x}"


def tidy(value: Any) -> Any:
    """Any nested value as JSON can hold it: texts visible, floats with few digits, `None` for what is not finite."""
    if isinstance(value, Mapping):
        return {visible(str(key)): tidy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(item) for item in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return rounded(value)
    return visible(str(value))


def rounded(value: float) -> float | int | None:
    """Five significant digits; whole numbers without a point, which are shorter."""
    if math.isfinite(value) and value.is_integer() and abs(value) < 2**53:  # a step is that step
        return int(value)
    short = float(f"{value:.{_DIGITS}g}")
    if not math.isfinite(short):  # also the largest floats, rounded up
        return None
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def embed(value: Any) -> str:
    """The value as JSON that can stand inside `<script type="application/json">`, whatever its texts hold."""
    text = json.dumps(tidy(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
