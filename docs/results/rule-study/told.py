"""The built-in stories, with demonstrations that may be few, wrong or too easy: where the rules are confirmed.

sasr train --task docs/results/rule-study/told.py:Told --task_options '{"wrong": 0.5}' ...
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from sasr.tasks.stories import MARK, StoriesTask


class Told(StoriesTask):
    """Args:
    demonstrated (`list[int]`, *optional*): Lengths whose training questions have a demonstration. Default: all.
    wrong (`float`, *optional*, defaults to 0): Share of the demonstrations with a slip: one step has a wrong result,
        from which the rest goes on.
    plain (`bool`, *optional*, defaults to `False`): Demonstrations that end with `so 28`, as a base model may have seen
        them. They are not what `check` looks for.
    kwargs: Those of [`StoriesTask`].
    """

    judged_apart = False  # nothing here can hang

    def __init__(self, demonstrated: Sequence[int] | None = None, wrong: float = 0.0, plain: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.demonstrated, self.wrong = demonstrated, wrong
        self.end = "so" if plain else MARK

    def generate(self, count=None, seed=None, split="train"):
        rows = super().generate(count, seed, split)
        if split == "train":
            for row in rows:
                shown = self.demonstrated is None or row["difficulty"] in self.demonstrated
                row["completion"] = self.told(row) if shown else None
        return rows

    def told(self, row):
        rng = random.Random(row["prompt"])
        steps = [step.split() for step in row["completion"].split(" . ")[:-1]]
        slip = rng.randrange(len(steps)) if rng.random() < self.wrong else None
        lines, total = [], None
        for i, (a, sign, b, _, c) in enumerate(steps):
            a, b, c = a if total is None else str(total), int(b), int(c)
            if total is not None and slip is not None and i > slip:
                c = {"+": total + b, "-": abs(total - b), "*": total * b, "/": total // b}[sign]
            if i == slip:
                c = abs(c + rng.choice([-3, -2, -1, 1, 2, 3]))
            lines.append(f"{a} {sign} {b} = {c} .")
            total = c
        return " ".join([*lines, f"{self.end} {total}"])

    def vocabulary_texts(self):
        return [*super().vocabulary_texts(), " . so 12"]
