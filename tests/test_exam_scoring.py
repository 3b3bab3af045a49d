"""Entropy, KL and NLL against sums over the vocabulary, token by token, on tiny models."""

import math

import pytest
import torch

import toy
from sasr.demonstrations import Demonstration
from sasr.errors import InputError
from sasr.exam import scoring
from sasr.exam.scoring import check_same_tokens, mean_per_token, nll_per_token, score

COMPLETIONS = [Demonstration([3, 4, 5], [6, 7, 1]), Demonstration([8], [9]), Demonstration([3] * 9, [4, 5, 6, 7, 8])]


@pytest.mark.parametrize("most", [1, 2**26], ids=["one at a time", "one batch"])
def test_scores_are_the_exact_sums(monkeypatch, most):
    monkeypatch.setitem(scoring._MOST_LOGITS, "cpu", most)
    p, q = toy.model(0), toy.model(1)
    with torch.no_grad():
        for model in (p, q):
            model.lm_head.weight.mul_(20)  # far from uniform
    for completion, found in zip(COMPLETIONS, score(p, COMPLETIONS, 0, q), strict=True):
        nll, entropy, kl = [], [], []
        for t, token in enumerate(completion.completion_ids):
            ids = torch.tensor([completion.prompt_ids + completion.completion_ids[:t]])
            with torch.no_grad():
                a, b = (model(ids).logits[0, -1].double().softmax(0).tolist() for model in (p, q))
            log = [(x, math.log(x), math.log(y)) for x, y in zip(a, b, strict=True)]
            nll.append(-log[token][1])
            entropy.append(-sum(x * lx for x, lx, _ in log))
            kl.append(sum(x * (lx - ly) for x, lx, ly in log))
        n = len(completion.completion_ids)
        assert found["nll"] == pytest.approx(sum(nll) / n, rel=1e-4)
        assert found["entropy"] == pytest.approx(sum(entropy) / n, rel=1e-4)
        assert found["kl"] == pytest.approx(sum(kl) / n, rel=1e-4) and found["kl"] > 0.01
    tokens = [len(c.completion_ids) for c in COMPLETIONS]
    total = sum(s["nll"] * n for s, n in zip(score(p, COMPLETIONS, 0), tokens, strict=True))
    assert nll_per_token(p, COMPLETIONS, 0) == pytest.approx(total / sum(tokens))


def test_a_model_has_no_divergence_from_itself():
    model = toy.model()
    for found in score(model, COMPLETIONS, 0, toy.model()):
        assert found["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    for found in score(model, COMPLETIONS, 0):
        assert found.keys() == {"nll", "entropy"}
        assert [found["nll"], found["entropy"]] == pytest.approx([math.log(15)] * 2)


def test_models_that_cannot_be_compared_are_refused():
    other = toy.tokenizer()
    check_same_tokens(toy.tokenizer(), other, "x")
    other.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"initial_model x: .*vocabulary"):
        check_same_tokens(toy.tokenizer(), other, "x")
    wide = toy.model()
    wide.resize_token_embeddings(20)
    with pytest.raises(InputError, match="20 output tokens"):
        score(toy.model(), COMPLETIONS, 0, wide)
    assert mean_per_token([], []) is None
