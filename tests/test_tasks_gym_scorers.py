"""Scorers of reasoning-gym that take wrong answers for right, or right ones for wrong: here they do not."""

from __future__ import annotations

import importlib.util
import itertools
import re
from decimal import Decimal
from fractions import Fraction

import pytest

from sasr.tasks.gym import WORKER
from sasr.tasks.gym_worker import exact_value
from test_tasks_gym import task_of, wrap

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed: pip install 'sasr[gym]'"
)


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    WORKER.close()


def test_what_a_scorer_takes_for_right_by_mistake():
    """min(1, NaN) is 1 in Python."""
    (row,) = task_of("complex_arithmetic").generate(1, 1)
    for text in ("nan", "nan + nani", "NaN"):
        assert not task_of("complex_arithmetic").check(wrap(text), row).correct


def test_puzzle24_has_its_own_numbers():
    task = task_of("puzzle24")
    almost = 0
    for row in task.generate(20, 1):
        numbers = re.findall("[0-9]+", row["prompt"].partition("using ")[2].partition(".")[0])
        assert task.check(wrap("6*4*1*1"), row).correct == (sorted(numbers) == ["1", "1", "4", "6"])
        assert task.check(wrap(row["answer"]), row).correct and task.check(wrap(f"(({row['answer']}))"), row).correct
        assert not task.check(wrap(f"-({row['answer']})"), row).correct
        for signs in itertools.product("+-*/", repeat=3):
            text = "".join(itertools.chain(*zip(numbers, [*signs, ""], strict=True)))
            if 24 < (exact_value(text) or 0) < 25:
                almost += 1
                assert not task.check(wrap(text), row).correct
    assert almost


# The numbers of the question as its scorer sees them, with others beside them or inside.
EXPONENTS = "{target}e0 + 0e0*({sum})"
UNDERSCORES = "{first}_{rest} + 0_0*({sum})"


@pytest.mark.parametrize("cheat", [EXPONENTS, UNDERSCORES])
def test_countdown_has_its_own_numbers(cheat):
    task = task_of("countdown")
    for row in task.generate(5, 1):
        target = str(int(exact_value(row["answer"])))
        numbers = " + ".join(re.findall("[0-9]+", row["answer"]))
        text = cheat.format(target=target, sum=numbers, first=target[0], rest=target[1:])
        assert not task.check(wrap(text), row).correct, text
        assert task.check(wrap(row["answer"]), row).correct


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1 + 2)*3/4", Fraction(9, 4)),
        ("-(3 - 5) / 2", 1),
        ("24.9", None),
        ("2**3", None),
        ("7//2", None),
        ("1/0", None),
        ("2(3)", None),
        ("()", None),
        ("1 2", None),
        ("sqrt(4)", None),
        ("1_0", None),
        ("\u0661", None),
        ("(" * 5000 + "1" + ")" * 5000, None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_exact_value(text, value):
    assert exact_value(text) == value


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spell_backward", {"min_word_len": 10}),
        ("spell_backward", {"min_word_len": 6, "max_word_len": 6}),
        ("letter_jumble", {}),
        ("figlet_font", {"min_word_len": 10, "max_word_len": 12}),
    ],
)
def test_more_than_the_answer_is_wrong(name, options):
    """Letters or words that match are counted, and with all of them the score is full."""
    task = task_of(name, **options)
    for row in task.generate(3, 1):
        assert task.check(wrap(row["answer"]), row).correct and task.check(wrap(row["answer"].upper()), row).correct
        for more in ("zzz", " zzz"):
            assert not task.check(wrap(row["answer"] + more), row).correct


def test_gsm_symbolic_reads_whole_numbers():
    task = task_of("gsm_symbolic")
    for row in task.generate(60, 1):
        number = Decimal(row["answer"])
        for right in (f"{number:,}", f"${number:,}", f"{number} dollars", f"It is {number}."):
            assert task.check(wrap(right), row).correct, right
        assert not task.check(wrap(f"-{number}"), row).correct
        assert number % 1 or not task.check(wrap(f"{number:,},000"), row).correct
