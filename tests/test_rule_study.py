"""The tasks of docs/results/rule-study and kk-tiny: what is said of their demonstrations is done, and the answers are
right; its tables count seeds, and its figures draw what was run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

STUDY = Path(__file__).parent.parent / "docs" / "results" / "rule-study"


@pytest.fixture(scope="module")
def tasks():
    sys.path.insert(0, str(STUDY))
    try:
        import digits
        import rules
        import told

        yield digits, told, rules
    finally:
        sys.path.remove(str(STUDY))


@pytest.mark.parametrize("name", ["digits", "told"])
@pytest.mark.parametrize("wrong", [0.0, 0.5, 1.0])
def test_a_share_of_the_demonstrations_has_a_slip(tasks, name, wrong):
    digits, told, _ = tasks
    task = digits.Digits(wrong=wrong) if name == "digits" else told.Told(wrong=wrong, steps=[2, 3])
    rows = task.generate(400)
    assert len({row["prompt"] for row in rows}) == 400
    valid = [task.steps_valid(row["completion"], row) and task.check(row["completion"], row).correct for row in rows]
    assert sum(valid) / 400 == pytest.approx(1 - wrong, abs=0.08)
    assert all(task.well_formed(row["completion"]) for row in rows)
    held_out = task.generate(50, split="test")
    assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in rows}
    assert all(task.check(row["completion"], row).correct for row in held_out)


def test_answers_are_those_of_the_question(tasks):
    digits, _, _ = tasks
    for row in digits.Digits(wrong=1.0).generate(100):
        words = row["prompt"].removesuffix(" =").split()
        total = int(words[0])
        for sign, n in zip(words[1::2], words[2::2], strict=True):
            total = {"+": total + int(n), "-": total - int(n), "*": total * int(n)}[sign] % 10
        assert row["answer"] == str(total)


def test_only_some_lengths_are_demonstrated_and_a_base_model_sees_another_form(tasks):
    digits, told, _ = tasks
    for task, easiest in ((digits.Digits(demonstrated=[3]), 3), (told.Told(demonstrated=[2], steps=[2, 3, 4]), 2)):
        rows = task.generate(90)
        assert {row["difficulty"] for row in rows if row["completion"]} == {easiest}
        assert sum(row["completion"] is not None for row in rows) == 30
    for task in (digits.Digits(plain=True), told.Told(plain=True)):
        assert not any(task.well_formed(row["completion"]) for row in task.generate(20))


@pytest.mark.parametrize(("name", "passes"), [("SasrCosine", 0.0), ("SasrWorn", 16.0)])
def test_the_candidate_rules_are_the_settings_that_they_became(tasks, name, passes):
    from sasr import Signals
    from sasr.schedules import Sasr

    rule, setting = getattr(tasks[2], name)(), Sasr(gamma_schedule="cosine", useful_passes=passes)
    for step in range(20, 140):
        signals = Signals(step, 140, 20, 0.5, sft_grad_norm=0.7, warmup_grad_norm=1.1, passes=step / 5)
        assert rule.plan(signals).sft_probability == pytest.approx(setting.plan(signals).sft_probability, rel=1e-12)


@pytest.mark.parametrize("left", [None, 0.0, 0.3, 1.0])
def test_what_is_left_to_learn_scales_p(tasks, left):
    from sasr import Signals
    from sasr.schedules import Sasr

    for step in range(20, 140):
        signals = Signals(step, 140, 20, 0.5, sft_grad_norm=0.7, warmup_grad_norm=1.1, passes=9.0, left_to_learn=left)
        plan, whole = tasks[2].SasrLeft().plan(signals), Sasr(useful_passes=0.0).probability(signals)
        assert plan.sft_probability == pytest.approx(whole * (1.0 if left is None else left), rel=1e-12)
        assert plan.kind == ("sft" if plan.sft_probability > 0.5 else "grpo")


@pytest.fixture(scope="module")
def scripts():
    """Those that make the tables and figures."""
    folders = [str(STUDY), str(STUDY.parent)]
    sys.path[:0] = folders
    try:
        import again
        import comparison
        import page

        yield page, again, comparison
    finally:
        for folder in folders:
            sys.path.remove(folder)


def test_two_tasks_with_the_same_gains_say_no_more_than_one(scripts):
    page, again, _ = scripts
    rng = np.random.default_rng(0)
    ours = {seed: rng.uniform(0.2, 1.0, 40) for seed in range(41, 46)}
    theirs = {seed: rng.uniform(0.0, 0.9, 40) for seed in range(41, 47)}
    one = {"digits: `all`": {"sasr": ours, "static": theirs}}
    two = one | {"stories: `all`": {"sasr": ours, "static": theirs}}
    assert again.chance(two, "sasr", "static") == again.chance(one, "sasr", "static") == "0.062"
    assert again.ahead(two, "sasr", "static") == again.ahead(one, "sasr", "static")
    found = again.gains(two, "sasr", "static")
    assert list(found) == [41, 42, 43, 44, 45] and len(page.flat(found)) == again.runs_of(two, "sasr", "static") == 10
    # A single task is what it was: seeds and problems.
    gains = page.paired(ours, theirs)
    assert page.difference(page.pooled([(ours, theirs)])) == page.shown(page.mean(gains), page.interval(gains), "+")


def test_a_sweep_is_of_one_method_and_setting_and_without_failed_runs(scripts):
    def run(method, seed, right, **tuned):
        problems = {} if right is None else {"problems": {"correct": [right, right], "samples": 4}}
        return {"stage": "tuning", "method": method, "seed": seed, "tuned": tuned} | problems

    runs = [run("static", seed, step // 100, switch_step=step) for seed in (102, 101) for step in (300, 200, 100)]
    runs[0] = run("static", 102, None, switch_step=300)
    runs += [run("other", 101, 1, switch_step=step) for step in (100, 200)]
    runs += [run("both", 101, 1, switch_step=step, learning_rate=1e-4) for step in (100, 200, 300)]
    assert scripts[2].sweeps_of({"runs": runs}) == {
        "static": {100: {102: 0.25, 101: 0.25}, 200: {102: 0.5, 101: 0.5}, 300: {101: 0.75}}
    }


@pytest.fixture(scope="module")
def puzzles():
    folder = str(STUDY.parent / "kk-tiny")
    sys.path.insert(0, folder)
    try:
        import puzzles

        yield puzzles
    finally:
        sys.path.remove(folder)


def test_puzzles_have_one_solution_and_the_reasoning_finds_it(puzzles):
    task = puzzles.Puzzles(people=[2, 3])
    rows, held_out = task.generate(200), task.generate(50, split="test")
    assert len({row["prompt"] for row in [*rows, *held_out]}) == 250
    for row in [*rows, *held_out]:
        assert task.check(row["completion"], row).correct and task.well_formed(row["completion"])
        assert task.steps_valid(row["completion"], row) and task.path(row["completion"], row)
        for other in {"++", "+-", "-+", "--", "+++", "---", "+-+"} - {row["answer"]}:
            assert not task.check(f"#### {' '.join(other)}", row).correct
    words = {word for text in task.vocabulary_texts() for word in text.split()}
    assert words >= {word for row in rows for word in (row["prompt"] + " " + row["completion"]).split()}


@pytest.mark.parametrize("wrong", [0.0, 0.5, 1.0])
def test_a_share_of_the_worked_puzzles_ends_wrong(puzzles, wrong):
    task = puzzles.Puzzles(wrong=wrong)
    rows = task.generate(200)
    assert sum(task.check(row["completion"], row).correct for row in rows) / 200 == pytest.approx(1 - wrong, abs=0.1)
    assert all(task.check(row["completion"], row).correct for row in task.generate(20, split="test"))
    assert not any(
        puzzles.Puzzles(plain=True).well_formed(r["completion"]) for r in puzzles.Puzzles(plain=True).generate(9)
    )


def test_a_puzzle_of_the_dataset_in_few_words(puzzles):
    quiz = (
        "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves "
        "always lie. You meet 3 inhabitants: Michael, Mason, and Jacob. Michael said that Mason is not a knight. "
        'Mason stated, "Michael is a knight and Jacob is a knave". According to Jacob, "If Michael is a knight then '
        'Jacob is a knight". So who is a knight and who is a knave?'
    )
    record = {
        "quiz": quiz,
        "names": ["Michael", "Mason", "Jacob"],
        "statements": "(('not', ('telling-truth', 1)), ('and', ('telling-truth', 0), ('lying', 2)), "
        "('->', ('telling-truth', 0), ('telling-truth', 2)))",
    }
    assert puzzles.Puzzles().to_row(record) == {
        "prompt": "A : B not + . B : A + and C - . C : A + -> C + . roles",
        # The dataset's own reasoning: Mason cannot be a knight by Michael's claim; Mason a knave, Jacob a knight.
        "completion": "A + ok . B + no A . B - ok . C + ok . #### + - +",
        "answer": "+-+",
        "difficulty": 3,
    }
