"""Checkpoints by the clock: when one is due, that only the newest stays, and that a kill loses what is after it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr import InputError, timed_saves
from sasr.checkpoints import STATE_FILE, all_checkpoints, last_checkpoint
from sasr.timed_saves import TimedSaves
from test_failed_step import fail
from test_resume import assert_same, build, outcome


@pytest.fixture
def always(monkeypatch) -> float:
    """So few minutes that each step is followed by one, however long writing it takes."""
    monkeypatch.setattr(timed_saves, "_SHARE", 1)
    return 1e-9


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_due_when_the_minutes_since_the_last_one_have_gone_by():
    clock = Clock()
    saves = TimedSaves(10, clock=clock)
    clock.seconds = 599
    assert not saves.due(1)
    clock.seconds = 600
    assert saves.due(2)
    saves.saved(2, begun=600)
    assert not saves.due(3)
    clock.seconds = 1199
    assert not saves.due(4)
    clock.seconds = 1200
    assert saves.due(5)


def test_never_with_zero_minutes():
    clock = Clock()
    saves = TimedSaves(0, clock=clock)
    clock.seconds = 1e9
    assert not saves.due(1)


@given(st.floats(0.1, 60), st.lists(st.tuples(st.floats(0.01, 5000), st.floats(0, 900)), max_size=60))
def test_writing_takes_a_twentieth_of_the_time_at_most(minutes, steps):
    """With any durations of steps and of writing, each save is followed by 19 times its time without one."""
    clock = Clock()
    saves = TimedSaves(minutes, clock=clock)
    earlier = (0.0, 0.0)
    for step, (duration, cost) in enumerate(steps):
        clock.seconds += duration
        if saves.due(step):
            begun = clock.seconds
            ended, took = earlier
            assert begun - ended >= max(60 * minutes, 19 * took) * (1 - 1e-9)
            clock.seconds += cost
            saves.saved(step, begun)
            earlier = (clock.seconds, cost)


def names(directory) -> list[str]:
    return [c.name for c in all_checkpoints(directory)]


@pytest.mark.parametrize("variant", ["mid-rollout-buffer", "held-out"])
def test_a_killed_run_goes_on_from_the_newest_and_is_the_one_that_ran_through(tmp_path, variant, always):
    build(tmp_path / "whole", variant, save_steps=14, save_minutes=0).train()
    assert names(tmp_path / "whole") == ["checkpoint-14"]
    directory = tmp_path / "killed"
    trained = build(directory, variant, save_steps=3, save_minutes=always)
    fail(trained, "loss", 8, KeyboardInterrupt())  # after which nothing is saved, as after a kill
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    assert names(directory) == ["checkpoint-8", "checkpoint-6", "checkpoint-3"]
    timed = {c.name: json.loads((c / STATE_FILE).read_text())["timed"] for c in all_checkpoints(directory)}
    assert timed == {"checkpoint-8": True, "checkpoint-6": False, "checkpoint-3": False}
    build(directory, variant, save_steps=3, save_minutes=always).train(resume_from_checkpoint=True)
    assert names(directory) == [f"checkpoint-{step}" for step in (14, 12, 9, 6, 3)]
    assert_same(outcome(directory, 14), outcome(tmp_path / "whole", 14))


def test_they_count_for_save_total_limit_and_leave_the_regular_ones(tmp_path, always):
    trained = build(tmp_path, "aligned", save_steps=4, save_minutes=always, save_total_limit=2)
    fail(trained, "loss", 11, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    assert names(tmp_path) == ["checkpoint-11", "checkpoint-8"]


def test_none_where_no_checkpoints_are_wanted(tmp_path, always):
    trained = build(tmp_path, "aligned", save_strategy="no", save_minutes=always)
    fail(trained, "loss", 5, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    assert last_checkpoint(tmp_path) is None


def test_minutes_below_zero_are_refused(tmp_path):
    with pytest.raises(InputError, match="save_minutes"):
        build(tmp_path, "aligned", save_minutes=-1.0)
