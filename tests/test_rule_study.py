"""The tasks of docs/results/rule-study: what is said of their demonstrations is done, and the answers are right."""

from __future__ import annotations

import sys
from pathlib import Path

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


def test_the_candidate_rule_is_the_setting_that_it_became(tasks):
    from sasr import Signals
    from sasr.schedules import Sasr

    rule, setting = tasks[2].SasrCosine(), Sasr(gamma_schedule="cosine")
    for step in range(20, 140):
        signals = Signals(step, 140, 20, 0.5, sft_grad_norm=0.7, warmup_grad_norm=1.1)
        assert rule.plan(signals).sft_probability == pytest.approx(setting.plan(signals).sft_probability, rel=1e-12)
