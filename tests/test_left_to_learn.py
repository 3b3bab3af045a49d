"""What of the demonstrations is left to learn: 1 - their likelihood, measured in SFT steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from sasr.signals import SignalTracker


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 0.99))
def test_it_is_smoothed_like_the_norm(likelihoods, ema):
    tracker = SignalTracker(4, ema=ema)
    for step, likelihood in enumerate(likelihoods):
        tracker.observe_likelihood(likelihood)
        tracker.observe_sft_norm(step, 1 - likelihood)
        tracker.observe_likelihood(math.nan)
    assert tracker.left_to_learn == pytest.approx(tracker.sft_grad_norm, abs=1e-12)
    assert tracker.signals(0, 4, 8).left_to_learn == tracker.left_to_learn


def test_rounding_does_not_make_it_negative():
    tracker = SignalTracker(4)
    tracker.observe_likelihood(1.0000001)
    assert tracker.left_to_learn == 0.0


# ---- through the real trainer ----


def likelihood_of(lm, demonstrations) -> float:
    """Mean over demonstrations, one at a time, without padding."""
    found = []
    for d in demonstrations:
        with torch.no_grad():
            logps = lm(torch.tensor([d.prompt_ids + d.completion_ids])).logits[0].log_softmax(-1)
        start = len(d.prompt_ids)
        found.append(math.exp(sum(float(logps[start + i - 1, token]) for i, token in enumerate(d.completion_ids))))
    return sum(found) / len(found)


@pytest.mark.parametrize("split", [(16, 1), (4, 4), (3, 3)])
def test_it_is_that_of_the_model_however_the_batch_is_split(tmp_path, split):
    size, parts = split
    more = {"per_device_sft_batch_size": size, "gradient_accumulation_steps": parts}
    trained = toy.trainer(tmp_path, max_steps=5, sft_warmup_steps=5, schedule="sft", **more)
    studied, study = [], trained._study
    trained._study = lambda chosen, *a: (studied.append(chosen.demonstrations), study(chosen, *a))
    trained.train()
    lines = [line["sasr/left_to_learn"] for line in trained.state.log_history if "sasr/left_to_learn" in line]
    assert len(lines) == 5
    assert 1 - lines[0] == pytest.approx(likelihood_of(toy.model(), studied[0]), rel=1e-4)


def test_it_falls_as_demonstrations_are_learnt(tmp_path):
    settings = {"lr_scheduler_type": "constant", "sft_learning_rate": 1e-2, "per_device_sft_batch_size": 8}
    trained = toy.trainer(tmp_path, data=toy.rows(10), schedule="sft", max_steps=60, **settings)
    trained.train()
    lines = [line for line in trained.state.log_history if "sasr/left_to_learn" in line]
    assert lines[0]["sasr/left_to_learn"] > 0.95
    assert lines[59]["sasr/left_to_learn"] < 0.2


def test_a_norm_that_is_probed_measures_it_too(tmp_path):
    trained = toy.trainer(tmp_path, sft_norm_every=1, max_steps=12, gamma=1e6, sft_warmup_steps=4)
    seen, observe = [], trained.tracker.observe_likelihood
    trained.tracker.observe_likelihood = lambda value: (seen.append(value), observe(value))
    trained.train()
    assert trained.counts["sft_steps"] == 4 and len(seen) > 6
    assert all(0 <= value <= 1 for value in seen)
