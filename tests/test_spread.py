"""Groups without a spread of rewards: left out, or asked anew."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from recorded_steps import by_level, levels, run
from sasr.selection import group_advantages
from sasr.spread import flat_groups, replace_groups, settle, total
from sasr.watch import Watch

LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo")


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(2, 5))
def test_flat_groups_are_those_whose_advantages_are_all_zero(flat, size):
    rows = [[0.0] * size if is_flat else [0.0] * (size - 1) + [1.5] for is_flat in flat]
    assert flat_groups(torch.tensor(rows).flatten(), size) == [i for i, is_flat in enumerate(flat) if is_flat]


def test_replaced_groups_are_padded_where_trl_pads():
    def rollouts(prompt, completion):
        return {
            "prompt_ids": torch.tensor(prompt), "prompt_mask": (torch.tensor(prompt) != 9).long(),
            "completion_ids": torch.tensor(completion), "completion_mask": (torch.tensor(completion) != 9).long(),
            "advantages": torch.tensor([float(row[0]) for row in completion]),
            "old_per_token_logps": -torch.tensor(completion).float(), "num_items_in_batch": torch.tensor(4),
        }  # fmt: skip

    old = rollouts([[9, 1], [9, 1], [2, 2], [2, 2]], [[3, 9], [3, 3], [4, 4], [4, 9]])
    new = rollouts([[5, 5, 5], [5, 5, 5], [9, 9, 6], [9, 9, 6]], [[7], [7], [8], [8]])
    found = replace_groups(old, new, {0: 1}, size=2, pad_token_id=9)
    assert found["prompt_ids"].tolist() == [[9, 9, 6], [9, 9, 6], [9, 2, 2], [9, 2, 2]]
    assert found["prompt_mask"].tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]]
    assert found["completion_ids"].tolist() == [[8, 9], [8, 9], [4, 4], [4, 9]]
    assert found["completion_mask"].tolist() == [[1, 0], [1, 0], [1, 1], [1, 0]]
    assert found["advantages"].tolist() == [8.0, 8.0, 4.0, 4.0]
    assert found["old_per_token_logps"].tolist() == [[-8.0, 0.0], [-8.0, 0.0], [-4.0, -4.0], [-4.0, -9.0]]
    assert replace_groups(old, new, {}, 2, 9) is old


@pytest.mark.parametrize("size", [6, 7, 8, 10, 16])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_what_is_flat_is_seen_in_the_rewards(size, aggregation):
    """By TRL's arithmetic the advantages of equal rewards of .1 are not 0."""
    rewards = torch.tensor([[[0.0, 1.0]] * size, [[1.0, 1.0]] * size, [[0.0, 1.0]] * (size - 1) + [[1.0, 1.0]]])
    rewards[1, 0] = torch.nan  # could not be judged
    rewards, weights = rewards.view(-1, 2), torch.tensor([1.0, 0.1])
    grouped = total(rewards, weights).view(-1, size)
    advantages = (grouped - grouped.nanmean(1, keepdim=True)).nan_to_num(0.0).flatten()
    assert size == 6 or flat_groups(advantages, size) != [0, 1], "or this test tests nothing"
    for rank, found in enumerate(advantages.clone().view(3, -1)):  # three processes, a group each
        args = SimpleNamespace(process_index=rank)
        trained = SimpleNamespace(
            args=args, multi_objective_aggregation=aggregation, reward_weights=weights, num_generations=size
        )
        settle(trained, rewards, {"advantages": found})
        assert flat_groups(found, size) == ([0] if rank < 2 else [])
        assert rank < 2 or torch.equal(found, advantages[2 * size :])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_with_a_demonstration_are_flat_exactly_too(scale):
    rewards = torch.tensor([[0.1] * 8, [1.1] * 7 + [torch.nan], [0.1] * 7 + [1.1]])
    found = group_advantages(rewards, scale)
    assert (found[:2] == 0).all() and (found[2].abs() > 0.01).all()


# ---- skip ----


def test_rewards_that_float32_does_not_have_are_flat_too(tmp_path):
    """Format is worth .1 by default, so the commonest flat group is one of .1 each."""
    steps = {}
    for choice in ("keep", "skip"):
        seen: list[int] = []
        trained = toy.trainer(
            tmp_path / choice, schedule="grpo", sft_warmup_steps=0, max_steps=3, num_generations=8, flat_groups=choice,
            rewards=lambda completions, **_: [0.1] * len(completions), per_device_train_batch_size=16,
        )  # fmt: skip
        loss = trained._compute_loss
        trained._compute_loss = lambda model, part, loss=loss, seen=seen: (
            seen.append(len(part["advantages"])) or loss(model, part)
        )
        trained.train()
        steps[choice] = seen
        if choice == "skip":
            assert [norm for (norm,) in toy.history(trained, "grad_norm")] == [0.0] * 3
    assert steps == {"keep": [16] * 3, "skip": [1] * 3}  # one, so that the step takes place


