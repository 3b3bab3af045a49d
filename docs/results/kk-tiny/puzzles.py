"""Knights and Knaves in few words, for models of a million parameters: the dataset's puzzles and its reasoning.

    sasr train --task docs/results/kk-tiny/puzzles.py:Puzzles ...

    prompt      A : C + <=> A + . B : B + or C + . C : A - <=> B - . roles
    completion  A + ok . C + ok . B + ok . #### + + +

`A + ok` is the dataset's "Assume A is a knight. No contradiction is found", `C - no B` its "C cannot be a knave,
because this would contradict the claim of B", `back A` its "let us go back and reconsider A". Claims have the dataset's
grammar, each puzzle has one solution, and the lines are those of the dataset's own search.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

from sasr.errors import InputError
from sasr.tasks import Task, Verdict
from sasr.tasks.perturb.kk_language import SAYINGS, Puzzle, read, read_statements, solve, some_formula
from sasr.tasks.perturb.kk_reasoning import reasoning

PEOPLE = "ABCDE"
_ROLE = {True: "+", False: "-"}
_LINE = re.compile(r"(?:[A-E][-+](?:ok|no[A-E])|back[A-E])\.")
_SOLUTION = re.compile(rf"(?:{_LINE.pattern})+####[-+]+")
_PATIENCE = 100_000


class Puzzles(Task):
    """Args:
    people (`list[int]`): How many people a puzzle has, each number in turn.
    wrong (`float`, *optional*, defaults to 0): Share of the demonstrations that end with one role wrong.
    plain (`bool`, *optional*, defaults to `False`): Demonstrations that end with `so + + -`, as a base model may have
        seen them. They are not what `check` looks for.
    seed (`int`, *optional*, defaults to 0): Which puzzles.
    """

    name = "puzzles"
    judged_apart = False  # nothing here can hang

    def __init__(self, people: Sequence[int] = (3,), wrong: float = 0.0, plain: bool = False, seed: int = 0):
        if not all(isinstance(n, int) and 2 <= n <= len(PEOPLE) for n in people) or not 0 <= wrong <= 1:
            raise InputError(f"task puzzles: people are 2 to {len(PEOPLE)}, wrong is a share from 0 to 1")
        self.people, self.wrong, self.seed = list(people), wrong, seed
        self.end = "so {}" if plain else "#### {}"

    def generate(self, count=None, seed=None, split="train"):
        count, seed = 1000 if count is None else count, self.seed if seed is None else seed
        rows, asked = [], set()
        for index in range(_PATIENCE + 50 * count):
            if len(rows) == count:
                return rows
            rng = random.Random(f"{seed}/{index}")
            people = self.people[len(rows) % len(self.people)]
            row = self._row(tuple(some_formula(people, rng) for _ in range(people)), split, rng)
            if row is not None and row["prompt"] not in asked and split_of(row["prompt"]) == split:
                asked.add(row["prompt"])
                rows.append(row)
        raise InputError(f"task puzzles: only {len(rows)} different puzzles of split '{split}'")

    def _row(self, formulas, split, rng):
        solutions = solve(formulas)
        if len(solutions) != 1:
            return None
        names = tuple(PEOPLE[: len(formulas)])
        puzzle = Puzzle(names, formulas, tuple((i, SAYINGS[0]) for i in range(len(names))))
        roles = [_ROLE[role] for role in solutions[0]]
        told = list(roles)
        if split == "train" and rng.random() < self.wrong:
            person = rng.randrange(len(told))
            told[person] = "-" if told[person] == "+" else "+"
        claims = [f"{name} : {_short(puzzle.claim(i))} ." for i, name in enumerate(names)]
        return {
            "prompt": " ".join(claims) + " roles",
            "completion": " ".join([*map(_line, reasoning(puzzle)), self.end.format(" ".join(told))]),
            "answer": "".join(roles),
            "difficulty": len(names),
        }

    def to_row(self, record):
        """A row of this task, or a record of the dataset, whose names become letters."""
        if "answer" in record:
            return {key: record.get(key) for key in ("prompt", "completion", "answer", "difficulty")}
        people = len(record["names"])
        row = self._row(read_statements(record["statements"], people), "test", random.Random(0))
        if row is None or read(record["quiz"]) is None:
            raise InputError("not a puzzle of the dataset's language with one solution")
        return row

    def vocabulary_texts(self):
        signs = "or and not -> <=> roles ok no back so #### + - . :"
        return [" ".join([*PEOPLE, *signs.split(), *PEOPLE])]

    def check(self, completion, row):
        stated = _compact(completion.rpartition("####")[2]) if "####" in completion else None
        return Verdict(correct=stated == row["answer"], well_formed=self.well_formed(completion))

    def well_formed(self, completion):
        return _SOLUTION.fullmatch(_compact(completion)) is not None

    def path(self, completion, row):
        return tuple(_LINE.findall(_compact(completion))) or None

    def steps_valid(self, completion, row):
        """Whether the lines are the search's own, in its order."""
        return _LINE.findall(_compact(completion)) == _LINE.findall(_compact(row["completion"]))


def _short(text: str) -> str:
    text = text.replace(" is not a ", " not ").replace(" is a ", " ").replace(" if and only if ", " <=> ")
    text = re.sub(r"\bIf (.+) then ", r"\1 -> ", text)
    return text.replace("knight", "+").replace("knave", "-")


def _line(text: str) -> str:
    """One sentence of the dataset's reasoning in few words."""
    if found := re.match(r"Assume (\w+) is a (\w+)", text):
        return f"{found[1]} {_short(found[2])} ok ."
    if found := re.match(r"(\w+) cannot be a (\w+), .*? claim of (their own|\w+) that", text):
        return f"{found[1]} {_short(found[2])} no {found[1] if found[3] == 'their own' else found[3]} ."
    return f"back {text.rstrip('.').rpartition(' ')[2]} ."


def split_of(puzzle: str) -> str:
    """The split that a puzzle belongs to, by its hash alone: `"test"` for a fifth of them."""
    return "test" if hashlib.sha256(puzzle.encode()).digest()[0] % 5 == 0 else "train"


def _compact(text: str) -> str:
    return "".join(text.split())
