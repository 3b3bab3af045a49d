"""A run resumed from any of its checkpoints is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from peft import LoraConfig
from safetensors.torch import load_file

import toy
from sasr import InputError, ahead, checkpoints

TIMES = ("runtime", "per_second", "step_time", "_time", "_seconds")


def outcome(directory, step):
    """Everything a checkpoint says about a run: weights, optimizer, scheduler, random state, signals, logs."""
    checkpoint = directory / f"checkpoint-{step}"
    weights = next(p for p in checkpoint.glob("*model.safetensors"))
    found = {"weights": load_file(weights)}
    if (checkpoint / ahead.FILE).is_file():
        found["ahead"] = {k: v for k, v in load_file(checkpoint / ahead.FILE).items() if k != "seconds"}  # wall-clock
    for path in sorted(checkpoint.glob("*.pt")):
        found[path.name] = torch.load(path, weights_only=True)
    found["signals"] = json.loads((checkpoint / checkpoints.STATE_FILE).read_text())
    for name in ("step_time", "sasr/rollout_seconds", "sasr/rollout_wait_seconds"):
        found["signals"]["metrics"].pop(name, None)
    for name in ("seconds", "warmup_seconds", "unlogged"):
        del found["signals"]["budget"][name]  # wall-clock
    del found["signals"]["costs"]["spent"]["seconds"]  # wall-clock
    logs = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    found["logs"] = [{k: v for k, v in entry.items() if not any(t in k for t in TIMES)} for entry in logs]
    return found


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} != {b}"


VARIANTS = {
    "aligned": {},
    # Two prompts a step, so 24 rows are one pass every 12 GRPO steps; with 5 rows a pass ends all the time.
    "across-epoch": {"data_rows": 5},
    "mid-rollout-buffer": {"steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2},
    "separate-moments": {"separate_optimizer_states": True, "sft_norm_ema": 0.5},
    "divergence-probe": {"divergence_weight": 0.5, "divergence_every": 2, "divergence_probe": 4},
    "sparse-logs": {"logging_steps": 5},
    "beta": {"beta": 0.1},
    "both-losses": {"schedule": "chord_mu", "mu_decay_steps": 6, "steps_per_generation": 2, "num_iterations": 2},
    "lora": {"lora": True},
    "probes-with-dropout": {
        "lora": True, "sft_warmup_steps": 5, "sft_norm_every": 1, "divergence_weight": 0.5, "divergence_every": 2,
        "divergence_probe": 4,
    },
    "bf16": {"bf16": True, "separate_optimizer_states": True},
    "held-out": {"held_out_demonstrations": 6, "gamma_schedule": "cosine"},
    "relift": {"schedule": "relift"},
    "hpt": {"schedule": "hpt", "hpt_gate": 1},
    "luffy": {"schedule": "luffy", "gradient_accumulation_steps": 2},
    "srft": {"schedule": "srft"},
    "uft": {"schedule": "uft", "hint_steps": 8, "hint_weight": 0.5},
    "failed-and-probed": {
        "sft_questions": "failed", "sft_norm_every": 1, "gamma": 2.0, "per_device_train_batch_size": 16,
        "per_device_sft_batch_size": 2,
    },
    "adaptive-and-resampled": {
        "curriculum": "adaptive", "flat_groups": "resample", "failed_decay": 0.5, "failed_threshold": 0.5,
        "sft_questions": "failed", "steps_per_generation": 4, "num_iterations": 2, "gradient_accumulation_steps": 2,
    },
    "ahead": {"rollouts_ahead": 2, "flat_groups": "skip", "lora": True, "logging_steps": 5},
    "easy-to-hard-and-skipped": {"curriculum": "easy_to_hard", "flat_groups": "skip", "sft_norm_every": 2},
}  # fmt: skip

OFTEN = ("aligned", "mid-rollout-buffer", "probes-with-dropout")
METHODS = (
    "ahead", "relift", "hpt", "luffy", "srft", "uft", "failed-and-probed", "adaptive-and-resampled",
    "easy-to-hard-and-skipped", "bf16", "held-out",
)  # fmt: skip


def build(directory, variant, **changes):
    settings = {**VARIANTS[variant], "save_strategy": "steps", "save_steps": 1, "max_steps": 14, **changes}
    lora, data = settings.pop("lora", False), toy.rows(settings.pop("data_rows", 24))
    more = {"peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)} if lora else {}
    lm = toy.model(directory=directory.parent / "lm") if settings.get("beta") else toy.model()
    return toy.trainer(directory, lm=lm, data=data, more=more, **settings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bit_for_bit(tmp_path, variant):
    whole = tmp_path / "whole"
    build(whole, variant).train()
    expected = outcome(whole, 14)
    counts = expected["signals"]["counts"]
    assert counts["sft_steps"] > 4 and counts["grpo_steps"] > 0, "the hybrid phase must have steps of both kinds"
    if variant in ("relift", "failed-and-probed"):
        states = [outcome(whole, step)["signals"] for step in (6, 10)]
        assert all(state["failed_at"] for state in states), "there must be questions that wait"
    if "rollouts_ahead" in VARIANTS[variant]:
        assert "ahead" in outcome(whole, 6), "there must be rollouts that wait"
    for step in (6, 10) if variant in METHODS else range(1, 14, 1 if variant in OFTEN else 4):
        part = tmp_path / f"part-{step}"
        part.mkdir()
        shutil.copytree(whole / f"checkpoint-{step}", part / f"checkpoint-{step}")
        if variant == "beta" and step > 4:
            shutil.copytree(whole / "reference_model", part / "reference_model")
        build(part, variant, save_steps=14).train(resume_from_checkpoint=True)
        assert_same(outcome(part, 14), expected, f"resumed at {step}")
        shutil.rmtree(part)


def test_the_training_loss_is_that_of_the_whole_run(tmp_path):
    whole = build(tmp_path / "whole", "aligned").train()
    part = build(tmp_path / "whole", "aligned").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-12"))
    assert part.training_loss == pytest.approx(whole.training_loss, rel=1e-6)


def test_a_trainer_trains_one_run(tmp_path):
    trained = build(tmp_path, "aligned", max_steps=6)
    trained.train()
    with pytest.raises(InputError, match=r"has trained 6 steps.*resume_from_checkpoint=True\), or make a new"):
        trained.train()
    trained.args.max_steps = 8
    trained.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trained.state.global_step == 8


def test_rollouts_are_used_as_often_as_configured_and_none_is_lost(tmp_path):
    """SFT steps fall in between; every rollout is trained on exactly `num_iterations` times."""
    trained = build(tmp_path, "mid-rollout-buffer", save_strategy="no", max_steps=40, gamma=1.0)
    generated, used = [], []
    generate, loss = trained._generate_and_score_completions, trained._compute_loss

    def tag(inputs):
        out = generate(inputs)
        first = len(generated)
        generated.extend(range(first, first + len(inputs)))
        return {**out, "serial": torch.arange(first, first + len(inputs))}

    def record(model, inputs):
        used.extend(inputs["serial"].tolist())
        return loss(model, inputs)

    trained._generate_and_score_completions, trained._compute_loss = tag, record
    trained.train()
    kinds = [weight for (weight,) in toy.history(trained, "sasr/sft_weight")][4:]
    assert 5 < sum(kinds) < 31, "SFT steps must fall between GRPO steps"
    # A generation is 4 slices x 2 iterations = 8 micro-batches = 4 GRPO steps; the last one may be under way.
    complete = (len(kinds) - int(sum(kinds))) // 4 * 4 * 8
    assert complete >= 3 * 4 * 8
    assert [used.count(serial) for serial in range(complete)] == [2] * complete
    assert max(used) < len(generated) <= complete + 4 * 8


def test_half_written_checkpoint_is_not_seen(tmp_path):
    """An end while a checkpoint is written leaves the one before, and nothing of the new one."""
    run = build(tmp_path, "aligned", save_steps=4)
    save = run._save_rng_state

    def die(output_dir):
        save(output_dir)
        if run.state.global_step == 8:
            raise KeyboardInterrupt

    run._save_rng_state = die
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.state.global_step == 8, "it came while writing"
    assert not (tmp_path / checkpoints.STAGING / "checkpoint-8").exists()
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "checkpoint-8").exists()
    resumed = build(tmp_path, "aligned", save_steps=4)
    resumed.train(resume_from_checkpoint=True)
    whole = build(tmp_path / "whole", "aligned", save_steps=14)
    whole.train()
    assert_same(outcome(tmp_path, 14)["weights"], outcome(tmp_path / "whole", 14)["weights"])


def test_old_checkpoints_go_only_after_the_new_one_is_whole(tmp_path):
    run = build(tmp_path, "aligned", save_steps=4, save_total_limit=1)
    run.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-14"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gamma": 2.0}, "gamma: 1.0 then, 2.0 now"),
        ({"data_rows": 20}, "data: "),
        ({"max_steps": 16}, "max_steps: 14 then, 16 now"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, changes, named):
    build(tmp_path, "aligned", save_steps=7).train()
    with pytest.raises(InputError, match=named):
        build(tmp_path, "aligned", save_steps=7, **changes).train(resume_from_checkpoint=True)


def test_checkpoint_of_a_run_with_other_demonstrations_is_refused(tmp_path):
    """Those of a dataset of their own: in the training rows they are part of the data."""

    def run(completion):
        shown = Dataset.from_list([{"prompt": "2+2=", "completion": completion}])
        settings = {"schedule": "static", "sft_warmup_steps": 1, "save_strategy": "steps", "save_steps": 2}
        data = toy.rows().remove_columns("completion")
        return toy.trainer(tmp_path, data=data, more={"demonstration_dataset": shown}, max_steps=2, **settings)

    run("04").train()
    with pytest.raises(InputError, match=r"\(data: \w+ then, \w+ now\)"):
        run("05").train(resume_from_checkpoint=True)
    run("04").train(resume_from_checkpoint=True)


def test_run_with_constant_rate_can_be_extended(tmp_path):
    constant = {"save_steps": 7, "lr_scheduler_type": "constant"}
    build(tmp_path, "aligned", **constant).train()
    longer = build(tmp_path, "aligned", **constant, max_steps=21)
    longer.train(resume_from_checkpoint=True)
    whole = build(tmp_path / "whole", "aligned", **constant, max_steps=21)
    whole.train()
    assert_same(outcome(tmp_path, 21)["weights"], outcome(tmp_path / "whole", 21)["weights"])


def test_checkpoint_that_does_not_count_demonstrations(tmp_path):
    """Earlier versions wrote the position in the stream of demonstrations alone."""
    build(tmp_path / "whole", "aligned", save_steps=7).train()
    expected = outcome(tmp_path / "whole", 14)["signals"]["counts"]
    shutil.copytree(tmp_path / "whole" / "checkpoint-7", staged := tmp_path / "staged" / "checkpoint-7")
    (staged / checkpoints.MANIFEST).unlink()
    state = json.loads((staged / checkpoints.STATE_FILE).read_text())
    studied = state["counts"].pop("demonstrations")
    (staged / checkpoints.STATE_FILE).write_text(json.dumps(state))
    (tmp_path / "part").mkdir()
    checkpoints.publish(staged, tmp_path / "part" / "checkpoint-7")
    build(tmp_path / "part", "aligned", save_steps=7).train(resume_from_checkpoint=True)
    assert outcome(tmp_path / "part", 14)["signals"]["counts"] == expected
    assert expected["demonstrations"] > studied > 0


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        build(tmp_path, "aligned").train(resume_from_checkpoint=True)


def test_a_finished_run_is_not_trained_further(tmp_path):
    build(tmp_path, "aligned", save_steps=7).train()
    again = build(tmp_path, "aligned", save_steps=7)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 14
    assert sum(again.counts[kind] for kind in ("sft_steps", "grpo_steps")) == 14
    saved = outcome(tmp_path, 14)["weights"]
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter.cpu(), saved[name])


@pytest.mark.parametrize(
    ("strategy", "checkpoints_sent"),
    [
        ("end", {}),
        ("every_save", {}),
        ("checkpoint", {"checkpoint-7": "last-checkpoint", "checkpoint-14": "last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-7": "checkpoint-7", "checkpoint-14": "checkpoint-14"}),
    ],
)
def test_what_is_pushed_while_a_run_goes_on_stays_where_it_is(tmp_path, monkeypatch, strategy, checkpoints_sent):
    """The client of the Hub reads it in a thread of its own, whenever that comes to it."""
    sent: list[tuple[Path, str | None]] = []

    def upload(self, *, folder_path, path_in_repo=None, **options):
        assert options["run_as_future"] and not (run / checkpoints.STAGING).exists()
        sent.append((Path(folder_path), path_in_repo))
        (done := Future()).set_result(None)
        return done

    run = tmp_path / "run"
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: SimpleNamespace(repo_id=f"me/{name}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    build(run, "aligned", save_steps=7, push_to_hub=True, hub_strategy=strategy).train()
    assert {folder.name: place for folder, place in sent if place} == checkpoints_sent
    assert [folder for folder, place in sent if not place] == [run] * (0 if strategy == "end" else 2)
    for folder, place in sent:
        assert (folder / "model.safetensors").is_file() and (not place or (folder / checkpoints.MANIFEST).is_file())
        checkpoints.check_whole(folder)
    if strategy != "end":
        last = run / "checkpoint-14" / "model.safetensors"
        assert (run / "model.safetensors").read_bytes() == last.read_bytes(), "the model of the last save is beside it"
