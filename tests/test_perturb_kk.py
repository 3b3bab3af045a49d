"""Perturbed Knights and Knaves, judged by a truth table that reads the text for itself."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr.errors import InputError
from sasr.tasks import KnightsKnavesTask
from sasr.tasks.perturb import kk_language, perturbed
from sasr.tasks.perturb.kk import COMMON_NAMES, UNCOMMON_NAMES
from sasr.tasks.perturb.kk_language import SAYINGS, Puzzle, read_statements, solve, some_formula
from sasr.tasks.perturb.kk_reasoning import FOOT, HEAD, reasoning

KINDS = ("statement", "leaf", "reorder", "names", "flip_role", "people")
LEAF = r"\b[A-Z]\w+ is (?:not )?a (?:knight|knave)"
CLAIM = re.compile(rf"(?:If )?{LEAF}(?: (?:and|or|then|if and only if) {LEAF})*")


def holds(claim, roles):
    """Whether a claim in words is true, given everybody's role word."""

    def value(leaf):
        name, negated, role = re.fullmatch(r"(\w+) is (not )?a (\w+)", leaf).groups()
        return (roles[name] == role) != bool(negated)

    if claim.startswith("If "):
        left, right = claim[3:].split(" then ")
        return value(right) if value(left) else True
    if " if and only if " in claim:
        left, right = claim.split(" if and only if ")
        return value(left) == value(right)
    if " and " in claim:
        return all(value(leaf) for leaf in claim.split(" and "))
    return any(value(leaf) for leaf in claim.split(" or "))


def claims_of(prompt):
    """(names, who says what, the word for the truthful), from the text."""
    quiz = prompt.partition("\n\n")[0]
    truthful = re.search(r"(\w+)s always tell the truth", quiz)[1].lower()
    names = re.search(r"inhabitants: (.+?)\.", quiz)[1].replace(", and ", ", ").split(", ")
    body = quiz.split("inhabitants: ")[1].split(". ", 1)[1].rsplit(" So who", 1)[0]
    claims = CLAIM.findall(body)
    # What is left between the claims names every speaker once, in the order of the claims.
    speakers = re.findall(r"\b(?:" + "|".join(names) + r")\b", CLAIM.sub("", body))
    assert sorted(speakers) == sorted(names) and len(claims) == len(names)
    return names, dict(zip(speakers, claims, strict=True)), truthful


def brute_force(prompt):
    """Every assignment of roles in which exactly the truthful say what is true."""
    names, claims, truthful = claims_of(prompt)
    found = []
    for words in itertools.product(("knight", "knave"), repeat=len(names)):
        roles = dict(zip(names, words, strict=True))
        if all(holds(claims[name], roles) == (roles[name] == truthful) for name in names):
            found.append(roles)
    return found


def parsed(answer):
    return dict(part.split("=") for part in answer.split(","))


def record(seed, people=None):
    """A record in the dataset's schema; its solution is found by brute force."""
    rng = random.Random(seed)
    people = people or rng.randint(3, 7)
    while True:
        formulas = tuple(some_formula(people, rng) for _ in range(people))
        said = tuple((person, rng.choice(SAYINGS)) for person in range(people))
        puzzle = Puzzle(tuple(rng.sample(COMMON_NAMES, people)), formulas, said)
        solutions = brute_force(puzzle.quiz())
        if len(solutions) == 1:
            break
    roles = solutions[0]
    return {
        "quiz": puzzle.quiz(),
        "names": list(puzzle.names),
        "solution": [roles[name] == "knight" for name in puzzle.names],
        "solution_text_format": "\n".join(
            f"({i}) {name} is a {role}" for i, (name, role) in enumerate(roles.items(), 1)
        ),
        "cot_head": HEAD,
        "cot_repeat_steps": reasoning(puzzle),
        "cot_foot": FOOT,
        "statements": repr(formulas),
    }


def row_of(seed, people=None):
    return KnightsKnavesTask().to_row(record(seed, people))


