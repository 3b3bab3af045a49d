"""HPT, LUFFY and SRFT through the real trainer against their formulas in plain PyTorch, without padding."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from datasets import Dataset

import toy
from recorded_steps import (
    by_level,
    group_loss,
    groups,
    hpt_loss,
    is_gated,
    levels,
    log_probabilities,
    luffy_loss,
    run,
    same_gradient,
    text,
    tokens,
)
from sasr import InputError
from sasr.schedules import Random, StepPlan

# ---- HPT ----


def test_hpt_without_any_success_is_sft_on_the_questions_asked(tmp_path):
    trained, (step,) = run(tmp_path, schedule="hpt", data=levels(), rewards=lambda completions, **_: [0.0] * 16)
    assert len(set(step.asked)) == 4
    studied = [trained.demonstrations[trained.demonstration_of_row[row]] for row in step.asked]
    assert step.demonstrations == studied
    logps = [log_probabilities(step.lm, d.prompt_ids, d.completion_ids) for d in studied]
    same_gradient(step, -torch.cat(logps).mean())
    (log,) = toy.history(trained, "sasr/p_sft", "sasr/unsolved", "sasr/sft_loss", "sasr/sft_tokens")
    assert log == pytest.approx((1.0, 1.0, -torch.cat(logps).mean().item(), tokens(studied)), rel=1e-5)


def test_hpt_with_full_success_has_nothing_to_do(tmp_path):
    trained, (step,) = run(tmp_path, schedule="hpt", data=levels(), rewards=lambda completions, **_: [1.0] * 16)
    assert step.gradient.abs().max() == 0
    assert step.forwards == ["grpo"] and step.demonstrations == []
    assert toy.history(trained, "sasr/p_sft", "sasr/unsolved", "sasr/sft_loss") == [(0.0, 0.0, None)]


@pytest.mark.parametrize(
    ("gate", "missing", "accumulation"), [(0, False, 1), (2, False, 1), (0, True, 1), (2, False, 2)]
)
def test_hpt_is_the_mean_over_questions(tmp_path, gate, missing, accumulation):
    trained, (step,) = run(
        tmp_path, schedule="hpt", data=levels(unsolvable_without=missing), rewards=by_level, hpt_gate=gate,
        per_device_train_batch_size=48 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    assert len(step.rollouts) == 48 and sorted(step.asked) == list(range(12))
    kinds = {
        (
            trained.train_dataset[row]["level"],
            is_gated(trained, row, members, gate),
            row in trained.demonstration_of_row,
        )
        for row, members in groups(step).items()
    }
    assert {(0, True, True), (1, False, True)} <= kinds
    assert (2, bool(gate), True) in kinds
    assert ((0, True, False) in kinds) == missing
    loss, share = hpt_loss(trained, step, gate)
    same_gradient(step, loss)
    assert toy.history(trained, "sasr/p_sft") == [(share,)]


# ---- LUFFY and SRFT ----


@pytest.mark.parametrize(("missing", "accumulation", "shaping"), [(False, 1, 0.1), (False, 2, 0.1), (True, 1, 0.5)])
def test_luffy_gradient(tmp_path, missing, accumulation, shaping):
    """-[sum A log pi over rollout tokens + sum A f(pi) over demonstration tokens] / all tokens."""
    trained, steps = run(
        tmp_path, schedule="luffy", luffy_shaping=shaping, data=levels(unsolvable_without=missing),
        per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation, max_steps=2,
    )  # fmt: skip
    for step, logged in zip(steps, toy.history(trained, "sasr/p_sft"), strict=True):
        assert 0 < len(step.demonstrations) <= 4 and (len(step.demonstrations) < 4) <= missing
        loss, share = luffy_loss(trained, step, shaping)
        same_gradient(step, loss)
        assert logged[0] == pytest.approx(share)


def test_luffy_where_no_question_has_a_demonstration_is_grpo(tmp_path):
    data = Dataset.from_list([*toy.rows(4).map(lambda row: {"completion": ""}), {"prompt": "9+9=", "completion": "18"}])
    trained, (step,) = run(tmp_path, schedule="luffy", data=data)
    assert step.forwards == ["grpo"]
    rollouts, _, count = group_loss(trained, step, toy.reward, lambda logps, a: a * logps, None)
    assert count == 0
    same_gradient(step, -rollouts / tokens(step.rollouts))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_srft_gradient(tmp_path, accumulation):
    """mean over demonstration tokens of -(w_SFT + A pi) log pi, the factor held fixed, plus GRPO with positive
    advantages times w_RL; the entropy is that of the step before."""
    trained, steps = run(
        tmp_path, schedule="srft", data=levels(), max_steps=3,
        per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    log = toy.history(trained, "entropy", "sasr/p_sft")
    entropies = [0.0, *(entropy for entropy, _ in log)]
    assert entropies[1] > 1
    for step, entropy, (_, p) in zip(steps, entropies, log, strict=False):
        w_sft, w_rl = math.exp(-entropy) / 2, math.exp(entropy) / 10
        rollouts, demonstrations, count = group_loss(
            trained,
            step,
            toy.reward,
            lambda logps, a, w_rl=w_rl: (a * w_rl if a > 0 else a) * logps,
            lambda logps, a, w_sft=w_sft: (w_sft + a * logps.detach().exp()) * logps,
        )
        same_gradient(step, -rollouts / tokens(step.rollouts) - demonstrations / count)
        assert p == pytest.approx(w_sft / (1 + w_sft))


def test_entropy_is_that_of_the_step_before_whatever_its_kind(tmp_path):
    """After the warm-up it is the mean entropy over the demonstrations' tokens."""
    _, steps = run(tmp_path, schedule="srft", data=levels(), sft_warmup_steps=1, max_steps=2)
    with torch.no_grad():
        entropies = []
        for d in steps[0].demonstrations:
            logits = steps[0].lm(input_ids=torch.tensor([d.prompt_ids + d.completion_ids])).logits[0]
            logps = logits[len(d.prompt_ids) - 1 : -1].log_softmax(-1)
            entropies += (-(logps.exp() * logps).sum(-1)).tolist()
    expected = 0.5 * math.exp(-statistics.mean(entropies))
    assert steps[1].plan.token_parameter == pytest.approx(expected, rel=1e-5)


