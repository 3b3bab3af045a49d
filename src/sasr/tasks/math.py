r"""MATH: competition problems whose answer is an expression in `\boxed{}`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar

from sasr.errors import InputError, require
from sasr.tasks.base import Perturber, Row, Task, Verdict, text_of
from sasr.tasks.equations import all_hold, find_latex_equations, path_of
from sasr.tasks.math_worker import MathVerifier
from sasr.tasks.perturb import wording
from sasr.tasks.text import (
    after_thinking,
    count_boxed,
    keep_last_boxed,
    last_boxed,
    one_line,
    required_text,
    squeeze,
)

INSTRUCTION = r"Reason step by step, and put the final answer in \boxed{}."
# No answer of the dataset comes near; a longer expression is wrong, and is not worth a worker's time.
LONGEST_ANSWER = 1000
_BASE = re.compile(r"[-0-9A-Za-z]+_\{?([0-9]+)\}?")
# What math-verify does not know, or not by this name.
_SPELLINGS = {"°": r"^\circ ", r"\degree": r"^\circ ", r"\varnothing": r"\emptyset "}
_WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\{([^{}\\]*)\}")
# What a number counts or is measured in, behind it; as plain words only those that are no product of variables.
_GAP = r"(?:\\[,;:! ]|\\q?quad(?![A-Za-z])|[~\s])*"
_NAME = (
    r"(?:\\(?:text|textbf|textrm|textit|textnormal|mbox|mathrm)\s*"
    r"\{[~\s]*(?!(?:and|or|to|not)\b)(?:[A-Za-z][A-Za-z~./\s²³-]*[A-Za-z.²³]|[ghmsCFL])[~\s]*\}"
    r"|(?<=[0-9})\s])(?:(?:square|sq\.?|cubic|cu\.?)\s+)?(?:[cmk]m|kg|gm|ft|feet|foot|inch(?:es)?|people|mph|[ap]\.?m\.?"
    r"|(?:unit|dollar|cent|second|minute|hour|day|week|month|year|mile|yard|pound|gallon|acre|degree|(?:kilo)?gram|way"
    r"|point|student|digit|edge|(?:centi|milli|kilo)?met(?:er|re)|lit(?:er|re))s?)(?![A-Za-z]))"
)
_UNIT = re.compile(rf"{_GAP}(?P<name>{_NAME})(?:\^\{{?[0-9]\}}?|[²³])?[.\s]*$")
# Two numbers of one quantity: 5 hours 30 minutes.
_COMPOUND = re.compile(rf"[0-9}}]{_GAP}{_NAME}[.,]?{_GAP}[0-9]")
_QUANTITY = re.compile(r"[0-9]|\\pi")
# Not units, though they stand there.
_NO_UNITS = {"and", "or", "to", "not", "percent", "dozen", "hundred", "thousand", "million", "billion", "trillion"}
# In one word for both, and of no account between two units: `sq ft` and `feet` have the same number before them.
_UNIT_NAMES = {
    "ft": "foot", "feet": "foot", "in": "inch", "inche": "inch", "cm": "centimeter", "mm": "millimeter", "m": "meter",
    "km": "kilometer", "yd": "yard", "g": "gram", "gm": "gram", "kg": "kilogram", "lb": "pound", "l": "liter",
    "h": "hour", "hr": "hour", "min": "minute", "sec": "second", "s": "second", "deg": "degree", "people": "person",
    "sq": "", "square": "", "squared": "", "cu": "", "cubic": "", "cubed": "", "per": "", "mph": "mile hour",
}  # fmt: skip
_PERCENTAGE = re.compile(r"(-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(\\?%|\\text\{\\?%\}| ?percent)?")
_FORMULA = re.compile(r"\$\$?(.+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_VALUE = re.compile(r"[-+]?(?:[0-9][0-9,.]*|[A-Za-z]|\\frac\{-?[0-9]+\}\{[0-9]+\}|\\[a-z]+)(?:\\?%)?")
_LAYOUT = re.compile(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[bB]igg?[lr]?(?![A-Za-z])|\\[!,;:]|\$")


class MathTask(Task):
    r"""MATH in its published schema (`problem`, `level`, `type`, `solution`).

    The answer is what the last `\boxed{}` after all thinking holds. Answers that are not written alike are compared by
    math-verify in a separate process that is killed when it takes too long; such a completion has a `failure`, and is
    not counted as wrong. The demonstration keeps only the last `\boxed{}` of a solution that has several. `difficulty`
    is the level.

    Args:
        timeout (`float`, *optional*, defaults to 5.0): Seconds that the comparison of one answer may take.
    """

    name: ClassVar[str] = "math"
    # `hendrycks/competition_math` was taken down and `EleutherAI/hendrycks_math` has one configuration per subject;
    # this copy has all subjects, 7,500 rows to train and 5,000 to test.
    default_data: ClassVar[str | None] = "DigitalLearningGmbH/MATH-lighteval"

    def __init__(self, timeout: float = 5.0):
        require("task math: timeout", timeout, lambda v: v > 0, "a number above 0")
        self.verifier = MathVerifier(timeout)

    def perturbers(self) -> Mapping[str, Perturber]:
        return wording.perturbers(INSTRUCTION, latex=True)

    def to_row(self, record: Mapping[str, Any]) -> Row:
        problem, solution = required_text(record, "problem", "solution")
        answer = last_boxed(solution)
        if not answer:
            raise InputError(
                rf"field 'solution' must have its answer in \boxed{{}}, unlike {one_line(repr(solution[-60:]))}"
            )
        level = re.search(r"[0-9]+", str(record.get("level", "")))
        return {
            "prompt": f"{problem.strip()}\n\n{INSTRUCTION}\n",
            "completion": keep_last_boxed(solution.strip()),
            "answer": answer,
            "difficulty": int(level.group()) if level else None,
        }

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return self.check_all([completion], [row])[0]

    def check_all(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        pairs: list[tuple[str, str]] = []
        decided: list[bool | None] = []
        for completion, row in zip(completions, rows, strict=True):
            expected = _spelled(row.get("answer") or "")
            written = _spelled(last_boxed(after_thinking(completion)) or "")
            known = _decide(expected, written)
            pair = _without_unit(expected)[0], _without_unit(written)[0]
            pairs.append(pair)
            # math-verify takes the question itself for an answer: 7x^2 - 63 is 7(x + 3)(x - 3), and 2 + 2 is 4.
            decided.append(False if known is None and _is_asked(pair[1], row) else known)
        undecided = [pair for pair, known in zip(pairs, decided, strict=True) if known is None]
        if undecided and importlib.util.find_spec("math_verify") is None:
            raise InputError("task math: the package math-verify is missing; install it with `pip install math-verify`")
        judged = self.verifier.verify_all(undecided)
        verdicts = []
        for completion, pair, known in zip(completions, pairs, decided, strict=True):
            correct, failure = judged[pair] if known is None else (known, None)
            verdicts.append(Verdict(correct, self.well_formed(completion), failure))
        return verdicts

    def stated(self, answer: str) -> tuple[str, ...]:
        return (rf"\boxed{{{answer}}}",)

    def well_formed(self, completion: str) -> bool:
        completion = after_thinking(completion)
        return count_boxed(completion) == 1 and bool(last_boxed(completion))

    def path(self, completion: str, row: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The multiset of equations between numbers (see [`sasr.tasks.equations`]): algebra is not seen."""
        return path_of(find_latex_equations(completion))

    def steps_valid(self, completion: str, row: Mapping[str, Any]) -> bool | None:
        """Whether all equations between numbers are true; `None` without any, as in most solutions by algebra."""
        return all_hold(find_latex_equations(completion))


