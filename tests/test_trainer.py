"""What the trainer does beyond the equalities of test_trainer_equality.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

import toy
from sasr import InputError
from sasr.schedules import Sasr, draw


@pytest.mark.parametrize("useful", [0.0, 20.0])
def test_decisions_follow_the_rule_and_the_log_shows_it(tmp_path, useful):
    trained = toy.trainer(tmp_path, max_steps=30, gamma=0.8, useful_passes=useful)
    trained.train()
    batch = trained.args.per_device_sft_batch_size * trained.args.gradient_accumulation_steps
    log = toy.history(trained, "sasr/p_sft", "sasr/sft_weight", "sasr/sft_grad_norm", "grad_norm")
    warmup = [norm for *_, norm in log[:4]]
    scale, last, kinds = np.mean(warmup[2:]), warmup[-1], []
    for step, (p, sft, g_last, norm) in enumerate(log[4:], start=4):
        passes = (4 + sum(kinds)) * batch / len(trained.demonstrations)
        worth = np.exp(-passes / useful) if useful else 1.0
        assert p == pytest.approx(last * worth / (last * worth + 0.8 * scale), rel=1e-6)
        assert bool(sft) == (draw(trained.args.seed, step) < p)
        if sft:
            last = norm
        assert g_last == pytest.approx(last, rel=1e-6), "frozen between SFT steps"
        kinds.append(bool(sft))
    assert 5 < sum(kinds) < 21 and passes > 4


def test_p_reacts_to_a_policy_moved_off_the_demonstrations(tmp_path):
    """The claim behind the rule: the SFT gradient norm is larger far from the demonstrations than near them."""
    trained = toy.trainer(tmp_path, schedule="sft", sft_warmup_steps=60, max_steps=120)
    trained.train()
    near = trained.tracker.sft_grad_norm
    moved = toy.trainer(tmp_path / "moved", lm=trained.model, schedule="sft", sft_warmup_steps=1, max_steps=1)
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        for p in moved.model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=noise).to(p.device)
    moved.train()
    far = moved.tracker.sft_grad_norm
    assert far > 2 * near
    rule, scale = Sasr(), trained.tracker.warmup_grad_norm
    assert far / (far + rule.gamma * scale) > near / (near + rule.gamma * scale)


def test_learning_rates_by_kind_and_phase(tmp_path):
    trained = toy.trainer(
        tmp_path, max_steps=20, sft_hybrid_learning_rate=2e-4, lr_scheduler_type="cosine", warmup_steps=4
    )
    trained.train()
    for step, (rate, sft) in enumerate(toy.history(trained, "learning_rate", "sasr/sft_weight")):
        t = step - 4
        shape = t / 4 if t < 4 else 0.5 * (1 + np.cos(np.pi * (t - 4) / 12))
        expected = 3e-3 if t < 0 else (2e-4 if sft else 1e-3) * shape
        assert rate == pytest.approx(expected, rel=1e-9), step


def test_separate_moments_are_those_of_separate_optimizers(tmp_path):
    """Each kind's Adam sees only its own gradients: the second moments are recomputed by hand."""
    trained = toy.trainer(tmp_path, max_steps=16, separate_optimizer_states=True, max_grad_norm=0.0)
    seen = {"sft": [], "grpo": []}
    norm = trained._get_grad_norm

    def record(model, grad_norm=None):
        seen[trained.plan.kind].append(trained.model.model.norm.weight.grad.clone())
        return norm(model, grad_norm)

    trained._get_grad_norm = record
    trained.train()
    assert len(seen["sft"]) > 4 and len(seen["grpo"]) > 2
    parameter = trained.model.model.norm.weight
    for kind, gradients in seen.items():
        trained.optimizer_states.use(kind)
        state = trained.optimizer_states.optimizer.state[parameter]
        expected = torch.zeros_like(gradients[0])
        for gradient in gradients:
            expected = 0.999 * expected + 0.001 * gradient**2
        assert int(state["step"]) == len(gradients)
        torch.testing.assert_close(state["exp_avg_sq"], expected, rtol=1e-4, atol=1e-12)


