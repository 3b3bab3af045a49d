"""Training that goes on: in the same object after an interruption, under engines that change the model in place, and
with settings that TRL changes."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

import sasr.cli
import toy
from refusals import SMALL
from sasr import InputError, checkpoints
from test_resume import assert_same, outcome

STEPS = 12
SAVE = {"save_strategy": "steps", "save_steps": 4, "max_steps": STEPS}


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("share_of", ["steps", "flops"])
def test_an_interrupted_step_leaves_nothing_behind(tmp_path, kind, share_of):
    """Ctrl-C in a script, in the middle of a step, then `train(resume_from_checkpoint=True)` of the same trainer: its
    rewards, losses and FLOPs counted as the next step's."""
    settings = {**SAVE, "share_of": share_of, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    toy.trainer(tmp_path / "whole", **settings).train()
    trained = toy.trainer(tmp_path / "again", **settings)
    loss, parts = trained.compute_loss, []

    def interrupted(*args, **kwargs):
        found = loss(*args, **kwargs)
        if trained.plan.kind == kind and trained.state.global_step > 4 and not parts:
            parts.append(1)
            raise KeyboardInterrupt
        return found

    trained.compute_loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        trained.train()
    assert parts
    trained.train(resume_from_checkpoint=True)
    assert_same(outcome(tmp_path / "again", STEPS), outcome(tmp_path / "whole", STEPS))


def test_a_scheduler_of_the_users_own_begins_after_the_warm_up_once(tmp_path):
    """transformers makes those anew that it made itself, and keeps another."""
    lm = toy.model()
    optimizer = AdamW(lm.parameters(), lr=1e-3)
    shape = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trained = toy.trainer(tmp_path, lm=lm, more={"optimizers": (optimizer, shape)}, **SAVE)
    for _ in range(2):
        trained.create_scheduler(STEPS)
        assert [trained.lr_scheduler.lr_lambdas[0](step) for step in (0, 4, 5, 7)] == [1, 1, 1 / 2, 1 / 4]


def test_what_an_engine_makes_of_the_model_is_no_other_run(tmp_path):
    """DeepSpeed casts the weights in place, and leaves none of them with stage 3, after the fingerprint of a run that
    goes on, and before that of a new one, was taken."""
    trained, other = toy.trainer(tmp_path, **SAVE), toy.trainer(tmp_path, **SAVE)
    trained.model.to(torch.bfloat16)
    for parameter in trained.model.parameters():
        parameter.data = torch.empty(0)
    assert trained.fingerprint() == other.fingerprint()
    empty = toy.model()
    for parameter in empty.parameters():
        parameter.ds_numel, parameter.data = parameter.numel(), torch.empty(0)
    assert checkpoints.model_facts(empty) == checkpoints.model_facts(toy.model())


@pytest.mark.parametrize("engine", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_a_finished_run_under_an_engine_gives_its_model(tmp_path, monkeypatch, engine):
    """The engine, which has the weights in parts, is not there before the first step: saving them died of that."""
    toy.trainer(tmp_path, **SAVE).train()
    again = toy.trainer(tmp_path, **SAVE)
    monkeypatch.setattr(again, engine, True)
    assert again.train(resume_from_checkpoint=True).global_step == STEPS
    again.save_model(str(tmp_path))
    saved, last = tmp_path, tmp_path / f"checkpoint-{STEPS}"
    assert_same(load_file(saved / "model.safetensors"), load_file(last / "model.safetensors"))
    assert {"config.json", "tokenizer.json"} <= {path.name for path in saved.iterdir()}
    assert not any(path.name.startswith(("optimizer", "sasr_", "trainer_state", "rng")) for path in saved.iterdir())
    (last / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        again.save_model(str(tmp_path))


def test_saved_rollouts_keep_their_precision(tmp_path, monkeypatch):
    """With DeepSpeed transformers casts all that it moves to the weights' dtype: log-probabilities among them."""
    trained = toy.trainer(tmp_path, **SAVE)
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(trained, "is_deepspeed_enabled", True)
    monkeypatch.setattr(trained.accelerator.state, "deepspeed_plugins", plugin, raising=False)
    rollouts = [{"old_per_token_logps": torch.rand(2, 3), "completion_ids": torch.ones(2, 3, dtype=torch.long)}]
    assert_same(trained.on_device(rollouts), rollouts)
    assert trained.on_device(None) is None


def test_settings_that_divide_memory_are_free(tmp_path):
    toy.trainer(tmp_path / "first", **SAVE).train()
    less = {"vllm_gpu_memory_utilization": 0.1, "vllm_enable_sleep_mode": True}
    again = toy.trainer(tmp_path / "first", **SAVE, **less)
    again.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-8"))
    assert again.state.global_step == STEPS


def test_liger_leaves_the_fused_head_and_a_run_goes_on(clean, monkeypatch):
    """TRL says in the settings that Liger is not to replace the model's forward pass, and transformers reads it when
    the training begins. A run that goes on is compared by its settings before TRL has said so."""
    applied = []
    monkeypatch.setattr("sasr.setting_checks.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", lambda model, config: applied.append(config))
    more = ["--use_liger_kernel", "true", "--use_cpu", "true"]
    assert sasr.cli.main(["train", *SMALL, *more]) == 0
    assert sasr.cli.main(["train", "--resume_from_checkpoint", "run/checkpoint-2"]) == 0
    assert applied == [{"fused_linear_cross_entropy": False}] * 2


def test_ligers_settings_as_given_and_as_trl_has_them_are_the_same(tmp_path):
    """Earlier versions have saved either."""
    saved: dict = {"rollout_step": 0}
    without = [None, {}, {"fused_linear_cross_entropy": False}]
    for then in without:
        saved["fingerprint"] = {"liger_kernel_config": then}
        (tmp_path / checkpoints.STATE_FILE).write_text(json.dumps(saved))
        for now in without:
            checkpoints.check_same_run(tmp_path, {"liger_kernel_config": now})
        with pytest.raises(InputError, match=r"liger_kernel_config: .* then, \{'rope': False\} now"):
            checkpoints.check_same_run(tmp_path, {"liger_kernel_config": {"rope": False}})


def test_a_new_checkpoint_is_the_newest_by_its_date_too(tmp_path):
    """After the clock was set back transformers would delete each as soon as it is there, as the oldest."""
    trained = toy.trainer(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2, max_steps=6)
    ahead = time.time() + 3600

    class Ahead(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step < 6:
                os.utime(tmp_path / f"checkpoint-{state.global_step}", (ahead, ahead))

    trained.add_callback(Ahead())
    trained.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    dates = [(tmp_path / f"checkpoint-{step}").stat().st_mtime for step in (4, 6)]
    assert dates[0] < dates[1]
