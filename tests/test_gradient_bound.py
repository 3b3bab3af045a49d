"""Why the gradient norm says how far the policy is from the demonstrations, on models small enough to enumerate."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

_PATH = Path(__file__).parent.parent / "docs" / "results" / "gradient_bound.py"
_SPEC = importlib.util.spec_from_file_location("gradient_bound", _PATH)
bound = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bound)


@given(
    seed=st.integers(0, 10**6),
    questions=st.integers(1, 5),
    answers=st.integers(2, 8),
    spread=st.floats(0, 5),
    certain=st.booleans(),
)
def test_the_norm_is_bounded_on_both_sides_in_a_softmax_table(seed, questions, answers, spread, certain):
    """sqrt(2 mu KL) <= ||grad|| <= sqrt(2 beta KL), mu and beta known; stochastic and certain demonstrations."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(questions, answers, generator=generator, dtype=torch.float64).softmax(1)
    if certain:
        data = torch.nn.functional.one_hot(data.argmax(1), answers).double()
    logits = spread * torch.randn(questions, answers, generator=generator, dtype=torch.float64)
    norm, kl, mu, beta = bound.tabular(logits, data)
    assert math.sqrt(2 * mu * max(kl, 0)) <= norm * (1 + 1e-9) + 1e-7
    assert norm <= math.sqrt(2 * beta * max(kl, 0)) * (1 + 1e-9) + 1e-7


def test_norm_and_kl_vanish_together():
    data = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    norm, kl, _, _ = bound.tabular(data.log(), data)
    assert norm == pytest.approx(0, abs=1e-12) and kl == pytest.approx(0, abs=1e-12)


def test_two_answers_by_hand():
    """pi = (1/2, 1/2), data = (1, 0): the gradient is (-1/2, 1/2), the KL ln 2."""
    norm, kl, mu, beta = bound.tabular(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert (norm, kl) == (pytest.approx(math.sqrt(0.5)), pytest.approx(math.log(2)))
    assert (mu, beta) == (0.25, 0.5)


def test_enumeration_is_complete():
    """The probabilities of all answers and of what is no answer sum to 1, and the KL is that of the definition."""
    lm = bound.LanguageModel(seed=3)
    logps = lm.logprobs().detach()
    first = lm.model(input_ids=(bound.START + torch.arange(bound.QUESTIONS)).unsqueeze(1)).logits[:, 0].log_softmax(-1)
    digits = first[:, : bound.DIGITS].exp().sum(1)
    assert (logps.exp().sum(1) <= digits + 1e-12).all()
    _, kl = lm.norm_and_kl()
    direct = sum(
        float(p * (p.log() - q))
        for row, own in zip(lm.data, logps, strict=True)
        for p, q in zip(row, own, strict=True)
        if p
    )
    assert kl == pytest.approx(direct / bound.QUESTIONS, rel=1e-9)


def test_the_norm_follows_a_language_model_off_the_demonstrations_and_back():
    path = bound.language_model(sft=60, off=20, again=40, every=20)
    for point in path:
        if "curvature" in point:  # the upper bound, with the curvature as it is there
            assert point["norm"] <= math.sqrt(2 * point["curvature"] * point["kl"])
    phases = {name: list(points) for name, points in itertools.groupby(path, key=lambda p: p["phase"])}
    learnt, off, back = phases["SFT"][-1], phases["off"][-1], phases["SFT again"][-1]
    assert off["kl"] > 5 * learnt["kl"] and off["norm"] > 5 * learnt["norm"]
    assert back["kl"] < off["kl"] / 5 and back["norm"] < off["norm"] / 5
    norms, kls = (torch.tensor([p[key] for p in path]).argsort().argsort().double() for key in ("norm", "kl"))
    assert torch.corrcoef(torch.stack([norms, kls]))[0, 1] > 0.7
