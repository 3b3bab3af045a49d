"""The trainer against independent implementations: stock TRL, a plain training loop, plain cross-entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

import toy
from sasr.demonstrations import collate
from sasr.schedules import StepPlan
from sasr.streams import RowStream


def stock_trl(tmp_path, data, **changes):
    args = toy.settings(tmp_path, schedule="grpo", sft_warmup_steps=0, **changes)
    names = {f for f in GRPOConfig.__dataclass_fields__} & set(vars(args))
    # Keys that TRL derives from others may not be passed on with them.
    values = {k: v for k, v in vars(args).items() if k in names and k != "generation_batch_size"}
    stock = GRPOTrainer(
        model=toy.model(),
        reward_funcs=toy.reward,
        args=GRPOConfig(**values),
        train_dataset=data,
        processing_class=toy.tokenizer(),
    )
    stock.train()
    return stock


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"steps_per_generation": 2, "num_iterations": 2},
        {"loss_type": "grpo", "lr_scheduler_type": "cosine", "warmup_steps": 3},
    ],
    ids=["default", "accumulation", "rollout-reuse", "cosine"],
)
def test_grpo_without_warmup_equals_stock_trl(tmp_path, changes):
    data = toy.rows(16)  # a multiple of the prompts per generation: TRL drops what is left over in a pass
    keys = ("loss", "grad_norm", "learning_rate", "reward", "entropy", "num_tokens")
    stock = toy.history(stock_trl(tmp_path / "stock", data, **changes), *keys)
    ours = toy.trainer(tmp_path / "ours", data=data, schedule="grpo", sft_warmup_steps=0, **changes)
    ours.train()
    assert len(stock) == 12
    assert any(norm > 0 for _, norm, *_ in stock), "the trajectory must not be trivial"
    assert toy.history(ours, *keys) == stock


def plain_sft(steps: int, batch: int, rates: list[float], max_grad_norm: float = 1.0):
    """Cross-entropy training as one would write it by hand, on the rows that the trainer's stream yields."""
    lm, tokenizer, data = toy.model(), toy.tokenizer(), toy.rows()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1.0, weight_decay=0.0)
    stream = RowStream(len(data), toy.settings("unused").seed + 1)
    history = []
    for step in range(steps):
        chosen = [data[i] for i in stream.take(batch)]
        texts = [row["prompt"] + row["completion"] + "<eos>" for row in chosen]
        encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        labels[:, : len("1+2=")] = -100
        loss = lm(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
        history.append((loss.item(), norm.item()))
    return history


def test_sft_schedule_equals_plain_cross_entropy_training(tmp_path):
    ours = toy.trainer(tmp_path, schedule="sft", sft_warmup_steps=4, sft_hybrid_learning_rate=1e-3)
    ours.train()
    # constant in the warm-up, then TRL's default shape, linear to zero, over the 8 steps that follow
    rates = [3e-3] * 4 + [1e-3 * (8 - i) / 8 for i in range(8)]
    np.testing.assert_allclose([r for (r,) in toy.history(ours, "learning_rate")], rates, rtol=1e-12)
    np.testing.assert_allclose(toy.history(ours, "loss", "grad_norm"), plain_sft(12, 8, rates), rtol=1e-5)


def first_sft_gradient(tmp_path, rule=None, **changes):
    """Gradient (flat), norm and loss of the first SFT step: of the warm-up, or as a rule of its own has it."""
    seen = {}
    kind = {"sft_warmup_steps": 1} if rule is None else {"sft_warmup_steps": 0, "schedule": "sft"}

    class Spy(toy.SASRTrainer):
        def _get_grad_norm(self, model, grad_norm=None):
            norm = super()._get_grad_norm(model, grad_norm)
            seen["gradient"] = torch.cat([p.grad.flatten() for p in self.model.parameters()]).clone().cpu()
            seen["norm"] = float(norm)
            return norm

    spy = Spy(
        model=toy.model(),
        reward_funcs=toy.reward,
        args=toy.settings(tmp_path, max_steps=1, max_grad_norm=0.0, **kind, **changes),
        schedule=rule,
        train_dataset=ragged_rows(),
        processing_class=toy.tokenizer(),
    )
    spy.train()
    return seen["gradient"], seen["norm"], toy.history(spy, "loss")[0][0], spy


def ragged_rows():
    """Demonstrations of very different lengths, which a mean of micro-batch means would weigh wrongly."""
    return toy.rows(16).map(
        lambda row, i: {"completion": row["completion"] * (1 + 5 * (i % 3 == 0))}, with_indices=True
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7], ids=["fused-head", "plain-head"])
def test_sft_gradient_is_the_same_for_every_split_of_the_batch(tmp_path, temperature):
    results = {}
    for size, accumulation in [(16, 1), (8, 2), (4, 4)]:
        results[size] = first_sft_gradient(
            tmp_path / str(size),
            per_device_sft_batch_size=size,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            temperature=temperature,
        )
    gradient, norm, loss, spy = results[16]
    for size in (8, 4):
        np.testing.assert_allclose(results[size][1], norm, rtol=1e-5)
        np.testing.assert_allclose(results[size][2], loss, rtol=1e-5)
        difference = torch.linalg.norm(results[size][0] - gradient) / torch.linalg.norm(gradient)
        assert difference < 1e-5
    # ... and it is transformers' own cross-entropy on that batch, whatever the sampling temperature.
    lm = toy.model()
    stream = RowStream(16, spy.args.seed + 1)
    batch = collate([spy.demonstrations[i] for i in stream.take(16)], pad_token_id=0)
    reference = lm(**batch).loss
    reference.backward()
    expected = torch.cat([p.grad.flatten() for p in lm.parameters()])
    np.testing.assert_allclose(loss, reference.item(), rtol=1e-5)
    assert torch.linalg.norm(gradient - expected) / torch.linalg.norm(expected) < 1e-5
    np.testing.assert_allclose(norm, torch.linalg.norm(expected).item(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7], ids=["fused-head", "plain-head"])
