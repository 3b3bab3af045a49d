"""Short stories about quantities, generated without end: the task that needs no data."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from sasr.errors import InputError
from sasr.tasks.base import Perturber, Row, Task, Verdict
from sasr.tasks.equations import sorted_step
from sasr.tasks.text import after_thinking, parse_number, required_text

MARK = "####"
NAMES = ("Tom", "Ann", "Ben", "Eve", "Sam", "Mia", "Leo", "Zoe")
ITEMS = ("apples", "pens", "coins", "books", "cards", "shells", "stamps", "nuts")
# Who acts decides the sign of "gives", so a solver has to read the names and not only the verb.
SENTENCES = {
    "+": ("{other} gives {owner} {n} {items}.", "{owner} buys {n} {items}.", "{owner} finds {n} {items}."),
    "-": ("{owner} gives {other} {n} {items}.", "{owner} sells {n} {items}.", "{owner} loses {n} {items}."),
    "*": ("Then {owner} has {n} times as many.",),
    "/": ("{owner} keeps 1 of {n} equal parts.",),
}
LARGEST = 30
MOST_STEPS = 100  # far more than any model follows, and than a machine makes in no time
START = "{owner} has {n} {items}."
QUESTION = "How many {items} does {owner} have?"
_STEP = re.compile(r"([0-9]{1,6})([-+*/])([0-9]{1,6})=([0-9]{1,6})\.")
_SOLUTION = re.compile(rf"(?:{_STEP.pattern})+{MARK}([0-9]{{1,6}})")
_HELD_OUT_OF_TEN = 2
# So many stories in a row without a new one mean that (nearly) all have been told.
_PATIENCE = 20_000


class StoriesTask(Task):
    """Generated stories of a few steps, each step an addition, subtraction, multiplication or division, with the
    arithmetic as the demonstration: `12 + 7 = 19 . 19 - 5 = 14 . 14 * 2 = 28 . #### 28`.

    All numbers are between 0 and 30. A hash of the question decides which split a story belongs to, so no question
    is in both splits whatever the seeds and sizes. The checks ignore spaces, which word-level tokenizers do not keep.

    Args:
        num_train (`int`, *optional*, defaults to 4000): Training rows to generate when no count is given.
        num_held_out (`int`, *optional*, defaults to 500): Held-out rows to generate when no count is given.
        seed (`int`, *optional*, defaults to 0): Which stories, when no seed is given.
        steps (`int` or `list[int]`, *optional*, defaults to 3): Steps per story (at most 100); several lengths in turn.
    """

    name: ClassVar[str] = "stories"

    def __init__(self, num_train: int = 4000, num_held_out: int = 500, seed: int = 0, steps: int | Sequence[int] = 3):
        self.lengths = list(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else [steps]
        counts = {"num_train": [num_train], "num_held_out": [num_held_out], "steps": self.lengths}
        for setting, values in counts.items():
            for value in values:
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise InputError(f"task stories: {setting} must be 1 or more, not {value!r}")
        if max(self.lengths, default=0) > MOST_STEPS:
            raise InputError(f"task stories: steps must be at most {MOST_STEPS}, not {max(self.lengths)}")
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise InputError(f"task stories: steps is {self.lengths}: list each length once")
        if not isinstance(seed, int):
            raise InputError(f"task stories: seed must be a whole number, not {seed!r}")
        self.num_train = num_train
        self.num_held_out = num_held_out
        self.seed = seed

    def generate(
        self, count: int | None = None, seed: int | None = None, split: Literal["train", "test"] = "train"
    ) -> list[Row]:
        """`count` different stories of one split. The same arguments give the same stories, and a larger count
        continues a smaller one. Every length has its turn, as long as there are different stories of it."""
        if count is None:
            count = self.num_train if split == "train" else self.num_held_out
        told = [different_stories(steps, self.seed if seed is None else seed, split) for steps in self.lengths]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*told))
        rows = list(itertools.islice((row for row in turns if row is not None), count))
        if len(rows) < count:
            lengths = ", ".join(str(steps) for steps in self.lengths)
            raise InputError(
                f"task stories: only {len(rows)} different stories of {lengths} step(s) found for split '{split}',"
                f" not {count}; ask for fewer or for more steps"
            )
        return rows

    def vocabulary_texts(self) -> list[str]:
        """Texts that together have every word, sign and number of any story or solution, each with the spaces around
        it that it has there: enough to build a tokenizer of words and digits."""
        texts = []
        for i, owner in enumerate(NAMES):
            words = {"owner": owner, "other": NAMES[i - 1], "items": ITEMS[i % len(ITEMS)]}
            patterns = [START, *(text for group in SENTENCES.values() for text in group), QUESTION]
            texts.append(" ".join(pattern.format(n=i, **words) for pattern in patterns))
        for n in range(LARGEST + 1):
            texts.append(" ".join(f"{n} {sign} {n} = {n} ." for sign in SENTENCES) + f" {MARK} {n}")
        return texts

    def perturbers(self) -> Mapping[str, Perturber]:
        # Imported here because it tells stories with the tables of this module.
        from sasr.tasks.perturb.stories import PERTURBERS

        return PERTURBERS

    def to_row(self, record: Mapping[str, Any]) -> Row:
        prompt, completion, answer = required_text(record, "prompt", "completion", "answer")
        difficulty = record.get("difficulty")
        return {"prompt": prompt, "completion": completion, "answer": answer, "difficulty": difficulty}

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        expected = row.get("answer")
        _, mark, rest = after_thinking(completion).rpartition(MARK)
        written = parse_number(_compact(rest)) if mark else None
        correct = expected is not None and written is not None and written == parse_number(expected)
        return Verdict(correct=correct, well_formed=self.well_formed(completion))

    def stated(self, answer: str) -> tuple[str, ...]:
        return (f"{MARK} {answer}",)

    def well_formed(self, completion: str) -> bool:
        return _SOLUTION.fullmatch(_compact(after_thinking(completion))) is not None

    def path(self, completion: str, row: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The multiset of steps, each with the operands of a sum or product sorted. Their order shows in the numbers:
        each step starts from the result of the one before."""
        steps = _STEP.findall(_compact(after_thinking(completion)).partition(MARK)[0])
        return tuple(sorted(sorted_step(*step) for step in steps)) or None

    def steps_valid(self, completion: str, row: Mapping[str, Any]) -> bool:
        """Whether the completion is well-formed and every step that it writes is true, starts from the result of the
        step before, and leads to the final answer. A right answer without this is right for the wrong reason."""
        text = _compact(after_thinking(completion))
        solution = _SOLUTION.fullmatch(text)
        if solution is None:
            return False
        previous = None
        for left, sign, right, result in _STEP.findall(text):
            a, b, c = int(left), int(right), int(result)
            if previous is not None and a != previous:
                return False
            # Division must leave no remainder, hence the product.
            true = {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b != 0 and b * c == a}[sign]
            if not true:
                return False
            previous = c
        return previous == int(solution[solution.lastindex or 0])


