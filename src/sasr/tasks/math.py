r"""MATH: competition problems whose answer is an expression in `\boxed{}`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
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
            pair = _spelled(row.get("answer") or ""), _spelled(last_boxed(after_thinking(completion)) or "")
            pairs.append(pair)
            known = _decide(*pair)
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
    expected, written = _normalise(expected), _normalise(written)
    if not expected or not written:
        return False
    if expected == written:
        return True
    # math-verify passes over the base of a number: 443_6 would be 443_5.
    base, other = _BASE.fullmatch(expected), _BASE.fullmatch(written)
    return False if base and other and base[1] != other[1] else None


def _is_asked(written: str, row: Mapping[str, Any]) -> bool:
    """Whether an expression to be worked out stands in the question. A number, a fraction or a letter is none, and may
    be given there as a choice."""
    written = _normalise(written)
    if _VALUE.fullmatch(written):
        return False
    prompt = row.get("prompt") or row.get("prompts") or ""  # the latter in a reward, as TRL calls it
    asked = _FORMULA.findall(text_of(prompt))
    return any(written == _normalise(formula).strip("=") for parts in asked for formula in parts if formula)


def _spelled(latex: str) -> str:
    for other, known in _SPELLINGS.items():
        latex = re.sub(re.escape(other) + r"(?![A-Za-z])", known.replace("\\", r"\\"), latex)
    return latex


def _normalise(latex: str) -> str:
    text = _WORDS.sub(r"\1", _LAYOUT.sub("", latex)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return squeeze(text).rstrip(".")
