"""ReLIFT, and SASR that studies the questions of which no rollout, or too few, were correct."""

from __future__ import annotations

import json

import pytest
import torch

import toy
from recorded_steps import HYBRID, Recorder, by_level, groups, levels, log_probabilities, reward_of, run, same_gradient
from sasr import InputError


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


def test_relift_with_too_few_demonstrations_for_a_batch_is_refused(tmp_path):
    """Its queue would never be full, and the run GRPO alone."""
    with pytest.raises(InputError, match="an SFT batch of 16, but only 8 have a demonstration: lower per_device"):
        toy.trainer(tmp_path, schedule="relift", data=toy.rows(8), per_device_sft_batch_size=16)


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
