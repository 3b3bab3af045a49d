"""What a plan of a step may be, and what becomes of a rule of one's own that returns another."""

from __future__ import annotations

import re

import pytest

import toy
from sasr import InputError, selection, token_weights
from sasr.schedules import SFT_STEP, Random, Signals, StepPlan, base, decide


class Returns(Random):
    """A rule that has forgotten what it was to return."""

    def __init__(self, found):
        super().__init__()
        object.__setattr__(self, "found", found)

    def plan(self, signals):
        return self.found


@pytest.mark.parametrize("weights", [(0, 0), (-1, 1), (1, -0.1)])
def test_impossible_plan(weights):
    with pytest.raises(ValueError, match="weights"):
        StepPlan(*weights, sft_probability=0.5)


def test_plan_kinds():
    assert [StepPlan(*w, 0.5).kind for w in ((1, 0), (0, 1), (0.5, 0.5))] == ["sft", "grpo", "both"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"demonstrations": "falied"}, r"^unknown demonstrations of a StepPlan 'falied': .*did you mean failed\?"),
        ({"demonstrations": None}, r"^unknown demonstrations of a StepPlan None: use one of all, failed, hints,"),
        ({"token_weight": "ph"}, r"^unknown token_weight of a StepPlan 'ph': .*did you mean phi\?"),
    ],
)
def test_a_name_that_there_is_not(names, message):
    """Nothing was studied in silence, or the step ended in an error of ours."""
    with pytest.raises(InputError, match=message):
        StepPlan(0.5, 0.5, sft_probability=0.5, **names)


def test_the_names_are_those_that_are_known_elsewhere():
    """Where the plan is made nothing of torch is imported."""
    assert tuple(token_weights.TOKEN_WEIGHTS) == base.TOKEN_WEIGHTS
    described = re.findall(r"^\| `(\w+)` \|", selection.__doc__, re.MULTILINE)
    assert tuple(described) == base.BEFORE_THE_STEP + base.TIED_TO_ROLLOUTS


@pytest.mark.parametrize("name", base.TIED_TO_ROLLOUTS)
def test_demonstrations_of_rollouts_that_are_not_made(name):
    StepPlan(1.0, 0.1, sft_probability=0.5, demonstrations=name)
    with pytest.raises(InputError, match=f"demonstrations '{name}'.* give it a grpo_weight above 0, not 0.0"):
        StepPlan(1.0, 0.0, sft_probability=1.0, demonstrations=name)


@pytest.mark.parametrize("found", [None, True, (1.0, 0.0, 1.0)])
def test_what_is_no_plan(found):
    assert decide(Returns(found), Signals(3, 10, 4, 0.5)) is SFT_STEP, "the warm-up asks nobody"
    with pytest.raises(InputError, match=r"^schedule Returns: its plan\(\) must return a StepPlan, not .*: correct it"):
        decide(Returns(found), Signals(4, 10, 4, 0.5))


def test_a_run_whose_rule_returns_no_plan_keeps_the_step_before(tmp_path):
    trained = toy.trainer(tmp_path, schedule="random", save_strategy="steps", more={"schedule": Returns(None)})
    with pytest.raises(InputError, match="schedule Returns: its plan"):
        trained.train()
    assert (tmp_path / "checkpoint-4").is_dir(), "the warm-up has 4"
