"""What few use of TRL's trainer and of ours together: it works as there, or says that it does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, TrainerCallback

import toy
from sasr import step_metrics
from sasr.errors import InputError
from sasr.schedules import GRPO_STEP, SFT_STEP, Hpt, Sasr


def test_a_reward_column_that_no_row_has(tmp_path):
    with pytest.raises(InputError, match=r"reward_columns: the rows have no 'anwser' \(did you mean answer\?\)"):
        toy.trainer(tmp_path, reward_columns=["anwser"])


def test_grpo_asks_the_rows_whose_reward_columns_are_filled(tmp_path):
    solutions = ["02", None, "04", ""]
    rows = [{"prompt": f"1+{i}=", "completion": f"0{1 + i}", "answer": "0", "solution": solutions[i]} for i in range(4)]
    trained = toy.trainer(tmp_path, data=Dataset.from_list(rows), reward_columns=["solution"])
    assert trained.rl_rows == [0, 2]


def test_groups_of_an_optimizer_of_ones_own_keep_the_ratio_of_their_rates(tmp_path):
    lm = toy.model()
    head = list(lm.lm_head.parameters())
    others = [p for p in lm.parameters() if all(p is not own for own in head)]
    optimizer = torch.optim.AdamW([{"params": others, "lr": 1e-3}, {"params": head, "lr": 1e-4}])
    trained = toy.trainer(tmp_path, lm=lm, schedule="static", max_steps=8, more={"optimizers": (optimizer, None)})
    rates = []

    class Callback(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            rates.append([group["lr"] for group in optimizer.param_groups])

    trained.add_callback(Callback())
    trained.train()
    # 3e-3 in the warm-up; then, falling in a line, 1e-3.
    expected = [3e-3] * 4 + [1e-3 * (1 - i / 4) for i in range(4)]
    assert [first for first, _ in rates] == pytest.approx(expected)
    assert [second for _, second in rates] == pytest.approx([rate / 10 for rate in expected])


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_is_where_it_is_said_to_be(tmp_path, limit):
    place = tmp_path / "run"
    trained = toy.trainer(
        place,
        max_steps=8,
        schedule="static",
        sft_warmup_steps=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=limit,
        metric_for_best_model="eval_reward",
        per_device_eval_batch_size=8,
        more={"eval_dataset": toy.rows(8)},
    )
    rates = iter([0.1, 0.9, 0.2, 0.3])
    evaluate = trained._evaluate
    trained._evaluate = lambda *a, **k: (evaluate(*a, **k) or {}) | {"eval_reward": next(rates)}
    determine = trained._determine_best_metric
    trained._determine_best_metric = lambda metrics, trial: determine(metrics=metrics, trial=trial)
    trained.train()
    assert trained.state.best_model_checkpoint == str(place / "checkpoint-4")
    kept = sorted(p.name for p in place.glob("checkpoint-*"))
    assert kept == (["checkpoint-4"] if limit == 1 else ["checkpoint-4", "checkpoint-8"])
    assert ".unfinished" not in (place / "checkpoint-4" / "trainer_state.json").read_text()


def test_completions_of_every_log_that_had_rollouts(tmp_path):
    settings = {"schedule": "alternate", "sft_warmup_steps": 0, "max_steps": 4}
    toy.trainer(tmp_path, log_completions=True, logging_steps=2, **settings).train()
    assert len(list((tmp_path / "completions").glob("*"))) == 2


def measured(directory, **changes):
    """A trained run, and what its watch was told."""
    trained, seen = toy.trainer(directory, lm=toy.model(directory=directory / "lm"), **changes), []
    observe = trained.watch.observe
    trained.watch.observe = lambda step: seen.append(step) or observe(step)
    trained.train()
    return trained, seen


@pytest.mark.parametrize(
    "changes",
    [{"schedule": "srft", "sft_warmup_steps": 0}, {"beta": 0.05, "divergence_weight": 0.5}, {"schedule": "static"}],
    ids=str,
)
def test_how_often_a_run_logs_changes_nothing(tmp_path, changes):
    """What a step measured stands beside that of all steps since the last log."""
    (often, steps), (seldom, same_steps) = (
        measured(tmp_path / str(every), max_steps=15, logging_steps=every, **changes) for every in (1, 5)
    )
    assert same_steps == steps and len(steps) == 15
    assert any(step.reward is not None for step in steps)
    weights, same_weights = often.model.state_dict(), seldom.model.state_dict()
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)


def test_a_rule_with_slots_can_be_saved(tmp_path):
    @dataclass(frozen=True, slots=True)
    class Mine:
        n: int = 2
        needs_warmup: ClassVar[bool] = False

        def plan(self, signals):
            return SFT_STEP if signals.step % self.n else GRPO_STEP

        def uses(self, warmup_steps, total_steps):
            return True, True

    trained = toy.trainer(
        tmp_path,
        max_steps=2,
        schedule="random",
        save_strategy="steps",
        save_steps=2,
        more={"schedule": Mine()},
        sft_warmup_steps=0,
    )
    trained.train()
    assert trained.fingerprint()["rule"].endswith("Mine {'n': 2}")


def test_the_order_of_a_messages_keys_is_nothing(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{a}+1="}], "answer": "1"} for a in range(8)])
    studied = [{"prompt": [{"content": f"{a}+1=", "role": "user", "name": None}], "completion": "1"} for a in range(8)]
    from sasr import SASRTrainer

    trained = SASRTrainer(
        model=toy.model(),
        reward_funcs=toy.reward,
        args=toy.settings(tmp_path, schedule="luffy", sft_warmup_steps=0),
        train_dataset=rows,
        demonstration_dataset=Dataset.from_list(studied),
        processing_class=tokenizer,
    )
    assert len(trained.demonstration_of_row) == 8


def test_the_row_of_a_long_prompt(tmp_path):
    rows = [{"prompt": "1+1=", "completion": None, "answer": "02"}] * 2
    rows.append({"prompt": "1+2+3+4=", "completion": "10", "answer": None})
    with pytest.raises(InputError, match="the prompt of row 3 has 8 tokens"):
        toy.trainer(tmp_path, data=Dataset.from_list(rows), max_prompt_length=5, schedule="random")
    asked = Dataset.from_list([{"prompt": "1+1=", "answer": "02"}, {"prompt": "1+2+3+4=", "answer": "10"}])
    with pytest.raises(InputError, match="the prompt of row 2 has 8 tokens"):
        toy.trainer(tmp_path, data=asked, max_prompt_length=5, schedule="grpo", sft_warmup_steps=0)


def test_rollouts_that_are_masked_were_generated(tmp_path):
    rows = [{"prompt": f"{a}+1=", "completion": None if a else "01", "answer": "1"} for a in range(8)]
    trained = toy.trainer(
        tmp_path,
        max_steps=3,
        schedule="luffy",
        sft_warmup_steps=0,
        data=Dataset.from_list(rows),
        max_completion_length=2,
        mask_truncated_completions=True,
        generation_kwargs={"suppress_tokens": [0, 1]},
    )
    trained.train()
    assert trained.counts["rollout_tokens"] == 3 * 8 * 2


def test_a_wait_for_rollouts_is_logged_once(tmp_path):
    trained = toy.trainer(tmp_path, rollouts_ahead=2)
    trained.ahead._waited = 2.0
    for age in (0, 1):
        trained.ahead._log(age, seconds=3.0)
    assert trained._metrics["train"]["sasr/rollout_wait_seconds"] == [2.0, 0.0]


def test_a_loss_that_is_no_number_does_not_hide_the_end_of_the_warmup(tmp_path, monkeypatch):
    real = step_metrics.measured
    monkeypatch.setattr(
        step_metrics, "measured", lambda t: (float("nan"), *real(t)[1:]) if t.state.global_step == 29 else real(t)
    )
    trained = toy.trainer(
        tmp_path,
        max_steps=40,
        schedule="random",
        sft_warmup_steps=30,
        warmup_until="plateau",
        lr_scheduler_type="constant",
        sft_hybrid_learning_rate=1e-5,
    )
    trained.train()
    assert trained.warmup.steps == 30
    rates = {
        rate for step, rate, w in toy.history(trained, "step", "learning_rate", "sasr/sft_weight") if step > 30 and w
    }
    assert rates == {1e-5}


ADAPTIVE = {"use_adaptive_entropy": True, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.001}


def test_a_fork_has_its_own_entropy_coefficient(tmp_path):
    values = {"max_steps": 4, "schedule": "static", "sft_warmup_steps": 2, **ADAPTIVE}
    toy.trainer(tmp_path / "a", entropy_coef=0.01, save_strategy="steps", save_steps=2, **values).train()
    forked = toy.trainer(tmp_path / "b", entropy_coef=0.5, warmup_from=str(tmp_path / "a"), **values)
    forked.train()
    whole = toy.trainer(tmp_path / "c", entropy_coef=0.5, **values)
    whole.train()
    assert toy.history(forked, "entropy_coef")[2:] == toy.history(whole, "entropy_coef")[2:]


def test_a_failed_step_leaves_the_entropy_coefficient(tmp_path):
    values = {"max_steps": 6, "schedule": "grpo", "sft_warmup_steps": 0, "entropy_coef": 0.01, **ADAPTIVE}
    values |= {"save_strategy": "steps", "save_steps": 100}
    whole = toy.trainer(tmp_path / "a", **values)
    whole.train()
    failing = toy.trainer(tmp_path / "b", **values)
    backward = failing.accelerator.backward

    def fail(loss, **options):
        if failing.state.global_step == 3:
            raise RuntimeError("out of memory")
        backward(loss, **options)

    failing.accelerator.backward = fail
    with pytest.raises(RuntimeError):
        failing.train()
    resumed = toy.trainer(tmp_path / "b", **values)
    resumed.train(resume_from_checkpoint=True)
    assert toy.history(resumed, "entropy_coef") == toy.history(whole, "entropy_coef")


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_the_reference_of_a_resumed_run(tmp_path, sync, other):
    values = {"max_steps": 8, "schedule": "static", "sft_warmup_steps": 2, "beta": 0.1, "learning_rate": 1e-2}
    values |= {"save_strategy": "steps", "save_steps": 6}
    if sync:
        values |= {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    whole = toy.trainer(tmp_path / "a", lm=toy.model(directory=tmp_path / "model"), **values)
    whole.train()
    place = tmp_path / ("b" if other else "a")
    resumed = toy.trainer(place, lm=toy.model(directory=tmp_path / "model"), **values)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert toy.history(resumed, "kl", "loss") == toy.history(whole, "kl", "loss")


def test_padding_and_beams(tmp_path):
    trained = toy.trainer(tmp_path, max_steps=2, schedule="grpo", sft_warmup_steps=0, pad_to_multiple_of=8)
    trained.train()
    assert trained._buffered_inputs[0]["completion_ids"].size(1) == 8
    toy.trainer(tmp_path, max_steps=2, schedule="grpo", sft_warmup_steps=0, generation_kwargs={"num_beams": 2}).train()


def test_a_warmup_alone_needs_no_answers(tmp_path):
    rows = Dataset.from_list([{"prompt": f"{a}+1=", "completion": "1", "answer": None} for a in range(8)])
    toy.trainer(tmp_path, data=rows, max_steps=4, sft_warmup_steps=4).train()


@pytest.mark.parametrize(("rule", "named"), [(Hpt(), "flat_groups"), (Sasr(), "sft_warmup_steps")])
def test_a_rule_given_as_an_object_is_checked(tmp_path, rule, named):
    with pytest.raises(InputError, match=named):
        toy.trainer(tmp_path, schedule="random", sft_warmup_steps=0, flat_groups="resample", more={"schedule": rule})


def test_a_rewards_own_time_limit(tmp_path):
    def reward(completions, **_):
        raise TimeoutError("read timed out")

    with pytest.raises(InputError, match="raised TimeoutError: read timed out"):
        toy.trainer(tmp_path, schedule="grpo", sft_warmup_steps=0, rewards=reward).train()


def test_an_async_reward_without_a_limit(tmp_path):
    async def reward(completions, **_):
        await asyncio.sleep(0.05)
        return [float(i % 2) for i in range(len(completions))]

    settings = {"schedule": "grpo", "sft_warmup_steps": 0, "max_steps": 1, "reward_timeout": 0.0}
    trained = toy.trainer(tmp_path, rewards=reward, **settings)
    trained.train()
    assert toy.history(trained, "verifier_failures", "reward") == [(0.0, 0.5)]


@pytest.mark.parametrize("failures", ["count", "stop"])
def test_a_demonstration_that_could_not_be_judged(tmp_path, failures):
    calls = []

    def reward(completions, answer, **_):
        calls.append(len(completions))
        if len(completions) != 8 and sum(n != 8 for n in calls) == 1:
            raise RuntimeError("away for a moment")
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    trained = toy.trainer(
        tmp_path,
        max_steps=4,
        schedule="luffy",
        sft_warmup_steps=0,
        data=toy.rows(2),
        rewards=reward,
        reward_failures=failures,
    )
    if failures == "stop":
        with pytest.raises(InputError, match="away for a moment"):
            trained.train()
        return
    trained.train()
    assert max(trained.chosen.advantages) > 0


def experts() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=len(toy.CHARACTERS) + 3,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MixtralForCausalLM(config)


def test_experts_that_grpo_alone_would_balance_are_refused(tmp_path):
    """An SFT step has no such term, by default neither: the two kinds of steps would pull in different ways."""
    for given, shown in (({}, "0.001"), ({"router_aux_loss_coef": 0.1}, "0.1")):
        with pytest.raises(InputError, match=rf"router_aux_loss_coef \({shown}\) .*: with SFT steps set it to 0"):
            toy.trainer(tmp_path, lm=experts(), **given)
    both = {"schedule": "static", "sft_warmup_steps": 1, "max_steps": 2, "router_aux_loss_coef": 0.0}
    trained = toy.trainer(tmp_path, lm=experts(), **both)
    trained.train()
    assert trained.counts["sft_steps"] == trained.counts["grpo_steps"] == 1
    alone = toy.trainer(tmp_path, lm=experts(), schedule="grpo", sft_warmup_steps=0, max_steps=1)
    alone.train()
    assert toy.history(alone, "aux_loss")[0][0] > 0, "as TRL has it"
