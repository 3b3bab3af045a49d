"""The equations and paths of worked solutions, and whether their steps hold."""

import math
import random
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sasr.tasks import GSM8KTask, JsonlTask, KnightsKnavesTask, MathTask, StoriesTask
from sasr.tasks.equations import find_equations, find_latex_equations

READ = {
    "48/2 = $24": ["48/2=24"],
    "12 x 2 = 24, so 24 X 2 = 48.": ["2*12=24", "2*24=48"],
    "(3 + 4) * 2 = 7 * 2 = 14": ["2*(3+4)=14", "2*7=14"],
    "100 - 50 - 30 - 15 = 5": ["100-15-30-50=5"],
    "100 - (30 - 20) = 90": ["100-(30-20)=90"],
    "$1,200.0 + 5 = 1205": ["5+1200=1205"],
    "8 = 5 + 3": ["3+5=8"],
    "S + 30 = 20 + 50 = 70": ["20+50=70"],
    "1/2 * 48 = 24": ["48/2=24"],
    "10/3 = 3.33": ["10/3=3.33"],
    "3/4 = 75%": ["3/4=75%"],
    "20% * 50 = 10": ["50*20%=10"],
    "- 5 + 3 = 8": ["3+5=8"],
    "**5 + 3 = 8**": ["3+5=8"],
    "1) 5 + 3 = 8": ["3+5=8"],
    "12 (6 + 6 = 12)": ["6+6=12"],
    "3(4) = 12": ["3*4=12"],
    "-5 + 3 = -2": ["3+-5=-2"],
}
UNREAD = [
    *("x = 5", "2 * 2S = 4S", "half of 20 + 5 = 15", "2 pens * 3 = 7", "1 1/2 * 4 = 6", "8:00 + 2 = 10:00", "2**3 = 9"),
    *("5^2 + 1 = 27", "3 + 5^2 = 28", "5! = 120 + 1", "1/0 = 3", "2 / 1/5 = 10", "0900 - 0130 = 0730", "= 5 + 3"),
    *(
        "4 / 3 = 1 and 1/3",
        "total - 5 + 3 = 8",
        "100 + (100 * 2 = 300",
        "13,2000 / 60 = 220",
        "3.5 = 2 + 1½",
        "((((1+",
        "",
    ),
]
LATEX = {
    r"$\frac{3}{4} \cdot 8 = 6$": ["8*(3/4)=6"],
    r"$2\cdot 6 = \boxed{12}$": ["2*6=12"],
    r"\begin{align*} 3+4 &= 7 \\ &= 8 \end{align*}": ["3+4=7"],
    r"so $(3)(4)=12$ and $\$7-\$2=\$5$": ["3*4=12", "7-2=5"],
    r"$-\frac{15}{5} = -3$": ["-(15/5)=-3"],
    r"$1{,}000 + 5 = 1{,}005$": ["5+1000=1005"],
    **{text: [] for text in (r"$3^2 + 1 = 10$", r"$3\frac{1}{2} = 3$", r"$1/3 = 0.\overline{3}$", r"$5\pi + 3 = 4$")},
    **{text: [] for text in (r"$10 + 5 = 3 \pmod{12}$", r"$(a)(4) + (4)(2) = 0$", r"$\sqrt{9+16} = 5$")},
}


@pytest.mark.parametrize("text", READ)
def test_equations_in_normal_form(text):
    assert [e.text for e in find_equations(text)] == READ[text]
    assert all(e.holds for e in find_equations(text))


@pytest.mark.parametrize("text", UNREAD)
def test_what_may_mean_something_else_is_not_judged(text):
    assert find_equations(text) == []


@pytest.mark.parametrize("text", LATEX)
def test_equations_in_latex(text):
    found = find_latex_equations(text)
    assert [e.text for e in found] == LATEX[text] and all(e.holds for e in found)


@pytest.mark.parametrize("text", ["5 + 3 = 9", "20 - 5 = 15 - 3 = 12", "5 + 3 = 8 = 9", "10 / 3 = 3", "10/3 = 3.35"])
def test_false_equations(text):
    assert find_equations(text) and not any(e.holds for e in find_equations(text))


operands = st.lists(st.integers(1, 999), min_size=2, max_size=4)


