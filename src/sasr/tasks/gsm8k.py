"""GSM8K: grade-school word problems with worked solutions that end in `#### N`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

from sasr.errors import InputError
from sasr.tasks.base import Perturber, Row, Task, Verdict
from sasr.tasks.equations import Equation, all_hold, find_equations, path_of
from sasr.tasks.perturb import wording
from sasr.tasks.text import (
    after_thinking,
    leading_number,
    normalise_number,
    one_line,
    parse_number,
    required_text,
    unwrapped,
    without_currency,
)

MARK = "####"
INSTRUCTION = f"Reason step by step, and end with a line of the form `{MARK} <number>`."
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class GSM8KTask(Task):
    """GSM8K in its published schema (`question`, `answer`).

    The demonstration is the worked solution without its `<<...>>` calculator annotations. The answer check compares
    the number after the last `####` exactly, as decimals; Markdown, LaTeX and currency signs around it are tolerated,
    but are not the format. `difficulty` is the number of lines of the solution.
    """

    name: ClassVar[str] = "gsm8k"
    default_data: ClassVar[str | None] = "openai/gsm8k:main"

    def perturbers(self) -> Mapping[str, Perturber]:
        return wording.perturbers(INSTRUCTION)

    def to_row(self, record: Mapping[str, Any]) -> Row:
        question, solution = required_text(record, "question", "answer")
        steps, mark, final = _CALCULATOR.sub("", solution).rpartition(MARK)
        answer = normalise_number(final)
        if not mark or answer is None:
            raise InputError(
                f"field 'answer' must be a worked solution that ends in `{MARK} <number>`,"
                f" not {one_line(repr(solution[-60:]))}"
            )
        lines = [line.strip() for line in steps.splitlines() if line.strip()]
        return {
            "prompt": f"{question.strip()}\n\n{INSTRUCTION}\n",
            "completion": "\n".join([*lines, f"{MARK} {answer}"]),
            "answer": answer,
            "difficulty": len(lines),
        }

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        expected = row.get("answer")
        written = final_number(completion)
        correct = expected is not None and written is not None and written == parse_number(expected)
        return Verdict(correct=correct, well_formed=self.well_formed(completion))

    def stated(self, answer: str) -> tuple[str, ...]:
        return (f"{MARK} {answer}",)

    def well_formed(self, completion: str) -> bool:
        completion = after_thinking(completion)
        if completion.count(MARK) != 1:
            return False
        last = completion.rstrip().rpartition("\n")[2].strip()
        return last.startswith(MARK) and parse_number(last[len(MARK) :]) is not None

    def path(self, completion: str, row: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The multiset of equations that the solution writes out (see [`sasr.tasks.equations`])."""
        return path_of(_equations(completion))

    def steps_valid(self, completion: str, row: Mapping[str, Any]) -> bool | None:
        """Whether all equations of the solution are true; `None` if it has none that can be read."""
        return all_hold(_equations(completion))


def _equations(completion: str) -> list[Equation]:
    steps, mark, _ = completion.rpartition(MARK)
    return find_equations(_CALCULATOR.sub("", steps if mark else completion))


def final_number(completion: str) -> Decimal | None:
    """The number that follows the last `####` after all thinking, on the same line, whatever Markdown or LaTeX is put
    around it; `None` when there is none."""
    _, mark, rest = after_thinking(completion).rpartition(MARK)
    return leading_number(without_currency(unwrapped(rest.partition("\n")[0]))) if mark else None