# One of the dataset, with the reasoning that it publishes.
PUBLISHED = {
    "quiz": "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves"
    ' always lie. You meet 3 inhabitants: Zoey, Liam, and Mason. Zoey remarked, "Zoey is a knight and Mason is a'
    ' knight". Liam expressed that Zoey is a knave or Mason is a knight. Mason told you that Zoey is not a knight. So'
    " who is a knight and who is a knave?",
    "steps": [
        "Assume Zoey is a knight. No contradiction is found in their claim that Zoey is a knight and Mason is a"
        " knight.",
        "Mason cannot be a knight, because this would contradict the claim of their own that Zoey is not a knight.",
        "Mason cannot be a knave, because this would contradict the claim of Zoey that Zoey is a knight and Mason is a"
        " knight.",
        "We have exhausted all possibilities for Mason, so let us go back and reconsider Zoey.",
        "Assume Zoey is a knave. No contradiction is found in their false claim that Zoey is a knight and Mason is a"
        " knight.",
        "Assume Mason is a knight. No contradiction is found in their claim that Zoey is not a knight.",
        "Assume Liam is a knight. No contradiction is found in their claim that Zoey is a knave or Mason is a knight.",
    ],
    "statements": "(('and', ('telling-truth', 0), ('telling-truth', 2)), ('or', ('lying', 0), ('telling-truth', 2)),"
    " ('not', ('telling-truth', 0)))",
}


def test_a_published_puzzle():
    puzzle = kk_language.read(PUBLISHED["quiz"])
    assert puzzle.formulas == read_statements(PUBLISHED["statements"], 3) and puzzle.quiz() == PUBLISHED["quiz"]
    assert solve(puzzle.formulas) == [(False, True, True)]
    assert reasoning(puzzle) == PUBLISHED["steps"]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(2, 6), st.sampled_from(["knight", "knave"]))
def test_the_solver_agrees_with_the_truth_table(seed, people, truthful):
    """Also on puzzles with no solution or several."""
    rng = random.Random(seed)
    formulas = tuple(some_formula(people, rng) for _ in range(people))
    said = tuple((person, rng.choice(SAYINGS)) for person in rng.sample(range(people), people))
    puzzle = Puzzle(tuple(rng.sample(COMMON_NAMES, people)), formulas, said, truthful)
    assert kk_language.read(puzzle.quiz()) == puzzle
    assert read_statements(repr(formulas), people) == formulas
    solved = [
        {name: puzzle.roles[is_truthful] for name, is_truthful in zip(puzzle.names, solution, strict=True)}
        for solution in solve(formulas)
    ]
    key = lambda roles: sorted(roles.items())  # noqa: E731
    assert sorted(solved, key=key) == sorted(brute_force(puzzle.quiz()), key=key)
    if not solved:
        with pytest.raises(ValueError, match="without a solution"):
            reasoning(puzzle)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), people=st.integers(2, 7))
def test_every_perturbed_puzzle_is_right(kind, seed, people):
    task, row = KnightsKnavesTask(), row_of(seed, people)
    other = task.perturb(row, kind, seed)
    assert other == task.perturb(row, kind, seed)
    if other is None:
        # No other claim in one place leaves exactly one solution: met with five people too, once in thousands.
        assert kind in ("statement", "leaf") and people <= 5
        return
    assert other["original_prompt"] == row["prompt"] != other["prompt"]
    assert set(other) == {*row, "original_prompt"}
    names, claims, truthful = claims_of(row["prompt"])
    new_names, new_claims, new_truthful = claims_of(other["prompt"])
    assert brute_force(other["prompt"]) == [parsed(other["answer"])]
    assert list(parsed(other["answer"])) == new_names and other["difficulty"] == len(new_names)
    verdict = task.check(other["completion"], other)
    assert verdict.correct and verdict.well_formed
    assert task.check(row["completion"], other).correct == (kind == "reorder")
    instruction = row["prompt"].partition("\n\n")[2]
    assert other["prompt"].partition("\n\n")[2] == instruction
    if kind in ("statement", "leaf"):
        assert new_names == names and new_truthful == truthful and other["answer"] != row["answer"]
        (speaker,) = [name for name in names if claims[name] != new_claims[name]]
        if kind == "leaf":
            old, new = (re.findall(LEAF, claim) for claim in (claims[speaker], new_claims[speaker]))
            assert sum(a != b for a, b in zip(old, new, strict=True)) == 1
            assert re.sub(LEAF, "", claims[speaker]) == re.sub(LEAF, "", new_claims[speaker])
    if kind == "reorder":
        assert claims == new_claims and list(claims) != list(new_claims)
        assert other["answer"] == row["answer"] and other["completion"] == row["completion"]
    if kind == "names":
        for old, new in zip(names, new_names, strict=True):
            assert new in UNCOMMON_NAMES and new not in COMMON_NAMES
            other = {key: value.replace(new, old) if isinstance(value, str) else value for key, value in other.items()}
        assert all(other[key] == row[key] for key in row)
    if kind == "flip_role":
        swapped = {"knight": "knave", "knave": "knight"}
        assert new_truthful == "knave" and "Knaves always tell the truth, and knights always lie" in other["prompt"]
        assert parsed(other["answer"]) == {name: swapped[role] for name, role in parsed(row["answer"]).items()}
    if kind == "people":
        assert abs(len(new_names) - len(names)) == 1 and set(names[: len(new_names)]) <= set(new_names)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 1000))
