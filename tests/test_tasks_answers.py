"""Rows that no completion could ever answer, and rows of another task, are refused where they stand."""

from __future__ import annotations

import json
import time

import pytest

from sasr.errors import InputError
from sasr.tasks import TASKS, GSM8KTask, JsonlTask, get_task, load_rows

KK = {
    "quiz": "q", "names": ["Zoe", "Al"], "solution": [True, False], "solution_text_format": "(1) Zoe is a knight",
    "cot_head": "h", "cot_repeat_steps": ["s"], "cot_foot": "f",
}  # fmt: skip
GOOD = {
    "stories": {"prompt": "p", "completion": "2 + 3 = 5 . #### 5", "answer": "5"},
    "gsm8k": {"question": "q", "answer": "2+3=5\n#### 5"},
    "math": {"problem": "p", "solution": r"so \boxed{\frac{1}{2}}", "level": "Level 2", "type": "Algebra"},
    "kk": KK,
    "svamp": {"Body": "b", "Question": "q", "Answer": 5},
    "multiarith": {"question": "q", "final_ans": "5"},
    "jsonl": {"prompt": [{"role": "user", "content": "p"}], "answer": "Paris"},
}
UNVERIFIABLE = {
    "stories-text": ("stories", {"answer": "seven"}),
    "stories-unit": ("stories", {"answer": "7 apples"}),
    "gsm8k-text": ("gsm8k", {"answer": "2+3=5\n#### five"}),
    "gsm8k-empty": ("gsm8k", {"answer": "2+3=5\n#### "}),
    "math-long": ("math", {"solution": rf"\boxed{{{'9' * 1001}}}"}),
    "math-empty": ("math", {"solution": r"\boxed{ }"}),
    "math-layout": ("math", {"solution": r"\boxed{\,\!}"}),
    "math-broken": ("math", {"solution": r"\boxed{\frac{1}{2"}),
    "kk-no-name": ("kk", {"names": ["", "Al"]}),
    "kk-stars": ("kk", {"names": ["*Zoe*", "Al"]}),
    "kk-list": ("kk", {"names": ["- Zoe", "Al"]}),
    "svamp-text": ("svamp", {"Answer": "many"}),
    "multiarith-text": ("multiarith", {"final_ans": "5 or 6"}),
    "jsonl-stops": ("jsonl", {"answer": "..."}),
    "jsonl-whole-solution": ("jsonl", {"answer": "2+3=5\n#### 5"}),
}


def write(path, *records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("case", UNVERIFIABLE)
def test_an_answer_that_nothing_can_match(tmp_path, case):
    name, change = UNVERIFIABLE[case]
    file = write(tmp_path / "rows.jsonl", GOOD[name], GOOD[name] | change)
    with pytest.raises(InputError) as caught:
        load_rows(get_task(name), file)
    message = str(caught.value)
    assert message.startswith(f"{file}:2: ") and f"(task {name})" in message and "\n" not in message
    assert len(message) - len(str(tmp_path)) < 300


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("math", {"solution": r"\boxed{\text{Evelyn}}"}),
        (
            "math",
            {"solution": r"\boxed{(-\infty, 3) \cup \{}}"},
        ),  # nothing that math-verify knows, but it can be repeated
        ("gsm8k", {"answer": "x\n#### $1,200.50"}),
        ("kk", {"names": ["Zoe Ann", "Al"]}),
        ("stories", {"answer": "5.0"}),
        ("jsonl", {"answer": 5}),
        ("jsonl", {"answer": "two\nlines"}),
        ("jsonl", {"answer": "}{"}),
        ("jsonl", {"answer": r"\boxed{3}"}),
    ],
)
def test_an_answer_that_can_be_matched(tmp_path, name, change):
    (row,) = load_rows(get_task(name), write(tmp_path / "rows.jsonl", GOOD[name] | change))
    assert row["answer"]


def test_a_blank_answer_is_none(tmp_path):
    file = write(tmp_path / "rows.jsonl", *({"prompt": "p", "answer": answer} for answer in ("", "  ", None)))
    assert [row["answer"] for row in load_rows(JsonlTask(), file)] == [None] * 3


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("other", TASKS)
def test_rows_of_another_task(tmp_path, name, other):
    """Its own rows it takes, those of others it refuses with the place. (MultiArith's are questions like GSM8K's; the
    one takes `final_ans`, the other the solution in `answer`.)"""
    file = write(tmp_path / "rows.jsonl", GOOD[other])
    if name == other or (name, other) == ("jsonl", "stories"):
        assert load_rows(get_task(name), file)
        return
    with pytest.raises(InputError) as caught:
        load_rows(get_task(name), file)
    assert str(caught.value).startswith(f"{file}:1: ") and "\n" not in str(caught.value)


def test_a_task_that_judges_in_its_own_way_is_not_tried(tmp_path):
    class Reversed(JsonlTask):
        def check(self, completion, row):
            return super().check(completion[::-1], row)

    class Batched(GSM8KTask):
        def check_all(self, completions, rows):
            raise AssertionError("not to be called while rows are read")

    class Stated(Reversed):
        def stated(self, answer):
            return (answer[::-1],) if answer != "no" else ("no",)

    file = write(tmp_path / "rows.jsonl", GOOD["jsonl"])
    assert load_rows(Reversed(), file) and load_rows(Stated(), file)
    assert load_rows(Batched(), write(tmp_path / "g.jsonl", GOOD["gsm8k"]))
    with pytest.raises(InputError, match=r"rows\.jsonl:1: no completion could ever match the answer 'no'"):
        load_rows(Stated(), write(tmp_path / "rows.jsonl", GOOD["jsonl"] | {"answer": "no"}))


def test_no_worker_is_needed_for_it(tmp_path):
    """The check of 500 MATH rows is one of texts: quick, and without math-verify."""
    records = [GOOD["math"] | {"solution": rf"\boxed{{x^{i} + \sqrt{{{i}}}}}"} for i in range(500)]
    task, file = get_task("math"), write(tmp_path / "rows.jsonl", *records)
    started = time.monotonic()
    assert len(load_rows(task, file)) == 500
    assert time.monotonic() - started < 3 and task.verifier._process is None
