"""Demonstrations kept from SFT: which, what is measured on them, and what follows from it."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from sasr import InputError, held_out
from sasr.demonstrations import Demonstration
from sasr.schedules import Sasr, Signals
from sasr.schedules.cosine import cosine_share
from sasr.signals import SignalTracker
from sasr.warmup import EVERY, Warmup, window_of

LOSSES = st.floats(1e-3, 1e3)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 12), st.integers(0, 3))
def test_all_or_none_of_a_prompt_is_kept(prompts, count, seed):
    args = SimpleNamespace(held_out_demonstrations=count, seed=seed)
    try:
        kept = held_out.kept_from_sft(prompts, args)
    except InputError as error:
        assert "at most half" in str(error)
        return
    assert kept == sorted(set(kept)) and count <= len(kept) <= len(prompts) / 2
    away = {prompts[i] for i in kept}
    assert Counter(prompts[i] for i in kept) == Counter(prompt for prompt in prompts if prompt in away)
    assert kept == held_out.kept_from_sft(prompts, args)


def test_without_repeated_prompts_as_many_are_kept_as_asked_for():
    chosen = [held_out.kept_from_sft(range(50), SimpleNamespace(held_out_demonstrations=8, seed=s)) for s in (1, 2)]
    assert [len(kept) for kept in chosen] == [8, 8] and chosen[0] != chosen[1]


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=20))
def test_what_carries_over_is_a_share_that_never_rises(losses):
    tracker, seen = SignalTracker(4), [1.0]
    for kept, studied in losses:
        tracker.observe_held_out(kept, studied)
        assert tracker.held_out_loss == kept and tracker.carry_over is not None
        seen.append(tracker.carry_over)
    assert seen == sorted(seen, reverse=True) and seen[1] == 1.0 and seen[-1] > 0
    first = losses[0][1] / losses[0][0]
    assert seen[-1] == pytest.approx(min(1.0, *(studied / kept / first for kept, studied in losses)))


def test_losses_that_are_no_numbers_are_ignored():
    tracker = SignalTracker(4)
    for kept, studied in ((math.nan, 1.0), (0.0, 1.0), (1.0, math.inf), (math.inf, 1.0), (1.0, 0.0)):
        tracker.observe_held_out(kept, studied)
        assert tracker.carry_over is None
    tracker.observe_held_out(2.0, 2.0)
    tracker.observe_held_out(2.0, 0.0)
    assert tracker.carry_over == 0.0


def warm_up(losses, longest=200, **settings) -> Warmup:
    """A warm-up that reads these held-out losses, one every 5 steps."""
    warmup = Warmup(longest, "held_out", **settings)
    for step in range(len(losses) * EVERY):
        if step >= warmup.bound:
            break
        warmup.observe(step, 1.0, None, losses[step // EVERY])
        warmup.load_state_dict(json.loads(json.dumps(warmup.state_dict())))
    return warmup


@given(st.integers(12, 30), st.floats(1e-3, 1e3))
def test_the_warmup_ends_a_window_after_the_lowest_held_out_loss(lowest, scale):
    warmup = warm_up([scale * (1 + abs(i - lowest)) for i in range(60)])
    # The measurement with index i is of the weights after 5 i steps, and is read at step 5 i + 5.
    assert warmup.steps == (lowest + 1) * EVERY + window_of(200)
    assert warmup.reason == "the held-out loss has not fallen for 25 steps"


def test_a_held_out_loss_that_falls_to_the_end_uses_all_that_is_allowed():
    warmup = warm_up([1 / (1 + i) for i in range(60)])
    assert warmup.steps == 200 and "still fell" in warmup.reason
    assert warm_up([1.0 + i for i in range(60)]).steps == 2 * window_of(200)
    assert warm_up([1.0 + i for i in range(60)], shortest=80).steps == 80
    assert warm_up([1.0 + i for i in range(60)], anneal=0.5).steps == 75


def signals(**changes) -> Signals:
    values = {"sft_grad_norm": 1.0, "warmup_grad_norm": 1.0} | changes
    return Signals(step=30, total_steps=100, warmup_steps=20, draw=0.5, **values)


@given(st.floats(0, 1), st.floats(0, 100), st.sampled_from(["cosine", "constant"]), st.floats(0.01, 10))
def test_p_is_what_carries_over_of_it(share, passes, pull, norm):
    """And the passes, which only stand for it, no longer count."""
    rule = Sasr(gamma_schedule=pull)
    found = rule.probability(signals(carry_over=share, passes=passes, sft_grad_norm=norm))
    assert found == pytest.approx(share * rule.probability(signals(sft_grad_norm=norm)))
    # The limit where the warm-up ended at a gradient of 0: the cosine goes on alone.
    alone = cosine_share(signals()) if pull == "cosine" else 1.0
    assert rule.probability(signals(carry_over=share, warmup_grad_norm=0.0)) == pytest.approx(share * alone)


# ---- through the real trainer ----


def test_kept_demonstrations_are_never_studied_and_their_questions_are_asked(tmp_path):
    trained = toy.trainer(tmp_path, held_out_demonstrations=8, max_steps=30)
    kept = {tuple(d.prompt_ids) for d in trained.held_out.kept}
    studied, asked, study, take = set(), set(), trained._study, trained.take_questions
    trained._study = lambda chosen, *a: (
        studied.update(tuple(d.prompt_ids) for d in chosen.demonstrations),
        study(chosen, *a),
    )
    trained.take_questions = lambda count: [asked.add(row) or row for row in take(count)]
    trained.train()
    assert len(kept) == 8 and len(studied) == 16 and not studied & kept
    prompts = [tuple(ids) for ids in trained._tokenize_prompts(list(toy.rows()["prompt"]))[0]]
    assert kept <= {prompts[row] for row in asked}
    assert len(trained.demonstration_of_row) == 16
    for row, i in trained.demonstration_of_row.items():
        assert tuple(trained.demonstrations[i].prompt_ids) == prompts[row] and prompts[row] not in kept


def test_what_a_failed_question_is_studied_with_is_its_own_demonstration(tmp_path):
    """... if that is not kept: the others have another place among all of them then."""
    trained = toy.trainer(tmp_path, schedule="hpt", sft_warmup_steps=0, held_out_demonstrations=6, max_steps=8)
    kept = {tuple(d.prompt_ids) for d in trained.held_out.kept}
    prompts = [tuple(ids) for ids in trained._tokenize_prompts(list(toy.rows()["prompt"]))[0]]
    asked, studied, study = set(), set(), trained._study

    def noted(chosen, *more):
        of_step = {prompts[row] for row in trained.selection.asked}
        found = {tuple(d.prompt_ids) for d in chosen.demonstrations}
        assert found <= of_step - kept
        asked.update(of_step)
        studied.update(found)
        study(chosen, *more)

    trained._study = noted
    trained.train()
    assert len(studied) > 4 and asked & kept


def test_the_losses_are_those_of_the_model(tmp_path):
    trained = toy.trainer(tmp_path, held_out_demonstrations=6, max_steps=6, per_device_sft_batch_size=4)
    lm = toy.model()
    expected = [loss_of(lm, part) for part in (trained.held_out.kept, trained.held_out.studied)]
    trained.held_out.before_step(0)
    assert trained.tracker.held_out_loss == pytest.approx(expected[0], rel=1e-5)
    assert trained.tracker.ratio_before == pytest.approx(expected[1] / expected[0], rel=1e-5)
    assert len(trained.held_out.studied) == 6 and not [
        d for d in trained.held_out.studied if d in trained.held_out.kept
    ]


def loss_of(lm, demonstrations: list[Demonstration]) -> float:
    """Nats a token, one demonstration at a time, without padding."""
    total = 0.0
    for d in demonstrations:
        with torch.no_grad():
            logps = lm(torch.tensor([d.prompt_ids + d.completion_ids])).logits[0].log_softmax(-1)
        start = len(d.prompt_ids)
        total -= sum(float(logps[start + i - 1, token]) for i, token in enumerate(d.completion_ids))
    return total / sum(len(d.completion_ids) for d in demonstrations)


def weights(trained) -> list[torch.Tensor]:
    trained.train()
    return [p.detach().clone() for p in trained.model.parameters()]


def test_measuring_changes_nothing_but_what_is_measured(tmp_path, monkeypatch):
    def run(name):
        lm = toy.model(attention_dropout=0.1)
        return weights(toy.trainer(tmp_path / name, lm=lm, held_out_demonstrations=6, schedule="static"))

    measured = run("measured")
    monkeypatch.setattr(held_out.HeldOut, "before_step", lambda self, step: None)
    assert all(torch.equal(a, b) for a, b in zip(measured, run("unmeasured"), strict=True))


def test_what_is_learnt_by_heart_ends_the_warmup_and_is_not_gone_back_to(tmp_path):
    """Ten demonstrations whose answers have no rule can only be learnt by heart."""
    data = toy.rows().map(lambda row, i: {"completion": f"{(7 * i * i + 3) % 100:02d}"}, with_indices=True)
    settings = {
        "sft_warmup_steps": "auto", "max_steps": 140, "lr_scheduler_type": "constant", "sft_learning_rate": 1e-2,
        "held_out_demonstrations": 8, "per_device_sft_batch_size": 8, "gamma_schedule": "cosine",
    }  # fmt: skip
    trained = toy.trainer(tmp_path, data=data, **settings)
    trained.train()
    assert trained.args.warmup_until == "held_out" and trained.warmup.bound < 70
    lines = [line for line in trained.state.log_history if "sasr/carry_over" in line]
    assert len(lines) == 140 and lines[0]["sasr/carry_over"] == 1.0
    after = lines[trained.warmup.bound :]
    assert max(line["sasr/carry_over"] for line in after) < 0.2
    assert max(line["sasr/p_sft"] for line in after) < 0.2, "the growing pull alone begins near 1"
    assert min(line["sasr/held_out_loss"] for line in lines) < 0.8 * after[-1]["sasr/held_out_loss"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"held_out_demonstrations": -1}, "held_out_demonstrations is -1"),
        ({"held_out_demonstrations": 13}, "would keep 13 of 24 demonstrations"),
        ({"warmup_until": "held_out", "sft_warmup_steps": 40, "max_steps": 90}, "needs demonstrations kept from SFT"),
        ({"held_out_demonstrations": 4, "schedule": "grpo", "sft_warmup_steps": 0}, "schedule grpo takes none"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        toy.trainer(tmp_path, **{"lr_scheduler_type": "constant", **changes})
