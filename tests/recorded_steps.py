"""The optimizer steps of a real trainer, taken down, and the losses of the methods in plain PyTorch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

import toy
from sasr.demonstrations import Demonstration
from sasr.schedules import StepPlan

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
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in lm.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]).clone().cpu()


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


# Eight questions, all asked in each step: five with a demonstration, three without any success.
UNEVEN = {
    "luffy": (
        toy.reward,
        lambda: levels(8).map(lambda row, i: {"completion": None if i > 4 else row["completion"]}, with_indices=True),
    ),
    "hpt": (by_level, lambda: levels(8)),
}
