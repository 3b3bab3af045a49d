"""Parsers that several tasks share: numbers, `\\boxed{}` expressions, spaces. None of them raises on any text, and
each is linear in its length, because they run on whatever a model wrote."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sasr.errors import InputError
from sasr.thoughts import CLOSE, OPEN

_NUMBER = re.compile(
    r"(?P<sign>[-+]?) ?\\?\$? ?(?P<inner>-?)"
    r"(?P<value>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?: ?\\?%)?"
)
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
# After a number: it is another number, or only the beginning of an expression. `!` is not here: it ends sentences.
_GOES_ON = re.compile(
    r"[^\W_]|[/^*×÷±=+-]|[ ]*(?:[-+×÷±=]|(?:hundred|thousand|million|billion|dozen|squared|cubed|plus|minus)\b"
    r"|times\b(?!\W*$))",  # "10 times" answers "how often"
    re.IGNORECASE,
)
# What Markdown, LaTeX or a prompt's `<number>` puts around a number.
_WRAPPERS = (
    *((mark, mark) for mark in ("***", "**", "*", "`", "$$", "$")),
    ("<", ">"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
)
_MOST_WRAPPERS = 4  # one in another; a bound, because each is looked for in all of the text
_CURRENCY = re.compile(r"(?P<minus>[-+\u2212]?) ?\\?(?P<sign>[$€£¥₹₩]) ?")
# A space between two letters or digits separates ("1 2", "new york"); any other space is layout.
_LAYOUT_SPACE = re.compile(r"(?<![^\W_]) | (?![^\W_])")


def _to_decimal(match: re.Match[str]) -> Decimal | None:
    if match["sign"] and match["inner"]:
        return None
    value = Decimal(match["value"].replace(",", ""))
    # copy_negate is exact; the operator `-` rounds to the context's 28 digits.
    return value.copy_negate() if "-" in (match["sign"], match["inner"]) else value


def parse_number(text: str) -> Decimal | None:
    """The exact value of a text that is one number, else `None`. Thousands commas, `$`, `%` and a final period are
    tolerated; exponents and fractions are not numbers here."""
    cleaned = text.strip().replace("\u2212", "-").rstrip(". ")
    match = _NUMBER.fullmatch(cleaned)
    return _to_decimal(match) if match else None


# A second number, or the fraction of a mixed one: 3 ½, 3 and a half.
_MORE = re.compile(
    r"[0-9\u00bc-\u00be\u2150-\u215e]|^\s*and (?:a|one|two|three) (?:half|halves|thirds?|quarters?|fourths?|fifths?)\b"
)


def leading_number(text: str) -> Decimal | None:
    """The number that `text` starts with, if nothing else in the text could be meant: `18 dollars` is 18, while
    `18 / 2`, `18.5.1`, `5 or 6` and `5 million` are `None`."""
    cleaned = text.strip().replace("\u2212", "-")
    match = _NUMBER.match(cleaned)
    if not match:
        return None
    rest = cleaned[match.end() :]
    if _GOES_ON.match(rest) or _MORE.search(rest):
        return None
    return _to_decimal(match)


def unwrapped(text: str) -> str:
    r"""A text that begins with a number without what is put around the number: `**18** apples`, `<18>`, `\(18\)` and
    `\boxed{18}` begin with 18. What goes on after that, as `**2**3` does, is left as it is."""
    text = text.strip()
    for _ in range(_MOST_WRAPPERS):
        if not text.startswith(("*", "`")):
            text = text.rstrip("*`. ")  # of a line that is bold as a whole, `**#### 18**`
        inner, rest = _inside(text)
        if not inner.strip() or _GOES_ON.match(rest):
            break
        text = f"{inner.strip()} {rest}".strip()
    return text


def _inside(text: str) -> tuple[str, str]:
    """What the wrapper that a text begins with has in it, and what follows it; nothing without one."""
    boxed = _BOXED.match(text)
    span = _boxed_span(text, boxed.end()) if boxed else None
    if span is not None:
        return text[span[0] : span[1]], text[span[2] :]
    for opening, closing in _WRAPPERS:
        if text.startswith(opening):
            inner, closed, rest = text[len(opening) :].partition(closing)
            if closed:
                return inner, rest
    return "", ""


def currency_of(text: str) -> str | None:
    """The currency sign that an amount begins with."""
    match = _CURRENCY.match(text)
    return match["sign"] if match else None


def without_currency(text: str) -> str:
    """`-€5` as `-5`."""
    match = _CURRENCY.match(text)
    return match["minus"] + text[match.end() :] if match else text


def after_thinking(completion: str) -> str:
    """What a completion says after its last thought; nothing if that is not closed, as when it is cut at the limit. A
    thought that the prompt has opened is to be opened in the completion too (`sasr.thoughts.with_opened_thought`)."""
    said = completion.rpartition(CLOSE)[2]
    return "" if OPEN in said else said


def normalise_number(text: str) -> str | None:
    """`$1,200.0` as `1200`; `None` when the text is not one number."""
    value = parse_number(text)
    if value is None:
        return None
    digits = format(value, "f")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "0" if digits in ("-0", "") else digits


def _boxed_span(text: str, end_of_command: int) -> tuple[int, int, int] | None:
    """(start of the content, end of the content, end of the expression) of the box whose command ends there."""
    opening = end_of_command
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if opening == len(text):
        return None
    if text[opening] != "{":
        # `\boxed 5$`, which a few published solutions use.
        match = re.compile(r"[^\s$]+").match(text, opening)
        return (opening, match.end(), match.end()) if match and opening > end_of_command else None
    depth, i = 0, opening
    while i < len(text):
        if text[i] == "\\":
            i += 2  # an escaped brace does not count
            continue
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return opening + 1, i, i + 1
        i += 1
    return None


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox{...}`), braces balanced; `None` when there is none or the last one
    is never closed."""
    ends = [command.end() for command in _BOXED.finditer(text)]
    span = _boxed_span(text, ends[-1]) if ends else None
    return text[span[0] : span[1]].strip() if span else None