def test_rows_without_demonstration_or_answer(tmp_path):
    data = Dataset.from_list(
        [
            {"prompt": "1+1=", "completion": "02", "answer": "02"},
            {"prompt": "1+2=", "completion": None, "answer": "03"},
            {"prompt": "1+3=", "completion": "04", "answer": None},
            {"prompt": "1+4=", "completion": "", "answer": "05"},
        ]
    )
    trained = toy.trainer(tmp_path, data=data)
    assert trained.rl_rows == [0, 1, 3]
    texts = [trained._tokenizer.decode(d.prompt_ids) for d in trained.demonstrations]
    assert texts == ["1+1=", "1+3="]
    asked = set()
    reward = trained.reward_funcs[0]

    def spy(prompts, **columns):
        asked.update(prompts)
        assert all(answer for answer in columns["answer"])
        return reward(prompts=prompts, **columns)

    trained.reward_funcs[0] = spy
    trained.train()
    assert asked == {"1+1=", "1+2=", "1+4="}


def test_separate_demonstration_dataset(tmp_path):
    demonstrations = Dataset.from_list([{"prompt": "2+2=", "completion": "04"}])
    data = toy.rows().remove_columns("completion")
    trained = toy.trainer(tmp_path, data=data, more={"demonstration_dataset": demonstrations})
    assert len(trained.demonstrations) == 1 and len(trained.rl_rows) == 24
    trained.train()
    assert trained.counts["sft_steps"] > 4


def test_sft_needs_no_reward_and_no_answers(tmp_path):
    data = toy.rows().remove_columns("answer")
    trained = toy.SASRTrainer(
        model=toy.model(),
        args=toy.settings(tmp_path, schedule="sft"),
        train_dataset=data,
        processing_class=toy.tokenizer(),
    )
    trained.train()
    studied = 12 * 8
    expected = {"sft_steps": 12, "demonstrations": studied, "sft_tokens": studied * 3}
    assert trained.counts == {**expected, "grpo_steps": 0, "rollout_tokens": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": toy.rows().remove_columns("completion")}, "no row has a demonstration"),
        ({"data": toy.rows().map(lambda row: {"answer": None})}, "no row has an answer to verify"),
        ({"max_prompt_length": 3}, "has 4 tokens, more than max_prompt_length"),
        ({"more": {"demonstration_dataset": toy.rows().remove_columns("completion")}}, "no row has a demonstration"),
        ({"max_steps": -1, "num_train_epochs": 0.1}, "longer than the run"),
    ],
)
def test_unusable_input(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        toy.trainer(tmp_path, **change).train()


def test_learning_rate_that_depends_on_its_history(tmp_path):
    lm = toy.model()
    optimizer = torch.optim.AdamW(lm.parameters())
    stepwise = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(InputError, match="depends on its history"):
        toy.trainer(tmp_path, lm=lm, more={"optimizers": (optimizer, stepwise)}).train()


def test_reward_is_needed_for_grpo(tmp_path):
    with pytest.raises(InputError, match="no reward"):
        toy.SASRTrainer(
            model=toy.model(), args=toy.settings(tmp_path), train_dataset=toy.rows(), processing_class=toy.tokenizer()
        )


def test_a_run_without_any_norm_ends_with_a_clear_error(tmp_path, monkeypatch):
    """DeepSpeed stage 0 in fp32 returns None: never a silent run of pure GRPO."""
    trained = toy.trainer(tmp_path)
    monkeypatch.setattr(toy.SASRTrainer.__mro__[1], "_get_grad_norm", lambda self, model, grad_norm=None: None)
    with pytest.raises(ValueError, match="no SFT gradient norm was measured"):
        trained.train()
    assert trained.state.global_step == 4


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["initial", "warmup"])
def test_reference_model_of_beta(tmp_path, kind):
    """Before the warm-up or at its end; GRPO's KL starts at 0 only from the latter."""
    lm = toy.model(directory=tmp_path / "lm")
    start = weights(lm)
    trained = toy.trainer(
        tmp_path / "run", lm=lm, schedule="static", beta=0.1, reference_model=kind, save_strategy="steps", save_steps=4
    )
    trained.train()
    reference = weights(trained.ref_model)
    if kind == "initial":
        assert torch.equal(reference, start)
        assert not (tmp_path / "run" / "reference_model").exists()
    else:
        policy = type(lm).from_pretrained(tmp_path / "run" / "checkpoint-4")
        assert torch.equal(reference, weights(policy))
        assert (tmp_path / "run" / "reference_model" / "weights.safetensors").exists()
    # vLLM loads all that lies beside the model, whatever its name.
    assert [path.name for path in (tmp_path / "run" / "checkpoint-4").glob("*.safetensors")] == ["model.safetensors"]
    trained.save_model()
    assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == ["model.safetensors"]
    first_kl = next(kl for (kl,) in toy.history(trained, "kl") if kl is not None)
    assert (first_kl < 1e-6) == (kind == "warmup")


