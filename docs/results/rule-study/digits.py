"""Chains of one-digit sums and products, for studies of when RL pays: demonstrations may be few, wrong or too easy.

    sasr train --task docs/results/rule-study/digits.py:Digits --task_options '{"wrong": 0.5}' ...

    prompt      3 + 8 * 5 - 9 =
    completion  3 + 8 = 1 . 1 * 5 = 5 . 5 - 9 = 6 . #### 6

Everything is modulo 10, and read from left to right. Whatever is done to the demonstrations, the answers are right.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

from sasr.errors import InputError
from sasr.tasks import Task, Verdict

SIGNS = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: (a * b) % 10}
_STEP = re.compile(r"([0-9])([-+*])([0-9])=([0-9])\.")
_SOLUTION = re.compile(rf"((?:{_STEP.pattern})+)####([0-9])")
_PATIENCE = 20_000


class Digits(Task):
    """Args:
    lengths (`list[int]`): Numbers in a question, each length in turn.
    demonstrated (`list[int]`, *optional*): Lengths whose training questions have a demonstration. Default: all.
    wrong (`float`, *optional*, defaults to 0): Share of the demonstrations with a slip: one step has a wrong result,
        from which the rest goes on.
    plain (`bool`, *optional*, defaults to `False`): Demonstrations that end with `so 6`, as a base model may have seen
        them. They are not what `check` looks for.
    seed (`int`, *optional*, defaults to 0): Which questions.
    """

    name = "digits"
    judged_apart = False  # nothing here can hang

    def __init__(
        self,
        lengths: Sequence[int] = (3, 4, 5),
        demonstrated: Sequence[int] | None = None,
        wrong: float = 0.0,
        plain: bool = False,
        seed: int = 0,
    ):
        if not all(isinstance(n, int) and n >= 2 for n in lengths) or not 0 <= wrong <= 1:
            raise InputError("task digits: lengths are 2 or more, wrong is a share from 0 to 1")
        self.lengths = list(lengths)
        self.demonstrated = self.lengths if demonstrated is None else list(demonstrated)
        self.wrong = wrong
        self.end = "so {}" if plain else "#### {}"
        self.seed = seed

    def generate(self, count=None, seed=None, split="train"):
        count, seed = 1000 if count is None else count, self.seed if seed is None else seed
        rows, asked, index = [], set(), 0
        while len(rows) < count:
            rng = random.Random(f"{seed}/{index}")
            row = self.row(rng, self.lengths[len(rows) % len(self.lengths)], split)
            index += 1
            if row["prompt"] in asked or split_of(row["prompt"]) != split:
                if index > len(rows) + _PATIENCE:
                    raise InputError(f"task digits: only {len(rows)} different questions of split '{split}'")
                continue
            asked.add(row["prompt"])
            rows.append(row)
        return rows

    def row(self, rng, length, split):
        total = rng.randrange(10)
        question, slip = str(total), rng.randrange(length - 1) if rng.random() < self.wrong else None
        lines, told = [], total
        for i in range(length - 1):
            sign, n = rng.choice(list(SIGNS)), rng.randrange(10)
            question += f" {sign} {n}"
            total = SIGNS[sign](total, n)
            result = SIGNS[sign](told, n)
            if split == "train" and i == slip:
                result = (result + rng.randint(1, 9)) % 10
            lines.append(f"{told} {sign} {n} = {result} .")
            told = result
        shown = split == "test" or length in self.demonstrated
        return {
            "prompt": f"{question} =",
            "completion": " ".join([*lines, self.end.format(told)]) if shown else None,
            "answer": str(total),
            "difficulty": length,
        }

    def vocabulary_texts(self):
        return [f" {a} {sign} {b} = {a} . so {a} #### {b}" for a in range(10) for b in range(10) for sign in SIGNS]

    def to_row(self, record):
        return {key: record.get(key) for key in ("prompt", "completion", "answer", "difficulty")}

    def check(self, completion, row):
        answer = completion.rpartition("####")[2].strip() if "####" in completion else None
        return Verdict(correct=answer == row["answer"], well_formed=self.well_formed(completion))

    def well_formed(self, completion):
        return _SOLUTION.fullmatch(_compact(completion)) is not None

    def path(self, completion, row):
        return tuple(f"{a}{sign}{b}={c}" for a, sign, b, c in _STEP.findall(_compact(completion))) or None

    def steps_valid(self, completion, row):
        text = _compact(completion)
        if not self.well_formed(completion):
            return False
        written = "".join(f"{sign}{b}" for _, sign, b, _ in _STEP.findall(text))
        first = _STEP.findall(text)[0][0]
        if first + written != _compact(row["prompt"]).removesuffix("="):
            return False
        told = first
        for a, sign, b, result in _STEP.findall(text):
            if a != told or str(SIGNS[sign](int(a), int(b))) != result:
                return False
            told = result
        return text.endswith(f"####{told}")


def split_of(question: str) -> str:
    """The split that a question belongs to, by its hash alone: `"test"` for a fifth of them."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 5 == 0 else "train"


def _compact(text: str) -> str:
    return "".join(text.split())