def different_stories(steps: int, seed: int, split: str) -> Iterator[Row]:
    """The stories of one length and split, each once, until (nearly) all have been told."""
    told: set[str] = set()
    last_new = 0
    for index in itertools.count(1):
        row = story(index - 1, seed, steps)
        if row["prompt"] not in told and split_of(row["prompt"]) == split:
            told.add(row["prompt"])
            last_new = index
            yield row
        elif index - last_new > _PATIENCE:
            return


def story(index: int, seed: int, steps: int) -> Row:
    """Story number `index` of `seed` and a length, of either split."""
    rng = random.Random(f"{seed}/{steps}/{index}")
    owner, other = rng.sample(NAMES, 2)
    words = {"owner": owner, "other": other, "items": rng.choice(ITEMS)}
    total = rng.randint(2, 20)
    sentences, lines = [START.format(n=total, **words)], []
    for _ in range(steps):
        sign, n = rng.choice(possible_operands(total, rng))
        result = {"+": total + n, "-": total - n, "*": total * n, "/": total // n}[sign]
        sentences.append(rng.choice(SENTENCES[sign]).format(n=n, **words))
        lines.append(f"{total} {sign} {n} = {result} .")
        total = result
    return {
        "prompt": " ".join([*sentences, QUESTION.format(**words)]),
        "completion": " ".join([*lines, f"{MARK} {total}"]),
        "answer": str(total),
        "difficulty": steps,
    }


def split_of(question: str) -> str:
    """The split, `"train"` or `"test"`, that a question belongs to, decided by its hash alone."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % 10 < _HELD_OUT_OF_TEN else "train"


def possible_operands(total: int, rng: random.Random) -> list[tuple[str, int]]:
    """One operand per sign that keeps the total a whole number from 0 to 30."""
    choices = []
    if total + 9 <= LARGEST:
        choices.append(("+", rng.randint(1, 9)))
    if total >= 1:
        choices.append(("-", rng.randint(1, min(9, total))))
        factors = [n for n in (2, 3) if total * n <= LARGEST]
        divisors = [n for n in (2, 3) if total % n == 0]
        choices += [("*", rng.choice(factors))] if factors else []
        choices += [("/", rng.choice(divisors))] if divisors else []
    return choices


def _compact(text: str) -> str:
    return "".join(text.split())
