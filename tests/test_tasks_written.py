"""What chat models write around an answer, and what they write in place of one: gsm8k and its like, and `jsonl`."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr.tasks import GSM8KTask, JsonlTask, MultiArithTask, SVAMPTask


@pytest.mark.parametrize(
    "text",
    [
        "**#### 18**", "#### **18**", "#### **18** dollars", "#### *18*.", "#### `18`", "#### <18>", "**#### <18>**",
        r"#### \boxed{18}", r"#### $\boxed{18}$", r"#### \(18\)", r"#### \[18\]", "#### $$18$$", "#### \u20ac18",
        "#### **\u00a318.00**", "<think>#### 20</think>\n#### 18",
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", [GSM8KTask, SVAMPTask, MultiArithTask])
def test_gsm8k_number_in_markdown_latex_or_another_currency(task, text):
    verdict = task().check(text, {"answer": "18"})
    assert verdict.correct and not task().check(text, {"answer": "20"}).correct
    # The format that the prompt asks for is the number alone.
    assert verdict.well_formed == text.startswith("<think>")


@pytest.mark.parametrize(
    "text",
    [
        "#### **18** or **20**", "#### <18> <20>", r"#### \boxed{18} \boxed{20}", "#### **18**.5", "#### **18**0",
        "#### 18**2", "#### **18** - 2", "#### **18** million", r"#### \(18 + 2\)", "#### <18, 20>", "#### \u20ac18/2",
        "#### **20** (18)", "**18** #### 20", "<think>hmm\n #### 18", "<think>#### 20</think> no <think>#### 18",
        "<think>#### 18</think>", "#### 18\n<think>20", "#### -<18>", "#### \u20ac\u20ac18", "#### **",
    ],
)  # fmt: skip
def test_gsm8k_hedges_and_thoughts_are_wrong(text):
    verdict = GSM8KTask().check(text, {"answer": "18"})
    assert not verdict.correct
    assert not verdict.well_formed or text == "**18** #### 20"


AROUND = ["{}", "**{}**", "`{}`", "<{}>", r"\({}\)", "${}$", r"\boxed{{{}}}", "\u20ac{}", "{}*", "{}."]


@given(st.lists(st.tuples(st.sampled_from(AROUND), st.integers(0, 30)), max_size=4), st.sampled_from(" ,\n;/-*"))
def test_gsm8k_is_right_for_one_number_at_most_and_for_none_of_two(parts, between):
    text = f"steps\n#### {between.join(around.format(n) for around, n in parts)}"
    right = [n for n in range(31) if GSM8KTask().check(text, {"answer": str(n)}).correct]
    assert len(right) <= 1
    if len(parts) > 1 and between != "\n":
        assert not right
    elif len(parts) == 1:
        assert right == [parts[0][1]]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("#### Step 1: add\n5 + 13 = 18\n#### Step 2: check\nIt is \\boxed{18}.", "18"),
        ("#### Solution\n5 + 13 = 18\nThe answer is 18.", "18"),
        ("5 + 13 = 18\n#### 18\n#### Step 2: check\n18 - 13 = 5", "18"),
        ("Answer: 18\n#### Explanation\n5 + 13 = 18", "18"),
        ("\\boxed{18}\n#### **Verification:**\n18 - 13 = 5", "18"),
        ("#### Proof", "proof"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        ("#### Final Answer\n18", "18"),
        ("#### **Final Answer**\n\n**18**", "18"),
        ("#### Final Answer:\n18", "18"),
        ("#### Final Answer: 18", "18"),
        ("#### 18\nSo the answer is 18 dollars.", "18"),
        ("#### Paris\nThe answer is Paris, the capital.", "Paris"),
        ("#### Step 3", "step 3"),
        ("The answer is 18. I hope this helps", "18"),
        ("The answer is **18**. I hope this helps!", "18"),
        ("The answer is 18. This is because 3 * 6 = 18.", "18"),
        ("The answer is 18. Let me know if you have more questions or need help.", "18"),
        ("The answer is St. Petersburg. I hope this helps", "St. Petersburg"),
        ("The answer is Yes! I hope this helps", "yes"),
        ("The answer is (B).", "B"),
        ("The answer is **(B)**", "B"),
        ("The answer is B. I hope this helps", "B"),
        ("Answer: B. Paris", "B"),
        ("Answer: B. Paris", "B. Paris"),
        ("Answer: **B. Paris**", "B"),
        ("Answer: (B) Paris", "B"),
        ("Answer: B) 42", "(B)"),
        ("Answer: Yes!", "Yes"),
        ("Answer: **Yes!**", "Yes"),
        ("Answer: 5!", "5!"),
        (r"\[18\]", "18"),
        ("$$18$$", "18"),
        ("Hence\n\\[\n18\n\\]", "18"),
        ("Hence\n$$\n18\n$$", "18"),
        ("The answer is:\n\\[\n18\n\\]\nI hope this helps.", "18"),
        ("The answer is \u20ac18.", "18"),
        ("The answer is \u20ac18.", "\u20ac18"),
        ("The answer is 18.\n3 * 6 = 18, so the answer is right.", "18"),
        ("The answer is 18. 3 * 6 = 18, so the answer is correct!", "18"),
        ("The answer is 18. So the answer is right. The answer is correct.", "18"),
        ("#### 18\nIndeed the answer is right.", "18"),
        ("#### 18\nThe answer is obtained by adding 5 and 13.", "18"),
        (r"The answer is \boxed{18}.", r"\boxed{18}"),
        (r"The answer is \boxed{\frac{1}{2}}.", r"\boxed{\frac{1}{2}}"),
        (r"#### \boxed{\boxed{18}}", r"$\boxed{18}$"),
        ("Answer: The answer is 5", "The answer is 5"),
        ("Answer: (1, 2)", "(1,2)"),
        ("The answer is right.", "right"),
        ("hmm</think>The answer is 18.", "18"),
        # What is said of an answer, politely, is none.
        ("#### 18\nI hope this answer is helpful!", "18"),
        ("The answer is 18. I hope this answer is clear.", "18"),
        ("Answer: 18\n\nThis answer is based on the fact that 5 + 13 = 18.", "18"),
        ("#### 18\nThe answer is in meters.", "18"),
        ("#### 18\nThe answer is rounded to 2 decimal places.", "18"),
        ("The answer is clear.", "clear"),
        ("<answer>42</answer>", "42"),
        ("<think>It is 41.</think><answer>\n42\n</answer>", "42"),
        ("**<answer>42</answer>**", "42"),
        ("The answer is <answer>42</answer>.", "42"),
        ("<answer>41</answer> <answer>42</answer>", "42"),
        ("#### 41\n<answer>42</answer>", "42"),
        ("<answer>41</answer>\n#### 42", "42"),
        (r"\boxed{41} <answer>42</answer>", "42"),
        (r"<answer>41</answer> \boxed{42}", "42"),
        ("<answer>41</answer> No, the answer is 42.", "42"),
        (r"<answer>41, so \boxed{42}</answer> I hope this answer is what you need", "42"),
        ("<answer>40 + 2 = 42\n#### 42</answer>", "42"),
        ("<answer>The answer is 42. I hope this helps</answer>", "42"),
        ("<answer>42</answer> I hope this answer is helpful!", "42"),
        ("<answer>42</answer> So the answer is 42 apples.", "42"),
        ("<answer>B. Paris</answer>", "B. Paris"),
        ("<answer>(B)</answer>", "B"),
        ("<answer> </answer>\nThe answer is 42.", "42"),
        ("The correct answer is option B.", "B"),
        ("Answer: Option (B)", "B"),
        ("The answer is choice B", "B"),
        ("The answer is **Option B**.", "(B)"),
        ("The correct option is B", "B"),
        ("The correct choice is **(B)**. I hope this helps.", "B"),
        ("Answer: Option B. Paris", "B"),
        ("Answer: option B\nSo the answer is correct.", "B"),
        ("#### B\nThe correct choice is a prime.", "B"),
        ("The answer is option pricing.", "option pricing"),
        # The same on paper, in other letters.
        ("The answer is cafe\u0301.", "caf\u00e9"),
        ("The answer is caf\u00e9. I hope this helps", "cafe\u0301"),
        ("#### rock \u2019n\u2019 roll", "rock 'n' roll"),
        ("#### \u201cParis\u201d", "Paris"),
        ("Answer: x \u2212 1", "x - 1"),
        ("Answer: 3\u20134", "3-4"),
        ("Answer: Paris\u200b", "Paris"),
        ("Answer: 18\ufeff.", "18"),
    ],
)
def test_jsonl_right_as_chat_models_write_it(completion, answer):
    verdict = JsonlTask().check(completion, {"answer": answer})
    assert verdict.correct
    assert verdict.well_formed == ("Hence" not in completion)


@pytest.mark.parametrize(
    "completion",
    [
        "#### 18\nThe answer is 20.", "#### 18\nNo: \\boxed{20}", "#### 18\nThe answer is 18 or 20.", "#### 18 or 20",
        "The answer is 18 or 20.", "The answer is 18. Or 20.", "The answer is 18. 20.", "The answer is 18. 20. 18.",
        "The answer is 18. Wait, it is twenty.", "The answer is 18. Twenty.", "The answer is 18. That is not it.",
        "The answer is 18. 3 * 7 = 21.", "The answer is 18.\nNo, the answer is 20.", "The answer is 18, 20.",
        "The answer is not 18.", "The answer is 20. I had 18 at first.", "I say 18. The answer is 20.",
        "Maybe 18.\nThe answer is right.", "The answer is 18.\nThe answer is left.", "The answer is (18) or (20).",
        "Answer: 18! I hope this helps", "#### Final Answer\n20\n18", "#### Step 1: 18\nThe answer is 20.",
        "<think>hmm\n #### 18", "<think>The answer is 18.", "<think>20</think><think>18", "#### 18 <think>",
        r"$18$ or $20$", r"\[18\] or \[20\]", "The answer is:\n\\[\n18\n\\] or 20", "$$\n20\n$$\n$$", "()", "!!",
        "Maybe 18.\nThe answer is clear.", "#### 18\nThe answer is in 20 days.",
        "#### 18\nThe answer is rounded to 20.",
        "#### 18\nAnswer: based on this, 20", "Maybe 18.\nThe answer is in meters.", "<answer>18", "18</answer>",
        "<answer>18 or 20</answer>", "<answer>18</answer> or 20", "<answer>18</answer>, <answer>20</answer>",
        "<answer>18</answer> 20", "<answer>18</answer> <answer>20", "<answer>20</answer> 18",
        "<answer>18</answer>\n#### 20",
        "<answer>18</answer> Or maybe it is twenty.", "<answer>18</answer> \\boxed{20}",
        "<answer>20\n#### 18</answer> or 20",
        "<answer></answer> It is 18 or so", "#### 18 <answer>20</answer>", "<answer>18</answer>\nThe answer is 20.",
        "<think><answer>18</answer></think>", "<think><answer>18</answer>",
    ],
)  # fmt: skip
def test_jsonl_several_answers_hedges_and_thoughts_are_wrong(completion):
    assert not JsonlTask().check(completion, {"answer": "18"}).correct
    if "<think>" in completion:
        assert not JsonlTask().check(completion, {"answer": "20"}).well_formed


@pytest.mark.parametrize(
    "completion",
    [
        "Answer: B. C", "Answer: B. A. C.", "Answer: B. Or C.", "Answer: (B) (C)", "Answer: B) no, C) Rome",
        "Answer: C. B", "Answer: A or B", "The answer is option B or C", "The correct option is B or C",
        "The correct option is B. Option C is too.", "Option B. The correct option is C.", "Answer: option B. Or C.",
        "<answer>B</answer> or C", "The correct option is not B", "Answer: Paris (B)", "Answer: b. (c)",
        "B. Paris\nC. Rome\nB. Paris",
    ],
)  # fmt: skip
def test_jsonl_several_options_are_wrong(completion):
    assert not JsonlTask().check(completion, {"answer": "B"}).correct


SECOND_THOUGHTS = [
    "not", "wait", "actually", "however", "alternatively", "maybe", "perhaps", "possibly", "instead", "otherwise",
    "rather", "sorry", "correction", "could", "might", "wrong", "incorrect", "mistake", "hmm", "hmmmm", "isn't",
    "isn\u2019t", "Actually", "WAIT",
]  # fmt: skip
OTHERS_BEGIN = ["or", "no", "but", "and", "nor", "versus", "vs", "Or", "- no", "**But"]


@pytest.mark.parametrize(
    "rest",
    [*(f"I say {word} that one too" for word in SECOND_THOUGHTS), *(f"{word} that one too" for word in OTHERS_BEGIN)],
)
@pytest.mark.parametrize("answer", ["18", "B", "Paris"])
def test_jsonl_second_thoughts_take_an_answer_back(rest, answer):
    """Of whichever kind, by each of the words that they are known by."""
    completion = "The answer is {}. {}"
    assert JsonlTask().check(completion.format(answer, "I say just that one too"), {"answer": answer}).correct
    assert not JsonlTask().check(completion.format(answer, rest), {"answer": answer}).correct


def test_jsonl_currencies_differ():
    assert not JsonlTask().check("The answer is \u20ac18", {"answer": "$18"}).correct


STATED = [
    "#### {}",
    "**#### {}**",
    r"\boxed{{{}}}",
    "The answer is {}.",
    "Answer: {}. I hope this helps.",
    "{}",
    r"\[{}\]",
]
STATED += ["#### Step {}: add", "#### Final Answer\n{}", "The answer is {}. So the answer is right.", "(B) {}", "{}!"]
STATED += ["The answer is {}. Or maybe not.", "The answer is right.", "<think>{}", "{}</think>"]
STATED += ["<answer>{}</answer>", "<answer>{}", "{}</answer>", "The answer is option {}.", "The answer is clear."]


@given(
    st.lists(st.tuples(st.sampled_from(STATED), st.sampled_from(["{}", "**{}**", "({})", "{} or 7", "{}. {}"]),
                       st.integers(0, 30), st.integers(0, 30)), max_size=4),
    st.sampled_from(["\n", " ", ", "]),
)  # fmt: skip
def test_jsonl_is_right_for_one_number_at_most(parts, between):
    text = between.join(stated.format(inner.format(a, b)) for stated, inner, a, b in parts)
    right = [n for n in range(31) if JsonlTask().check(text, {"answer": str(n)}).correct]
    assert len(right) <= 1
    assert not [c for c in "ABC" if JsonlTask().check(text, {"answer": c}).correct and right]


@given(st.sampled_from(STATED[:5]), st.integers(0, 30), st.sampled_from(STATED[:5]), st.integers(0, 30))
def test_jsonl_the_last_statement_decides(first, a, last, b):
    """But for a box, which what is said about it later does not take back."""
    text = f"{first.format(a)}\n{last.format(b)}"
    decides = a if "boxed" in first and "nswer" in last else b
    right = [n for n in range(31) if JsonlTask().check(text, {"answer": str(n)}).correct]
    assert right == [decides]


@pytest.mark.parametrize(
    "text",
    ["Answer: 6. " + "," * 100_000, "#### step 1 " * 9_000, "Answer: 6 " * 10_000, "The answer is right. " * 5_000,
     "Answer: " + "(" * 100_000, "Answer: option " + "(" * 100_000, "<answer>6" * 20_000 + "</answer>" * 20_000,
     "The answer is in " * 6_000, "The answer is in" + " " * 100_000, "Answer: e"
     + "\u0300" * 50_000 + "\u0323" * 50_000,
     "The correct option is " * 5_000, "Answer: " + "6. " * 30_000, "$$" * 50_000, "\\[" * 50_000,
     "#### " + "**" * 50_000],
)  # fmt: skip
@pytest.mark.parametrize("answer", ["5", "B", "Paris"])
def test_huge_answers_are_wrong_at_once(text, answer):
    started = time.monotonic()
    for task in (JsonlTask(), GSM8KTask()):
        assert not task.check(text, {"answer": answer}).correct
    assert time.monotonic() - started < 2
