"""Token weights, advantages, hints and the division over ranks, by hand and by property; no training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from sasr import InputError
from sasr.demonstrations import Demonstration
from sasr.schedules import StepPlan
from sasr.selection import Chosen, Selection, check_fresh, divide, group_advantages
from sasr.spread import total
from sasr.token_weights import TOKEN_WEIGHTS

NAN = math.nan
probabilities = st.floats(1e-4, 1.0)
advantage = st.floats(-5, 5)


# ---- token weights ----


def weight(name: str, p: float, a: float = 1.0, parameter: float = 0.0) -> float:
    logps = torch.tensor([[math.log(p)]], dtype=torch.float64, requires_grad=True)
    found = TOKEN_WEIGHTS[name](logps, torch.tensor([[a]], dtype=torch.float64), parameter)
    assert not found.requires_grad and found.shape == (1, 1)
    return found.item()


@pytest.mark.parametrize(
    ("name", "p", "a", "parameter", "expected"),
    [
        ("uniform", 0.3, 2.0, 7.0, 1.0),
        ("phi", 0.25, 2.0, 7.0, 0.1875),
        ("shaped_ratio", 0.1, 1.0, 0.1, 0.25),  # .1 * .1 / .2 ** 2: the largest there is
        ("shaped_ratio", 1.0, -2.0, 0.25, -0.32),  # -2 * .25 / 1.25 ** 2
        ("shaped_ratio", 0.01, 1.5, 0.09, 1.5 * 0.09),
        ("sft_and_ratio", 0.5, 2.0, 0.25, 1.25),
        ("sft_and_ratio", 0.5, -2.0, 0.25, -0.75),
        ("sft_and_ratio", 0.5, 0.0, 0.25, 0.25),
    ],
)
def test_token_weights_by_hand(name, p, a, parameter, expected):
    assert weight(name, p, a, parameter) == pytest.approx(expected, rel=1e-12)


@given(p=probabilities, a=advantage, c=st.floats(1e-3, 10))
def test_shaped_ratio_is_the_derivative_of_the_shaped_objective(p, a, c):
    logp = torch.tensor(math.log(p), dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(a * logp.exp() / (logp.exp() + c), logp)
    assert weight("shaped_ratio", p, a, c) == pytest.approx(derivative.item(), rel=1e-9, abs=1e-12)


@given(p=probabilities, a=advantage, w=st.floats(0, 1))
def test_sft_and_ratio_is_the_derivative_of_likelihood_plus_ratio(p, a, w):
    logp = torch.tensor(math.log(p), dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(w * logp + a * logp.exp(), logp)
    assert weight("sft_and_ratio", p, a, w) == pytest.approx(derivative.item(), rel=1e-9, abs=1e-12)
    assert weight("sft_and_ratio", p, a, w) == pytest.approx(w + a * p, rel=1e-9, abs=1e-12)


def test_an_advantage_weighs_every_token_of_its_demonstration():
    logps = torch.tensor([[0.5, 0.25], [0.5, 0.25]]).log()
    found = TOKEN_WEIGHTS["sft_and_ratio"](logps, torch.tensor([[2.0], [-1.0]]), 0.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5], [-0.5, -0.25]]))


# ---- advantages ----


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # means 0.25 (of four), 1; deviations squared sum to 0.75, over n - 1 = 3: std 0.5; the second group has none
        ("none", [[-0.25, -0.25, -0.25, 0.75], [0.0, 0.0, 0.0, 0.0]]),
        ("group", [[-0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, 0.75 / 0.5001], [0.0, 0.0, 0.0, 0.0]]),
        # all seven known: mean 4 / 7, sum of squares 3 * (4 / 7) ** 2 + 4 * (3 / 7) ** 2 = 12 / 7, over 6
        ("batch", [[x / (math.sqrt(2 / 7) + 1e-4) for x in (-0.25, -0.25, -0.25, 0.75)], [0.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_group_advantages_by_hand(scale, expected):
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, NAN, 1.0]])
    torch.testing.assert_close(group_advantages(rewards, scale), torch.tensor(expected))


def test_a_single_known_member_has_no_advantage():
    """Its deviation is 0 and its standard deviation is not defined."""
    rewards = torch.tensor([[1.0, NAN, NAN]])
    assert group_advantages(rewards, "group").tolist() == [[0.0] * 3]
    assert group_advantages(torch.full((1, 3), NAN), "batch").tolist() == [[0.0] * 3]


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_group_advantages_are_those_of_trl(tmp_path, scale):
    """On rewards with gaps: two weighted functions, one of which does not judge everything, and some judged by none."""

    def second(completions, **_):
        return [None if c.startswith(("1", "2", "3")) else len(c) / 4 for c in completions]

    def first(completions, **_):
        return [None if c.startswith(("1", "4", "5")) else float(c[:1] in "6789") for c in completions]

    trained = toy.trainer(
        tmp_path, rewards=[first, second], schedule="grpo", sft_warmup_steps=0, max_steps=2, scale_rewards=scale,
        reward_weights=[1.0, 0.3], per_device_train_batch_size=32,
    )  # fmt: skip
    seen = []
    trained.on_rollouts = lambda rewards, output: seen.append((rewards, output["advantages"]))
    trained.train()
    for rewards, advantages in seen:
        assert rewards.isnan().any(0).all() and rewards.isnan().all(1).any()
        ours = group_advantages(total(rewards, trained.reward_weights).view(-1, 4), scale)
        torch.testing.assert_close(ours.flatten(), advantages)


# ---- hints ----


def selection(step: int = 0, seed: int = 3, rows: int = 50, known: int | None = None) -> Selection:
    demonstrations = [Demonstration([9], [*range(10, 20 + i % 7), 1]) for i in range(rows)]
    trainer = SimpleNamespace(
        args=SimpleNamespace(seed=seed),
        state=SimpleNamespace(global_step=step),
        demonstrations=demonstrations,
        demonstration_of_row={i: i for i in range(rows if known is None else known)},
    )
    chosen = Selection(trainer)
    chosen.asked = list(range(rows))
    return chosen


def plan(hint: float) -> StepPlan:
    return StepPlan(0.001, 1.0, 0.5, demonstrations="hints", hint=hint)


@given(p=st.floats(0, 1), step=st.integers(0, 1000), seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_hints_are_fifths_of_demonstrations_without_their_end(p, step, seed):
    chosen = selection(step, seed)
    hints = chosen.hints(plan(p))
    assert hints == selection(step, seed).hints(plan(p))
    for hint, demonstration in zip(hints, chosen.trainer.demonstrations, strict=True):
        body = demonstration.completion_ids[:-1]
        assert hint == body[: len(hint)]
        assert len(hint) in {round(k / 5 * len(body)) for k in range(6)}


def test_hints_of_a_row_do_not_depend_on_the_others_asked():
    chosen = selection(step=7)
    hints = chosen.hints(plan(0.5))
    chosen.asked = [30, 4, 30]
    assert chosen.hints(plan(0.5)) == [hints[30], hints[4], hints[30]]
    assert selection(step=8).hints(plan(0.5)) != hints
    assert selection(step=7, seed=4).hints(plan(0.5)) != hints


@pytest.mark.parametrize("p", [0.05, 0.3, 0.95])
def test_mean_share_of_hints(p):
    chosen = selection(rows=2000)
    shares = [
        len(hint) / (len(d.completion_ids) - 1)
        for hint, d in zip(chosen.hints(plan(p)), chosen.trainer.demonstrations, strict=True)
    ]
    assert sum(shares) / len(shares) == pytest.approx(p, abs=0.02)  # 4 standard errors


def test_binomial_number_of_parts():
    """Of demonstrations of ten tokens each part is two: P(k parts) = C(5, k) / 32 at p = 1/2."""
    chosen = selection(rows=7 * 400)
    chosen.asked = chosen.asked[::7]
    lengths = [len(hint) for hint in chosen.hints(plan(0.5))]
    for k in range(6):
        assert lengths.count(2 * k) / 400 == pytest.approx(math.comb(5, k) / 32, abs=0.09)


def test_extremes_and_questions_without_demonstration():
    chosen = selection(known=10)
    assert chosen.hints(plan(0.0)) == [[]] * 50
    bodies = [d.completion_ids[:-1] for d in chosen.trainer.demonstrations]
    hints = chosen.hints(plan(1.0))
    assert hints == bodies[:10] + [[]] * 40
    hinted = chosen.hinted(hints)
    assert hinted.demonstrations == [Demonstration([9], body) for body in bodies[:10]]
    assert hinted.tokens == sum(map(len, bodies[:10]))


# ---- failed questions ----


@pytest.mark.parametrize(("decay", "share"), [(0.5, 2 / 3), (0.9, 10 / 19), (1.0, 1 / 2)])
def test_a_later_failure_is_drawn_first_as_often_as_its_weight_says(decay, share):
    """Of failures one and two steps ago, which weigh d and d ** 2: in 1 / (1 + d) of the draws."""
    first = 0
    for seed in range(3000):
        chosen = selection(step=10, seed=seed, rows=2)
        chosen.trainer.args.failed_decay, chosen.failed_at = decay, {0: 9, 1: 8}
        first += chosen._failed(1) == [0]
    assert first / 3000 == pytest.approx(share, abs=0.03)  # 3 standard errors


# ---- division ----


@given(count=st.integers(0, 40), parts=st.integers(1, 4), world=st.integers(1, 4), weighted=st.booleans())
@settings(max_examples=100, deadline=None)
def test_every_demonstration_is_in_exactly_one_part(count, parts, world, weighted):
    demonstrations = [Demonstration([5] * (1 + i % 3), [100 + i] * (1 + i % 4) + [1]) for i in range(count)]
    chosen = Chosen(demonstrations, [float(i) for i in range(count)] if weighted else None)
    by_rank = [divide(chosen, parts, rank, world, 0) for rank in range(world)]
    batches = [batch for passes in zip(*by_rank, strict=True) for batch in passes]  # what runs at one time is together
    assert len(batches) == parts * world
    found, weights = [], []
    for batch in batches:
        if batch is None:
            assert count == 0 or world == 1, "several ranks must run the same forward passes"
            continue
        real = [row for row in batch["labels"].tolist() if set(row) != {-100}]
        if not real:
            assert world > 1 and count
            assert batch["attention_mask"].sum() > 0
        found += [[token for token in row if token != -100] for row in real]
        assert ("advantages" in batch) == weighted
        if weighted:
            assert batch["advantages"].shape == (len(batch["labels"]), 1)
            weights += batch["advantages"].flatten().tolist() if real else []
            assert real or not batch["advantages"].any()
    order = sorted(range(count), key=lambda i: demonstrations[i].length) if len(batches) > 1 else range(count)
    assert found == [demonstrations[i].completion_ids for i in order], "complete, and neighbours of like length"
    assert weights == ([float(i) for i in order] if weighted else [])
    sizes = [0 if b is None or (b["labels"] == -100).all() else len(b["labels"]) for b in batches]
    full = -(-count // len(batches))
    assert sizes == [min(full, max(count - i * full, 0)) for i in range(len(batches))]


def test_division_by_hand():
    """Five over two ranks of two parts, the shortest first: 2, 1 | 2, a stand-in."""
    chosen = Chosen([Demonstration([5], [10 + i, *[20] * (5 - i), 1]) for i in range(5)])
    sizes = [[batch["input_ids"][:, 1].tolist() for batch in divide(chosen, 2, rank, 2, 0)] for rank in (0, 1)]
    assert sizes == [[[14, 13], [10]], [[12, 11], [10]]]
    assert set(divide(chosen, 2, 1, 2, 0)[1]["labels"].flatten().tolist()) == {-100}
    widths = [batch["input_ids"].size(1) for rank in (0, 1) for batch in divide(chosen, 2, rank, 2, 0)]
    assert widths == [5, 8, 7, 8], "each part is padded to its own longest"
    assert [None if b is None else len(b["labels"]) for b in divide(chosen, 4, 0, 1, 0)] == [2, 2, 1, None]


@pytest.mark.parametrize(("slices", "iterations", "accumulation"), [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)])
def test_fresh_rollouts(slices, iterations, accumulation):
    args = SimpleNamespace(
        steps_per_generation=slices,
        num_iterations=iterations,
        gradient_accumulation_steps=accumulation,
        rollouts_ahead=0,
    )
    with pytest.raises(InputError, match="rollouts of the same step"):
        check_fresh(args, "hpt")
    args.gradient_accumulation_steps = slices * iterations
    check_fresh(args, "hpt")
