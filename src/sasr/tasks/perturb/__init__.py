"""The same questions, asked differently: rows changed in a way that leaves the right answer known.

A task lists its kinds in `Task.perturbers()`; the functions are in this package, one module for each kind of text. Each
answer is derived again from the changed text, or cannot change because only words of equal meaning did.
"""

from __future__ import annotations

from collections.abc import Iterable

from sasr.errors import InputError
from sasr.tasks.base import Row, Task


def those_that_fit(task: Task, rows: Iterable[Row], kind: str, seed: int = 0) -> list[tuple[Row, Row]]:
    """As [`perturbed`], and none at all where no row can be perturbed so."""
    tried = ((row, task.perturb(row, kind, seed)) for row in rows)
    return [(row, changed) for row, changed in tried if changed is not None]


def perturbed(task: Task, rows: Iterable[Row], kind: str, seed: int = 0) -> list[tuple[Row, Row]]:
    """Pairs of an original row and its perturbed one, for the rows that can be perturbed so.

    Args:
        task (`Task`): Whose rows they are.
        rows (`Iterable[Row]`): As `load_rows` gives them: prompts are texts, not conversations.
        kind (`str`): One of `task.perturbations()`.
        seed (`int`, *optional*, defaults to 0): Another seed, other perturbed rows.

    Raises:
        InputError: There are none.
    """
    rows = list(rows)
    pairs = those_that_fit(task, rows, kind, seed)
    if not pairs:
        raise InputError(f"none of the {len(rows)} rows of task {task.name} can be perturbed by '{kind}'; give others")
    return pairs
