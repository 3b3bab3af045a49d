"""Reworded word problems: the answer stays, the numbers stay, and nothing changes but what the kind names."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr.errors import InputError
from sasr.tasks import GSM8KTask, MathTask
from sasr.tasks.perturb import perturbed
from sasr.tasks.perturb.names import COMMON_MEN, COMMON_WOMEN, UNCOMMON_MEN, UNCOMMON_WOMEN

KINDS = ("names", "whitespace", "units")
UNCOMMON = set(UNCOMMON_WOMEN + UNCOMMON_MEN)

# Pieces of problems; each is whole, so that any of them may follow one another.
GSM8K_PIECES = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
    "Peter has $5 and pays 3 dollars for tea.",
    "It costs $1,200.50 per month, or 20% less than before.",
    "A coat of $20 million is offered at 10 percent off.",
    "Twice a day Peter walks twice as far as Natalia, 2 times the way to school.",
    "The bag weighs 5 kg and the box 12.5 kilograms.",
    "They drive 60 miles per hour for 3 km, and it melts by 2 centimeters each day.",
    "A $20 bill, a 5 kg bag, 1/2 dollars and 2 1/2 percent of $0.50.",
    "Susan gets $1 from him and 1 dollars from her.",
    "How many are left?",
    "How much is 2 times more than 7% of 200 lbs?",
]
MATH_PIECES = [
    r"Let $x + y = 3$ and $y$ be 2 times the value of $x$.",
    r"The price rises by $20\%$, then falls by 15\%.",
    "It falls by 15 percent, then by $30$ percent.",
    r"Natalia pays \$5 for $\frac{1}{2}$ kg.",
    '[asy]\ndraw((0,0)--(1,1), red + dashed);  label("$A$", A, N);\n[/asy]',
    r"\begin{tabular}{cc} a & b \\ 2 & 3 \end{tabular}",
    r"Find \[x = 20\%  of  3\] where Peter is twice as old as $2 + 2$.",
    r"Evaluate \(a + b\) for 10 000 people.",
]


def rows_of(task, pieces):
    solution = "Natalia has 5 and Peter has 3." + (" #### 8" if task is GSM8KTask else r" So $\boxed{8}$.")
    names = ("question", "answer") if task is GSM8KTask else ("problem", "solution")
    return task().to_row(dict(zip(names, (" ".join(pieces), solution.replace(" ####", "\n####")), strict=True)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oliver has 10 $20 and 3 $5 bills. William has 15 $10 and 4 $5 bills.", None),
        ("It contains only $10 and $20 bills, which amount to $120.", "$10 and $20 bills"),
        ("He paid the shirt using $20 and $10 bills, and it cost $5 and more.", "using $20 and $10 bills"),
        ("He has $5 and pays.", "5 dollars and pays"),
    ],
)
def test_the_kind_of_a_bill_is_no_sum(text, expected):
    """As three rows of GSM8K have it."""
    found = GSM8KTask().perturb(rows_of(GSM8KTask, [text]), "units", 1)
    assert (expected in found["prompt"]) if expected else found is None


rows = st.one_of(
    st.lists(st.sampled_from(GSM8K_PIECES), min_size=1, max_size=5).map(lambda p: (GSM8KTask, rows_of(GSM8KTask, p))),
    st.lists(st.sampled_from(MATH_PIECES), min_size=1, max_size=5).map(lambda p: (MathTask, rows_of(MathTask, p))),
)


def numbers(text):
    return Counter(re.findall(r"[0-9]+(?:[.,][0-9]+)*", text))


def plain(text, money):
    """All units in one way of writing."""
    pairs = {"kg": "kilograms", "km": "kilometers", "cm": "centimeters", "mph": "miles per hour", "lbs": "pounds"}
    for short, long in pairs.items():
        text = re.sub(rf"\b{short}\b", long, text)
    if money:
        text = re.sub(r"\$([0-9][0-9.,]*[0-9]|[0-9])", r"\1 dollars", text)
    text = re.sub(r"([0-9])\\?%", r"\1 percent", text)
    text = re.sub(r"([0-9]) percent\$", r"\1$ percent", text)
    return re.sub(r"\btwice\b", "2 times", text)


@settings(max_examples=300, deadline=None)
@given(rows, st.sampled_from(KINDS), st.integers(0, 10**6))
def test_nothing_changes_but_what_the_kind_names(given_row, kind, seed):
    task, row = given_row[0](), given_row[1]
    other = task.perturb(row, kind, seed)
    assert other == task.perturb(row, kind, seed)
    if other is None:
        return
    assert other["answer"] == row["answer"] and other["difficulty"] == row["difficulty"]
    assert set(other) == {*row, "original_prompt"} and other["original_prompt"] == row["prompt"] != other["prompt"]
    assert task.well_formed(other["completion"]) and task.check(other["completion"], row).correct
    instruction = row["prompt"].rpartition("\n\n")[2]
    assert other["prompt"].endswith(f"\n\n{instruction}")
    if kind == "units":
        assert other["completion"] == row["completion"]
        old, new = (plain(text, task.name == "gsm8k") for text in (row["prompt"], other["prompt"]))
        assert old == new and numbers(old) == numbers(new)
        return
    assert numbers(other["prompt"]) == numbers(row["prompt"])
    if kind == "whitespace":
        assert other["completion"] == row["completion"]
        assert other["prompt"].split() == row["prompt"].split()
        for formula in re.findall(r"(?<!\\)\$[^$]*\$|\[asy\].*?\[/asy\]|\\begin.*?\\end", row["prompt"], re.DOTALL):
            assert task.name == "gsm8k" or formula in other["prompt"]
    if kind == "names":
        back = {new: old for old, new in zip(row["prompt"].split(), other["prompt"].split(), strict=True) if old != new}
        assert set(map(bare, back)) <= UNCOMMON and set(map(bare, back.values())) <= {"Natalia", "Peter"}
        text = f"{other['prompt']}\n{other['completion']}"
        for new, old in back.items():
            text = re.sub(rf"\b{bare(new)}\b", bare(old), text)
            assert (bare(new) in UNCOMMON_WOMEN) == (bare(old) in COMMON_WOMEN)
        assert text == f"{row['prompt']}\n{row['completion']}"


def bare(word):
    return word.rstrip(".,?")


@pytest.mark.parametrize("task", [GSM8KTask, MathTask])
def test_the_seed_decides(task):
    row = rows_of(task, GSM8K_PIECES[:1] if task is GSM8KTask else MATH_PIECES)
    for kind in ("names", "whitespace"):
        assert len({task().perturb(row, kind, seed)["prompt"] for seed in range(10)}) > 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He pays $5.", "He pays 5 dollars."),
        ("He pays 5 dollars.", "He pays $5."),
        ("He pays $1,000.50 for it?", "He pays 1,000.50 dollars for it?"),
        ("It has 20% of it", "It has 20 percent of it"),
        ("It has 2.5 percent.", "It has 2.5%."),
        ("It is twice as big", "It is 2 times as big"),
        ("It is 2 times the size", "It is twice the size"),
        ("He ran 5 km, then", "He ran 5 kilometers, then"),
        ("at 60 miles per hour for", "at 60 mph for"),
        ("It weighs 7 lbs.", "It weighs 7 pounds."),
        ("It costs 7 pounds.", None),
        ("It costs $5 million.", None),
        ("He has a $20 bill", None),
        ("a 20 dollars fee", None),
        ("It costs $1 and", None),
        ("It costs 1/2 dollars and", None),
        ("It costs 3 1/2 dollars and", None),
        ("It costs $5.50.25.", None),
        ("It costs $5/hour", None),
        ("for $5-$6", None),
        ("a 20%-off sale", None),
        ("It is 2 times more", None),
        ("It is 12 times as big", None),
        ("He makes $ 78 dollars off each", None),  # of SVAMP
        ("It is 1/2 times as big", None),
        ("He ran 1 km, then", None),
        ("He went twice.", None),
        ("5 km/h", None),
    ],
)
def test_units(text, expected):
    row = {"prompt": text, "completion": None, "answer": "1", "difficulty": None}
    other = GSM8KTask().perturb(row, "units", 0)
    assert (other and other["prompt"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"by $20\%$ of", "by $20$ percent of"),
        ("by $20$ percent of", r"by $20\%$ of"),
        (r"by 20\% of", "by 20 percent of"),
        ("by 20 percent of", r"by 20\% of"),
        (r"by $x = 20\%$ of", None),
        (r"pays \$5 for", None),
        ("pays $5 for", None),  # half a formula
        (r"$\text{twice the size}$", None),
    ],
)
def test_units_in_latex(text, expected):
    row = {"prompt": text, "completion": None, "answer": "1", "difficulty": None}
    other = MathTask().perturb(row, "units", 0)
    assert (other and other["prompt"]) == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "answer"),
    [
        ("Sam and Samantha have 2.", "Samantha has 2.", "2"),
        ("Natalia has 2. Natalie has 3.", "Natalia and Natalie have 5.", "5"),
        ("Elizabeth has 2. Liz has 3.", "Elizabeth has 3, Liz too.", "2"),
        ("Nicholas has 5. Nick gives 2 away. How many has Nicholas?", "Nicholas has 5, Nick gives 2.", "3"),
        ("She lives in San Diego.", "San Diego is far.", "2"),
        ("How many letters has Peter?", "Peter has 5 letters.", "5"),
        ("Peter, who is older?", "It is Peter.", "Peter"),
        ("We go to St. Peter.", "St. Peter is far.", "2"),
        ("Peter Piper has 2.", "Peter has 2.", "2"),
        ("Frank is frank.", "Frank is.", "2"),
        ("Peter has 2.", "He has 2.", "2"),
        ("Weng has 2. May has 3.", "Weng has 2. May has 3.", "2"),
    ],
)
def test_names_that_are_not_certain_stay(prompt, completion, answer):
    row = {"prompt": prompt, "completion": completion, "answer": answer, "difficulty": None}
    assert GSM8KTask().perturb(row, "names", 0) is None


def test_names_without_a_solution():
    row = {"prompt": "Peter's 2 pens. How many has Peter?", "completion": None, "answer": "2", "difficulty": None}
    other = GSM8KTask().perturb(row, "names", 0)
    name = other["prompt"].partition("'")[0]
    assert name in UNCOMMON_MEN and other["prompt"] == row["prompt"].replace("Peter", name)
    assert other["completion"] is None and other["answer"] == "2"


def test_name_lists():
    lists = (COMMON_WOMEN, COMMON_MEN, UNCOMMON_WOMEN, UNCOMMON_MEN)
    assert sum(map(len, lists)) == len(set().union(*lists))
    assert all(re.fullmatch("[A-Z][a-z]+", name) for names in lists for name in names)


def test_conversations_are_not_taken_apart():
    row = {"prompt": [{"role": "user", "content": "Peter has $5."}], "completion": None, "answer": "5"}
    with pytest.raises(InputError, match="none of the 1 rows of task gsm8k can be perturbed by 'units'"):
        perturbed(GSM8KTask(), [row], "units")
