"""The user's own rows: prompt, completion and answer in a JSONL file, without any code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from sasr.errors import InputError
from sasr.tasks.base import Row, Task, Verdict
from sasr.tasks.text import last_boxed, one_line, parse_number, squeeze

_ANSWER = re.compile(r"\banswer(?: is|\**:)(?:\s*:)?", re.IGNORECASE)
_MATH = re.compile(r"\$([^$]+)\$|\\\((.+)\\\)", re.DOTALL)
# What ends a sentence or wraps an answer in Markdown or quotes, and is no part of it. Not `!`: 5! is not 5.
_ENDING = " \t\r\n.,;:?*`\"'"


class JsonlTask(Task):
    """Rows with `prompt` (text or a list of messages) and, optionally, `completion` and `answer`; other columns are
    kept.

    The final answer of a completion is what follows its last `####`; failing that its last `\\boxed{}`; failing that
    what follows its last `Answer:` or `answer is`; failing that its last line. It is compared with `answer` as an exact
    number where both are numbers, else as text without regard to case, spacing and final punctuation.
    """

    name: ClassVar[str] = "jsonl"

    def to_row(self, record: Mapping[str, Any]) -> Row:
        prompt, completion = record.get("prompt"), record.get("completion")
        if prompt is None:
            have = ", ".join(str(key) for key in record) or "none"
            raise InputError(f"record has no field 'prompt' (its fields: {one_line(have)}); add it")
        _require_text("prompt", prompt)
        if completion is not None:
            _require_text("completion", completion)
        if isinstance(prompt, list) and isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        elif isinstance(prompt, str) and isinstance(completion, list):
            raise InputError("'completion' is a list of messages but 'prompt' is a string; write both in one form")
        answer = record.get("answer")
        if not isinstance(answer, str | int | float | None):
            raise InputError(f"field 'answer' must be a string, a number or null, not {one_line(repr(answer), 80)}")
        own = {
            "prompt": prompt,
            "completion": completion,
            "answer": None if answer is None or not str(answer).strip() else str(answer),
            "difficulty": record.get("difficulty"),
        }
        return {**record, **own}

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        expected = row.get("answer")
        correct = expected is not None and same_answer(final_answer(completion), expected)
        return Verdict(correct=correct, well_formed=self.well_formed(completion))

    def stated(self, answer: str) -> tuple[str, ...]:
        return f"#### {answer}", rf"\boxed{{{answer}}}", answer

    def well_formed(self, completion: str) -> bool:
        text = completion.strip()
        if not text:
            return False
        marked = "####" in text or last_boxed(text) is not None or _ANSWER.search(text) is not None
        return marked or len(text.splitlines()) == 1


def final_answer(completion: str) -> str:
    """The part of a completion that states its answer; empty when there is no text at all. What a model only thinks,
    up to `</think>`, states none."""
    completion = completion.rpartition("</think>")[2]
    _, mark, rest = completion.rpartition("####")
    if mark:
        return _first_line(rest)
    boxed = last_boxed(completion)
    if boxed is not None:
        return boxed
    parts = _ANSWER.split(completion)
    if len(parts) > 1:
        return _first_line(parts[-1])
    return completion.strip().rpartition("\n")[2].strip()


def same_answer(written: str, expected: str) -> bool:
    """Whether two final answers agree: as exact numbers where both are, else as text."""
    written, expected = _bare(written), _bare(expected)
    left, right = parse_number(written), parse_number(expected)
    if left is not None and right is not None:
        return left == right
    return bool(written) and squeeze(written).casefold() == squeeze(expected).casefold()


def _bare(text: str) -> str:
    text = text.rstrip(_ENDING).lstrip(" \t\r\n*`\"'")
    in_math = _MATH.fullmatch(text)  # `$42$`, but not the sign of a currency, as in `$42`
    return (in_math[1] or in_math[2]).strip() if in_math else text


def _first_line(text: str) -> str:
    # Markdown may close a bold marker right after the mark ("**Answer:** 5").
    return text.strip().lstrip("* \n").partition("\n")[0].strip()


def _require_text(field: str, value: Any) -> None:
    if isinstance(value, str) and (value.strip() or field == "completion"):
        return
    messages = value if isinstance(value, list) else []
    good = all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )
    if not messages or not good:
        raise InputError(
            f"field '{field}' must be a non-empty string or a list of messages with 'role' and 'content',"
            f" not {one_line(repr(value), 80)}"
        )
