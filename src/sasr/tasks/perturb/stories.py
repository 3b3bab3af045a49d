"""Stories told differently, with the answer and the arithmetic derived again from what the new story says.

Every word and number is one that generated stories have, so that a tiny model's tokenizer knows all of them, and a
changed story stays in the split of its original: no perturbed held-out question is a training question.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from sasr.tasks.base import Perturber, Row
from sasr.tasks.stories import (
    ITEMS,
    LARGEST,
    MARK,
    NAMES,
    QUESTION,
    SENTENCES,
    START,
    possible_operands,
    split_of,
)

# Nobody in them is the owner, so nothing follows from them for the question.
_ASIDES = ("{owner} has {n} {items}.", "{owner} buys {n} {items}.", "{owner} finds {n} {items}.")
# One in five stories is held out: so many tries nearly always find one of the same split.
_TRIES = 500


@dataclass(frozen=True)
class Step:
    """One sentence after the first. `sign` is `""` for an aside, which changes nothing."""

    sign: str
    pattern: str
    n: int


@dataclass(frozen=True)
class Story:
    """What a prompt says. `other` is who gives or is given; any name serves where nobody is."""

    owner: str
    other: str
    items: str
    start: int
    steps: tuple[Step, ...]

    @property
    def prompt(self) -> str:
        words = {"owner": self.owner, "other": self.other, "items": self.items}
        sentences = [step.pattern.format(n=step.n, **words) for step in self.steps]
        return " ".join([START.format(n=self.start, **words), *sentences, QUESTION.format(**words)])

    def solve(self) -> Row | None:
        """The changed columns; `None` if a total would leave the task's range or a division would leave a rest."""
        total, lines = self.start, []
        for step in self.steps:
            if not step.sign:
                continue
            result = _result(total, step)
            if result is None:
                return None
            lines.append(f"{total} {step.sign} {step.n} = {result} .")
            total = result
        return {
            "prompt": self.prompt,
            "completion": " ".join([*lines, f"{MARK} {total}"]),
            "answer": str(total),
            "difficulty": len(lines),
        }


def read(row: Row) -> Story | None:
    """The story of a row; `None` if its text or its answer is not one of the task's own."""
    first, *sentences = re.split(r"(?<=[.?]) ", row["prompt"])
    start = _matcher(START, {}).fullmatch(first)
    if start is None or not sentences:
        return None
    words = {"owner": start["owner"], "items": start["items"]}
    if sentences.pop() != QUESTION.format(**words):
        return None
    steps = []
    for sentence in sentences:
        found = [
            (sign, pattern, match)
            for sign, patterns in SENTENCES.items()
            for pattern in patterns
            if (match := _matcher(pattern, words).fullmatch(sentence))
        ]
        if len(found) != 1:
            return None
        sign, pattern, match = found[0]
        if "{other}" in pattern:
            words["other"] = match["other"]
        steps.append(Step(sign, pattern, int(match["n"])))
    other = words.get("other") or next(name for name in NAMES if name != words["owner"])
    story = Story(words["owner"], other, words["items"], int(start["n"]), tuple(steps))
    solved = story.solve()
    return story if solved and solved["answer"] == row["answer"] and story.prompt == row["prompt"] else None


def _matcher(pattern: str, words: Mapping[str, str]) -> re.Pattern[str]:
    """The pattern as an expression; a word that is known must be that word."""
    expression = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
    groups = {"owner": "|".join(NAMES), "other": "|".join(NAMES), "items": "|".join(ITEMS), "n": "[0-9]{1,2}"}
    named = {key: f"(?P<{key}>{words.get(key, group)})" for key, group in groups.items()}
    return re.compile(expression.format(**named))


def _result(total: int, step: Step) -> int | None:
    if step.sign == "/" and total % step.n:
        return None
    n = step.n
    result = {"+": total + n, "-": total - n, "*": total * n, "/": total // n}[step.sign]
    return result if 0 <= result <= LARGEST else None


def _names(story: Story, rng: random.Random) -> Iterator[Story]:
    pairs = [pair for pair in itertools.permutations(NAMES, 2) if pair[0] != story.owner]
    for owner, other in rng.sample(pairs, len(pairs)):
        yield replace(story, owner=owner, other=other)


def _numbers(story: Story, rng: random.Random) -> Iterator[Story]:
    """The same sentences with another start and other operands, drawn as stories draw them, and another answer."""
    original = story.solve()
    for _ in range(_TRIES):
        start = total = rng.randint(2, 20)
        steps: list[Step] = []
        for step in story.steps:
            n = dict(possible_operands(total, rng)).get(step.sign)
            if n is None:
                break
            steps.append(replace(step, n=n))
            total = _result(total, steps[-1]) or 0
        changed = replace(story, start=start, steps=tuple(steps))
        # An answer that was learned by heart should not pass here.
        other_answer = original is not None and str(total) != original["answer"]
        if len(steps) == len(story.steps) and start != story.start and other_answer:
            yield changed


def _order(story: Story, rng: random.Random) -> Iterator[Story]:
    """Sums commute with sums and products with products; the two kinds keep their places."""
    runs = [list(run) for _, run in itertools.groupby(story.steps, lambda step: step.sign in "+-")]

    def orders(total: int, runs: list[list[Step]]) -> Iterator[tuple[Step, ...]]:
        if not runs:
            yield ()
            return
        run, *later = runs
        for i in rng.sample(range(len(run)), len(run)):
            result = _result(total, run[i])
            if result is not None:
                rest = run[:i] + run[i + 1 :]
                for tail in orders(result, [rest, *later] if rest else later):
                    yield (run[i], *tail)

    for steps in orders(story.start, runs):
        yield replace(story, steps=steps)


def _distractor(story: Story, rng: random.Random) -> Iterator[Story]:
    """One more sentence, of a third person and other things. It does not come right before a sentence that takes up
    the amount of the one before (`Then Tom has 2 times as many.`, `Tom keeps 1 of 2 equal parts.`)."""
    names = [name for name in NAMES if name not in (story.owner, story.other)]
    items = [item for item in ITEMS if item != story.items]
    followers = [*(step.sign for step in story.steps), ""]
    places = [i for i, sign in enumerate(followers) if sign not in ("*", "/")]
    while True:
        third = {"owner": rng.choice(names), "items": rng.choice(items)}
        n = rng.randint(1, 9)
        aside = Step("", rng.choice(_ASIDES).format(n=n, **third), n)
        place = rng.choice(places)
        yield replace(story, steps=(*story.steps[:place], aside, *story.steps[place:]))


def _perturber(stories: Callable[[Story, random.Random], Iterator[Story]]) -> Perturber:
    def perturb(row: Row, rng: random.Random) -> Row | None:
        story = read(row)
        return _first_of_its_split(row["prompt"], stories(story, rng)) if story else None

    return perturb


def _first_of_its_split(prompt: str, stories: Iterable[Story]) -> Row | None:
    for story in itertools.islice(stories, _TRIES):
        changed = story.solve()
        if changed and changed["prompt"] != prompt and split_of(changed["prompt"]) == split_of(prompt):
            return changed
    return None


PERTURBERS: dict[str, Perturber] = {
    "names": _perturber(_names),
    "numbers": _perturber(_numbers),
    "order": _perturber(_order),
    "distractor": _perturber(_distractor),
}
