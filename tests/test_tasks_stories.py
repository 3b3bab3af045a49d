from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr.errors import InputError
from sasr.tasks import StoriesTask, hold_out
from sasr.tasks.stories import split_of

PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]| ?([^A-Za-z0-9\s])\1*|\s")
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b}


def pieces(text):
    return [match.group() for match in PIECE.finditer(text)]


def solve(prompt):
    """The answer, from the story alone and without the task's tables."""
    first, *sentences, question = re.split(r"(?<=[.?]) ", prompt)
    owner, total = first.split()[0], int(first.split()[2])
    assert f"does {owner} have?" in question
    for sentence in sentences:
        words = sentence.rstrip(".").split()
        number = int([word for word in words if word.isdigit()][-1])
        if words[0] == "Then":
            total *= number
        elif words[1] == "keeps":
            assert total % number == 0
            total //= number
        elif words[1] in ("buys", "finds") or (words[1] == "gives" and words[2] == owner):
            total += number
        else:
            assert words[0] == owner and words[1] in ("gives", "sells", "loses")
            total -= number
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 150))
def test_splits_are_disjoint_and_without_repeats(seed, other_seed, count):
    task = StoriesTask()
    train = [row["prompt"] for row in task.generate(count, seed, "train")]
    test = [row["prompt"] for row in task.generate(count, other_seed, "test")]
    assert len(set(train)) == len(train) == len(set(test)) == count
    assert not set(train) & set(test)
    assert {split_of(prompt) for prompt in train} == {"train"} and {split_of(prompt) for prompt in test} == {"test"}


@settings(max_examples=25, deadline=None)
@given(st.integers(), st.integers(1, 6))
def test_every_story_is_solved_checked_and_small(seed, steps):
    task = StoriesTask(steps=steps)
    for row in task.generate(20, seed):
        assert solve(row["prompt"]) == int(row["answer"])
        verdict = task.check(row["completion"], row)
        assert verdict.correct and verdict.well_formed and task.steps_valid(row["completion"], row)
        assert not task.check(row["completion"] + "1", row).correct
        numbers = [int(n) for n in re.findall("[0-9]+", row["prompt"] + row["completion"])]
        assert max(numbers) <= 99
        if steps == 3:
            assert len(pieces(row["prompt"])) < 48 and len(pieces(row["completion"])) < 40


def test_generation_is_deterministic_and_larger_counts_continue():
    task = StoriesTask()
    assert task.generate(50, seed=3) == StoriesTask().generate(80, seed=3)[:50]
    assert task.generate(50, seed=3) != task.generate(50, seed=4)
    assert len(StoriesTask(num_train=7, num_held_out=3).generate(split="test")) == 3


@pytest.mark.parametrize(
    ("steps", "digest"), [(1, "139a19bbf47d7d49"), (3, "5280e6888aeda977"), (6, "f2634b85d2d310d9")]
)
def test_stories_stay_the_same(steps, digest):
    """Figures of earlier runs are about these rows."""
    task = StoriesTask(steps=steps)
    rows = task.generate(300, 7, "train") + task.generate(100, 7, "test")
    assert hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16] == digest


def test_several_lengths_in_turn():
    task = StoriesTask(steps=[1, 4, 2])
    rows = task.generate(31, 5, "test")
    assert [row["difficulty"] for row in rows] == [[1, 4, 2][i % 3] for i in range(31)]
    assert rows == task.generate(60, 5, "test")[:31]
    for steps in (1, 4, 2):
        own = [row for row in rows if row["difficulty"] == steps]
        assert own == StoriesTask(steps=steps).generate(len(own), 5, "test")
        assert all(row["completion"].count(" = ") == steps for row in own)
    assert task.vocabulary_texts() == StoriesTask().vocabulary_texts()
    for kind in task.perturbations():
        changed = [(row, task.perturb(row, kind, 0)) for row in rows]
        pairs = [(row, other) for row, other in changed if other is not None]
        assert pairs and all(row["difficulty"] == other["difficulty"] for row, other in pairs)