def test_a_demonstration_is_judged_once_and_not_reported(tmp_path):
    asked = []

    def spy(prompts, completions, log_metric, log_extra, **columns):
        asked.append(len(prompts))
        log_metric("length", len(completions[0]))
        log_extra("first", [c[:1] for c in completions])
        return toy.reward(completions, **columns)

    _, steps = run(tmp_path, schedule="luffy", data=toy.rows(4), rewards=spy, max_steps=3, log_completions=True)
    assert all(sorted(step.asked) == [0, 1, 2, 3] for step in steps)
    assert asked == [16, 4, 16, 16]
    tables = list((tmp_path / "completions").glob("*.parquet"))
    assert len(tables) == 3
    assert {len(Dataset.from_parquet(str(path))) for path in tables} == {16}


# ---- rows ----


def test_separate_demonstrations_are_found_by_their_prompt(tmp_path):
    """The first of several with one prompt; SFT steps use all of them."""
    data = toy.rows(6)
    separate = Dataset.from_list(
        [
            {"prompt": "9+9=", "completion": "18"},
            {"prompt": data[2]["prompt"], "completion": "77"},
            {"prompt": data[4]["prompt"], "completion": ""},
            {"prompt": data[0]["prompt"], "completion": "66"},
            {"prompt": data[2]["prompt"], "completion": "55"},
        ]
    )
    trained, (step,) = run(
        tmp_path, schedule="hpt", data=data, rewards=lambda completions, **_: [0.0] * len(completions),
        per_device_train_batch_size=24, more={"demonstration_dataset": separate},
    )  # fmt: skip
    assert trained.demonstration_of_row == {2: 1, 0: 2}
    assert [text(trained, d.completion_ids) for d in trained.demonstrations] == ["18", "77", "66", "55"]
    studied = {0: "66", 2: "77"}
    assert [text(trained, d.completion_ids) for d in step.demonstrations] == [
        studied[row] for row in step.asked if row in studied
    ]


def test_own_demonstrations_of_rows_with_and_without_answers(tmp_path):
    data = Dataset.from_list(
        [
            {"prompt": "1+1=", "completion": "02", "answer": None},
            {"prompt": "1+2=", "completion": None, "answer": "03"},
            {"prompt": "1+3=", "completion": "04", "answer": "04"},
        ]
    )
    trained = toy.trainer(tmp_path, data=data)
    assert trained.demonstration_of_row == {2: 1}


# ---- rollouts of an earlier step ----


@pytest.mark.parametrize("schedule", ["hpt", "luffy", "srft", "uft"])
@pytest.mark.parametrize("changes", [{"steps_per_generation": 2}, {"num_iterations": 2}])
def test_rollouts_must_be_those_of_the_step(tmp_path, schedule, changes):
    with pytest.raises(InputError, match="rollouts of the same step: set steps_per_generation x num_iterations"):
        toy.settings(tmp_path, schedule=schedule, **{"gradient_accumulation_steps": 1, **changes})
    toy.settings(tmp_path, schedule=schedule, gradient_accumulation_steps=2, **{"steps_per_generation": 1, **changes})


def test_a_rule_of_ones_own_is_checked_in_its_first_step(tmp_path):
    class Gated(Random):
        def plan(self, signals):
            return StepPlan(1.0, 1.0, 0.5, demonstrations="gated")

    with pytest.raises(InputError, match="rollouts of the same step"):
        run(tmp_path, schedule="grpo", more={"schedule": Gated()}, num_iterations=2)
