"""Each hybrid method through the real trainer against its formula in plain PyTorch, one unpadded sequence at a time."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

import toy
from sasr import InputError
from sasr.demonstrations import Demonstration
from sasr.schedules import Random, StepPlan

HYBRID = {
    "sft_warmup_steps": 0,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 16,
    "per_device_sft_batch_size": 2,
}


@dataclass
class Rollout:
    """A rollout as it was trained on: the row asked, the ids of prompt (and hint) and completion."""

    row: int
    prompt: list[int]
    completion: list[int]


@dataclass
class Step:
    """What one optimizer step was and did."""

    plan: StepPlan
    lm: Any  # the policy before the step
    gradient: torch.Tensor
    asked: list[int]
    rollouts: list[Rollout]
    demonstrations: list[Demonstration]
    queue: list[int]
    forwards: list[str]


class Recorder(TrainerCallback):
    """Takes down every optimizer step of a trainer."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.forwards = trainer, [], []
        sft, grpo = trainer._sft_loss, trainer._compute_loss

        def study(model, batch):
            self.forwards.append("sft")
            return sft(model, batch)

        def explore(model, inputs):
            self.forwards.append("grpo")
            return grpo(model, inputs)

        trainer._sft_loss, trainer._compute_loss = study, explore
        trainer.add_callback(self)

    def on_step_begin(self, args, state, control, **kwargs):
        self.lm = toy.model()  # a copy of the trained object would keep its patched forward pass
        self.lm.load_state_dict(self.trainer.model.state_dict())
        self.forwards.clear()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        self.steps.append(
            Step(
                trainer.plan,
                self.lm,
                flat_gradient(trainer.model),
                list(trainer.selection.asked) if trainer.plan.grpo_weight else [],
                rollouts_of(trainer) if trainer.plan.grpo_weight else [],
                list(trainer.chosen.demonstrations),
                dict(trainer.selection.failed_at),
                list(self.forwards),
            )
        )


def flat_gradient(lm) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in lm.parameters()]).clone()


def rollouts_of(trainer) -> list[Rollout]:
    """Of the buffer, which is shuffled: a row is known again by its prompt."""
    row_of = {
        tuple(trainer._tokenize_prompts([trainer.train_dataset[row]["prompt"]])[0][0]): row
        for row in reversed(range(len(trainer.train_dataset)))
    }
    found = []
    for part in trainer._buffered_inputs:
        for i in range(len(part["prompt_ids"])):
            prompt = part["prompt_ids"][i][part["prompt_mask"][i].bool()].tolist()
            completion = part["completion_ids"][i][part["completion_mask"][i].bool()].tolist()
            (row,) = {row for ids, row in row_of.items() if tuple(prompt[: len(ids)]) == ids}
            found.append(Rollout(row, prompt, completion))
    return found


def run(tmp_path, **changes) -> tuple[Any, list[Step]]:
    trained = toy.trainer(tmp_path, **{**HYBRID, **changes})
    recorder = Recorder(trained)
    trained.train()
    return trained, recorder.steps


def levels(count: int = 12, unsolvable_without: bool = False) -> Dataset:
    """Rows by turns: nobody solves, everybody solves, it depends on the rollout. Demonstrations differ in length."""
    found = toy.rows(count).map(
        lambda row, i: {"level": i % 3, "completion": row["completion"] * (1 + i % 4)}, with_indices=True
    )
    if unsolvable_without:
        found = found.map(lambda row, i: {"completion": None if i % 2 else row["completion"]}, with_indices=True)
    return found


def by_level(completions, level, **_: Any) -> list[float]:
    return [(0.0, 1.0, float(c[:1] in tuple("02468+")))[x] for c, x in zip(completions, level, strict=True)]


def log_probabilities(lm, prompt: list[int], completion: list[int]) -> torch.Tensor:
    logits = lm(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(completion)), completion]


def text(trainer, ids: list[int]) -> str:
    return trainer._tokenizer.decode(ids, skip_special_tokens=True)


def reward_of(trainer, function, row: int, completion: list[int]) -> float:
    columns = {k: [v] for k, v in trainer.train_dataset[row].items()}
    return function(completions=[text(trainer, completion)], **columns)[0]


