"""What a comparison says about the time that is left."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr.compare import runner
from sasr.compare.pace import WARMUP, AtWork, Pace
from sasr.compare.runner import Runner

SECONDS = st.floats(0.1, 1e5)


def test_nothing_is_said_before_there_is_something_to_say():
    pace = Pace()
    assert pace.left([], ["sft", "sasr"]) is None
    assert pace.left([AtWork("sft", 5.0, None)], []) is None
    pace.took(WARMUP, 60.0)
    assert pace.left([], ["sasr"]) is None, "a warm-up has no rollouts"
    assert pace.left([AtWork(WARMUP, 20.0, None)], [WARMUP]) == 100


def test_a_run_at_work_tells_of_itself_and_of_its_like():
    pace = Pace()
    pace.took(WARMUP, 60.0)
    assert pace.left([AtWork("sasr", 30.0, 0.25)], []) == 90
    assert pace.left([AtWork("sasr", 30.0, 0.25)], ["sasr", "static"]) == 90 + 120 + 120
    pace.took("static", 300.0)
    assert pace.left([AtWork("sasr", 30.0, 0.25)], ["sasr", "static"]) == 90 + 120 + 300
    assert pace.left([AtWork("static", 40.0, None)], []) == 260


def test_a_run_that_takes_longer_than_its_like_is_not_nearly_done():
    """It was said to be, for as long as it took."""
    pace = Pace()
    pace.took("static", 60.0)
    assert pace.left([AtWork("static", 600.0, 0.5)], []) == 600


def test_of_a_run_that_goes_on_the_rest_alone_is_known():
    """The last seventh of one run was taken for what each of the others would need."""
    pace = Pace()
    pace.took("static", 300.0)
    assert pace.left([AtWork("sasr", 30.0, 0.75, fresh=False)], ["sasr", "sasr"]) == 10 + 300 + 300


def test_the_exam_of_a_run_takes_what_it_takes_its_like():
    pace = Pace()
    assert pace.left([AtWork("static", 90.0, 1.0)], []) == 0, "nothing is known of it"
    pace.took("static", 100.0)
    assert pace.left([AtWork("static", 90.0, 1.0)], ["static"]) == 10 + 100
    assert pace.left([AtWork("static", 300.0, 1.0)], ["static"]) == 100, "late by 200, the others are not"


def test_several_at_a_time_take_their_part_of_the_time():
    pace = Pace()
    pace.took("sft", 60.0)
    runs = [SimpleNamespace(method="sft", path=f"runs/sft/seed-{seed}") for seed in range(4)]
    own = SimpleNamespace(jobs=2, runs=runs, status={}, _children=[], _waiting=list, _pace=pace)
    assert Runner._left(own) == 120


@pytest.mark.parametrize(("step", "share"), [(20, None), (60, 0.5), (100, 1.0)])
def test_the_share_of_a_run_begins_where_it_began(monkeypatch, step, share):
    """At its checkpoint, or at the end of a shared warm-up."""
    monkeypatch.setattr(runner, "last_step", lambda where: step)
    own = SimpleNamespace(directory=Path("out"), comparison=SimpleNamespace(budget=SimpleNamespace(kind="steps")))
    child = SimpleNamespace(run=SimpleNamespace(path="r", settings={"max_steps": 100}), first=20)
    assert Runner._share(own, child) == share


@given(st.lists(st.tuples(SECONDS, st.floats(0.01, 0.99)), min_size=1), st.integers(0, 5))
def test_with_equal_runs_it_is_exact(runs, ahead):
    """Of runs that all take as long, whatever each has done of it."""
    total = runs[0][0]
    at_work = [AtWork("sasr", total * share, share) for _, share in runs]
    exact = sum(total * (1 - share) for _, share in runs) + ahead * total
    left = Pace().left(at_work, ["sasr"] * ahead)
    assert left is not None and abs(left - exact) <= 1e-6 * total * (len(runs) + ahead)