@pytest.mark.parametrize("loss_type", LOSSES)
def test_skipping_changes_no_gradient_and_saves_the_passes(tmp_path, loss_type):
    settings = {
        "schedule": "grpo", "sft_warmup_steps": 0, "data": levels(24), "rewards": by_level, "max_steps": 6,
        "loss_type": loss_type, "gradient_accumulation_steps": 2, "num_iterations": 2, "steps_per_generation": 2,
        "epsilon_high": 5.0 if loss_type == "cispo" else 0.2,
        "importance_sampling_level": "sequence" if loss_type == "luspo" else "token",
    }  # fmt: skip
    found, tokens = {}, {}
    for choice in ("keep", "skip"):
        seen: list[int] = []
        trained = toy.trainer(tmp_path / choice, flat_groups=choice, **settings)
        trained.model.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len(kwargs["input_ids"])) if module.training else None,
            with_kwargs=True,
        )
        trained.train()
        found[choice] = toy.history(trained, "loss", "grad_norm", "sasr/rollout_tokens")
        tokens[choice] = sum(seen)
    for kept, skipped in zip(found["keep"], found["skip"], strict=True):
        assert skipped == pytest.approx(kept, rel=2e-4, abs=2e-6)
    assert any(norm > 0.01 for _, norm, _ in found["keep"])
    assert tokens["skip"] < 0.8 * tokens["keep"]


def test_a_step_of_flat_groups_alone_still_takes_place(tmp_path):
    """Adam goes on with its moments, as it would have."""
    after = []
    for choice in ("keep", "skip"):
        trained = toy.trainer(
            tmp_path / choice, schedule="alternate", rewards=lambda completions, **_: [1.0] * len(completions),
            flat_groups=choice, max_steps=8,
        )  # fmt: skip
        trained.train()
        assert trained.counts["grpo_steps"] == 2
        after.append(torch.cat([p.detach().flatten() for p in trained.model.parameters()]))
    torch.testing.assert_close(*after)


def test_what_a_demonstration_gave_an_advantage_is_not_skipped(tmp_path):
    """LUFFY and HPT change advantages after TRL has computed them."""
    for schedule in ("luffy", "hpt"):
        norms = []
        for choice in ("keep", "skip"):
            trained, _ = run(
                tmp_path / f"{schedule}-{choice}", schedule=schedule, data=levels(), rewards=by_level,
                flat_groups=choice, max_steps=3,
            )  # fmt: skip
            norms.append([norm for (norm,) in toy.history(trained, "grad_norm")])
        assert norms[0] == pytest.approx(norms[1], rel=1e-4) and max(norms[0]) > 0.01


# ---- resample ----


@pytest.mark.parametrize("slices", [1, 2])
def test_flat_groups_are_asked_anew(tmp_path, slices):
    """A third of the rows can have a spread at all. What is trained on has one, where three rounds found one."""
    trained, steps = run(
        tmp_path, schedule="grpo", data=levels(24), rewards=by_level, flat_groups="resample", max_steps=6,
        per_device_train_batch_size=16 // slices, steps_per_generation=slices, gradient_accumulation_steps=slices,
    )  # fmt: skip
    spread = Counter()
    for step in steps:
        for part in trained._buffered_inputs if step is steps[-1] else ():
            spread["of the last"] += int((part["advantages"] != 0).sum())
        for row in {rollout.row for rollout in step.rollouts}:
            spread[row % 3] += 1
        assert len(step.rollouts) == 16 and len({r.row for r in step.rollouts}) >= 3
    assert spread[2] > 0.6 * (spread[0] + spread[1] + spread[2]), "by chance it would be a third"
    assert spread["of the last"] > 0
    log = toy.history(trained, "sasr/questions", "sasr/unsolved", "sasr/rollout_tokens", "grad_norm")
    assert all(4 < questions <= 16 for questions, *_ in log), "four, and at most four more in each of three rounds"
    assert trained.rl_stream.position == sum(questions for questions, *_ in log)
    # Tokens that were generated and thrown away are spent, and counted.
    kept = sum(len(rollout.completion) for step in steps for rollout in step.rollouts)
    assert log[-1][2] > 1.3 * kept


def test_a_step_is_judged_by_all_its_generations(tmp_path, monkeypatch):
    """Not by the last one, which is of a few questions in the place of flat ones."""
    seen = []
    observe = Watch.observe
    monkeypatch.setattr(Watch, "observe", lambda self, step: (seen.append(step), observe(self, step))[1])
    trained, _ = run(
        tmp_path, schedule="grpo", data=levels(24), rewards=by_level, flat_groups="resample", max_steps=6,
        per_device_train_batch_size=16,
    )  # fmt: skip
    assert any(questions > 4 for (questions,) in toy.history(trained, "sasr/questions"))
    assert any(step.flat for step in seen) and all(step.flat < 1 for step in seen if step.norm)
    selection = trained.selection
    assert len(selection.asked_before) + len(selection.asked) == len(selection.outcomes)


def test_the_denominator_of_resampled_rollouts_is_their_own_tokens(tmp_path):
    trained, steps = run(
        tmp_path, schedule="grpo", data=levels(24), rewards=by_level, flat_groups="resample", max_steps=4,
        per_device_train_batch_size=16,
    )  # fmt: skip
    (part,) = trained._buffered_inputs
    assert int(part["num_items_in_batch"]) == int(part["completion_mask"].sum())
    assert sum(len(r.completion) for r in steps[-1].rollouts) == int(part["completion_mask"].sum())


def test_without_any_spread_the_rounds_end(tmp_path):
    trained, _ = run(
        tmp_path, schedule="grpo", rewards=lambda completions, **_: [math.nan] * len(completions),
        flat_groups="resample", max_steps=2, per_device_train_batch_size=16,
    )  # fmt: skip
    assert toy.history(trained, "sasr/questions", "grad_norm") == [(16.0, 0.0)] * 2