def test_a_length_that_is_told_out_leaves_its_turn_to_the_others(monkeypatch):
    for name, value in {"NAMES": ("Tom", "Ann"), "ITEMS": ("pens",), "_PATIENCE": 500}.items():
        monkeypatch.setattr(f"sasr.tasks.stories.{name}", value)
    told = Counter(row["difficulty"] for row in StoriesTask(steps=[1, 5]).generate(5000))
    assert told[1] < 2000 < told[5] and sum(told.values()) == 5000


def test_vocabulary_texts_cover_everything():
    task = StoriesTask(steps=[2, 3, 6])
    known = {piece for text in task.vocabulary_texts() for piece in pieces(text)}
    whole = {word for text in task.vocabulary_texts() for word in re.findall(r"\w+|[^\w\s]+", text)}
    for row in task.generate(1500) + task.generate(500, 1, "test"):
        for text in (row["prompt"], row["completion"]):
            assert known.issuperset(pieces(text))
            assert whole.issuperset(re.findall(r"\w+|[^\w\s]+", text))


def test_checks_ignore_spaces():
    task = StoriesTask()
    completion = "1 2 + 7 = 1 9 . 1 9 - 5 = 1 4 . #### 1 4"
    verdict = task.check(completion, {"answer": "14"})
    assert verdict.correct and verdict.well_formed and task.steps_valid(completion, {})


@pytest.mark.parametrize(
    "completion",
    [
        "2 + 2 = 5 . 5 - 1 = 4 . #### 4",  # false step
        "2 + 3 = 5 . 6 - 2 = 4 . #### 4",  # not chained
        "2 + 3 = 5 . #### 4",  # another result
        "5 / 2 = 2 . 2 + 2 = 4 . #### 4",  # remainder
        "4 / 0 = 4 . #### 4",
        "#### 4",
        "",
    ],
)
def test_right_for_the_wrong_reason(completion):
    task = StoriesTask()
    assert not task.steps_valid(completion, {})
    assert task.check(completion, {"answer": "4"}).correct == completion.endswith("#### 4")


@pytest.mark.parametrize("completion", ["4", "#### 4 5 6", "#### 4 + 0", "#### 5 #### ", "4 #### four", "#### 4.5"])
def test_wrong_answers(completion):
    assert not StoriesTask().check(completion, {"answer": "4"}).correct


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 60), st.randoms(use_true_random=False))
def test_hold_out_has_no_overlap(seed, count, rng):
    rows = StoriesTask().generate(60, seed)
    rows += rows[:10]
    train, held = hold_out(rows, count)
    assert len(held) == count
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert [row["prompt"] for row in hold_out(shuffled, count)[1]] == [row["prompt"] for row in held]


def test_bad_settings_and_exhaustion(monkeypatch):
    with pytest.raises(InputError, match="steps must be 1 or more, not 0"):
        StoriesTask(steps=0)
    for options, named in (
        ({"steps": [2, "3"]}, "steps must be 1 or more, not '3'"),
        ({"steps": "34"}, "steps must be 1 or more, not '34'"),
        ({"steps": []}, "list each length once"),
        ({"steps": [2, 2]}, "list each length once"),
        ({"num_train": 1.5}, "num_train must be 1 or more, not 1.5"),
        ({"seed": "1"}, "seed must be a whole number, not '1'"),
    ):
        with pytest.raises(InputError, match=named):
            StoriesTask(**options)
    monkeypatch.setattr("sasr.tasks.stories.NAMES", ("Tom", "Ann"))
    monkeypatch.setattr("sasr.tasks.stories.ITEMS", ("pens",))
    monkeypatch.setattr("sasr.tasks.stories._PATIENCE", 500)
    with pytest.raises(InputError, match="different stories"):
        StoriesTask(steps=1).generate(100_000)