def test_the_seed_decides(kind, seed):
    rows = [row_of(1000 * seed + i) for i in range(5)]
    first, again, other = (perturbed(KnightsKnavesTask(), rows, kind, s) for s in (seed, seed, seed + 1))
    assert first == again
    # There are few leaves, and one way to flip.
    assert kind in ("flip_role", "leaf") or first != other


def test_roles_flip_back():
    task, row = KnightsKnavesTask(), row_of(1)
    there = task.perturb(row, "flip_role", 0)
    back = task.perturb(there, "flip_role", 0)
    assert {key: back[key] for key in row} == row


def corruptions(conclusion, names, rng):
    """One wrong conclusion: a role flipped, a person left out, a stranger for a person, a person judged twice."""
    lines = conclusion.splitlines()
    i = rng.randrange(len(lines))
    flipped = lines[i].replace("knight", "KNAVE").replace("knave", "knight").replace("KNAVE", "knave")
    return rng.choice(
        [
            [*lines[:i], flipped, *lines[i + 1 :]],
            [*lines[:i], *lines[i + 1 :]],
            [*lines[:i], lines[i].replace(names[i], "Walburga"), *lines[i + 1 :]],
            [*lines, flipped],
            [*lines[:i], f"{lines[i]} or {flipped}", *lines[i + 1 :]],
        ]
    )


def test_the_verifier_accepts_every_solution_and_rejects_a_thousand_corrupted_ones():
    task, rng = KnightsKnavesTask(), random.Random(0)
    for seed in range(50):
        published = record(seed)
        row = task.to_row(published)
        assert task.check("CONCLUSION:\n" + published["solution_text_format"], row).correct
        for _ in range(20):
            wrong = "\n".join(corruptions(published["solution_text_format"], published["names"], rng))
            assert not task.check("CONCLUSION:\n" + wrong, row).correct, wrong


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("You meet 3", "You meet 4"),
        ("Knights always tell", "Knaves always tell"),
        ("Zoey is a knave or", "Zara is a knave or"),
        ("Zoey is a knave or", "Zoey is a knave xor"),
        (" Liam expressed that Zoey is a knave or Mason is a knight.", ""),
        ("Liam expressed", "Mason expressed"),
        ("Liam expressed", "Zara expressed"),
        ("Liam expressed that Zoey", "Liam thinks that Zoey"),
        ("Zoey, Liam, and Mason", "Zoey, Zoey, and Mason"),
        ("Mason told you", " Mason told you"),
        ("?", "? Think."),
    ],
)
def test_what_is_not_in_the_language_is_left_alone(old, new):
    quiz = PUBLISHED["quiz"].replace(old, new, 1)
    assert quiz != PUBLISHED["quiz"] and kk_language.read(quiz) is None
    row = {"prompt": quiz, "completion": None, "answer": "Zoey=knave,Liam=knight,Mason=knight", "difficulty": 3}
    assert all(KnightsKnavesTask().perturb(row, kind, 0) is None for kind in KINDS)
    wrong = {**row, "prompt": PUBLISHED["quiz"], "answer": "Zoey=knight,Liam=knight,Mason=knight"}
    assert KnightsKnavesTask().perturb(wrong, "names", 0) is None


@pytest.mark.parametrize(
    "text", ["", "5", "(('lying', 3),)", "(('xor', ('lying', 0), ('lying', 1)),)", "(('not',),)", "("]
)
def test_bad_statements(text):
    with pytest.raises(InputError, match="'statements' must be a tuple of formulas about 3 people") as error:
        read_statements(text, 3)
    assert "\n" not in str(error.value)
