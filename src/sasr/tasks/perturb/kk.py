"""Knights and Knaves puzzles changed, and solved again exactly: the kinds of arXiv 2410.23123 and other sizes.

Every changed puzzle has exactly one solution, and the demonstration reasons about the changed puzzle as the dataset's
demonstrations do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from sasr.tasks.base import Perturber, Row
from sasr.tasks.kk import MARK
from sasr.tasks.perturb.kk_language import ROLES, SAYINGS, Formula, Puzzle, read, solve, some_formula
from sasr.tasks.perturb.kk_reasoning import FOOT, HEAD, reasoning
from sasr.tasks.perturb.names import COMMON_MEN, COMMON_WOMEN, UNCOMMON_MEN, UNCOMMON_WOMEN

UNCOMMON_NAMES = UNCOMMON_WOMEN + UNCOMMON_MEN
# For puzzles with more people than the original.
COMMON_NAMES = COMMON_WOMEN + COMMON_MEN
FEWEST, MOST = 2, 8
# One in three to four random puzzles has exactly one solution; a changed one is nearly always found at once.
_TRIES = 2000


def _row(puzzle: Puzzle, original: Row) -> Row | None:
    """The changed columns; `None` if the puzzle has not exactly one solution."""
    solutions = solve(puzzle.formulas)
    if len(solutions) != 1:
        return None
    roles = [puzzle.roles[truthful] for truthful in solutions[0]]
    people = list(zip(puzzle.names, roles, strict=True))
    conclusion = [f"({number}) {name} is a {role}" for number, (name, role) in enumerate(people, 1)]
    _, gap, instruction = original["prompt"].partition("\n\n")
    return {
        "prompt": f"{puzzle.quiz()}{gap}{instruction}",
        "completion": "\n".join([HEAD, *reasoning(puzzle), FOOT, MARK, *conclusion]),
        "answer": ",".join(f"{name}={role}" for name, role in people),
        "difficulty": len(people),
    }


def puzzle_of(row: Row) -> Puzzle | None:
    """The puzzle of a row; `None` if it is not in the dataset's language or its answer is not the only solution."""
    puzzle = read(row["prompt"].partition("\n\n")[0])
    solved = _row(puzzle, row) if puzzle else None
    return puzzle if solved and solved["answer"] == row["answer"] else None


def _with_other_solution(puzzle: Puzzle, person: int, formula: Formula) -> Puzzle | None:
    formulas = (*puzzle.formulas[:person], formula, *puzzle.formulas[person + 1 :])
    solutions = solve(formulas)
    if len(solutions) != 1 or solutions == solve(puzzle.formulas):
        return None
    return replace(puzzle, formulas=formulas)


def _statement(puzzle: Puzzle, rng: random.Random) -> Puzzle | None:
    people = len(puzzle.names)
    for _ in range(_TRIES):
        changed = _with_other_solution(puzzle, rng.randrange(people), some_formula(people, rng))
        if changed:
            return changed
    return None


def _leaf(puzzle: Puzzle, rng: random.Random) -> Puzzle | None:
    people = len(puzzle.names)
    candidates = [
        (person, changed)
        for person, formula in enumerate(puzzle.formulas)
        for changed in _with_other_leaf(formula, people)
    ]
    for person, formula in rng.sample(candidates, len(candidates)):
        changed = _with_other_solution(puzzle, person, formula)
        if changed:
            return changed
    return None


def _with_other_leaf(formula: Formula, people: int) -> list[Formula]:
    """The formula with one leaf about another person, or about the same person's other role."""
    sign, *parts = formula
    if sign in ("telling-truth", "lying"):
        others: list[Formula] = [(sign, person) for person in range(people) if person != parts[0]]
        return [*others, ("lying" if sign == "telling-truth" else "telling-truth", parts[0])]
    return [
        (sign, *parts[:i], changed, *parts[i + 1 :])
        for i, part in enumerate(parts)
        for changed in _with_other_leaf(part, people)
        if changed not in parts
    ]


def _reorder(puzzle: Puzzle, rng: random.Random) -> Puzzle | None:
    said = puzzle.said
    while said == puzzle.said:
        said = tuple(rng.sample(said, len(said)))
    return replace(puzzle, said=said)


def _names(puzzle: Puzzle, rng: random.Random) -> Puzzle | None:
    unused = [name for name in UNCOMMON_NAMES if name not in puzzle.names]
    return replace(puzzle, names=tuple(rng.sample(unused, len(puzzle.names))))


def _flip_role(puzzle: Puzzle, rng: random.Random) -> Puzzle | None:
    return replace(puzzle, truthful=ROLES[1 - ROLES.index(puzzle.truthful)])


def _people(puzzle: Puzzle, rng: random.Random) -> Puzzle | None:
    """A puzzle of one person more or less, otherwise new: nothing that was said among so many holds among others."""
    sizes = [size for size in (len(puzzle.names) - 1, len(puzzle.names) + 1) if FEWEST <= size <= MOST]
    if not sizes:
        return None
    size = rng.choice(sizes)
    more = [name for name in COMMON_NAMES if name not in puzzle.names]
    names = (*puzzle.names, rng.choice(more))[:size]
    for _ in range(_TRIES):
        formulas = tuple(some_formula(size, rng) for _ in range(size))
        if len(solve(formulas)) == 1:
            said = tuple((person, rng.choice(SAYINGS)) for person in range(size))
            return Puzzle(names, formulas, said, puzzle.truthful)
    return None


def _perturber(change: Callable[[Puzzle, random.Random], Puzzle | None]) -> Perturber:
    def perturb(row: Row, rng: random.Random) -> Row | None:
        puzzle = puzzle_of(row)
        changed = change(puzzle, rng) if puzzle else None
        return _row(changed, row) if changed else None

    return perturb


PERTURBERS: dict[str, Perturber] = {
    "statement": _perturber(_statement),
    "leaf": _perturber(_leaf),
    "reorder": _perturber(_reorder),
    "names": _perturber(_names),
    "flip_role": _perturber(_flip_role),
    "people": _perturber(_people),
}