def _decide(expected: str, written: str) -> bool | None:
    """The verdict where it needs no mathematics, else `None`."""
    if len(written) > LONGEST_ANSWER:
        return False
    one, other = _normalise(expected), _normalise(written)
    if not one or not other:
        return False
    if one == other:
        return True
    (quantity, unit), (other_quantity, other_unit) = _without_unit(expected), _without_unit(written)
    if unit and other_unit and not (unit <= other_unit or other_unit <= unit):
        return False
    one, other = _normalise(quantity), _normalise(other_quantity)
    if one == other:
        return True
    if _is_compound(quantity) or _is_compound(other_quantity):  # to math-verify a product
        return False
    # To math-verify 12\% is 12, but 12.5\% is .125 alone.
    percent, other_percent = _PERCENTAGE.fullmatch(one), _PERCENTAGE.fullmatch(other)
    signed = percent and other_percent and (percent[2] or other_percent[2])
    if percent and other_percent and signed and Decimal(percent[1]) == Decimal(other_percent[1]):
        return True
    # math-verify passes over the base of a number: 443_6 would be 443_5.
    base, other_base = _BASE.fullmatch(one), _BASE.fullmatch(other)
    return False if base and other_base and base[1] != other_base[1] else None


def _without_unit(latex: str) -> tuple[str, frozenset[str]]:
    """A quantity without its unit, as the problem mostly names it; and the words of that."""
    found = _UNIT.search(latex) if len(latex) <= LONGEST_ANSWER else None
    if not found or not _QUANTITY.search(latex, 0, found.start()):
        return latex, frozenset()
    name = re.sub(r"\\[a-z]+", "", found["name"]).lower().replace(".", "")
    words = re.split(r"[~/\s²³{}-]+", re.sub("(met|lit)re", r"\1er", name))
    if not _NO_UNITS.isdisjoint(words):
        return latex, frozenset()
    singular = (word[:-1] if len(word) > 2 and word.endswith("s") else word for word in words)
    names = " ".join(_UNIT_NAMES.get(word, word) for word in singular).split()
    return latex[: found.start()], frozenset(names)


def _is_compound(latex: str) -> bool:
    return len(latex) <= LONGEST_ANSWER and _COMPOUND.search(latex) is not None


def _is_asked(written: str, row: Mapping[str, Any]) -> bool:
    """Whether an expression to be worked out stands in the question. A number, a fraction or a letter is none, and may
    be given there as a choice."""
    written = _normalise(written)
    if _VALUE.fullmatch(written):
        return False
    asked = _FORMULA.findall(text_of(row.get("prompt") or ""))
    return any(written == _normalise(formula).strip("=") for parts in asked for formula in parts if formula)


def _spelled(latex: str) -> str:
    for other, known in _SPELLINGS.items():
        latex = re.sub(re.escape(other) + r"(?![A-Za-z])", known.replace("\\", r"\\"), latex)
    return latex


def _normalise(latex: str) -> str:
    text = _WORDS.sub(r"\1", _LAYOUT.sub("", latex)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return squeeze(text).rstrip(".")
