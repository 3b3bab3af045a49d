"""UFT through the real trainer: rollouts that begin with hints, and its gradient."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import toy
from recorded_steps import (
    HYBRID,
    Recorder,
    groups,
    levels,
    log_probabilities,
    relative,
    run,
    same_gradient,
    text,
    tokens,
)
from sasr import InputError
from sasr.demonstrations import Demonstration
from sasr.schedules import StepPlan
from sasr.selection import Selection

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


def test_r3_shows_every_number_of_parts_as_often_and_never_all():
    """Each question of a step draws its own, so that a step mixes the stages."""
    rows = range(2000)
    demonstration = Demonstration([5], [10, 11, 12, 13, 14, 1])
    trainer = SimpleNamespace(
        args=SimpleNamespace(seed=7), state=SimpleNamespace(global_step=3), demonstrations=[demonstration],
        demonstration_of_row=dict.fromkeys(rows, 0),
    )  # fmt: skip
    place = SimpleNamespace(trainer=trainer, asked=list(rows))
    hints = Selection.hints(place, StepPlan(0.0, 1.0, 0.0, demonstrations="hints", hint=None))
    shown = Counter(map(len, hints))
    assert sorted(shown) == [0, 1, 2, 3, 4] and all(hint == [10, 11, 12, 13][: len(hint)] for hint in hints)
    assert all(abs(count - 400) < 80 for count in shown.values())
    assert place._hinted == {row for row, hint in zip(rows, hints, strict=True) if hint}


def test_success_with_a_hint_says_nothing_about_a_level(tmp_path):
    """Nor would the curriculum know which questions are still hard."""
    observed: list[int] = []
    trained = toy.trainer(tmp_path, schedule="r3", **{**HYBRID, "max_steps": 6})
    trained.levels.observe = lambda row, share: observed.append(row)
    recorder = Recorder(trained)
    trained.train()
    hinted = [
        len(rollout.prompt) > len(trained.demonstrations[trained.demonstration_of_row[rollout.row]].prompt_ids)
        for step in recorder.steps
        for rollout in step.rollouts
    ]
    assert any(hinted) and not all(hinted)
    assert len(observed) == hinted.count(False) // trained.num_generations


def test_hints_that_a_function_of_ones_own_would_not_show_are_refused(tmp_path):
    """It is given the prompts; what it wrote was judged, and trained on, as if it had gone on from the hint."""

    class Shown:
        needs_warmup = False

        def plan(self, signals):
            return StepPlan(0.0, 1.0, 0.0, demonstrations="hints", hint=1.0)

        def uses(self, warmup_steps, total_steps):
            return True, True

    def rollouts(prompts, trainer):
        raise AssertionError("asked all the same")

    refused = {"match": "rollout_func does not show the policy the hints"}
    for schedule in ("uft", "r3"):
        with pytest.raises(InputError, **refused):
            toy.trainer(tmp_path, schedule=schedule, more={"rollout_func": rollouts})
    own = {"schedule": Shown(), "rollout_func": rollouts}
    trained = toy.trainer(tmp_path, schedule="grpo", sft_warmup_steps=0, more=own)
    with pytest.raises(InputError, **refused):
        trained.train()
