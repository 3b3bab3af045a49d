"""Tokens and FLOPs of a step, against what the model was in fact given."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from peft import LoraConfig

import toy
from sasr.work import Work

WEIGHTS = sum(p.numel() for name, p in toy.model().named_parameters() if "embed_tokens" not in name)


def test_weights_are_those_a_token_is_multiplied_with():
    assert Work(toy.model(), 1).weights == Work(toy.model(), 1).trained_weights == WEIGHTS
    tied = toy.model(tie_word_embeddings=True)
    assert Work(tied, 1).weights == sum(p.numel() for p in tied.parameters()) == WEIGHTS


def test_flops_by_hand():
    work = Work(toy.model(), micro_batches=2)
    work.train(100)
    work.rollouts(60, passes=1)
    work.train_rollouts(0.5)
    assert work.finish_step() == {"tokens": 115.0, "flops": WEIGHTS * (6 * 115 + 2 * 120)}
    work.train(10, counted=False)
    work.rollouts(6, passes=0, refill=True)
    work.train_rollouts(1.0)
    assert work.finish_step() == {"tokens": 30.0, "flops": WEIGHTS * (6 * 40 + 2 * 6)}
    work.add_seconds(2.0)
    work.add_seconds(3.0)
    assert work.tokens_per_second() == 145 / 5
    assert work.tokens_per_second() is None, "no step since"


def counted_tokens(run):
    """By step, the tokens without padding of the forward passes with gradient, and whether there were others."""
    passes: list[dict[str, int]] = []
    forward = run.model.forward

    @functools.wraps(forward)  # generate reads its parameters
    def watched(*args, attention_mask=None, **kwargs):
        passes[-1]["train"] += int(attention_mask.sum()) if torch.is_grad_enabled() else 0
        passes[-1]["other"] += not torch.is_grad_enabled()
        return forward(*args, attention_mask=attention_mask, **kwargs)

    def begin(*args, draw=run.get_batch_samples, **kwargs):
        passes.append({"train": 0, "other": 0})
        return draw(*args, **kwargs)

    run.model.forward, run.get_batch_samples = watched, begin
    return passes


CASES = {
    "hybrid": {},
    "both-losses-with-reference": {"schedule": "chord_mu", "mu_decay_steps": 6, "beta": 0.1},
    "probes": {"sft_norm_every": 1, "gamma": 3.0, "divergence_weight": 0.5, "divergence_every": 2},
    "accumulated": {"gradient_accumulation_steps": 2, "steps_per_generation": 2, "num_iterations": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_training_tokens_are_those_the_model_saw_with_gradients(tmp_path, case):
    settings = CASES[case]
    lm = toy.model(directory=tmp_path / "lm") if "beta" in settings else toy.model()
    run = toy.trainer(tmp_path / "run", lm=lm, max_steps=10, **settings)
    passes = counted_tokens(run)
    run.train()
    found = toy.history(run, "sasr/tokens", "sasr/flops", "sasr/tokens_per_second", "num_tokens")
    assert len(found) == len(passes) == 10
    probed = 0
    for (tokens, flops, rate, _), seen in zip(found, passes, strict=True):
        probed += seen["train"] != tokens
        assert seen["train"] == tokens or (case == "probes" and seen["train"] > tokens)
        assert rate > 0 and flops >= 6 * WEIGHTS * seen["train"]
        assert flops == 6 * WEIGHTS * seen["train"] or seen["other"], "no other passes, no other FLOPs"
    assert (probed > 0) == (case == "probes")


@pytest.mark.parametrize(
    ("changes", "passes"),
    [({}, 0), ({"beta": 0.1}, 1), ({"num_iterations": 2}, 1), ({"beta": 0.1, "num_iterations": 2}, 2)],
    ids=str,
)
def test_passes_over_rollouts_are_counted(tmp_path, changes, passes):
    """Under the reference, and under the policy that made them where they are trained on again."""
    lm = toy.model(directory=tmp_path / "lm")
    run, seen = toy.trainer(tmp_path / "run", lm=lm, schedule="grpo", sft_warmup_steps=0, max_steps=3, **changes), []
    count = run.work.rollouts
    run.work.rollouts = lambda tokens, passes, refill: seen.append(passes) or count(tokens, passes, refill)
    run.train()
    assert set(seen) == {passes}


def test_rollouts_in_place_of_others_are_told_apart(tmp_path):
    """Here all groups are flat, in each of the three further generations too."""
    alike = {"rewards": lambda completions, **_: [0.5] * len(completions), "flat_groups": "resample"}
    run, seen = toy.trainer(tmp_path, schedule="grpo", sft_warmup_steps=0, max_steps=1, **alike), []
    count = run.work.rollouts
    run.work.rollouts = lambda tokens, passes, refill: seen.append(refill) or count(tokens, passes, refill)
    run.train()
    assert seen == [False, True, True, True]


def test_passes_that_only_measure_are_counted(tmp_path):
    """Two losses before the first step; at the end of the warm-up the probe is answered, scored, and measured."""
    run = toy.trainer(tmp_path, held_out_demonstrations=6, divergence_weight=0.5, divergence_probe=4, max_steps=5)
    seen, forward = [], run.work.forward
    run.work.forward = lambda tokens: seen.append(tokens) or forward(tokens)
    run.train()
    losses = [sum(d.length for d in part) for part in (run.held_out.kept, run.held_out.studied)]
    probe = int(run.reference.probe["attention_mask"].sum())
    assert seen[:5] == [*losses, probe, probe, probe]


def test_adapters_have_no_gradients_of_the_weights_below(tmp_path):
    more = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    run = toy.trainer(tmp_path, more=more, schedule="sft", sft_warmup_steps=0, max_steps=1)
    run.train()
    ((tokens, flops),) = toy.history(run, "sasr/tokens", "sasr/flops")
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert 0 < trained < WEIGHTS
    assert flops == (4 * (WEIGHTS + trained) + 2 * trained) * tokens


def test_state_goes_through_json():
    work, again = Work(toy.model(), 2), Work(toy.model(), 2)
    work.rollouts(60, passes=0)
    again.load_state_dict(json.loads(json.dumps(work.state_dict())))
    again.train_rollouts(1.0)
    assert again.finish_step()["tokens"] == 30
    again.load_state_dict({})  # a checkpoint of an earlier version
