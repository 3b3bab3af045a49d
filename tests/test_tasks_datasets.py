"""GSM8K, SVAMP, MultiArith, Knights and Knaves, and the user's own rows; MATH is in test_tasks_math.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr.errors import InputError
from sasr.tasks import GSM8KTask, JsonlTask, KnightsKnavesTask, MultiArithTask, SVAMPTask

GSM8K = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How"
    " many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether in"
    " April and May.\n#### 72",
}
KK = {
    "quiz": "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves"
    ' always lie. You meet 3 inhabitants: Zoey, Liam, and Mason. Zoey remarked, "Zoey is a knight and Mason is a'
    ' knight". Liam expressed that Zoey is a knave or Mason is a knight. Mason told you that Zoey is not a knight. So'
    " who is a knight and who is a knave?",
    "names": ["Zoey", "Liam", "Mason"],
    "solution": [False, True, True],
    "solution_text": "Zoey is a knave, Liam is a knight, and Mason is a knight.",
    "solution_text_format": "(1) Zoey is a knave\n(2) Liam is a knight\n(3) Mason is a knight",
    "cot_head": "Let's think step by step, by considering whether each person is lying and if that leads to"
    " contradiction.",
    "cot_repeat_steps": [
        "Assume Zoey is a knight. No contradiction is found in their claim that Zoey is a knight and Mason is a"
        " knight.",
        "Mason cannot be a knight, because this would contradict the claim of their own that Zoey is not a knight.",
    ],
    "cot_foot": "This leads to a feasible solution.",
}


def test_gsm8k_row():
    row = GSM8KTask().to_row(GSM8K)
    assert row["completion"].splitlines() == [
        "Natalia sold 48/2 = 24 clips in May.",
        "Natalia sold 48+24 = 72 clips altogether in April and May.",
        "#### 72",
    ]
    assert row["answer"] == "72" and row["difficulty"] == 2
    assert row["prompt"].startswith(GSM8K["question"]) and "#### <number>" in row["prompt"]
    verdict = GSM8KTask().check(row["completion"], row)
    assert verdict.correct and verdict.well_formed
    assert GSM8KTask().to_row({"question": "q", "answer": "a\n#### 109,200,000"})["answer"] == "109200000"


@pytest.mark.parametrize("text", ["#### 1,200", "#### $1200.00", "####1200.", "x\n#### 1200 %", "#### 5\n#### 1200"])
def test_gsm8k_right(text):
    assert GSM8KTask().check(text, {"answer": "1200"}).correct


@pytest.mark.parametrize(
    "text", ["1200", "#### 1201", "#### 1200.01", "#### 1200\n#### 5", "#### 2400 / 2", "####\n1200"]
)
def test_gsm8k_wrong(text):
    assert not GSM8KTask().check(text, {"answer": "1200"}).correct


@pytest.mark.parametrize("text", ["#### 5 apples", "#### 5\nDone.", "#### 5\n#### 5", "x #### 5", "5", ""])
def test_gsm8k_not_well_formed(text):
    assert not GSM8KTask().well_formed(text)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_gsm8k_compares_exactly(expected, written):
    verdict = GSM8KTask().check(f"steps\n#### {written:,}", {"answer": str(expected)})
    assert verdict.well_formed and verdict.correct == (expected == written)


@pytest.mark.parametrize("answer", ["no mark", "#### many", None, 5, " "])
def test_gsm8k_bad_record(answer):
    with pytest.raises(InputError, match="'answer'"):
        GSM8KTask().to_row({"question": "q", "answer": answer})


SVAMP = {
    "Answer": 19.0,
    "Question": "How much did Marco's strawberries weigh?",
    "Equation": "( 30.0 - 11.0 )",
    "Body": "Marco and his dad went strawberry picking. Together their strawberries weighed 30 pounds.",
    "Type": "Subtraction",
    "ID": "chal-508",
    "idx": 1,
}
MULTIARITH = {"input": "Debbie had 32 pieces of candy. If she ate 35 and got 42 more, how many are left?", "target": 39}


@pytest.mark.parametrize("answer", [19.0, 19, "19.0", " 19 "])
def test_svamp_row(answer):
    task = SVAMPTask()
    row = task.to_row({**SVAMP, "Answer": answer})
    assert row["prompt"].startswith(f"{SVAMP['Body']} {SVAMP['Question']}\n\n") and "#### <number>" in row["prompt"]
    assert (row["completion"], row["answer"], row["difficulty"]) == (None, "19", 1)
    assert task.check("30 - 11 = 19\n#### 19", row).correct and not task.check("#### 41", row).correct
    assert task.to_row({key: value for key, value in SVAMP.items() if key != "Equation"})["difficulty"] is None
    assert task.to_row({**SVAMP, "Equation": "( ( 3.0 + -2.0 ) * 4.0 )"})["difficulty"] == 2


@pytest.mark.parametrize("record", [MULTIARITH, {"question": MULTIARITH["input"], "final_ans": "39"}])
def test_multiarith_row(record):
    task = MultiArithTask()
    row = task.to_row(record)
    assert row["prompt"].startswith(MULTIARITH["input"] + "\n\n")
    assert (row["completion"], row["answer"], row["difficulty"]) == (None, "39", None)
    assert task.check("#### 39", row).correct
    assert task.perturb(row, "names", 0) is not None


@pytest.mark.parametrize("answer", [True, "many", float("nan"), [19], ""])
def test_word_problem_without_a_number(answer):
    with pytest.raises(InputError, match="'Answer' must be a number"):
        SVAMPTask().to_row({**SVAMP, "Answer": answer})
    with pytest.raises(InputError, match="'target' must be a number"):
        MultiArithTask().to_row({**MULTIARITH, "target": answer})


@pytest.mark.parametrize(
    ("task", "record", "field"),
    [(SVAMPTask, SVAMP, "Body"), (SVAMPTask, SVAMP, "Answer"), (MultiArithTask, {}, "question")],
)
def test_word_problem_with_a_field_missing(task, record, field):
    with pytest.raises(InputError, match=f"no field '{field}'"):
        task().to_row({key: value for key, value in record.items() if key != field})


def test_kk_row():
    task = KnightsKnavesTask()
    row = task.to_row(KK)
    assert row["answer"] == "Zoey=knave,Liam=knight,Mason=knight" and row["difficulty"] == 3
    assert row["completion"].endswith("solution.\nCONCLUSION:\n" + KK["solution_text_format"])
    verdict = task.check(row["completion"], row)
    assert verdict.correct and verdict.well_formed


def test_kk_rejects_each_flip():
    task = KnightsKnavesTask()
    row = task.to_row(KK)
    lines = KK["solution_text_format"].splitlines()
    for i, line in enumerate(lines):
        flipped = line.replace("knight", "KNAVE") if "knight" in line else line.replace("knave", "knight")
        verdict = task.check("CONCLUSION:\n" + "\n".join([*lines[:i], flipped, *lines[i + 1 :]]), row)
        assert verdict.well_formed and not verdict.correct


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True), st.data())
def test_kk_accepts_the_assignment_in_any_order_and_no_other(names, data):
    task = KnightsKnavesTask()
    roles = {name: data.draw(st.booleans()) for name in names}
    other = {name: data.draw(st.booleans()) for name in names}
    word = {True: "knight", False: "knave"}
    answer = ",".join(f"{name}={word[role]}" for name, role in roles.items())
    order = data.draw(st.permutations(names))
    text = "CONCLUSION:\n" + "\n".join(f"({i}) {name} is a {word[other[name]]}" for i, name in enumerate(order, 1))
    assert task.check(text, {"answer": answer}).correct == (roles == other)


@pytest.mark.parametrize(
    "conclusion",
    [
        "Mason is a knight.\nzoey is a KNAVE\n3. Liam is a knight",
        "(1) **Zoey** is a **knave**\n(2) Liam is a knight\n(3) Mason is a knight\n\nDone.",
        "Zoey is a knight\nCONCLUSION: Zoey is a knave\nLiam is a knight\nMason is a knight",
    ],
)
def test_kk_tolerates(conclusion):
    task = KnightsKnavesTask()
    verdict = task.check("CONCLUSION:\n" + conclusion, task.to_row(KK))
    assert verdict.correct and not verdict.well_formed


def test_kk_names_in_other_letters():
    """The same on paper: accents in two forms, the quotes of a typesetter, what has no width."""
    task = KnightsKnavesTask()
    row = task.to_row({**KK, "names": ["Zo\u00e9", "O'Neill", "Mason"]})
    text = "Zoe\u0301 is a knave\nO\u2019Neill is a knight\u200b\nMason is a knight"
    assert task.check("CONCLUSION:\n" + text, row).correct
    assert not task.check("CONCLUSION:\n" + text.replace("e\u0301", "e"), row).correct
    assert task.path("Zoe\u0301 cannot be a knight. So O\u2019Neill is a knight.\nCONCLUSION:\n" + text, row) == (
        "zo\u00e9!=knight",
        "o'neill=knight",
    )


@pytest.mark.parametrize(
    "conclusion",
    [
        "Zoey is a knave\nLiam is a knight",  # one missing
        "Zoey is a knave\nLiam is a knight\nMason is a knight\nOwen is a knight",  # one too many
        "Zoey is a knave\nLiam is a knight\nMason is a knight\nZoey is a knight",  # contradiction
        "Zoey is a knave\nLiam is a knight\nMason is a knight\nMason is a knight",  # twice
        "Zoey is a knave\nLiam is a knight\nMason is a knight\nMason is not a knight",
        "Zoey is a knave\nLiam is a knight\nMason is a knight or a knave",
        "",
    ],
)
def test_kk_wrong(conclusion):
    task = KnightsKnavesTask()
    assert not task.check("CONCLUSION:\n" + conclusion, task.to_row(KK)).correct
    assert not task.check(KK["solution_text_format"], task.to_row(KK)).correct  # no CONCLUSION:


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["Zoey", "Liam"]}, "same length"),
        ({"names": ["Zoey", "zoey", "Mason"]}, "distinct"),
        ({"solution": ["a", "b", "c"]}, "list of bool"),
        ({"cot_head": None}, "no field 'cot_head'"),
    ],
)
def test_kk_bad_record(change, message):
    with pytest.raises(InputError, match=message):
        KnightsKnavesTask().to_row({**KK, **change})


def test_kk_hub_query():
    assert KnightsKnavesTask().hub_query("3ppl", "test") == ("test", "3ppl")


def test_a_verdict_is_of_a_completion_and_its_row():
    """The same completions of other questions are judged anew."""
    correctness, _ = JsonlTask().reward_funcs()
    found = [correctness(["p"] * 2, ["#### 5"] * 2, answer=list(answers)) for answers in ("55", "65", "66")]
    assert found == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]


def test_jsonl_row_keeps_other_columns():
    row = JsonlTask().to_row({"prompt": "p", "answer": 5, "source": "mine"})
    assert row == {"prompt": "p", "completion": None, "answer": "5", "difficulty": None, "source": "mine"}
    messages = [{"role": "user", "content": "p"}]
    row = JsonlTask().to_row({"prompt": messages, "completion": "c", "answer": None})
    assert row["prompt"] == messages and row["completion"] == [{"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"completion": "c"}, "no field 'prompt'"),
        ({"prompt": " "}, "'prompt' must be"),
        ({"prompt": []}, "'prompt' must be"),
        ({"prompt": [{"role": "user"}]}, "'prompt' must be"),
        ({"prompt": "p", "completion": 5}, "'completion' must be"),
        ({"prompt": "p", "completion": [{"role": "assistant", "content": "c"}]}, "one form"),
        ({"prompt": "p", "answer": ["5"]}, "'answer' must be"),
    ],
)
def test_jsonl_bad_record(record, message):
    with pytest.raises(InputError, match=message):
        JsonlTask().to_row(record)


@pytest.mark.parametrize(("answer", "said"), [(42, "42"), (0.5, "0.50"), (-3.0, "-3"), (1e-05, "0.00001")])
def test_jsonl_answers_that_are_numbers(answer, said):
    """In Python rows do not go through `to_row`."""
    assert JsonlTask().check(f"#### {said}", {"answer": answer}).correct
    assert not JsonlTask().check(f"#### {said}1", {"answer": answer}).correct
    (reward, _), row = JsonlTask().reward_funcs(), {"answer": [answer]}
    assert reward(["p"], [f"#### {said}"], **row) == [1.0] and reward.failures == []


@pytest.mark.parametrize(
    ("completion", "answer", "correct", "well_formed"),
    [
        ("work\n#### 1,200", "1200.0", True, True),
        ("Answer: 7 #### 8", "7", False, True),
        (r"so \boxed{ (1, 2) }", "(1,2)", True, True),
        ("The answer is: Paris.", "paris", True, True),
        ("**Answer**: Paris", "paris", True, True),
        ("The answer is $42$.", "42", True, True),
        (r"The answer is \(42\)", "42", True, True),
        ("The answer is $5", "5", True, True),
        (r"<think>\boxed{41}</think> The answer is 42", "42", True, True),
        ("<think>#### 41</think> The answer is 42", "41", False, True),
        ("**Answer:** New  York", "new york", True, True),
        ("Answer: newyork", "new york", False, True),
        ("Answer: 5!", "5", False, True),
        ("Answer: 1 2", "12", False, True),
        ("work\n42", "42", True, False),
        ("42.", "42", True, True),
        ("", "42", False, False),
        ("", "", False, False),
        ("Answer:", "", False, True),
        ("5", None, False, True),
    ],
)
def test_jsonl_check(completion, answer, correct, well_formed):
    verdict = JsonlTask().check(completion, {"answer": answer})
    assert (verdict.correct, verdict.well_formed) == (correct, well_formed)


@pytest.mark.parametrize(
    ("answer", "written"),
    [(1e-5, "0.00001"), (1e20, "1" + "0" * 20), (-2.5e-7, "-0.00000025"), (1.5, "1.5"), (3.0, "3"), (7, "7")],
)
def test_numbers_as_people_write_them(answer, written):
    """1e-05 is what Python makes of 0.00001, and no completion."""
    row = JsonlTask().to_row({"prompt": "p", "answer": answer})
    assert "e" not in row["answer"] and JsonlTask().check(f"#### {written}", row).correct