@given(operands, st.sampled_from("+*"), st.randoms(use_true_random=False), st.booleans())
def test_order_and_layout_are_no_part_of_an_equation(operands, sign, rng, dense):
    result = sum(operands) if sign == "+" else math.prod(operands)
    shuffled = list(operands)
    rng.shuffle(shuffled)
    space = "" if dense else "  "
    one = f"{space}{sign}{space}".join(map(str, operands)) + f" = {result}"
    other = f" {sign} ".join(f"${n}.00" for n in shuffled) + f" = {result:,}"
    (first,), (second,) = find_equations(f"So {one}."), find_equations(f"They pay {other} in all")
    assert first == second and first.holds
    (wrong,) = find_equations(one + "1")
    assert not wrong.holds and wrong.text != first.text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/=().,%$ x\n#a\\{}^_:;&!", max_size=80))
@example("(" * 500 + "1" + ")" * 500 + "= 1 + 0")
@example("9" * 5000 + " * " + "9" * 5000 + " = 1")
@example("1+" * 50_000 + "1 = 2")
def test_no_text_is_too_odd(text):
    for equation in find_equations(text) + find_latex_equations(text):
        assert re.search("[-+*/%]", equation.text) and "=" in equation.text
    row = {"answer": "Zoey=knave,Liam=knight"}
    for task in (StoriesTask(), GSM8KTask(), MathTask(), KnightsKnavesTask(), JsonlTask()):
        path = task.path(text, row)
        assert path is None or (isinstance(path, tuple) and path and all(isinstance(part, str) for part in path))
        assert task.steps_valid(text, row) in (True, False, None)


@settings(max_examples=25, deadline=None)
@given(st.integers(), st.integers(1, 5))
def test_the_demonstrations_of_stories_are_valid_and_have_a_path(seed, steps):
    task = StoriesTask(steps=steps)
    for row in task.generate(20, seed):
        assert task.steps_valid(row["completion"], row) is True
        path = task.path(row["completion"], row)
        assert path is not None and len(path) == steps
        assert path == task.path("".join(row["completion"].split()), row)
        equations = re.sub(r" \.", ".\n", row["completion"].partition("####")[0])
        assert task.path(equations, row) == GSM8KTask().path(equations, row), "one normal form for both"


def test_paths_of_stories_and_gsm8k():
    stories, gsm8k = StoriesTask(), GSM8KTask()
    assert stories.path("12 + 7 = 19 . 19 - 5 = 14 . #### 14", {}) == ("19-5=14", "7+12=19")
    assert stories.path("7 + 12 = 19 . 19 - 5 = 14 . #### 14", {}) == ("19-5=14", "7+12=19")
    assert stories.path("12 - 5 = 7 . 7 + 7 = 14 . #### 14", {}) == ("12-5=7", "7+7=14")
    assert stories.path("#### 14", {}) is None
    one = "She eats 2 x 3 = <<2*3=6>>6 eggs.\nSo 16 - 6 = 10 are left.\n#### 10"
    other = "16 eggs.\n16-3*2=10\n#### 10"
    assert gsm8k.path(one, {}) == ("16-6=10", "2*3=6") and gsm8k.path(other, {}) == ("16-2*3=10",)
    swapped = "16 - 6 = 10 if 3 * 2 = 6.\n#### 10"
    assert gsm8k.path(swapped, {}) == gsm8k.path(one, {})
    assert gsm8k.steps_valid(one, {}) is True
    assert gsm8k.steps_valid(one.replace("6 eggs", "7 eggs"), {}) is False
    assert gsm8k.steps_valid("It is ten.\n#### 10", {}) is None


def test_paths_of_knights_and_knaves():
    task, row = KnightsKnavesTask(), {"answer": "Zoey=knave,Liam=knight"}
    text = (
        "Let's think step by step.\nAssume Zoey is a knight. No contradiction is found in their claim that Liam is a"
        " knave.\nLiam cannot be a knight, because this would contradict the claim of Zoey that Liam is a knave.\n"
        "Therefore, **Zoey** must be a knave, so Liam is a knight.\n"
        "CONCLUSION:\n(1) Zoey is a knave\n(2) Liam is a knight"
    )
    path = ("assume zoey=knight", "liam!=knight", "zoey=knave", "liam=knight")
    assert task.path(text, row) == path
    lines = text.splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    assert task.path("\n".join(lines), row) == (path[1], path[0], *path[2:]), "the order counts"
    assert task.path("CONCLUSION:\n(1) Zoey is a knave\n(2) Liam is a knight", row) is None
    assert task.path(text, {"answer": None}) is None
    assert task.steps_valid(text, row) is None


def test_long_repetitions_are_quick():
    rng = random.Random(0)
    text = " ".join(f"{rng.randrange(99)} + {rng.randrange(99)} = {rng.randrange(99)}" for _ in range(20_000))
    assert len(find_equations(text)) < 20_001
    began = time.monotonic()
    assert len(find_equations("1 + 1 = " * 20_000)) == 20_000
    assert time.monotonic() - began < 60
