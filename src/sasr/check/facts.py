"""What is to be said of the rows of one split, and of two splits beside each other. Pure: rows in, plain values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sasr.exam.measures import ascending
from sasr.tasks.base import Row, Task, question_of, text_of
from sasr.tasks.judging import CHUNK, judged_demonstrations, to_judge


@dataclass(frozen=True)
class Lengths:
    """Token counts of prompts or demonstrations.

    Args:
        minimum (`int`), median (`float`), p95 (`float`), maximum (`int`): Of those that there are.
        limit (`int` or `None`): What must not be exceeded.
        over (`list[int]`): Which ones exceed it, by their place.
    """

    minimum: int
    median: float
    p95: float
    maximum: int
    limit: int | None
    over: list[int]


@dataclass(frozen=True)
class Judged:
    """What the task's own verifier says of the demonstrations that have an answer.

    Args:
        count (`int`): So many were judged.
        wrong (`list[int]`), failed (`list[tuple[int, str]]`): Places of the rows whose demonstration is not right, or
            could not be judged (and why).
        malformed (`list[int]`), untrue (`list[int]`): Of those that are right, without the task's format, and with a
            step that does not hold.
    """

    count: int
    wrong: list[int]
    failed: list[tuple[int, str]]
    malformed: list[int]
    untrue: list[int]


def lengths(counts: Sequence[int], limit: int | None) -> Lengths | None:
    """`None` without any."""
    if not counts:
        return None
    over = [] if limit is None else [i for i, count in enumerate(counts) if count > limit]
    median, p95 = (float(np.percentile(counts, share, method="inverted_cdf")) for share in (50, 95))
    return Lengths(min(counts), median, p95, max(counts), limit, over)


def judge(task: Task, rows: Sequence[Row], progress: Callable[[int], None]) -> Judged:
    """Have the demonstrations judged. `progress` is told how many are done."""
    found = Judged(len(to_judge(rows)), [], [], [], [])
    for done, (i, verdict) in enumerate(judged_demonstrations(task, rows), start=1):
        if verdict.failure is not None:
            found.failed.append((i, verdict.failure))
        elif not verdict.correct:
            found.wrong.append(i)
        else:
            if not verdict.well_formed:
                found.malformed.append(i)
            if _is_untrue(task, rows[i]):
                found.untrue.append(i)
        if done % CHUNK == 0 or done == found.count:
            progress(done)
    return found


def _is_untrue(task: Task, row: Row) -> bool:
    try:
        return task.steps_valid(text_of(row["completion"]), row) is False
    except Exception:  # in a task of the user's own; nothing is known of the steps then
        return False


def exactly(row: Row) -> str:
    """The prompt as it is."""
    return text_of(row["prompt"])


def normalised(row: Row) -> str:
    """The prompt without regard to case, spacing and encoding."""
    return question_of(row["prompt"])


def repeated(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[int, int]]:
    """(place, place of the first row with the same prompt) of every row that repeats one."""
    first: dict[str, int] = {}
    pairs = ((i, first.setdefault(key(row), i)) for i, row in enumerate(rows))
    return [(i, before) for i, before in pairs if i != before]


def shared(rows: Sequence[Row], others: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[int, int]]:
    """(place in `rows`, place of the first row of `others` with the same prompt)."""
    first: dict[str, int] = {}
    for i, row in enumerate(others):
        first.setdefault(key(row), i)
    pairs = ((i, first.get(key(row))) for i, row in enumerate(rows))
    return [(i, other) for i, other in pairs if other is not None]


def contradictions(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """(place, place of the first) of rows that repeat a prompt with another answer."""
    return [
        (i, before)
        for i, before in repeated(rows, exactly)
        if None not in (rows[i].get("answer"), rows[before].get("answer"))
        and rows[i]["answer"] != rows[before]["answer"]
    ]


def counts(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows, with demonstration, with answer, per difficulty, and the columns."""
    levels = Counter(str(row["difficulty"]) for row in rows if row.get("difficulty") is not None)
    return {
        "rows": len(rows),
        "demonstrations": sum(bool(row.get("completion")) for row in rows),
        "answers": sum(row.get("answer") is not None for row in rows),
        "difficulty": {level: levels[level] for level in sorted(levels, key=ascending)},
        "columns": sorted({key for row in rows for key, value in row.items() if value is not None}),
    }
