"""Rollouts made while SFT steps run: which weights they come from, how old they are, and that no process stays."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.multiprocessing
from peft import LoraConfig
from transformers import TrainerCallback

import toy
from sasr import InputError, ahead
from sasr.ahead import Worker
from sasr.checkpoints import all_checkpoints
from sasr.errors import RunFailed
from sasr.schedules import GRPO_STEP, SFT_STEP, Signals, StepPlan

WARMUP = 4
LIMIT = 120.0  # seconds: a process that stays fails


@pytest.fixture(scope="module", autouse=True)
def server():
    """Imports what all processes of this file need, once."""
    multiprocessing.forkserver.set_forkserver_preload(["sasr.trainer"])
    multiprocessing.forkserver.ensure_running()


@dataclass(frozen=True)
class Pattern:
    """The steps after the warm-up, as letters."""

    letters: str
    needs_warmup: ClassVar[bool] = False

    def plan(self, signals: Signals) -> StepPlan:
        return SFT_STEP if self.letters[signals.step - signals.warmup_steps] == "S" else GRPO_STEP

    def uses(self, warmup_steps: int, total_steps: int) -> tuple[bool, bool]:
        return True, True


def trainer(directory: Path, letters: str, more: dict[str, Any] | None = None, **changes: Any):
    changes = {"rollouts_ahead": 4, "max_steps": WARMUP + len(letters), **changes}
    return toy.trainer(directory, more={"schedule": Pattern(letters), **(more or {})}, **changes)


def trained(directory: Path, letters: str, **changes: Any):
    one = trainer(directory, letters, **changes)
    one.train()
    return one


KEYS = ("loss", "grad_norm", "reward", "sasr/rollout_age", "sasr/importance_ratio", "clip_ratio/region_mean")


def at_step(one, step: int, act) -> None:
    """Call `act` before the step of this number, from 0, is decided."""

    class Callback(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                act()

    one.add_callback(Callback())


def test_without_sft_steps_between_it_is_the_run_without(tmp_path):
    steps = "GGGG"
    off, on = (trained(tmp_path / str(n), steps, rollouts_ahead=n) for n in (0, 4))
    keys = ("loss", "grad_norm", "reward", "entropy", "sasr/rollout_tokens", "sasr/flops")
    assert toy.history(on, *keys) == toy.history(off, *keys)
    assert toy.history(off, "sasr/rollout_age") == [(None,)] * 8
    assert toy.history(on, "sasr/rollout_age", "sasr/importance_ratio")[WARMUP:] == [(0.0, None)] * 4


@pytest.mark.parametrize(
    ("lora", "changes"),
    [
        (False, {}),
        (True, {"gradient_checkpointing": True}),
        (False, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "cast_lm_head_to_fp32": True}),
    ],
    ids=["dense", "lora-checkpointing", "accumulated"],
)
def test_ratio_is_to_the_weights_that_generated(tmp_path, lora, changes):
    more = {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)} if lora else {}
    one = trainer(tmp_path, "SSG", more=more, temperature=0.8, **changes)
    begin, loss = Worker.begin, one._compute_loss
    weights, jobs, seen = [], [], []

    def noted_begin(worker, prompt_ids, seed):
        weights.append({name: value.clone() for name, value in one.model.state_dict().items()})
        jobs.append((prompt_ids, seed))
        begin(worker, prompt_ids, seed)

    def noted_loss(model, inputs):
        now = {name: value.clone() for name, value in one.model.state_dict().items()}
        seen.append((now, {key: value.clone() for key, value in inputs.items()}))
        return loss(model, inputs)

    one._compute_loss = noted_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "begin", noted_begin)
        one.train()
    ((prompt_ids, seed),), (then,), completions, ratios = jobs, weights, [], []

    def logps_under(state, batch):
        one.model.load_state_dict(state)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        both = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad():
            return one._get_per_token_logps_and_entropies(one.model, ids, both, batch["completion_ids"].size(1))[0]

    for now, batch in seen:
        mask = batch["completion_mask"].bool()
        old, new = logps_under(then, batch), logps_under(now, batch)
        torch.testing.assert_close(batch["old_per_token_logps"][mask], old[mask], rtol=1e-4, atol=1e-5)
        assert (new - old)[mask].abs().max() > 0.01, "two SFT steps must have moved the policy"
        ratios.append(float(torch.exp(new - old)[mask].mean()))
        completions += [ids[kept].tolist() for ids, kept in zip(batch["completion_ids"], mask, strict=True)]
    logged = toy.history(one, "sasr/importance_ratio", "sasr/rollout_age")[-1]
    assert logged == (pytest.approx(sum(ratios) / len(ratios), rel=1e-4), 2.0)
    # and they are sampled from those weights
    one.model.load_state_dict(then)
    one.model.eval()
    torch.manual_seed(seed)
    again, _ = one._generate_single_turn(prompt_ids, None, {}, one.num_generations)
    assert sorted(again) == sorted(completions)


@pytest.mark.parametrize(
    ("limit", "ages"), [(1, [1, 1, 1, 0, 1]), (2, [2, 1, 1, 0, 1]), (3, [2, 2, 3, 0, 1]), (9, [2, 5, 3, 0, 1])]
)
def test_ages_are_bounded_and_questions_keep_their_order(tmp_path, limit, ages):
    letters = "SSGSSSSSGSSSGGSG"
    one, asked = trainer(tmp_path, letters, rollouts_ahead=limit), []
    take = one.ahead.take

    def noted():
        questions, made = take()
        asked.extend(questions)
        return questions, made

    one.ahead.take = noted
    one.train()
    found = [age for (age,) in toy.history(one, "sasr/rollout_age") if age is not None]
    assert found == ages
    stream = type(one.rl_stream)(len(one.rl_rows), one.args.seed)
    assert asked == [one.rl_rows[i] for i in stream.take(len(asked))]
    assert one.rl_stream.position == len(asked)


def test_how_fast_the_worker_is_changes_nothing(tmp_path, monkeypatch):
    """Once each job is done before the next step, once none is begun before it is waited for, or ended unseen."""
    letters, begin, receive = "SSSSGSGSS", Worker.begin, Worker._receive
    expected = toy.history(trained(tmp_path / "a", letters, rollouts_ahead=2), *KEYS)

    def quick(worker, *job):
        begin(worker, *job)
        assert worker._connection.poll(LIMIT)

    def held(worker, *job):
        os.kill(worker._process.pid, signal.SIGSTOP)
        begin(worker, *job)

    def released(worker):
        os.kill(worker._process.pid, signal.SIGCONT)
        return receive(worker)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "begin", quick)
        assert toy.history(trained(tmp_path / "b", letters, rollouts_ahead=2), *KEYS) == expected
    monkeypatch.setattr(Worker, "begin", held)
    monkeypatch.setattr(Worker, "_receive", released)
    assert toy.history(trained(tmp_path / "c", letters, rollouts_ahead=2), *KEYS) == expected


def test_generating_in_between_changes_nothing(tmp_path):
    """Evaluations generate with the same trainer while rollouts wait."""
    plain = trained(tmp_path / "a", "SSGSG")
    more = {"eval_dataset": toy.rows(8)}
    one = trainer(tmp_path / "b", "SSGSG", more=more, eval_strategy="steps", eval_steps=1)
    evaluate, rewards = one.evaluate, []

    def apart(*arguments, **options):
        with torch.random.fork_rng():
            rewards.append(evaluate(*arguments, **options)["eval_reward"])

    one.evaluate = apart
    one.train()
    assert len(rewards) == 9
    assert toy.history(one, *KEYS) == toy.history(plain, *KEYS)


def test_rollouts_of_weights_that_are_given_up_are_not_used(tmp_path):
    plain = trained(tmp_path / "a", "SSGGSG")
    one = trainer(tmp_path / "b", "SSGGSG")
    at_step(one, WARMUP + 2, one.ahead.outdate)
    asked = []
    at_step(one, WARMUP + 3, lambda: asked.extend(one.selection.asked))
    one.train()
    ages = [[age for (age,) in toy.history(run, "sasr/rollout_age")[-4:]] for run in (plain, one)]
    assert ages == [[2.0, 0.0, None, 1.0], [0.0, 0.0, None, 1.0]]
    assert toy.history(one, "sasr/importance_ratio")[-1][0] == pytest.approx(1, abs=0.1), "and not those of another job"
    assert asked == [one.rl_rows[i] for i in type(one.rl_stream)(len(one.rl_rows), one.args.seed).take(2)]


def test_a_rollback_gives_its_weights_up(tmp_path):
    one = trainer(tmp_path, "SSGSG", on_collapse="rollback", save_strategy="steps", save_steps=2)
    one.best_checkpoint = lambda: (tmp_path / "checkpoint-2", 0.5)
    at_step(one, WARMUP + 2, lambda: setattr(one.watch, "collapsed_at", WARMUP + 2))
    one.train()
    assert one.watch.collapsed_at is None
    assert toy.history(one, "sasr/rollout_age")[WARMUP:] == [(None,), (None,), (0.0,), (None,), (1.0,)]


# ---- refusals ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts_ahead": -1}, "rollouts_ahead is -1"),
        ({"rollouts_ahead": 1.5}, "rollouts_ahead is 1.5"),
        ({"schedule": "sft"}, "makes no rollouts"),
        ({"schedule": "grpo", "sft_warmup_steps": 0}, "has none"),
        ({"schedule": "static"}, "none between two GRPO steps"),
        ({"schedule": "chord_mu"}, "both losses"),
        ({"schedule": "chord_phi"}, "both losses"),
        *(({"schedule": name}, "rollouts of the same step") for name in ("hpt", "luffy", "srft", "uft", "r3")),
        ({"use_vllm": True}, "use_vllm"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching"),
        ({"bf16": True}, "mixed precision"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"curriculum": "adaptive"}, "a curriculum"),
        ({"curriculum": "easy_to_hard"}, "a curriculum"),
        ({"flat_groups": "resample"}, "flat_groups resample"),
        ({"num_iterations": 2}, "steps_per_generation x num_iterations (2)"),
        ({"steps_per_generation": 2}, "steps_per_generation x num_iterations (2)"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError) as refused:
        toy.settings(tmp_path, **{"rollouts_ahead": 2, **changes})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_command_line_says_it_in_one_line(clean, error):
    steps = ("--max_steps", "4", "--sft_warmup_steps", "2", "--output_dir", "run")
    assert "schedule static has none between two GRPO steps: set it to 0" in error(
        *steps, "--rollouts_ahead", "4", "--schedule", "static"
    )


def test_several_processes_and_accelerators_are_refused(tmp_path, monkeypatch):
    args = toy.settings(tmp_path, rollouts_ahead=2)
    with monkeypatch.context() as patch:
        patch.setattr(type(args), "world_size", 2)
        with pytest.raises(InputError, match="several processes"):
            ahead.check_settings(args)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    ahead.check_settings(args)
    args.use_cpu = False
    with pytest.raises(InputError, match="an accelerator"):
        ahead.check_settings(args)


def test_own_rollouts_are_refused(tmp_path):
    with pytest.raises(InputError, match="rollouts_ahead does not go with rollout_func"):
        trainer(tmp_path, "SG", more={"rollout_func": lambda prompts, trainer: {}})


def test_a_plan_tied_to_its_own_rollouts_is_refused(tmp_path):
    class Tied(Pattern):
        def plan(self, signals):
            return StepPlan(1.0, 1.0, 0.5, demonstrations="gated")

    with pytest.raises(InputError, match="set rollouts_ahead to 0"):
        trainer(tmp_path, "S", more={"schedule": Tied("S")}).train()


def test_too_little_shared_memory_is_said(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(ahead.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(ahead, "_MEMORY_FILES", tmp_path)
    with pytest.raises(RunFailed, match="--shm-size"):
        trained(tmp_path, "SG")


# ---- processes ----


def ended(process: int) -> bool:
    """Wait for a process that need not be a child."""
    return bool(select.select([process], [], [], LIMIT)[0])


def test_the_worker_ends_with_the_training(tmp_path):
    one, processes = trainer(tmp_path, "SGS"), []
    at_step(one, WARMUP + 1, lambda: processes.append(os.pidfd_open(one.ahead._worker._process.pid)))
    one.train()
    assert len(processes) == 1 and ended(processes[0])
    assert one.ahead.pending is None


@pytest.mark.parametrize("dies_at", [WARMUP + 2, WARMUP + 3], ids=["when-waited-for", "when-given-a-job"])
def test_the_death_of_the_worker_is_told_in_a_line(tmp_path, dies_at):
    letters, saves = "SSGSG", {"save_strategy": "steps", "save_steps": dies_at - 2}
    one = trainer(tmp_path / "run", letters, **saves)

    def kill():
        process = os.pidfd_open(one.ahead._worker._process.pid)
        os.kill(one.ahead._worker._process.pid, signal.SIGKILL)
        assert ended(process)

    begin = Worker.begin
    if dies_at == WARMUP + 2:  # with a job that it has not answered

        def held(worker, *job):
            os.kill(worker._process.pid, signal.SIGSTOP)
            begin(worker, *job)
    else:
        held = begin
    at_step(one, dies_at, kill)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunFailed) as failed:
        patch.setattr(Worker, "begin", held)
        one.train()
    assert str(failed.value) == f"step {dies_at + 1}: the process that makes rollouts ahead died of signal 9"
    # Rollouts that are lost cannot be made again: it goes on from the checkpoint before, and not from the step before.
    assert [path.name for path in all_checkpoints(tmp_path / "run")] == [f"checkpoint-{dies_at - 2}"]
    again = trainer(tmp_path / "run", letters, **saves)
    again.train(resume_from_checkpoint=True)
    assert toy.history(again, *KEYS) == toy.history(trained(tmp_path / "whole", letters), *KEYS)


def test_an_error_in_the_worker_is_told_in_a_line(tmp_path):
    worker = Worker(trainer(tmp_path, "SG"))
    try:
        worker.begin([[10**6, 4]], 0)  # no token of the vocabulary
        with pytest.raises(RunFailed, match=r"^step 1: rollouts could not be made ahead: IndexError: .+$"):
            worker.result()
        worker.begin([[3, 4], [5]], 0)
        worker.begin([[3, 4], [5], [6]], 0)
        assert worker.result()["lengths"].shape == (3,), "it goes on, with the last job"
    finally:
        worker.close()


def test_an_interrupt_leaves_no_worker(tmp_path):
    one, processes = trainer(tmp_path, "SSG"), []

    def interrupt():
        processes.append(os.pidfd_open(one.ahead._worker._process.pid))
        raise KeyboardInterrupt

    at_step(one, WARMUP + 1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        one.train()
    assert ended(processes[0])


def _train_and_hold(directory: Path, connection) -> None:
    """In a process of its own: train until the worker, which does not get to its job, has one, and stay there."""
    one, begin = trainer(directory, "SSG"), Worker.begin

    def hold():
        connection.send(one.ahead._worker._process.pid)
        connection.recv()

    def held(worker, *job):
        os.kill(worker._process.pid, signal.SIGSTOP)
        begin(worker, *job)

    at_step(one, WARMUP + 1, hold)
    Worker.begin = held
    one.train()


def test_the_worker_does_not_outlive_a_parent_that_is_killed(tmp_path):
    context = torch.multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_train_and_hold, args=(tmp_path, theirs))
    parent.start()
    theirs.close()
    assert ours.poll(LIMIT)
    worker = ours.recv()
    process = os.pidfd_open(worker)
    parent.kill()
    parent.join(LIMIT)
    os.kill(worker, signal.SIGCONT)  # it goes on, and finds its parent gone
    assert ended(process)
