from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr.tasks import TASKS
from sasr.tasks import text as parsers
from sasr.tasks.jsonl import final_answer, same_answer

# Arbitrary text, and text made of the pieces that the parsers look for.
PIECES = [
    "####",
    "\\boxed{",
    "\\boxed",
    "\\fbox{",
    "}",
    "{",
    "\\",
    "$",
    "-",
    "1,200",
    ".5",
    "7",
    "%",
    " ",
    "\n",
    "CONCLUSION:",
]
PIECES += [
    "(1) ",
    "Zoey is a knight",
    "Liam is a knave",
    "=",
    "+ 2 = 3 .",
    "Answer:",
    "answer is",
    "\u2212",
    "\u0661",
    "*",
]
messy = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"),
        (" $1,200.00 ", "1200"),
        ("-$5.", "-5"),
        ("$-5", "-5"),
        ("\u22125", "-5"),
        (".50", "0.5"),
        ("12%", "12"),
        ("12\\%", "12"),
        ("-0.0", "0"),
        ("100", "100"),
        ("1,2", None),
        ("1,2345", None),
        ("1/2", None),
        ("1e5", None),
        ("--5", None),
        ("-$-5", None),
        ("five", None),
        ("\u0665", None),
        ("", None),
        (".", None),
    ],
)
def test_numbers(text, value):
    assert parsers.normalise_number(text) == value


def test_numbers_are_exact():
    long = "1" + "0" * 40 + ".1"
    assert parsers.parse_number(long) != parsers.parse_number(long[:-1] + "2")
    assert parsers.parse_number("-" + long) == Decimal("-" + long)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18 dollars", 18),
        ("$18.", 18),
        ("18 / 2", None),
        ("18.5.1", None),
        ("5 or 6", None),
        ("5 million", None),
        ("5 Dozen eggs", None),
        ("5 × x", None),
        ("5 + x", None),
        ("5 - a half", None),
        ("5 timestamps", 5),
        ("10 times", 10),
        ("10 times.", 10),
        ("5 times x", None),
        ("5 times (x)", None),
        ("5times", None),
        ("3 ½", None),
        ("3 and a half hours", None),
        ("3 and two thirds", None),
        ("3 and a dog", 3),
        ("18 m²", 18),
        ("5 -- that is it", None),
        ("18kg", None),
        ("x", None),
    ],
)
def test_leading_number(text, value):
    assert parsers.leading_number(text) == value


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {5}", "5"),
        (r"$\boxed 5$", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{5} then \boxed{6", None),
        (r"\boxed", None),
        (r"\boxedsomething{5}", None),
        ("5", None),
    ],
)
def test_last_boxed(text, content):
    assert parsers.last_boxed(text) == content


def test_keep_last_boxed():
    text = parsers.keep_last_boxed(r"\boxed{1}, \boxed{\boxed{2}} and \boxed{3}")
    assert text == r"1, 2 and \boxed{3}"
    assert parsers.keep_last_boxed(r"\boxed 5, \boxed{\{} \boxed{ \boxed{3}") == r"5, \{ \boxed{ \boxed{3}"
    deep = 20_000  # quadratic time would be minutes
    assert parsers.keep_last_boxed("\\boxed{" * deep + "1" + "}" * deep + r"\boxed{2}") == r"1\boxed{2}"


def test_unified():
    assert parsers.unified("cafe\u0301 \u201cd\u2019or\u201d 3\u20134 \u22125\u200b") == "caf\u00e9 \"d'or\" 3-4 -5"
    assert parsers.unified("\ufb01 \u00b2 \u2163") == "\ufb01 \u00b2 \u2163", "what is another letter stays one"
    assert len(parsers.unified("a" + "\u0300" * 50_000 + "\u0323" * 50_000)) > 99_000  # quadratic time would be minutes


@given(messy)
def test_parsers_never_raise(text):
    parsers.unified(text)
    parsers.parse_number(text), parsers.leading_number(text), parsers.normalise_number(text)
    parsers.last_boxed(text), parsers.count_boxed(text), parsers.squeeze(text)
    assert parsers.last_boxed(parsers.keep_last_boxed(text)) == parsers.last_boxed(text) or "\\" in text
    final_answer(text)
    same_answer(text, "5")


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_written_numbers_are_read_back(value):
    assert parsers.parse_number(f"{value:,f}") == value
    assert Decimal(parsers.normalise_number(f"{value:,f}")) == value


@pytest.mark.parametrize("name", ["stories", "gsm8k", "kk", "svamp", "jsonl"])
@given(completion=messy, answer=st.one_of(messy, st.none()))
def test_checks_never_raise(name, completion, answer):
    task = TASKS[name]()
    verdict = task.check(completion, {"answer": answer})
    assert verdict.failure is None
    assert verdict.well_formed == task.well_formed(completion)
    assert answer is not None or not verdict.correct


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize(
    "text", ["\\boxed{" * 20_000, "(1) a is a " * 20_000, "####" * 50_000, " " * 100_000, "9" * 100_000, "a\n" * 50_000]
)
def test_huge_completions_are_wrong_at_once(name, text):
    verdict = TASKS[name]().check(text, {"answer": "5"})
    assert not verdict.correct and verdict.failure is None