def whole_box(text: str) -> str | None:
    r"""Content of the `\boxed{...}` that a text is; `None` if it has more, or is none."""
    command = _BOXED.match(text)
    span = _boxed_span(text, command.end()) if command else None
    return text[span[0] : span[1]] if span and span[2] == len(text) else None


def count_boxed(text: str) -> int:
    r"""How many `\boxed` or `\fbox` commands the text has."""
    return sum(1 for _ in _BOXED.finditer(text))


def keep_last_boxed(text: str) -> str:
    r"""The text with every `\boxed{x}` but the last written as `x`."""
    commands = list(_BOXED.finditer(text))
    closing = _closing_braces(text) if len(commands) > 1 else {}
    removed: list[tuple[int, int]] = []
    for command in commands[:-1]:
        opening = command.end()
        while opening < len(text) and text[opening].isspace():
            opening += 1
        if text[opening : opening + 1] != "{":
            if command.end() < opening < len(text) and text[opening] != "$":
                removed.append((command.start(), opening))
        elif opening in closing:
            removed += [(command.start(), opening + 1), (closing[opening], closing[opening] + 1)]
    kept, end = [], 0
    for first, last in sorted(removed):
        kept.append(text[end:first])
        end = last
    return "".join([*kept, text[end:]])


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed. Once for all: looking from each of many boxes would be quadratic."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif brace.group() == "}" and opened:
            found[opened.pop()] = brace.start()
    return found


# What is written alike on paper: quotes and dashes as a keyboard has them and as a typesetter does; what has no width.
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u2010\u2011\u2013\u2212", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    }
)
# Normalising sorts runs of accents, in a time that is quadratic in their length.
_PIECE = re.compile(r"\S{1,200}")


def unified(text: str) -> str:
    """The text with accents, quotes and dashes in one of the forms that they have, and nothing that has no width."""
    if text.isascii():
        return text
    return _PIECE.sub(lambda piece: unicodedata.normalize("NFC", piece.group()), text.translate(_ALIKE))


def squeeze(text: str) -> str:
    """The text without spaces, except those that separate two words or numbers, which become one space."""
    return _LAYOUT_SPACE.sub("", " ".join(text.split()))


def one_line(value: object, limit: int = 300) -> str:
    """Any value as part of a one-line message."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def required(record: Mapping[str, Any], *fields: str) -> list[Any]:
    """The values of `fields`, or an `InputError` that names the first one the record lacks."""
    for field in fields:
        if record.get(field) is None:
            have = ", ".join(str(key) for key in record) or "none"
            raise InputError(
                f"record has no field '{field}' (its fields: {one_line(have)}); needed: {', '.join(fields)}"
            )
    return [record[field] for field in fields]


def required_text(record: Mapping[str, Any], *fields: str) -> list[str]:
    """Like `required`, for fields that must be non-blank strings."""
    values = required(record, *fields)
    for field, value in zip(fields, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"field '{field}' must be a non-empty string, not {one_line(repr(value), 80)}")
    return values
