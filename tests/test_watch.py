"""The rules that say what goes wrong, on made-up measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr.watch import QUIET, WINDOW, Measured, Watch

GRPO = Measured(step=1, kind="grpo", norm=1.0, reward=0.5, entropy=1.0, unsolved=0.2, flat=0.1, cut=0.0)


def said(watch: Watch, steps: int, begin: int = 1, **changes) -> list[str]:
    """What is said over so many steps that are all alike, apart from values given as functions of the step."""
    found = []
    for step in range(begin, begin + steps):
        values = {key: value(step) if callable(value) else value for key, value in changes.items()}
        found += watch.observe(replace(GRPO, step=step, **values))
    return found


@given(st.lists(st.floats(0.4, 0.6), min_size=1, max_size=200), st.lists(st.floats(0.2, 4), min_size=1, max_size=200))
def test_ordinary_noise_is_not_worth_a_word(rewards, norms):
    watch = Watch()
    assert said(watch, 200, reward=lambda i: rewards[i % len(rewards)], norm=lambda i: norms[i % len(norms)]) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_without_finite_gradients_are_counted(value):
    watch = Watch()
    assert said(watch, 3) == []
    assert said(watch, 2, 4, norm=value) == [
        f"step 4, grpo: gradient norm {value}: step skipped (1 in a row)",
        f"step 5, grpo: gradient norm {value}: step skipped (2 in a row)",
    ]
    assert (watch.skipped, watch.skipped_in_a_row) == (2, 2)
    assert said(watch, 1, 6) == [] and watch.skipped_in_a_row == 0
    (text,) = watch.observe(Measured(step=7, kind="sft", norm=1.0, loss=value))
    assert text == f"step 7, sft: gradient norm 1.0, its loss {value}: step skipped (1 in a row)"
    assert watch.skipped == 3
    watch.load_state_dict(watch.state_dict())
    assert watch.skipped_in_a_row == 0, "whoever resumes tries again"
    assert all(math.isfinite(norm) for norm in watch.norms["grpo"]), "they are no measure for others"


def test_exploding_norm_is_measured_against_steps_of_its_kind():
    watch = Watch()
    for step in range(1, 2 * WINDOW + 1):
        kind, norm = (("sft", 100.0), ("grpo", 1.0))[step % 2]
        assert watch.observe(Measured(step=step, kind=kind, norm=norm)) == []
    assert watch.observe(Measured(step=41, kind="sft", norm=130.0)) == []
    (text,) = watch.observe(Measured(step=42, kind="grpo", norm=130.0))
    assert text.startswith("step 42: gradient norm 130, 130 times the median of the last 20 GRPO steps")
    assert watch.observe(Measured(step=43, kind="grpo", norm=130.0)) == [], "it has just said so"


def test_steps_without_a_gradient_are_no_measure():
    watch = Watch()
    assert [text for text in said(watch, 60, norm=lambda i: 0.0 if i % 3 else 1.0) if "norm" in text] == []


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"unsolved": 1.0}, "no rollout was correct in 20 GRPO steps"),
        ({"flat": 1.0}, "in 20 GRPO steps all rollouts of each question had the same reward"),
        ({"cut": 0.95, "unsolved": 1.0}, "95% of the rollouts are cut at the token limit, for 20 GRPO steps"),
    ],
)
def test_rollouts_that_teach_nothing(changes, fragment):
    watch = Watch()
    assert said(watch, WINDOW - 1, **changes) == []
    (text,) = said(watch, 1, WINDOW, **changes)
    assert text.startswith("step 20: ") and fragment in text
    rest = said(watch, QUIET, WINDOW + 1, **changes)
    assert len([text for text in rest if fragment.split("20")[0] in text]) <= 1
    assert said(watch, 1, 2 * QUIET) == [] and said(watch, WINDOW - 1, 2 * QUIET + 1, **changes) == []


@pytest.mark.parametrize(
    ("p", "fragment", "advice"),
    [(0.005, "p_sft has been 0", "a smaller"), (1.0, "p_sft has been 1", "a larger"), (0.5, None, None)],
)
def test_probability_at_its_end(p, fragment, advice):
    found = said(Watch(), 60, kind="sft", reward=None, sft_probability=p)
    assert [fragment in text for text in found] == ([True] if fragment else [])
    assert all(text.endswith(f": {advice} gamma mixes in the other kind") for text in found)
    assert said(Watch(), 60, kind="sft", reward=None) == [], "a schedule that sets no probability has none to be stuck"


def test_collapse_of_the_reward():
    watch = Watch()
    assert said(watch, 30, reward=lambda i: i / 60) == []
    found = said(watch, 60, 31, reward=0.1)
    # Rising to .5: the best window's mean is .342; with n steps at .1 the mean falls below half of it at n = 14 or so.
    assert len(found) == 1 and "GRPO collapses: the mean reward of the last 20 GRPO steps is 0.1" in found[0]
    assert "after 0.342 at its best" in found[0] and 40 <= watch.collapsed_at <= 50
    watch.begin_again()
    assert watch.rewards == [] and said(watch, WINDOW - 1, 200, reward=0.1) == []


def test_a_reward_that_is_rare_is_not_taken_for_a_collapse():
    """In four of twenty steps, then in one of twenty: a quarter of the best window, and within the noise."""
    assert said(Watch(), 80, reward=lambda i: 0.5 * (i % 5 == 0 if i <= 20 else i % 20 == 0)) == []


def test_questions_that_are_solved_or_hopeless():
    watch, lopsided = Watch(), {3.0: 0.9, 4.0: 0.3, 5.0: 0.1}
    for success in ({}, {1.0: 0.9, 2.0: 0.9}, {1.0: 0.1}, {1.0: 0.9, 2.0: 0.2}):
        assert said(watch, 2 * WINDOW, success=success) == []
    assert said(watch, WINDOW - 1, success=lopsided) == []
    (text,) = said(watch, 1, 100, success=lopsided)
    assert text.startswith("step 100: 90% of the rollouts are correct at difficulty 3, 10% at 5, for 20 GRPO steps")
    assert text.endswith("--curriculum adaptive asks most what is solved now and then")


def test_rewards_below_nothing_can_collapse_too():
    watch = Watch()
    assert said(watch, 30, reward=-1.0) == []
    assert "GRPO collapses" in said(watch, 30, 31, reward=-3.0)[0]


def test_collapse_of_the_entropy():
    watch = Watch()
    assert said(watch, 40) == []
    assert said(watch, 60, 41, entropy=0.05, reward=0.6) == [], "a model that answers surely and better is no collapse"
    (text,) = said(watch, 60, 101, entropy=0.05, reward=0.4)
    assert text.endswith("GRPO collapses: the entropy is 0.05 nats per token after 1, and the reward below its best")


@given(st.integers(0, 120), st.randoms(use_true_random=False))
def test_state_is_all_that_matters(cut, random):
    """A watch that is saved and loaded says what one without a stop says."""
    steps = [
        replace(GRPO, step=i, reward=random.choice([0.0, 0.5]), unsolved=1.0, norm=random.choice([1.0, 50.0]))
        for i in range(1, 121)
    ]
    straight, first, second = Watch(), Watch(), Watch()
    expected = [straight.observe(step) for step in steps]
    found = [first.observe(step) for step in steps[:cut]]
    second.load_state_dict(first.state_dict())
    assert found + [second.observe(step) for step in steps[cut:]] == expected
