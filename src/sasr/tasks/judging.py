"""Verdicts that are safe to ask for: whatever a task's check does, each completion gets a `Verdict`, or one that says
why there is none. A task of the user's own is judged in a process that is killed when it hangs; see [`OwnJudge`]."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sasr.errors import InputError
from sasr.tasks.base import Row, Task, Verdict, text_of
from sasr.tasks.text import one_line
from sasr.tasks.worker import Worker
from sasr.thoughts import opened_by

CHUNK = 64  # demonstrations judged together, between two signs of life


def judge_all(task: Task, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """`task.check_all`, in the task's own process if it has one. Raises nothing but `InputError`."""
    if task.judge is not None:
        return task.judge.judge_all(task, completions, rows)
    return judge_here(task, completions, rows)


def judge_here(task: Task, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """`task.check_all` in this process: an error, or what is no verdict, is a failure of the completion."""
    if not checks_together(task):
        pairs = zip(completions, rows, strict=True)
        return [_judged(partial(Task.check_all, task, [text], [row]), 1)[0] for text, row in pairs]
    return _judged(partial(task.check_all, completions, rows), len(completions))


def to_judge(rows: Sequence[Row]) -> list[int]:
    """Places of the rows with a demonstration and an answer to judge it by."""
    return [i for i, row in enumerate(rows) if row.get("completion") and row.get("answer") is not None]


def judged_demonstrations(task: Task, rows: Sequence[Row]) -> Iterator[tuple[int, Verdict]]:
    """The places of [`to_judge`], each with what the verifier says of its demonstration."""
    places = to_judge(rows)
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        verdicts = judge_all(task, [_demonstrated(rows[i]) for i in part], [rows[i] for i in part])
        yield from zip(part, verdicts, strict=True)


def _demonstrated(row: Row) -> str:
    opened = opened_by(row["prompt"]) if isinstance(row["prompt"], str) else ""
    return opened + text_of(row["completion"])


def checks_together(task: Task) -> bool:
    """Whether a task judges completions together, by a `check_all` of its own."""
    return type(task).check_all is not Task.check_all


def _judged(check: Callable[[], Sequence[Verdict]], count: int) -> list[Verdict]:
    try:
        verdicts = list(check())
        if len(verdicts) != count:
            raise ValueError(f"check_all gave {len(verdicts)} verdicts for {count} completions")
    except InputError:
        raise
    except Exception as error:
        return [failed(f"{type(error).__name__}: {error}")] * count
    return [_checked(verdict) for verdict in verdicts]


def _checked(verdict: Any) -> Verdict:
    # `bool(array)` and the like may raise; a number, or None for "not sure", is no verdict.
    values = [getattr(verdict, name, None) for name in ("correct", "well_formed")]
    if not isinstance(verdict, Verdict) or not all(type(value).__name__ in ("bool", "bool_") for value in values):
        return failed(f"the check gave {one_line(repr(verdict), 100)}, which is no Verdict of true and false")
    if verdict.failure is not None:
        return failed(str(verdict.failure), bool(verdict.well_formed))
    return Verdict(bool(verdict.correct), bool(verdict.well_formed))


def failed(reason: str, well_formed: bool = False) -> Verdict:
    """The verdict of a completion that could not be judged."""
    return Verdict(correct=False, well_formed=well_formed, failure=one_line(reason, 200))


class OwnJudge:
    """Judges the completions of a task of the user's own in a process of its own, where the task is made again.

    Args:
        spec (`str`): As in [`get_task`].
        options (`Mapping`): What the task is made with.
        timeout (`float`): Seconds that one completion may take.
    """

    def __init__(self, spec: str, options: Mapping[str, Any], timeout: float):
        module, _, name = spec.rpartition(":")
        if module.endswith(".py"):
            module = os.path.abspath(os.path.expanduser(module))
        self.spec = spec
        self.timeout = timeout
        arguments = json.dumps({"task": f"{module}:{name}", "options": dict(options)})
        # No limit of memory: a reward model, or CUDA, may need a lot.
        self._worker = Worker("sasr.tasks.own_worker", timeout, arguments)

    def judge_all(self, task: Task, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """As [`sasr.tasks.judging.judge_all`]. A `check_all` of the task's own gets all of them at once, and the time
        of as many; else one that hangs or dies costs the verdict of none but itself."""
        size = max(len(completions), 1) if checks_together(task) else 1
        verdicts: list[Verdict] = []
        for start in range(0, len(completions), size):
            part = slice(start, start + size)
            verdicts += self._ask(list(completions[part]), [dict(row) for row in rows[part]])
        return verdicts

    def _ask(self, completions: list[str], rows: list[dict[str, Any]]) -> list[Verdict]:
        try:
            reply = self._worker.ask({"completions": completions, "rows": rows}, self.timeout * len(completions))
        except TypeError as error:  # of JSON
            raise InputError(
                f"task '{self.spec}': a row cannot be sent to the process that judges ({one_line(error)}): give plain"
                " values, or set judged_apart = False in the class"
            ) from None
        if "error" in reply:
            return [failed(reply["error"])] * len(completions)
        return [Verdict(*verdict) for verdict in reply["verdicts"]]