def test_phi_weights_tokens_by_p_times_one_minus_p(tmp_path, temperature):
    """The gradient of -sum p (1 - p) log p / tokens with p held fixed, by hand on the same batch."""
    gradient, _, _, spy = first_sft_gradient(
        tmp_path, per_device_sft_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=2,
        temperature=temperature, rule=OnlySftPhi(),
    )  # fmt: skip
    lm = toy.model()
    batch = collate([spy.demonstrations[i] for i in RowStream(16, spy.args.seed + 1).take(16)], pad_token_id=0)
    labels = batch["labels"][:, 1:]
    logits = lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    p = logps.detach().exp()
    (-(p * (1 - p) * logps).sum() / len(logps)).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in lm.parameters()])
    assert torch.linalg.norm(gradient - expected) / torch.linalg.norm(expected) < 1e-5
    # the logged loss stays the plain negative log-likelihood
    logged = toy.history(spy, "sasr/sft_loss")[0][0]
    assert logged == pytest.approx(-float(logps.detach().mean()), rel=1e-5)


class OnlySftPhi:
    needs_warmup = False

    def plan(self, signals):
        return StepPlan(1.0, 0.0, 1.0, token_weight="phi")

    def uses(self, warmup_steps, total_steps):
        return True, False


def test_step_with_both_losses_has_the_weighted_sum_of_the_gradients(tmp_path):
    """Each loss keeps its own global denominator; the rollouts are the same because the seed is."""

    class Fixed:
        needs_warmup = False

        def __init__(self, sft, grpo):
            self.weights = (sft, grpo)

        def plan(self, signals):
            return StepPlan(*self.weights, sft_probability=0.0)

        def uses(self, warmup_steps, total_steps):
            return True, True

    gradients = {}
    for weights in [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)]:
        trained = toy.trainer(
            tmp_path / str(weights),
            more={"schedule": Fixed(*weights)},
            schedule="grpo",
            sft_warmup_steps=0,
            max_steps=1,
            gradient_accumulation_steps=2,
            max_grad_norm=0.0,
        )
        norm = trained._get_grad_norm

        def spy(model, grad_norm=None, norm=norm, weights=weights):
            gradients[weights] = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()
            return norm(model, grad_norm)

        trained._get_grad_norm = spy
        trained.train()
    expected = 0.3 * gradients[1.0, 0.0] + 2.0 * gradients[0.0, 1.0]
    assert torch.linalg.norm(gradients[0.3, 2.0] - expected) / torch.linalg.norm(expected) < 1e-5
    assert gradients[0.0, 1.0].norm() > 0
