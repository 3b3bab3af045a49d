"""The repeatable part of the SFT gradient norm: against gradients collected by hand, and through the real trainer."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import toy
from sasr import InputError
from sasr.agreement import _dot
from test_resume import assert_same, outcome

SETTINGS = {
    "schedule": "sasr",
    "separate_optimizer_states": True,
    "sft_norm": "repeatable",
    "lr_scheduler_type": "constant",
}


class Collected:
    """Every SFT gradient of a run as one vector, as the optimizer gets it, and its norm before clipping."""

    def __init__(self, trained):
        self.gradients: dict[int, torch.Tensor] = {}
        self.norms: dict[int, float] = {}
        measure = trained._get_grad_norm

        def collect(model, grad_norm=None):
            if trained.plan.kind == "sft":
                step = trained.state.global_step
                self.gradients[step] = torch.cat([p.grad.flatten() for p in trained.model.parameters()]).clone()
                self.norms[step] = float(grad_norm)
            return measure(model, grad_norm)

        trained._get_grad_norm = collect

    def agreements(self) -> dict[int, float]:
        mean, found = None, {}
        for step, gradient in self.gradients.items():
            if mean is not None:
                found[step] = float(torch.nn.functional.cosine_similarity(gradient, mean, dim=0))
            mean = 0.1 * gradient + (0.0 if mean is None else 0.9 * mean)
        return found


def test_the_signal_is_the_norm_along_the_mean_of_the_gradients_before(tmp_path):
    trained = toy.trainer(tmp_path, sft_warmup_steps=6, max_steps=16, max_grad_norm=0.5, sft_norm_ema=0.5, **SETTINGS)
    collected = Collected(trained)
    trained.train()
    agreements = collected.agreements()
    assert max(step for step in agreements) >= 6 and len(agreements) < 15, "SFT and GRPO steps after the warm-up"
    assert max(collected.norms.values()) > 0.5, "clipping does not matter"
    logged = {
        line["step"] - 1: line["sasr/sft_agreement"]
        for line in trained.state.log_history
        if line.get("sasr/sft_agreement") is not None
    }
    assert logged == pytest.approx(agreements, rel=1e-4, abs=1e-5)
    expected = None
    for step, agreement in agreements.items():
        part = collected.norms[step] * agreement
        expected = part if expected is None else 0.5 * expected + 0.5 * part
    assert trained.tracker.sft_grad_norm == pytest.approx(expected, rel=1e-3)
    half = [collected.norms[step] * agreements[step] for step in (3, 4, 5)]
    assert trained.tracker.warmup_grad_norm == pytest.approx(max(sum(half) / 3, 0.0), rel=1e-3)


def test_the_same_gradient_agrees_fully_and_a_part_below_zero_as_little(tmp_path):
    one = toy.rows(1)
    trained = toy.trainer(
        tmp_path, data=one, sft_warmup_steps=4, max_steps=4, per_device_sft_batch_size=1, sft_learning_rate=1e-12,
        **{**SETTINGS, "schedule": "static"},
    )  # fmt: skip
    trained.train()
    agreements = [found for (found,) in toy.history(trained, "sasr/sft_agreement")[1:]]
    assert agreements == pytest.approx([1.0] * 3, abs=1e-4)
    trained.tracker.sft_grad_norm = -0.3
    signals = trained.tracker.signals(0, 5, 10)
    assert signals.sft_grad_norm == 0.05 * trained.tracker.warmup_grad_norm > 0, "or p would stay 0"
    trained.tracker.warmup_sum = -1.0
    assert trained.tracker.warmup_grad_norm == 0.0


def test_the_probe_measures_the_same_part(tmp_path):
    trained = toy.trainer(
        tmp_path, sft_warmup_steps=3, max_steps=9, sft_norm_every=1, learning_rate=1e-12, sft_learning_rate=1e-12,
        **{**SETTINGS, "schedule": "alternate"},
    )  # fmt: skip
    norms = toy.observed_norms(trained)
    trained.train()
    twice = [(a, b) for (i, a), (j, b) in pairwise(norms) if i == j]
    assert len(twice) >= 2
    for probed, real in twice:
        assert probed == pytest.approx(real, rel=1e-4, abs=1e-6)


def test_a_run_resumes_bit_for_bit(tmp_path):
    lm = toy.model(directory=tmp_path / "lm")
    settings = {
        **SETTINGS, "sft_warmup_steps": 30, "warmup_until": "agreement", "max_steps": 44, "sft_learning_rate": 2e-2,
        "save_strategy": "steps",
    }  # fmt: skip
    toy.trainer(tmp_path / "whole", lm=lm, save_steps=4, **settings).train()
    expected = outcome(tmp_path / "whole", 44)
    for step in (12, 36):
        part = tmp_path / f"part-{step}"
        (part).mkdir()
        (tmp_path / "whole" / f"checkpoint-{step}").rename(part / f"checkpoint-{step}")
        again = toy.trainer(part, lm=toy.model(directory=tmp_path / "lm"), save_steps=44, **settings)
        again.train(resume_from_checkpoint=True)
        assert_same(outcome(part, 44), expected, f"resumed at {step}")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"separate_optimizer_states": False}, "set separate_optimizer_states to true"),
        (
            {"separate_optimizer_states": False, "sft_norm": "batch", "warmup_until": "agreement"},
            "warmup_until agreement",
        ),
        ({"optim": "adafactor"}, "optim adafactor does not keep"),
        ({"sft_norm": "denoised"}, "unknown sft_norm"),
    ],
)
def test_refusals(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        toy.settings(tmp_path, **{**SETTINGS, "sft_warmup_steps": 40, "max_steps": 80, **changes})


def test_agreement_is_a_cosine(tmp_path):
    trained = toy.trainer(tmp_path, sft_warmup_steps=20, max_steps=24, sft_learning_rate=2e-2, **SETTINGS)
    trained.train()
    agreements = [found for (found,) in toy.history(trained, "sasr/sft_agreement") if found is not None]
    assert all(-1 <= found <= 1 and math.isfinite(found) for found in agreements)
    assert sum(agreements[:5]) > sum(agreements[15:20]), "a gradient's direction lasts while the loss falls fast"


def test_auto_ends_by_agreement_where_that_can_be_seen(tmp_path):
    auto = {"sft_warmup_steps": "auto", "max_steps": 80, "lr_scheduler_type": "constant"}
    assert toy.settings(tmp_path, **auto).warmup_until == "plateau"
    assert toy.settings(tmp_path, **auto, separate_optimizer_states=True).warmup_until == "agreement"
    plateau = toy.settings(tmp_path, **auto, separate_optimizer_states=True, warmup_until="plateau")
    assert plateau.warmup_until == "plateau" and plateau.sft_warmup_steps == 40


def test_gradients_on_several_devices():
    """Of a model that is split over them (`device_map`)."""
    with FakeTensorMode():
        parts = [torch.ones(3, device=f"cuda:{index}") for index in (1, 0)]
        assert _dot(parts, parts).device == torch.device("cuda:1")
    assert float(_dot([torch.ones(3), torch.full((2,), 2.0)], [torch.ones(3), torch.ones(2)])) == 7
