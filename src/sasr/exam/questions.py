"""The rows that `sasr exam` asks, and the demonstrations whose NLL it measures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from sasr.errors import InputError
from sasr.exam.measures import ascending
from sasr.exam.request import Request, run_directory
from sasr.rows import RowReader, held_out_rows
from sasr.task_config import TaskConfig
from sasr.tasks import get_task
from sasr.tasks.base import Row, Task
from sasr.tasks.perturb import those_that_fit
from sasr.tasks.text import one_line
from sasr.trained_on import without_studied

PERTURBED = "sasr_perturbed"  # no column of the user's own: those may be called perturbation, or original
_GENERATED = 10  # rows for each one that is wanted, where only those of some difficulties are


def exam_rows(task: Task, request: Request, reader: RowReader | None = None) -> list[Row]:
    """At most `request.rows` rows of the wanted difficulties, in a fixed order. Raises `InputError` for one without an
    answer, naming its line, and for a difficulty that no row has."""
    reader = RowReader(task, request.bad_rows) if reader is None else reader
    generated = request.rows * (_GENERATED if request.difficulty else 1)
    if request.held_out:
        rows = [("a row that the run held out", row) for row in _held_out(reader, request, generated)]
    elif request.data is None and task.generates:
        rows = [(reader.place(row), row) for row in reader.generate(generated, None, "test")]
    else:
        rows = [(reader.place(row), row) for row in reader.load(request.data, "test")]
    if request.difficulty:
        rows = _of_difficulty(rows, request.difficulty)
    if request.bad_rows == "skip" and any(row.get("answer") is None for _, row in rows):
        judged = [(where, row) for where, row in rows if row.get("answer") is not None]
        if not judged:
            raise InputError("no row has an answer, so no completion can be judged: give others")
        reader.others.append(f"note: {len(rows) - len(judged)} of {len(rows)} rows have no answer and are left out")
        rows = judged
    for where, row in rows[: request.rows]:
        if row.get("answer") is None:
            raise InputError(
                f"{where}: no answer, so a completion cannot be judged: add it, or leave the row out, which --bad_rows "
                "skip does"
            )
    return [row for _, row in rows[: request.rows]]


def _of_difficulty(rows: list[tuple[str, Row]], wanted: Sequence[str]) -> list[tuple[str, Row]]:
    found = {str(row["difficulty"]) for _, row in rows if row.get("difficulty") is not None}
    if not found:
        raise InputError("the rows have no difficulty: leave --difficulty out")
    for difficulty in wanted:
        if difficulty not in found:
            known = ", ".join(sorted(found, key=ascending))
            raise InputError(f"no row has difficulty {difficulty!r}: there are {one_line(known, 200)}")
    return [(where, row) for where, row in rows if str(row.get("difficulty")) in wanted]


def perturbed_rows(
    task: Task, rows: list[Row], kinds: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> list[Row]:
    """The rows perturbed by each kind in turn (`all`: by every kind of the task). In `PERTURBED` `perturbation` names
    the kind, and `original` is the place in `rows` of the row it was made from. A row that a kind does not fit is left
    out; `say` is told of a kind that fits none. Raises `InputError` where no kind fits any."""
    place = {id(row): i for i, row in enumerate(rows)}
    wanted = task.perturbations() if "all" in kinds else kinds
    found = {kind: those_that_fit(task, rows, kind) for kind in wanted}
    missing = ", ".join(kind for kind, pairs in found.items() if not pairs)
    if missing and not any(found.values()):
        raise InputError(f"none of the {len(rows)} rows of task {task.name} can be perturbed by {missing}: give others")
    if missing:
        say(f"note: none of the {len(rows)} rows can be perturbed by {missing}")
    return [
        {**changed, PERTURBED: {"perturbation": kind, "original": place[id(original)]}}
        for kind, pairs in found.items()
        for original, changed in pairs
    ]


def _held_out(reader: RowReader, request: Request, most: int) -> list[Row]:
    run = request.run or {}
    config = TaskConfig(**{key: run[key] for key in TaskConfig.__dataclass_fields__ if run.get(key) is not None})
    apart = config.exam_split == "test" and (
        config.exam_data is not None or (config.data is None and reader.task.generates)
    )
    if apart:
        # These rows are no training rows, however many they are; others were set apart only as far as exam_rows goes.
        config = replace(config, exam_rows=most if config.exam_data is None else sys.maxsize)
    rows = held_out_rows(reader, config, int(run.get("seed", 42)))
    if not rows:
        raise InputError(f"the run of {request.model} held out no rows: give --data")
    directory = run_directory(request.model)
    left = rows if directory is None else without_studied(directory, rows)
    if len(left) == len(rows):
        return rows
    studied = f"{len(rows) - len(left)} of the {len(rows)}"
    if apart:  # the run's own exams ask them too, and it has said so
        reader.others.append(
            f"note: the run was trained on {studied} rows of its exams too, so the exam flatters: give --data to ask "
            "others"
        )
        return rows
    if not left:
        raise InputError(
            f"{request.model}: the run was trained on all {len(rows)} questions that its data hold out now, for they "
            "have changed since: put the old ones back, or give --data with rows that it has not seen"
        )
    reader.others.append(
        f"note: the data have changed since the run began: {studied} questions that they hold out now were trained on "
        "and are left out; give --data to ask others"
    )
    return left


def demonstrations(request: Request, say: Callable[[str], None] = lambda text: None) -> list[Row]:
    """The first `request.rows` rows of `nll_task` that have a worked solution. `say` is told what was left out."""
    assert request.nll_task is not None
    task = get_task(request.nll_task, request.task_options if request.nll_task == request.task else None)
    reader = RowReader(task, request.bad_rows)
    if request.nll_data is None and task.generates:
        rows = reader.generate(request.rows, None, "test")
    else:
        rows = reader.load(request.nll_data, "test")
    for note in reader.notes():
        say(note)
    rows = [row for row in rows if row.get("completion")][: request.rows]
    if not rows:
        raise InputError(f"nll_task {request.nll_task}: no row has a worked solution (completion): give other nll_data")
    return rows