def test_lora_with_beta_measures_against_the_base_model(tmp_path):
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    trained = toy.trainer(tmp_path, beta=0.1, more=lora)
    assert trained.reference.kind == "initial"
    base = weights(trained.model.get_base_model())[:100]
    trained.train()
    assert trained.counts["sft_steps"] > 4 and trained.counts["grpo_steps"] > 0
    assert {n for n, p in trained.model.named_parameters() if p.requires_grad and "lora_" not in n} == set()
    assert torch.equal(weights(trained.model.get_base_model())[:100], base)
    with pytest.raises(InputError, match="only initial is possible"):
        toy.trainer(tmp_path / "b", beta=0.1, reference_model="warmup", more=lora)


def test_an_adapter_on_a_base_in_bfloat16_is_in_float32(tmp_path):
    """Else a rate like this would leave most of it where it is."""
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    rates = {"learning_rate": 1e-6, "sft_learning_rate": 1e-6, "schedule": "alternate"}
    trained = toy.trainer(tmp_path, lm=toy.model().bfloat16(), max_steps=6, **rates, more=lora)
    own = {name: p for name, p in trained.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in own.items()}
    trained.train()
    assert {p.dtype for p in own.values()} == {torch.float32} and trained.model.dtype == torch.bfloat16
    assert torch.cat([(p.detach() != before[name]).flatten() for name, p in own.items()]).float().mean() > 0.99


@pytest.mark.parametrize("kind", ["initial", "warmup"])
def test_divergence_probe_estimates_the_exact_kl(tmp_path, kind):
    """Against KL(reference || policy) by enumeration of the vocabulary at every position of the probe."""
    trained = toy.trainer(
        tmp_path,
        schedule="sasr",
        divergence_weight=0.5,
        divergence_every=1,
        divergence_probe=24,
        reference_model=kind,
        max_completion_length=16,
        max_steps=24,
        save_strategy="steps",
        save_steps=4,
    )
    start = toy.model()
    trained.train()
    log = toy.history(trained, "sasr/divergence")
    assert all(d is None for (d,) in log[:4])
    assert (log[4][0] < 1e-6) == (kind == "warmup"), "no drift yet, or all of the warm-up's"
    reference = start if kind == "initial" else type(start).from_pretrained(tmp_path / "checkpoint-4")
    measured, probe, policy = trained.reference._measure(), trained.reference.probe, trained.model
    with torch.no_grad():
        inputs = {"input_ids": probe["input_ids"], "attention_mask": probe["attention_mask"]}
        length = probe["mask"].size(1)
        p, q = (m(**inputs).logits[:, -length - 1 : -1].log_softmax(-1) for m in (reference, policy.cpu()))
    exact = ((p.exp() * (p - q)).sum(-1) * probe["mask"]).sum() / probe["mask"].sum()
    assert measured == pytest.approx(float(exact), rel=0.25)
    assert float(exact) > 0.01
    drifts = [d for (d,) in log[4:]]
    assert drifts[-1] > drifts[0]


def test_divergence_of_beta_is_grpos_own_kl(tmp_path):
    lm = toy.model(directory=tmp_path / "lm")
    trained = toy.trainer(
        tmp_path / "run", lm=lm, beta=0.05, divergence_weight=0.5, max_steps=20, gradient_accumulation_steps=2
    )
    trained.train()
    last = 0.0
    for divergence, kl in toy.history(trained, "sasr/divergence", "kl")[4:]:
        last = last if kl is None else kl
        assert divergence == pytest.approx(last, rel=1e-6, abs=1e-12)
    assert last > 0


def test_the_probe_does_not_move_the_random_state(tmp_path):
    """A run that measures the divergence but gives it next to no weight decides and samples as one that does not."""
    histories = []
    for changes in ({"divergence_weight": 1e-12, "divergence_every": 1}, {}):
        trained = toy.trainer(tmp_path / str(len(histories)), max_steps=20, **changes)
        trained.train()
        assert (trained.tracker.divergence is not None) == bool(changes)
        histories.append(toy.history(trained, "loss", "grad_norm", "reward"))
    assert histories[0] == histories[1]


