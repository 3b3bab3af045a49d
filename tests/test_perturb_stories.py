"""Perturbed stories, solved by an interpreter of the sentences that shares nothing with the task."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr.errors import InputError
from sasr.tasks import JsonlTask, StoriesTask
from sasr.tasks.perturb import perturbed
from sasr.tasks.stories import split_of
from test_tasks_stories import pieces

KINDS = ("names", "numbers", "order", "distractor")


def simulate(prompt):
    """The answer, from what everybody has, gains and loses. Nobody but the owner is asked about."""
    *sentences, question = re.split(r"(?<=[.?]) ", prompt)
    items, owner = re.fullmatch(r"How many (\w+) does (\w+) have\?", question).groups()
    amounts = Counter()
    assert sentences[0].startswith(f"{owner} has ")
    for sentence in sentences:
        words = sentence.rstrip(".").split()
        n = int(next(word for word in reversed(words) if word.isdigit()))
        match words:
            case ["Then", who, "has", _, "times", "as", "many"]:
                amounts[who, items] *= n
            case [who, "keeps", "1", "of", _, "equal", "parts"]:
                assert amounts[who, items] % n == 0
                amounts[who, items] //= n
            case [who, "gives", to, _, what]:
                amounts[who, what] -= n
                amounts[to, what] += n
            case [who, "has", _, what]:
                assert (who, what) not in amounts
                amounts[who, what] = n
            case [who, "buys" | "finds", _, what]:
                amounts[who, what] += n
            case [who, "sells" | "loses", _, what]:
                amounts[who, what] -= n
            case _:
                raise AssertionError(sentence)
        assert 0 <= amounts[owner, items] <= 30
    return amounts[owner, items]


def shape(prompt):
    return re.sub(r"\b[0-9]+\b", "N", prompt)


def without_names(prompt):
    return re.sub(r"\b(Tom|Ann|Ben|Eve|Sam|Mia|Leo|Zoe)\b", "X", prompt)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 7), split=st.sampled_from(["train", "test"]))
def test_every_perturbed_story_is_right(kind, seed, steps, split):
    task = StoriesTask(steps=steps)
    known = {piece for text in task.vocabulary_texts() for piece in pieces(text)}
    changed = [(row, task.perturb(row, kind, seed)) for row in task.generate(25, seed, split)]
    for row, other in changed:
        if other is None:
            continue
        assert simulate(other["prompt"]) == int(other["answer"])
        assert task.check(other["completion"], other).correct and task.steps_valid(other["completion"], other)
        assert other["original_prompt"] == row["prompt"] != other["prompt"]
        assert set(other) == {*row, "original_prompt"} and other["difficulty"] == row["difficulty"] == steps
        assert known.issuperset(pieces(other["prompt"]) + pieces(other["completion"]))
        assert split_of(other["prompt"]) == split
        sentences, new = re.split(r"(?<=[.?]) ", row["prompt"]), re.split(r"(?<=[.?]) ", other["prompt"])
        if kind == "numbers":
            assert shape(other["prompt"]) == shape(row["prompt"]) and other["answer"] != row["answer"]
            assert sentences[0] != new[0]
            continue
        assert other["answer"] == row["answer"]
        if kind == "names":
            assert without_names(other["prompt"]) == without_names(row["prompt"])
            assert other["completion"] == row["completion"]
            assert sentences[0].split()[0] != new[0].split()[0]
        if kind == "order":
            assert sorted(sentences) == sorted(new) and sentences[0] == new[0] and sentences[-1] == new[-1]
        if kind == "distractor":
            (added,) = Counter(new) - Counter(sentences)
            place = new.index(added)
            assert new[:place] + new[place + 1 :] == sentences and other["completion"] == row["completion"]
            who, *_, what = added.rstrip(".").split()
            assert who not in row["prompt"] and what not in row["prompt"]
            assert not re.search("as many|equal parts", new[place + 1])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 1000))
def test_the_seed_decides(kind, seed):
    task = StoriesTask()
    rows = task.generate(40, seed)
    first, again, other = (perturbed(task, rows, kind, s) for s in (seed, seed, seed + 1))
    assert first == again
    assert kind == "order" or first != other


def test_most_stories_can_be_perturbed():
    rows = StoriesTask().generate(400, 1)
    counts = {kind: len(perturbed(StoriesTask(), rows, kind)) for kind in KINDS}
    assert min(counts["names"], counts["numbers"], counts["distractor"]) > 390 and counts["order"] > 200


@pytest.mark.parametrize(
    "prompt",
    [
        "Tom has 6 pens. Tom keeps 1 of 2 equal parts. Tom finds 1 pens. How many pens does Tom have?",
        "Tom has 1 pens. Tom finds 1 pens. Tom loses 2 pens. How many pens does Tom have?",  # would go below 0
        "Tom has 4 pens. Tom finds 1 pens. Tom finds 1 pens. How many pens does Tom have?",
    ],
)
def test_what_does_not_commute_stays(prompt):
    task = StoriesTask()
    row = {"prompt": prompt, "completion": None, "answer": str(simulate(prompt)), "difficulty": None}
    changed = [task.perturb(row, "order", seed) for seed in range(20)]
    assert all(one is None or "1 pens. Tom loses 2" in one["prompt"] for one in changed)
    assert task.perturb(row, "distractor", 0) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "7"},
        {"prompt": "Tom has 5 apples. How many pens does Tom have?"},
        {"prompt": "What is 2 + 3?"},
        {"prompt": ""},
        {"prompt": [{"role": "user", "content": "What is 2 + 3?"}]},
    ],
)
def test_what_is_not_a_story_is_left_alone(change):
    row = {"prompt": "Tom has 5 apples. How many apples does Tom have?", "completion": None, "answer": "5"}
    assert StoriesTask().perturb(row, "names", 0) is not None or split_of(row["prompt"]) == "test"
    assert all(StoriesTask().perturb({**row, **change}, kind, 0) is None for kind in KINDS)


def test_errors_are_one_line():
    task = StoriesTask()
    rows = task.generate(3)
    with pytest.raises(InputError, match=r"unknown perturbation of task stories 'name': .*did you mean names\?"):
        perturbed(task, rows, "name")
    with pytest.raises(InputError, match="none of the 1 rows of task stories can be perturbed by 'names'"):
        perturbed(task, [{"prompt": "x", "answer": "1"}], "names")
    with pytest.raises(InputError, match="task jsonl has no perturbations"):
        perturbed(JsonlTask(), rows, "names")
    assert task.perturbations() == KINDS and JsonlTask().perturbations() == ()


def test_the_examples_of_the_documentation():
    text = (Path(__file__).parent.parent / "docs" / "robustness.md").read_text()
    first, own = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(first, found)
    assert len(found["pairs"]) > 400 and found["changed"]["original_prompt"] == found["original"]["prompt"]
    exec(own.replace("Task)", "StoriesTask)"), {"StoriesTask": StoriesTask}, found)
    row = {"prompt": "abc", "completion": "cba", "answer": "cba"}
    changed = found["Reverse"]().perturb(row, "capitals", 0)
    assert changed == {"prompt": "ABC", "completion": "CBA", "answer": "CBA", "original_prompt": "abc"}
