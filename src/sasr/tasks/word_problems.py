"""SVAMP and MultiArith: word problems with an answer and no worked solution, to train by reward and to examine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from sasr.errors import InputError
from sasr.tasks.base import Row
from sasr.tasks.gsm8k import INSTRUCTION, GSM8KTask
from sasr.tasks.text import normalise_number, one_line, required, required_text


class SVAMPTask(GSM8KTask):
    """SVAMP in its published schema (`Body`, `Question`, `Answer`; `Equation` if there is one), asked and checked like
    GSM8K. There are no demonstrations. `difficulty` is the number of operations in the equation.

    The dataset is that of Patel et al., arXiv 2103.07191.
    """

    name: ClassVar[str] = "svamp"
    default_data: ClassVar[str | None] = "ChilleD/SVAMP"

    def to_row(self, record: Mapping[str, Any]) -> Row:
        body, question = (text.strip() for text in required_text(record, "Body", "Question"))
        operations = re.findall(r"(?<=\s)[-+*/](?=\s)", str(record.get("Equation") or ""))
        return _row(f"{body} {question}", _number(record, "Answer"), len(operations) or None)


class MultiArithTask(GSM8KTask):
    """MultiArith, asked and checked like GSM8K, without demonstrations and `difficulty`: `question` and `final_ans` as
    on the Hub, or `input` and `target` as in other copies.

    The dataset is that of Roy and Roth, arXiv 1608.01413.
    """

    name: ClassVar[str] = "multiarith"
    default_data: ClassVar[str | None] = "ChilleD/MultiArith"

    def to_row(self, record: Mapping[str, Any]) -> Row:
        problem, answer = ("input", "target") if "input" in record else ("question", "final_ans")
        (question,) = required_text(record, problem)
        return _row(question.strip(), _number(record, answer), None)


def _number(record: Mapping[str, Any], field: str) -> str:
    (value,) = required(record, field)
    answer = None if isinstance(value, bool) else normalise_number(str(value))
    if answer is None:
        raise InputError(f"field '{field}' must be a number, not {one_line(repr(value), 80)}")
    return answer


def _row(problem: str, answer: str, difficulty: int | None) -> Row:
    return {
        "prompt": f"{problem}\n\n{INSTRUCTION}\n",
        "completion": None,
        "answer": answer,
        "difficulty": difficulty,
    }