def test_token_counts_include_sft(tmp_path):
    trained = toy.trainer(tmp_path, schedule="static", max_steps=8)
    trained.train()
    assert trained.counts["sft_tokens"] == 4 * 8 * 3  # two digits and the end token
    prompts = 4 * 8 * 4 * 2  # four steps of SFT and four of GRPO, 8 sequences, 4 prompt tokens
    assert (
        trained.state.num_input_tokens_seen == prompts + trained.counts["sft_tokens"] + trained.counts["rollout_tokens"]
    )


def test_completion_tables_only_from_steps_with_rollouts(tmp_path):
    trained = toy.trainer(tmp_path, log_completions=True, max_steps=16)
    trained.train()
    tables = {int(p.stem.rpartition("_")[2]) for p in (tmp_path / "completions").glob("*.parquet")}
    with_rollouts = {e["step"] for e in trained.state.log_history if e.get("sasr/grpo_weight")}
    assert tables - {16} == with_rollouts - {16}


def test_epochs_instead_of_steps(tmp_path):
    """24 prompts, two a GRPO step: one epoch is 12 steps."""
    trained = toy.trainer(tmp_path, max_steps=-1, num_train_epochs=1.5)
    trained.train()
    assert trained.state.global_step == 18


@pytest.mark.parametrize(
    ("changes", "micro_batches"),
    [
        ({}, 12),
        ({"num_iterations": 2}, 24),
        ({"steps_per_generation": 2}, 12),
        ({"steps_per_generation": 3, "num_iterations": 2}, 24),  # four generations of six prompts
    ],
    ids=str,
)
def test_an_epoch_is_one_pass_over_the_prompts(tmp_path, changes, micro_batches):
    trained = toy.trainer(tmp_path, schedule="grpo", sft_warmup_steps=0, **changes)
    assert len(trained.get_train_dataloader()) == micro_batches


def test_without_prompts_an_epoch_is_one_pass_over_the_demonstrations(tmp_path):
    data = toy.rows().map(lambda row: {"answer": None})
    epoch = {"schedule": "sft", "sft_warmup_steps": 0, "max_steps": -1, "num_train_epochs": 1}
    trained = toy.trainer(tmp_path, data=data, **epoch)
    trained.train()
    assert trained.state.global_step == 3 and trained.counts["demonstrations"] == 24


def test_evaluation_during_training_leaves_the_run_as_it_was(tmp_path):
    """But for the random state, which it draws completions from as stock TRL does: here put back."""
    changes = {"eval_strategy": "steps", "eval_steps": 4, "per_device_eval_batch_size": 8, "num_generations_eval": 4}
    settings = {"gamma": 0.5, "steps_per_generation": 2}  # evaluated in the middle of a generation
    trained = toy.trainer(tmp_path / "a", more={"eval_dataset": toy.rows(4)}, **settings, **changes)
    evaluate = trained.evaluate

    def apart(*arguments, **options):
        with torch.random.fork_rng():
            return evaluate(*arguments, **options)

    trained.evaluate = apart
    trained.train()
    evaluated = [entry for entry in trained.state.log_history if "eval_reward" in entry]
    assert [entry["step"] for entry in evaluated] == [4, 8, 12]
    assert trained.counts["sft_steps"] + trained.counts["grpo_steps"] == 12
    plain = toy.trainer(tmp_path / "b", **settings)
    plain.train()
    keys = ("loss", "grad_norm", "reward", "sasr/p_sft", "sasr/rollout_tokens")
    assert toy.history(trained, *keys) == toy.history(plain, *keys)
    assert min(plain.counts["sft_steps"] - 4, plain.counts["grpo_steps"]) > 2


def test_checkpoints_without_training_state(tmp_path):
    trained = toy.trainer(tmp_path, save_strategy="steps", save_steps=6, save_only_model=True)
    trained.train()
    assert (tmp_path / "checkpoint-6" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        toy.trainer(tmp_path).train(resume_from_checkpoint=True)


def test_tensorboard_gets_the_metrics(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trained = toy.trainer(tmp_path / "run", report_to="tensorboard")
    trained.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*")}
    events = EventAccumulator(str(folder)).Reload()
    shown = [scalar.value for scalar in events.Scalars("train/sasr/p_sft")]
    assert shown == pytest.approx([p for (p,) in toy.history(trained, "sasr/p_sft")])