def groups(step: Step) -> dict[int, list[Rollout]]:
    return {row: [r for r in step.rollouts if r.row == row] for row in step.asked}


def relative(rewards: list[float]) -> list[float]:
    mean, std = statistics.mean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (std + 1e-4) for reward in rewards]


def same_gradient(step: Step, loss: torch.Tensor) -> None:
    loss.backward()
    expected = flat_gradient(step.lm)
    assert expected.norm() > 1e-4
    assert (step.gradient - expected).norm() < 2e-5 * expected.norm()


def tokens(sequences) -> int:
    return sum(len(s.completion if isinstance(s, Rollout) else s.completion_ids) for s in sequences)


# ---- HPT ----


def test_hpt_without_any_success_is_sft_on_the_questions_asked(tmp_path):
    trained, (step,) = run(tmp_path, schedule="hpt", data=levels(), rewards=lambda completions, **_: [0.0] * 16)
    assert len(set(step.asked)) == 4
    studied = [trained.demonstrations[trained.demonstration_of_row[row]] for row in step.asked]
    assert step.demonstrations == studied
    logps = [log_probabilities(step.lm, d.prompt_ids, d.completion_ids) for d in studied]
    same_gradient(step, -torch.cat(logps).mean())
    (log,) = toy.history(trained, "sasr/p_sft", "sasr/unsolved", "sasr/sft_loss", "sasr/sft_tokens")
    assert log == pytest.approx((1.0, 1.0, -torch.cat(logps).mean().item(), tokens(studied)), rel=1e-5)


def test_hpt_with_full_success_has_nothing_to_do(tmp_path):
    trained, (step,) = run(tmp_path, schedule="hpt", data=levels(), rewards=lambda completions, **_: [1.0] * 16)
    assert step.gradient.abs().max() == 0
    assert step.forwards == ["grpo"] and step.demonstrations == []
    assert toy.history(trained, "sasr/p_sft", "sasr/unsolved", "sasr/sft_loss") == [(0.0, 0.0, None)]


def is_gated(trained, row: int, members: list[Rollout], gate: int) -> bool:
    return sum(reward_of(trained, by_level, row, r.completion) >= 1 for r in members) <= gate


def hpt_loss(trained, step: Step, gate: int) -> tuple[torch.Tensor, float]:
    """The loss, and the share of the questions that are studied."""
    studied, loss = [], torch.zeros(())
    for row, members in groups(step).items():
        if is_gated(trained, row, members, gate) and row in trained.demonstration_of_row:
            studied.append(trained.demonstrations[trained.demonstration_of_row[row]])
            continue
        rewards = [reward_of(trained, by_level, row, r.completion) for r in members]
        for advantage, r in zip(relative(rewards), members, strict=True):
            loss = loss - advantage * log_probabilities(step.lm, r.prompt, r.completion).sum() / tokens(step.rollouts)
    share = len(studied) / len(step.asked)
    logps = [log_probabilities(step.lm, d.prompt_ids, d.completion_ids) for d in studied]
    return loss - share * torch.cat(logps).mean(), share


