"""A share of SFT that is one of the run's seconds or FLOPs, not of its steps."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sasr.budget
import toy
from sasr import InputError, checkpoints
from sasr.schedules import Random, Signals, coin
from sasr.step_costs import StepCosts
from test_resume import assert_same, outcome

STEPS = 60


def signals(draw: float, cost: float = 1.0) -> Signals:
    return Signals(step=1, total_steps=2, warmup_steps=0, draw=draw, grpo_cost=cost)


@pytest.mark.parametrize(
    ("share", "cost", "expected"),
    [(0.5, 1.0, 0.5), (0.5, 4.0, 0.8), (0.2, 4.0, 0.5), (0.75, 0.5, 0.6), (0.0, 9.0, 0.0), (1.0, 9.0, 1.0)],
)
def test_by_hand(share, cost, expected):
    assert coin(share, signals(0.0, cost)).sft_probability == pytest.approx(expected, abs=1e-15)


@given(st.floats(0, 1), st.floats(1e-3, 1e3))
def test_sft_gets_its_share_of_the_cost(share, cost):
    p = coin(share, signals(0.0, cost)).sft_probability
    assert 0 <= p <= 1
    assert p == pytest.approx(share * (p + (1 - p) * cost), rel=1e-9, abs=1e-12)


@given(st.floats(0, 1))
def test_a_share_of_steps_is_the_probability_itself(share):
    assert coin(share, signals(0.0)).sft_probability == share


def test_the_draw_is_compared_with_the_share_of_steps():
    assert Random(0.5).plan(signals(0.79, 4.0)).kind == "sft"
    assert Random(0.5).plan(signals(0.81, 4.0)).kind == "grpo"


def test_means_of_each_kind():
    costs = {unit: StepCosts(unit) for unit in ("steps", "seconds", "flops")}
    for each in costs.values():
        for kind, seconds, flops in (("sft", 1.0, 10.0), ("sft", 3.0, 10.0), ("both", 99.0, 99.0)):
            each.observe(kind, seconds=seconds)
            each.observe(kind, flops=flops)
        assert each.ratio == 1.0, "no GRPO step yet"
        each.observe("grpo", seconds=9.0, flops=40.0)
        each.observe("grpo", seconds=1.0, flops=0.0)
    assert {unit: each.ratio for unit, each in costs.items()} == {"steps": 1.0, "seconds": 2.5, "flops": 2.0}


def test_a_run_goes_on_with_the_costs_of_another_that_counted_steps():
    donor, own = StepCosts("steps"), StepCosts("flops")
    donor.observe("sft", seconds=1.0, flops=2.0)
    donor.observe("grpo", seconds=1.0, flops=8.0)
    own.load_state_dict(json.loads(json.dumps(donor.state_dict())))
    assert own.ratio == 4.0
    own.load_state_dict({})  # of a checkpoint that knows none
    assert own.ratio == 4.0


def test_half_of_the_flops(tmp_path):
    trained = toy.trainer(tmp_path, schedule="random", sft_share=0.5, share_of="flops", max_steps=STEPS)
    trained.train()
    lines = toy.history(trained, "sasr/p_sft", "sasr/flops", "sasr/grpo_weight", "sasr/grpo_cost")
    spent, steps = {0.0: 0.0, 1.0: 0.0}, {0.0: 0, 1.0: 0}
    for i, (p, flops, grpo, cost) in enumerate(lines):
        if i >= 4:
            known = all(steps.values())
            expected = spent[1.0] / steps[1.0] / (spent[0.0] / steps[0.0]) if known else 1.0
            assert cost == pytest.approx(expected) and p == pytest.approx(expected / (1 + expected))
        spent[grpo] += flops
        steps[grpo] += 1
    assert lines[-1][3] > 1.2, "a GRPO step of this model does more work than one of SFT"
    assert steps[0.0] > steps[1.0] > 0


def test_half_of_the_seconds(tmp_path, monkeypatch):
    class Clock:
        """Stands in for `time`: SFT steps take one second, GRPO steps three."""

        now = 0.0

        def monotonic(self):
            return self.now

    trained = toy.trainer(tmp_path, schedule="random", sft_share=0.5, share_of="seconds", max_steps=STEPS)
    clock, step = Clock(), trained.training_step
    monkeypatch.setattr(sasr.budget, "time", clock)

    def timed(*args, **kwargs):
        clock.now += 3.0 if trained.plan.grpo_weight else 1.0
        return step(*args, **kwargs)

    trained.training_step = timed
    trained.train()
    lines = toy.history(trained, "sasr/p_sft", "sasr/grpo_weight")
    first = next(i for i, (_, grpo) in enumerate(lines) if grpo)
    assert {p for p, _ in lines[4 : first + 1]} == {0.5}
    assert {p for p, _ in lines[first + 1 :]} == {0.75}


def test_a_resumed_run_is_the_same(tmp_path):
    settings = {"share_of": "flops", "max_steps": 16, "save_strategy": "steps", "save_steps": 8}
    toy.trainer(tmp_path / "whole", **settings).train()
    again = toy.trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert_same(outcome(tmp_path / "whole", 16), outcome(tmp_path / "again", 16))
    state = json.loads((tmp_path / "again" / "checkpoint-16" / checkpoints.STATE_FILE).read_text())
    assert min(state["costs"]["spent"]["flops"].values()) > 0


def test_a_matched_share_is_one_of_steps(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": i, "phase": "hybrid", "kind": kind}) + "\n"
            for i, kind in enumerate(["sft", "grpo", "grpo", "grpo"], 1)
        )
    )
    changes = {"schedule": "random", "match_run": str(tmp_path), "max_seconds": 5.0, "lr_scheduler_type": "constant"}
    matched = toy.settings(tmp_path / "new", **changes)
    assert (matched.sft_share, matched.share_of) == (0.25, "steps")
    with pytest.raises(InputError, match="match_run takes the other run's share of the steps, not of its seconds"):
        toy.settings(tmp_path / "new", **changes, share_of="seconds")


def test_what_it_may_be_and_for_whom(tmp_path):
    with pytest.raises(InputError, match="unknown share_of 'minutes'"):
        toy.settings(tmp_path, share_of="minutes")
    for schedule in ("static", "chord_mu", "sft"):
        with pytest.raises(InputError, match=f"setting of schedule sasr, cosine or random, not of {schedule}"):
            toy.settings(tmp_path, schedule=schedule, share_of="flops")
    assert toy.settings(tmp_path, schedule="static", share_of="steps").share_unit == "steps", (
        "as earlier versions wrote it"
    )
    for schedule in ("sasr", "cosine", "random"):
        assert toy.settings(tmp_path, schedule=schedule, share_of="flops").share_of == "flops"


@pytest.mark.parametrize(
    ("schedule", "budget", "unit"),
    [
        ("sasr", {"max_seconds": 9.0, "gamma_schedule": "cosine"}, "seconds"),
        ("sasr", {"max_seconds": 9.0, "gamma_schedule": "constant"}, "steps"),  # takes the same steps whatever ends it
        ("cosine", {"max_seconds": 9.0}, "steps"),
        ("random", {"max_seconds": 9.0}, "steps"),  # whose share is the user's own number
        ("sasr", {"max_rollout_tokens": 900}, "steps"),
        ("sasr", {}, "steps"),
    ],
)
def test_where_seconds_are_the_budget_it_is_a_share_of_them(tmp_path, schedule, budget, unit):
    budget = {**budget, "lr_scheduler_type": "constant"}
    args = toy.settings(tmp_path, schedule=schedule, **budget)
    assert (args.share_of, args.share_unit) == ("auto", unit)
    assert toy.settings(tmp_path, schedule=schedule, **budget, share_of="steps").share_unit == "steps"
    assert checkpoints.fingerprint(args.to_dict())["share_of"] == unit, "one of an earlier version goes on"
    trained = toy.trainer(tmp_path, schedule=schedule, **budget)
    assert trained.costs.unit == unit == trained.fingerprint()["share_of"]
    own = toy.trainer(tmp_path, schedule=schedule, **budget, more={"schedule": Random(0.5)})
    assert own.costs.unit == "steps" == own.fingerprint()["share_of"]
