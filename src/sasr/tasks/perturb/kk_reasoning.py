"""The reasoning of the Knights and Knaves dataset, for any puzzle of its language.

People are considered one after the other, those whom somebody has just spoken of first; each is assumed to be truthful,
then lying, and an assumption falls when somebody's claim can no longer be as true as that person is.
"""

from __future__ import annotations

from sasr.tasks.perturb.kk_language import Puzzle, truth_table

HEAD = "Let's think step by step, by considering whether each person is lying and if that leads to contradiction."
FOOT = "This leads to a feasible solution."


def reasoning(puzzle: Puzzle) -> list[str]:
    """The lines between the head and the foot. The puzzle must have a solution: the first one found is the last
    assumption of each person."""
    people = len(puzzle.names)
    tables = [truth_table(formula, people) for formula in puzzle.formulas]
    truthful = [truth_table(("telling-truth", i), people) for i in range(people)]
    lying = [truth_table(("lying", i), people) for i in range(people)]
    everywhere = truthful[0] | lying[0]

    order = list(range(people))
    roles: dict[int, bool] = {}
    open_roles = {person: [True, False] for person in order}
    lines = []
    at = 0
    while at < people:
        person = order[at]
        if not open_roles[person]:
            exhausted = []
            while not open_roles[order[at]]:
                exhausted.append(order[at])
                open_roles[order[at]] = [True, False]
                roles.pop(order[at], None)
                at -= 1
                if at < 0:
                    raise ValueError("a puzzle without a solution")
            lines.append(_reconsider(puzzle, exhausted, order[at]))
            continue
        roles[person] = role = open_roles[person].pop(0)
        possible = everywhere
        for who, is_truthful in roles.items():
            possible &= truthful[who] if is_truthful else lying[who]
        contradicted = next(
            (who for who in sorted(roles) if not possible & (tables[who] if roles[who] else everywhere ^ tables[who])),
            None,
        )
        if contradicted is None:
            lines.append(_assume(puzzle, person, role))
            at += 1
            spoken_of = [who for who in _people(puzzle.formulas[person]) if who in order[at:]]
            order[at:] = [*dict.fromkeys(spoken_of), *(who for who in order[at:] if who not in spoken_of)]
        else:
            lines.append(_refute(puzzle, person, role, contradicted, roles[contradicted]))
    return lines


def _people(formula: tuple) -> list[int]:
    sign, *parts = formula
    if sign in ("telling-truth", "lying"):
        return parts
    return [person for part in parts for person in _people(part)]


def _assume(puzzle: Puzzle, person: int, role: bool) -> str:
    return (
        f"Assume {puzzle.names[person]} is a {puzzle.roles[role]}. No contradiction is found in their"
        f" {'' if role else 'false '}claim that {puzzle.claim(person)}."
    )


def _refute(puzzle: Puzzle, person: int, role: bool, whose: int, truthful: bool) -> str:
    owner = "their own" if whose == person else puzzle.names[whose]
    return (
        f"{puzzle.names[person]} cannot be a {puzzle.roles[role]}, because this would contradict the"
        f" {'' if truthful else 'false '}claim of {owner} that {puzzle.claim(whose)}."
    )


def _reconsider(puzzle: Puzzle, exhausted: list[int], person: int) -> str:
    names = [puzzle.names[who] for who in exhausted]
    listed = " and ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + ", and " + names[-1]
    return f"We have exhausted all possibilities for {listed}, so let us go back and reconsider {puzzle.names[person]}."