@pytest.mark.parametrize(
    ("gate", "missing", "accumulation"), [(0, False, 1), (2, False, 1), (0, True, 1), (2, False, 2)]
)
def test_hpt_is_the_mean_over_questions(tmp_path, gate, missing, accumulation):
    trained, (step,) = run(
        tmp_path, schedule="hpt", data=levels(unsolvable_without=missing), rewards=by_level, hpt_gate=gate,
        per_device_train_batch_size=48 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    assert len(step.rollouts) == 48 and sorted(step.asked) == list(range(12))
    kinds = {
        (
            trained.train_dataset[row]["level"],
            is_gated(trained, row, members, gate),
            row in trained.demonstration_of_row,
        )
        for row, members in groups(step).items()
    }
    assert {(0, True, True), (1, False, True)} <= kinds
    assert (2, bool(gate), True) in kinds
    assert ((0, True, False) in kinds) == missing
    loss, share = hpt_loss(trained, step, gate)
    same_gradient(step, loss)
    assert toy.history(trained, "sasr/p_sft") == [(share,)]


# ---- LUFFY and SRFT ----


def group_loss(trained, step: Step, reward, of_rollouts, of_demonstrations) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Sums over the tokens of rollouts and of demonstrations, and the latter's number, with advantages relative to the
    group with its demonstration. The functions take (log-probabilities, advantage)."""
    rollouts, demonstrations, count = torch.zeros(()), torch.zeros(()), 0
    for row, members in groups(step).items():
        rewards = [reward_of(trained, reward, row, r.completion) for r in members]
        known = trained.demonstration_of_row.get(row)
        if known is not None:
            d = trained.demonstrations[known]
            rewards.append(reward_of(trained, reward, row, d.completion_ids))
        advantages = relative(rewards)
        for advantage, r in zip(advantages, members, strict=False):
            rollouts = rollouts + of_rollouts(log_probabilities(step.lm, r.prompt, r.completion), advantage).sum()
        if known is not None:
            logps = log_probabilities(step.lm, d.prompt_ids, d.completion_ids)
            demonstrations = demonstrations + of_demonstrations(logps, advantages[-1]).sum()
            count += len(logps)
    return rollouts, demonstrations, count


def luffy_loss(trained, step: Step, shaping: float) -> tuple[torch.Tensor, float]:
    """The loss, and the demonstrations' share of the tokens."""
    rollouts, demonstrations, count = group_loss(
        trained,
        step,
        toy.reward,
        lambda logps, a: a * logps,
        lambda logps, a: a * logps.exp() / (logps.exp() + shaping),
    )
    whole = tokens(step.rollouts) + count
    return -(rollouts + demonstrations) / whole, count / whole


@pytest.mark.parametrize(("missing", "accumulation", "shaping"), [(False, 1, 0.1), (False, 2, 0.1), (True, 1, 0.5)])
def test_luffy_gradient(tmp_path, missing, accumulation, shaping):
    """-[sum A log pi over rollout tokens + sum A f(pi) over demonstration tokens] / all tokens."""
    trained, steps = run(
        tmp_path, schedule="luffy", luffy_shaping=shaping, data=levels(unsolvable_without=missing),
        per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation, max_steps=2,
    )  # fmt: skip
    for step, logged in zip(steps, toy.history(trained, "sasr/p_sft"), strict=True):
        assert 0 < len(step.demonstrations) <= 4 and (len(step.demonstrations) < 4) <= missing
        loss, share = luffy_loss(trained, step, shaping)
        same_gradient(step, loss)
        assert logged[0] == pytest.approx(share)


def test_luffy_where_no_question_has_a_demonstration_is_grpo(tmp_path):
    data = Dataset.from_list([*toy.rows(4).map(lambda row: {"completion": ""}), {"prompt": "9+9=", "completion": "18"}])
    trained, (step,) = run(tmp_path, schedule="luffy", data=data)
    assert step.forwards == ["grpo"]
    rollouts, _, count = group_loss(trained, step, toy.reward, lambda logps, a: a * logps, None)
    assert count == 0
    same_gradient(step, -rollouts / tokens(step.rollouts))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_srft_gradient(tmp_path, accumulation):
    """mean over demonstration tokens of -(w_SFT + A pi) log pi, the factor held fixed, plus GRPO with positive
    advantages times w_RL; the entropy is that of the step before."""
    trained, steps = run(
        tmp_path, schedule="srft", data=levels(), max_steps=3,
        per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    log = toy.history(trained, "entropy", "sasr/p_sft")
    entropies = [0.0, *(entropy for entropy, _ in log)]
    assert entropies[1] > 1
    for step, entropy, (_, p) in zip(steps, entropies, log, strict=False):
        w_sft, w_rl = math.exp(-entropy) / 2, math.exp(entropy) / 10
        rollouts, demonstrations, count = group_loss(
            trained,
            step,
            toy.reward,
            lambda logps, a, w_rl=w_rl: (a * w_rl if a > 0 else a) * logps,
            lambda logps, a, w_sft=w_sft: (w_sft + a * logps.detach().exp()) * logps,
        )
        same_gradient(step, -rollouts / tokens(step.rollouts) - demonstrations / count)
        assert p == pytest.approx(w_sft / (1 + w_sft))


def test_entropy_is_that_of_the_step_before_whatever_its_kind(tmp_path):
    """After the warm-up it is the mean entropy over the demonstrations' tokens."""
    _, steps = run(tmp_path, schedule="srft", data=levels(), sft_warmup_steps=1, max_steps=2)
    with torch.no_grad():
        entropies = []
        for d in steps[0].demonstrations:
            logits = steps[0].lm(input_ids=torch.tensor([d.prompt_ids + d.completion_ids])).logits[0]
            logps = logits[len(d.prompt_ids) - 1 : -1].log_softmax(-1)
            entropies += (-(logps.exp() * logps).sum(-1)).tolist()
    expected = 0.5 * math.exp(-statistics.mean(entropies))
    assert steps[1].plan.token_parameter == pytest.approx(expected, rel=1e-5)


def test_a_demonstration_is_judged_once_and_not_reported(tmp_path):
    asked = []

    def spy(prompts, completions, log_metric, log_extra, **columns):
        asked.append(len(prompts))
        log_metric("length", len(completions[0]))
        log_extra("first", [c[:1] for c in completions])
        return toy.reward(completions, **columns)

    _, steps = run(tmp_path, schedule="luffy", data=toy.rows(4), rewards=spy, max_steps=3, log_completions=True)
    assert all(sorted(step.asked) == [0, 1, 2, 3] for step in steps)
    assert asked == [16, 4, 16, 16]
    tables = list((tmp_path / "completions").glob("*.parquet"))
    assert len(tables) == 3
    assert {len(Dataset.from_parquet(str(path))) for path in tables} == {16}


# Eight questions, all asked in each step: five with a demonstration, three without any success.
UNEVEN = {
    "luffy": (
        toy.reward,
        lambda: levels(8).map(lambda row, i: {"completion": None if i > 4 else row["completion"]}, with_indices=True),
    ),
    "hpt": (by_level, lambda: levels(8)),
}


# ---- ReLIFT, and SASR with failed questions ----


@pytest.mark.parametrize("slices", [1, 2], ids=["two-generations-a-step", "one-generation-a-step"])
def test_relift_studies_what_failed(tmp_path, slices):
    """Two prompts a micro-batch, four demonstrations an SFT step."""
    trained = toy.trainer(
        tmp_path, schedule="relift", data=levels(24), rewards=by_level, sft_warmup_steps=2, max_steps=24,
        per_device_train_batch_size=8, per_device_sft_batch_size=2, gradient_accumulation_steps=2,
        steps_per_generation=slices,
    )  # fmt: skip
    failures, outcomes = [], []
    note = trained.selection.after_rollouts

    def watch(plan, rewards, output):
        result = note(plan, rewards, output)
        groups = rewards[:, 0].view(-1, 4)
        outcomes.append((trained.state.global_step, list(trained.selection.asked), (groups >= 1).any(1).tolist()))
        failures.append(
            [trained.train_dataset[r]["level"] for r, g in zip(trained.selection.asked, groups, strict=True)
             if not (g >= 1).any()]
        )  # fmt: skip
        for row, members in zip(trained.selection.asked, groups, strict=True):
            level = trained.train_dataset[row]["level"]
            assert level == 2 or members.tolist() == [float(level)] * 4, "the rewards are those of the row"
        return result

    trained.selection.after_rollouts = watch
    recorder = Recorder(trained)
    trained.train()
    assert [step.plan.kind for step in recorder.steps[:3]] == ["sft", "sft", "grpo"]
    waiting: dict[int, int] = {}
    for number, step in enumerate(recorder.steps[2:], start=2):
        assert step.plan.kind == ("sft" if len(waiting) >= 4 else "grpo")
        if step.plan.kind == "sft":
            studied = [i for i in waiting if trained.demonstrations[i] in step.demonstrations]
            assert len(step.demonstrations) == len(studied) == 4
            waiting = {i: at for i, at in waiting.items() if i not in studied}
        for _, rows, solved in (outcome for outcome in outcomes if outcome[0] == number):
            for row, by_any in zip(rows, solved, strict=True):
                waiting.pop(row, None)
                waiting |= {} if by_any else {row: number}
        assert step.queue == waiting
    kinds = [step.plan.kind for step in recorder.steps[2:]]
    assert kinds.count("sft") >= 4 and kinds.count("grpo") >= 8
    assert failures and any(failures)
    position = trained.sft_stream.position
    assert position == 2 * 4, "only the warm-up took from the stream"


def test_relift_when_all_fails(tmp_path):
    """Four questions a step and four demonstrations an SFT step: the kinds take turns."""
    trained, steps = run(
        tmp_path, schedule="relift", rewards=lambda completions, **_: [0.0] * len(completions), sft_warmup_steps=1,
        max_steps=9, per_device_sft_batch_size=4,
    )  # fmt: skip
    assert [step.plan.kind for step in steps] == ["sft", *("grpo", "sft") * 4]
    for grpo, sft in zip(steps[1::2], steps[2::2], strict=True):
        asked = [trained.demonstrations[trained.demonstration_of_row[row]] for row in grpo.asked]
        assert len(grpo.queue) == 4 and sft.queue == {}
        assert all(demonstration in asked for demonstration in sft.demonstrations) and len(sft.demonstrations) == 4
        assert grpo.gradient.abs().max() == 0
        logps = [log_probabilities(sft.lm, d.prompt_ids, d.completion_ids) for d in asked]
        same_gradient(sft, -torch.cat(logps).mean())
    log = toy.history(trained, "sasr/p_sft", "sasr/unsolved", "sasr/failed_waiting")[1:]
    assert [p for p, _, _ in log] == [0.0, 1.0] * 4
    assert [(u, w) for _, u, w in log[::2]] == [(1.0, 4.0)] * 4


def test_a_question_without_demonstration_does_not_wait(tmp_path):
    data = toy.rows(8).map(lambda row, i: {"completion": None if i < 4 else row["completion"]}, with_indices=True)
    trained, steps = run(
        tmp_path, schedule="relift", data=data, rewards=lambda completions, **_: [0.0] * len(completions), max_steps=3,
    )  # fmt: skip
    assert any(step.queue for step in steps)
    assert all(set(step.queue) <= {0, 1, 2, 3} for step in steps), "indices of demonstrations"
    assert toy.history(trained, "sasr/unsolved")[0] == (1.0,)


@pytest.mark.parametrize("schedule", ["sasr", "random", "alternate", "cosine", "chord_mu", "chord_phi"])
def test_failed_questions_are_studied_last_first_and_then_the_stream_goes_on(tmp_path, schedule):
    trained, steps = run(
        tmp_path, schedule=schedule, sft_questions="failed", failed_decay=0.0, failed_threshold=0.25,
        data=levels(24), rewards=by_level, sft_warmup_steps=2, max_steps=24, per_device_train_batch_size=8,
        per_device_sft_batch_size=3,
    )  # fmt: skip
    stream = type(trained.sft_stream)(trained.sft_stream.size, trained.sft_stream.seed)
    waiting: dict[int, int] = {}
    topped_up = from_queue = some_solved = 0
    for number, step in enumerate(steps):
        if step.plan.sft_weight:
            studied = [i for i in waiting if trained.demonstrations[i] in step.demonstrations]
            newest = sorted(waiting.values(), reverse=True)[:3]
            assert sorted((waiting[i] for i in studied), reverse=True) == newest, "the last failures"
            rest = [trained.demonstrations[i] for i in stream.take(3 - len(studied))]
            assert step.demonstrations[len(studied) :] == rest
            waiting = {i: at for i, at in waiting.items() if i not in studied}
            topped_up += 0 < len(studied) < 3
            from_queue += len(studied)
        for row, members in groups(step).items():
            solved = sum(reward_of(trained, by_level, row, r.completion) >= 1 for r in members)
            some_solved += solved == 1
            if solved <= 1:  # a quarter of four
                waiting[row] = number
            else:
                waiting.pop(row, None)
        assert step.queue == waiting
    assert topped_up and from_queue > 3 and some_solved


@pytest.mark.parametrize(
    "changes", [{"schedule": "relift"}, {"schedule": "sasr", "sft_questions": "failed"}], ids=["relift", "sasr"]
)
def test_the_queue_is_in_the_checkpoint(tmp_path, changes):
    settings = {**HYBRID, **changes, "sft_warmup_steps": 1, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    settings |= {"data": levels(24), "rewards": by_level, "per_device_sft_batch_size": 7}
    trained = toy.trainer(tmp_path, **settings)
    recorder = Recorder(trained)
    trained.train()
    for step, recorded in enumerate(recorder.steps, start=1):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "sasr_state.json").read_text())
        assert dict(state["failed_at"]) == recorded.queue
    step = max(range(1, 6), key=lambda step: len(recorder.steps[step - 1].queue))
    again = toy.trainer(tmp_path, **settings)
    seen = []
    decide = again._decide
    again._decide = lambda: seen.append(dict(again.selection.failed_at)) or decide()
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert seen[0] == recorder.steps[step - 1].queue != {}


# ---- UFT ----

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{{ m.content }}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


@pytest.mark.parametrize("conversational", [False, True])
def test_uft_rollouts_begin_with_hints_and_are_judged_with_them(tmp_path, conversational):
    data = levels(24).map(lambda row: {"completion": row["completion"] * 2})
    tokenizer = toy.tokenizer()
    if conversational:
        tokenizer.chat_template = TEMPLATE
        data = data.map(
            lambda row: {
                "prompt": [{"role": "user", "content": row["prompt"][:-1]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
        )
    judged = []

    def spy(prompts, completions, completion_ids, answer, **_):
        texts = [c[0]["content"] for c in completions] if conversational else completions
        judged.append([*zip(map(str, prompts), texts, completion_ids, strict=True)])
        return [len(t) / 20 + (a[0] in t) for t, a in zip(texts, answer, strict=True)]

    trained = toy.SASRTrainer(
        model=toy.model(),
        reward_funcs=spy,
        args=toy.settings(tmp_path, **{**HYBRID, "max_steps": 4}, schedule="uft", hint_steps=3, hint_weight=0.25),
        train_dataset=data,
        processing_class=tokenizer,
    )
    recorder = Recorder(trained)
    trained.train()
    assert len(trained.demonstrations) == 24
    any_hint = False
    for step, seen in zip(recorder.steps, judged, strict=True):
        hints = {}
        for rollout in step.rollouts:
            d = trained.demonstrations[trained.demonstration_of_row[rollout.row]]
            hint = rollout.prompt[len(d.prompt_ids) :]
            assert rollout.prompt[: len(d.prompt_ids)] == d.prompt_ids
            assert hint == d.completion_ids[:-1][: len(hint)]
            assert hints.setdefault(rollout.row, hint) == hint, "one for all rollouts of a question"
            any_hint |= bool(hint)
        if step.plan.kind == "grpo":
            assert not any(hints.values()) and step.forwards == ["grpo"]
        whole = sorted(
            (str(trained.train_dataset[r.row]["prompt"]), text(trained, hints[r.row] + r.completion), r.completion)
            for r in step.rollouts
        )
        assert sorted(seen) == whole
    assert any_hint
    assert [step.plan.kind for step in recorder.steps] == ["both"] * 3 + ["grpo"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_uft_gradient(tmp_path, accumulation):
    """GRPO on what follows the hint, hint_weight times the mean negative log-likelihood of the hints' tokens."""
    data = levels(24, unsolvable_without=True)
    trained, steps = run(
        tmp_path, schedule="uft", hint_steps=3, hint_weight=0.25, data=data, max_steps=5,
        per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
        rewards=lambda completions, **_: [len(c) + 1.5 * c.count("1") for c in completions],
    )  # fmt: skip
    for t, step in enumerate(steps):
        advantages, likelihood, count = torch.zeros(()), torch.zeros(()), 0
        for row, members in groups(step).items():
            prompt = trained._tokenize_prompts([data[row]["prompt"]])[0][0]
            hint = members[0].prompt[len(prompt) :]
            assert not hint or (t < 3 and row in trained.demonstration_of_row)
            rewards = [
                float(len(c) + 1.5 * c.count("1")) for c in (text(trained, hint + r.completion) for r in members)
            ]
            for a, r in zip(relative(rewards), members, strict=True):
                advantages = advantages + a * log_probabilities(step.lm, r.prompt, r.completion).sum()
            if hint:
                likelihood = likelihood + log_probabilities(step.lm, prompt, hint).sum()
                count += len(hint)
        loss = -advantages / tokens(step.rollouts)
        assert count or t > 0
        if count:
            loss = loss - 0.25 * likelihood / count
        same_gradient(step, loss)
        assert step.forwards.count("sft") == (min(accumulation, len(step.demonstrations)) if count else 0)


def test_uft_after_its_hints_is_grpo_bit_for_bit(tmp_path):
    """With hints of probability ~0 the whole run is GRPO's, and pays for no forward pass of SFT."""

    class Hintless:
        needs_warmup = False

        def plan(self, signals):
            return StepPlan(0.5, 1.0, 0.5, demonstrations="hints", hint=0.0)

        def uses(self, warmup_steps, total_steps):
            return True, True

    keys = ("loss", "grad_norm", "reward", "num_tokens")
    plain, steps = run(tmp_path / "grpo", schedule="grpo", max_steps=4)
    hintless, none = run(tmp_path / "uft", schedule="grpo", max_steps=4, more={"schedule": Hintless()})
    assert toy.history(plain, *keys) == toy.history(hintless, *keys)
    assert all(a.forwards == b.forwards for a, b in zip(steps, none, strict=True))


# ---- rows ----


def test_separate_demonstrations_are_found_by_their_prompt(tmp_path):
    """The first of several with one prompt; SFT steps use all of them."""
    data = toy.rows(6)
    separate = Dataset.from_list(
        [
            {"prompt": "9+9=", "completion": "18"},
            {"prompt": data[2]["prompt"], "completion": "77"},
            {"prompt": data[4]["prompt"], "completion": ""},
            {"prompt": data[0]["prompt"], "completion": "66"},
            {"prompt": data[2]["prompt"], "completion": "55"},
        ]
    )
    trained, (step,) = run(
        tmp_path, schedule="hpt", data=data, rewards=lambda completions, **_: [0.0] * len(completions),
        per_device_train_batch_size=24, more={"demonstration_dataset": separate},
    )  # fmt: skip
    assert trained.demonstration_of_row == {2: 1, 0: 2}
    assert [text(trained, d.completion_ids) for d in trained.demonstrations] == ["18", "77", "66", "55"]
    studied = {0: "66", 2: "77"}
    assert [text(trained, d.completion_ids) for d in step.demonstrations] == [
        studied[row] for row in step.asked if row in studied
    ]


def test_own_demonstrations_of_rows_with_and_without_answers(tmp_path):
    data = Dataset.from_list(
        [
            {"prompt": "1+1=", "completion": "02", "answer": None},
            {"prompt": "1+2=", "completion": None, "answer": "03"},
            {"prompt": "1+3=", "completion": "04", "answer": "04"},
        ]
    )
    trained = toy.trainer(tmp_path, data=data)
    assert trained.demonstration_of_row == {2: 1}


# ---- the probe of the gradient norm ----


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_probe_is_the_norm_of_the_next_sft_step(tmp_path, accumulation):
    """With weights that all but stand still."""
    trained = toy.trainer(
        tmp_path, schedule="alternate", sft_warmup_steps=1, max_steps=9, sft_norm_every=1, learning_rate=1e-12,
        sft_learning_rate=1e-12, per_device_train_batch_size=8, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    norms = []
    observe = trained.tracker.observe_sft_norm
    trained.tracker.observe_sft_norm = lambda step, norm: (
        norms.append((trained.state.global_step, norm)) or observe(step, norm)
    )
    trained.train()
    assert [step for step, _ in norms] == [0, 2, 2, 4, 4, 6, 6, 8, 8]
    for (_, probed), (_, real) in zip(norms[1::2], norms[2::2], strict=True):
        assert probed == pytest.approx(real, rel=1e-5)
    assert len({norm for _, norm in norms[2::2]}) > 1


def test_the_probe_looks_at_the_questions_that_the_next_sft_step_takes(tmp_path):
    trained = toy.trainer(
        tmp_path, schedule="sasr", sft_questions="failed", data=levels(24), rewards=by_level, sft_warmup_steps=1,
        max_steps=16, sft_norm_every=1, learning_rate=1e-12, sft_learning_rate=1e-12, per_device_sft_batch_size=2,
    )  # fmt: skip
    norms: dict[int, list[float]] = {}
    observe = trained.tracker.observe_sft_norm

    def watch(step, norm):
        norms.setdefault(trained.state.global_step, []).append(norm)
        observe(step, norm)

    trained.tracker.observe_sft_norm = watch
    recorder = Recorder(trained)
    trained.train()
    both = {step: found for step, found in norms.items() if len(found) == 2}
    assert any(recorder.steps[step - 1].queue for step in both), "some waited"
    assert len(both) > 2
    for probed, real in both.values():
        assert probed == pytest.approx(real, rel=1e-5)


def test_how_often_the_norm_is_probed(tmp_path):
    trained = toy.trainer(tmp_path, schedule="static", sft_warmup_steps=2, max_steps=14, sft_norm_every=3)
    probes = []
    observe = trained.tracker.observe_sft_norm
    trained.tracker.observe_sft_norm = lambda step, norm: (
        probes.append(trained.state.global_step) or observe(step, norm)
    )
    trained.train()
    assert probes == [0, 1, 5, 8, 11], "before the steps that three GRPO steps precede"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "separate_optimizer_states": True},
        {"more": {"peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)}},
    ],
    ids=["plain", "accumulation", "dropout"],
)
def test_probing_changes_nothing_but_the_signal(tmp_path, changes):
    keys = ("loss", "grad_norm", "reward", "num_tokens", "entropy", "sasr/sft_loss", "sasr/sft_tokens")
    plain = toy.trainer(tmp_path / "a", schedule="static", **changes)
    plain.train()
    probed = toy.trainer(tmp_path / "b", schedule="static", sft_norm_every=2, **changes)
    probed.train()
    assert toy.history(plain, *keys) == toy.history(probed, *keys)
    assert plain.counts == probed.counts and plain.sft_stream.position == probed.sft_stream.position
    frozen, moving = ({norm for (norm,) in toy.history(t, "sasr/sft_grad_norm")[4:]} for t in (plain, probed))
    assert len(frozen) == 1 and len(moving) > 3


def test_a_probe_needs_demonstrations(tmp_path):
    data = toy.rows().remove_columns("completion")
    with pytest.raises(InputError, match="no row has a demonstration"):
        toy.trainer(tmp_path, schedule="grpo", sft_warmup_steps=0, sft_norm_every=2, data=data)


def test_a_probe_under_a_loss_scaler(tmp_path):
    trained = toy.trainer(tmp_path, sft_norm_every=2)
    trained.args.fp16 = True
    with pytest.raises(InputError, match="does not work with fp16"):
        trained._check_engine()


# ---- rollouts of an earlier step ----


@pytest.mark.parametrize("schedule", ["hpt", "luffy", "srft", "uft"])
@pytest.mark.parametrize("changes", [{"steps_per_generation": 2}, {"num_iterations": 2}])
def test_rollouts_must_be_those_of_the_step(tmp_path, schedule, changes):
    with pytest.raises(InputError, match="rollouts of the same step: set steps_per_generation x num_iterations"):
        toy.settings(tmp_path, schedule=schedule, **{"gradient_accumulation_steps": 1, **changes})
    toy.settings(tmp_path, schedule=schedule, gradient_accumulation_steps=2, **{"steps_per_generation": 1, **changes})


def test_a_rule_of_ones_own_is_checked_in_its_first_step(tmp_path):
    class Gated(Random):
        def plan(self, signals):
            return StepPlan(1.0, 1.0, 0.5, demonstrations="gated")

    with pytest.raises(InputError, match="rollouts of the same step"):
        run(tmp_path, schedule="grpo", more={"schedule": Gated()}, num_iterations=2)
