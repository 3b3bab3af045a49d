"""Through the real trainer: steps without finite gradients, and what follows a collapse."""

from __future__ import annotations

import json
import logging
import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import sasr.cli
import toy
from sasr import InputError, engine_checks, safeguards, watch
from sasr.callbacks import StepCallback
from sasr.errors import RunFailed
from sasr.reference import Reference
from sasr.schedules import GRPO_STEP, StepPlan, draw
from test_resume import assert_same, outcome


def poisoned(trainer, steps):
    """The model's hidden states overflow when it is trained in the steps with these indices, and not in rollouts."""

    def hook(module, inputs, output):
        bad = torch.is_grad_enabled() and trainer.state.global_step in steps
        return output * math.inf if bad else output

    trainer.model.model.norm.register_forward_hook(hook)
    return trainer


SAVE = {"save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("step", [2, 7], ids=["sft", "grpo"])
@pytest.mark.parametrize("more", [{}, {"separate_optimizer_states": True}, {"max_grad_norm": 0.0}], ids=str)
def test_a_step_without_finite_gradients_changes_no_weight(tmp_path, caplog, step, more):
    schedule = {"schedule": "static", **more}
    trainer = poisoned(toy.trainer(tmp_path / "a", **SAVE, **schedule), {step})
    trainer.train()
    weights = [load_file(tmp_path / "a" / f"checkpoint-{i}" / "model.safetensors") for i in range(1, 13)]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(weights)]
    assert [i + 1 for i, equal in enumerate(same) if equal] == [step]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights[-1].values())
    skipped = toy.history(trainer, "sasr/skipped_steps")
    assert skipped == [(None,)] * step + [(1.0,)] * (12 - step)
    (record,) = [record for record in caplog.records if record.name == "sasr"]
    kind = "sft" if step < 4 else "grpo"
    assert record.levelno == logging.WARNING and record.message.startswith(
        f"step {step + 1}, {kind}: gradient norm nan"
    )

    resumed = poisoned(toy.trainer(tmp_path / "b", **SAVE, **schedule), {step})
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
    assert_same(outcome(tmp_path / "a", 12), outcome(tmp_path / "b", 12))


def test_many_in_a_row_end_the_run(tmp_path):
    trainer = poisoned(toy.trainer(tmp_path, max_skipped_steps=3, **SAVE), set(range(5, 12)))
    with pytest.raises(RunFailed) as told:
        trainer.train()
    message = str(told.value)
    assert "the gradients of 3 steps in a row, up to step 8, were no finite numbers, the largest weight is" in message
    assert message.endswith(f"begin a new run, from {tmp_path / 'checkpoint-5'} (--model_name_or_path)")
    assert toy.history(trainer, "sasr/skipped_steps")[-1] == (3.0,)
    last = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert all(
        torch.equal(tensor, last[name])
        for name, tensor in load_file(tmp_path / "checkpoint-5" / "model.safetensors").items()
    )


def test_a_run_that_diverges_ends_in_one_line(tmp_path, capsys):
    """For real: weights that a learning rate of 1e30 has thrown away."""
    flags = ["--train_rows", "50", "--exam_rows", "0", "--sft_warmup_steps", "20", "--max_steps", "20"]
    rates = [
        "--sft_learning_rate",
        "1e30",
        "--lr_scheduler_type",
        "constant",
        "--save_steps",
        "1",
        "--save_total_limit",
        "9",
    ]
    run = tmp_path / "run"
    assert sasr.cli.main(["train", *flags, *rates, "--output_dir", str(run)]) == 1
    out, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert line.startswith("sasr: failed: the gradients of 5 steps in a row, up to step ")
    assert "lower the learning rates (SFT 1e+30, then 0.001; GRPO " in line
    assert line.endswith(f"and begin a new run, from {run}/checkpoint-{len(lines) - 5} (--model_name_or_path)")
    assert [bool(line.get("warnings")) for line in lines[-5:]] == [True] * 5
    assert [line["loss"] for line in lines[-5:]] == [None] * 5, "transformers would put others' mean there"
    assert out.count("warning: step ") >= 5 and "step skipped (5 in a row)" in out
    assert "failed at step" in (run / "report.html").read_text()


@pytest.fixture
def short_window(monkeypatch):
    """A collapse is seen after four GRPO steps instead of twenty."""
    monkeypatch.setattr(watch, "WINDOW", 4)
    monkeypatch.setattr(safeguards, "_SFT_STEPS", 8)


def collapsing(trainer, step):
    """The reward is worth nothing from this step on."""
    reward = trainer.reward_funcs[0]
    trainer.reward_funcs[0] = lambda **columns: [
        value * (trainer.state.global_step < step) + 1e-3 * (i % 2) for i, value in enumerate(reward(**columns))
    ]
    return trainer


def collapse_rewards(tmp_path, **changes):
    constant = lambda completions, **_: [0.5 + 0.01 * (i % 2) for i in range(len(completions))]  # noqa: E731
    settings = {"schedule": "static", "sft_warmup_steps": 2, "max_steps": 30, **SAVE, **changes}
    return collapsing(toy.trainer(tmp_path, rewards=[constant], **settings), 10)


def told(caplog) -> list[str]:
    """Of the collapse: so short a window has more to say."""
    texts = [record.message for record in caplog.records if record.name == "sasr"]
    return [text for text in texts if "GRPO collapses" in text or "back to" in text]


def test_collapse_is_told_and_changes_nothing_else(tmp_path, caplog, short_window):
    trainer = collapse_rewards(tmp_path / "a")
    trainer.train()
    (text,) = told(caplog)
    assert "GRPO collapses: the mean reward of the last 4 GRPO steps is" in text
    assert {kind for (kind,) in toy.history(trainer, "sasr/p_sft")[2:]} == {0.0}


def test_collapse_brings_sft_for_a_while(tmp_path, caplog, short_window):
    trainer = collapse_rewards(tmp_path / "a", on_collapse="sft")
    trainer.train()
    (text,) = told(caplog)
    at = int(text.split(":")[0].removeprefix("step "))
    shares = [p for (p,) in toy.history(trainer, "sasr/p_sft")]
    assert shares == [1.0] * 2 + [0.0] * (at - 2) + [0.5] * 8 + [0.0] * (30 - at - 8)
    kinds = [sft for (sft,) in toy.history(trainer, "sasr/sft_weight")]
    assert 0 < sum(kinds[at : at + 8]) < 8 and not any(kinds[at + 8 :])
    resumed = collapse_rewards(tmp_path / "b", on_collapse="sft")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{at + 3}"))
    assert_same(outcome(tmp_path / "a", 30), outcome(tmp_path / "b", 30))


def test_the_coin_of_a_collapse_is_not_the_one_that_fell_for_grpo():
    """That one was high wherever GRPO is planned: there would be no SFT."""
    plan, kinds = replace(GRPO_STEP, sft_probability=0.6), []
    for step in range(2000):
        if draw(1, step) >= plan.sft_probability:
            trained = SimpleNamespace(
                args=SimpleNamespace(on_collapse="sft", seed=1),
                watch=SimpleNamespace(collapsed_at=0),
                state=SimpleNamespace(global_step=step),
            )
            kinds.append(safeguards.adjusted(trained, plan).kind)
    assert set(kinds) == {"sft", "grpo"} and kinds.count("sft") / len(kinds) == pytest.approx(0.5, abs=0.06)


def test_sft_after_a_collapse_needs_demonstrations(tmp_path):
    settings = {"data": toy.rows().remove_columns("completion"), "schedule": "grpo", "sft_warmup_steps": 0}
    toy.trainer(tmp_path, **settings)
    with pytest.raises(InputError, match="no row has a demonstration"):
        toy.trainer(tmp_path, on_collapse="sft", **settings)


@pytest.mark.parametrize("separate", [False, True])
def test_collapse_goes_back_to_the_best_exam(tmp_path, caplog, short_window, separate):
    def run(directory: Path):
        changes = {"on_collapse": "rollback", "separate_optimizer_states": separate, "learning_rate": 1e-12}
        trainer = collapse_rewards(tmp_path / directory, **changes, save_total_limit=2)
        trainer.best_checkpoint = lambda: safeguards.best_checkpoint(tmp_path / "a", exams, trainer.state.global_step)
        return trainer

    exams = {f"step-{step}": {"step": step, "pass_at": {"1": score}} for step, score in ((1, 0.1), (5, 0.3), (8, 0.2))}
    whole = run("a")
    whole.train()
    _, text = told(caplog)
    assert text.endswith("back to the weights of checkpoint-5, the best exam so far (pass@1 0.300)")
    at = int(text.split(":")[0].removeprefix("step "))
    assert (tmp_path / "a" / "checkpoint-5").is_dir(), "it is kept, although only two checkpoints are"
    # GRPO's rate is next to nothing: the weights afterwards are those of the best exam.
    best, last = (load_file(tmp_path / "a" / f"checkpoint-{step}" / "model.safetensors") for step in (5, 30))
    assert at < 30 and all(torch.allclose(best[name], last[name], rtol=0, atol=1e-9) for name in best)

    moments = torch.load(tmp_path / "a" / "checkpoint-30" / "optimizer.pt", weights_only=True)["state"]
    assert {int(state["step"]) for state in moments.values()} == {30 - at}


def test_rollouts_of_weights_that_are_given_up_are_not_trained_on(tmp_path, caplog, short_window):
    """Each generation is of two steps: the collapse is seen in the first of them, and the second comes before."""
    settings = {"on_collapse": "rollback", "steps_per_generation": 2, "max_steps": 20}
    trainer, generations = collapse_rewards(tmp_path, **settings), []
    trainer.best_checkpoint = lambda: (tmp_path / "checkpoint-5", 0.3)
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: (
        generations.append(trainer.state.global_step) or generate(inputs)
    )
    trainer.train()
    seen, back = (int(text.split(":")[0].removeprefix("step ")) for text in told(caplog))
    assert generations == list(range(2, 20, 2)) and back in generations
    assert seen == back - 1, "in the middle of a generation"


def test_best_checkpoint_is_one_that_is_there(tmp_path):
    exams = {
        str(step): {"step": step, "pass_at": {"1": score}} for step, score in ((0, 1.0), (4, 0.5), (8, 0.7), (9, 0.9))
    }
    assert safeguards.best_checkpoint(tmp_path, exams, 9) is None
    for step in (0, 4, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert safeguards.best_checkpoint(tmp_path, exams, 9) == (tmp_path / "checkpoint-8", 0.7)
    assert safeguards.best_checkpoint(tmp_path, exams, 7) == (tmp_path / "checkpoint-4", 0.5)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"on_collapse": "sleep"}, "unknown on_collapse 'sleep': use one of warn, sft, rollback"),
        ({"max_skipped_steps": 0}, "max_skipped_steps is 0: it must be 1 or more"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, fragment):
    with pytest.raises(InputError, match=fragment):
        toy.settings(tmp_path, **changes)


def test_rollback_needs_exams(capsys, tmp_path):
    assert sasr.cli.main(["train", "--on_collapse", "rollback", "--output_dir", str(tmp_path / "run")]) == 2
    assert "on_collapse rollback goes back to the best exam: set exam_every" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("answer", "split", "lines"), [("rollback", "test", 1), ("rollback", "validation", 0), ("sft", "test", 0)]
)
def test_rollback_by_the_exams_that_are_reported_is_said(tmp_path, answer, split, lines):
    notes = safeguards.notes(toy.settings(tmp_path, on_collapse=answer), split)
    assert len(notes) == lines
    assert all("--validation_rows N --exam_split validation" in note and "\n" not in note for note in notes)


def test_step_callback_takes_the_warnings(tmp_path):
    trainer = toy.trainer(tmp_path)
    callback = StepCallback(trainer, None)
    trainer.tell("step 3: something")
    assert callback._warnings == ["step 3: something"]


@pytest.mark.parametrize(
    ("scale", "sft_loss", "skipped"), [(65536.0, None, 0), (65536.0, 2.0, 0), (65536.0, math.nan, 1), (0.5, None, 1)]
)
def test_what_the_loss_scaler_does_not_mend_is_a_skipped_step(tmp_path, scale, sft_loss, skipped):
    """A forward pass that overflows in fp16 gives no finite gradient at any scale, and would teach nothing for ever."""
    trained = toy.trainer(tmp_path)
    trained.args.fp16, trained.accelerator.scaler = True, SimpleNamespace(get_scale=lambda: scale)
    trained.plan = StepPlan(1.0, 0.0, 1.0)
    safeguards.after_gradients(trained, math.inf, sft_loss)
    assert trained.watch.skipped == skipped


def test_what_a_growing_pull_and_harder_questions_do_is_no_news(tmp_path):
    """p is near 1 and near 0 at the ends of every long run then, and the reward falls with each level."""
    for changes, told in (({}, (0.995, False)), ({"gamma_schedule": "cosine"}, (None, False)),
                          ({"curriculum": "easy_to_hard"}, (0.995, True))):  # fmt: skip
        trained, seen = toy.trainer(tmp_path, **changes), []
        trained.watch.observe = lambda measured, seen=seen: seen.append(measured) or []
        trained.state.global_step, trained.plan = 5, StepPlan(0.0, 1.0, 0.995)
        trained._metrics["train"]["reward"].append(0.3)
        safeguards.after_gradients(trained, 1.0, None)
        assert (seen[0].sft_probability, seen[0].gets_harder) == told and seen[0].reward == 0.3, changes


def test_questions_that_get_harder_hide_no_other_warning():
    """Of rollouts that are all cut, or never right, nothing was said then."""
    for gets_harder in (False, True):
        rules, said = watch.Watch(), []
        for step in range(1, 200):
            reward = 0.5 if step < 60 else 0.05
            seen = {"norm": 1.0, "reward": reward, "entropy": 1.0, "cut": 1.0, "gets_harder": gets_harder}
            said += rules.observe(watch.Measured(step=step, kind="grpo", **seen))
        assert any("are cut at the token limit" in text for text in said)
        assert any("collapse" in text for text in said) == (not gets_harder), said
        assert (rules.collapsed_at is not None) == (not gets_harder)


@pytest.mark.parametrize("answer", ["sft", "rollback"])
def test_a_collapse_is_not_told_by_rewards_of_harder_questions(tmp_path, answer):
    with pytest.raises(InputError, match=f"on_collapse {answer} goes by the reward"):
        toy.settings(tmp_path, on_collapse=answer, curriculum="easy_to_hard")


def test_engines_that_would_lose_the_model_are_refused(tmp_path, monkeypatch):
    trained = toy.trainer(tmp_path)
    engine_checks.check(trained)
    for kind, refused in (("SHARDED", True), ("FULL", False)):
        plugin = SimpleNamespace(state_dict_type=f"StateDictType.{kind}_STATE_DICT")
        fsdp = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
        with monkeypatch.context() as patch:
            patch.setattr(trained, "is_fsdp_enabled", True)
            patch.setattr(trained, "accelerator", fsdp)
            if refused:
                with pytest.raises(InputError, match="saves no model: set fsdp_state_dict_type to FULL_STATE_DICT"):
                    engine_checks.check(trained)
            else:
                engine_checks.check(trained)
    for stage, gathers, refused in ((3, None, True), (3, "auto", True), (3, True, False), (2, None, False)):
        zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}
        plugin = SimpleNamespace(deepspeed_config={"zero_optimization": zero})
        with monkeypatch.context() as patch:
            patch.setattr(trained, "is_deepspeed_enabled", True)
            patch.setattr(trained, "accelerator", SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)))
            with pytest.raises(InputError, match="set zero3_save_16bit_model: true") if refused else nullcontext():
                engine_checks.check(trained)
    trained.args.use_transformers_continuous_batching = trained.args.bf16 = True
    with pytest.raises(InputError, match="casts the weights to bf16 for good"):
        engine_checks.check(trained)


@pytest.mark.parametrize(
    ("attribute", "changes", "message"),
    [
        ("is_deepspeed_enabled", {"sft_norm_every": 2}, "gradients that can be thrown away"),
        ("is_fsdp_enabled", {"separate_optimizer_states": True}, "a plain torch optimizer"),
        ("is_deepspeed_enabled", {"on_collapse": "rollback"}, "on_collapse rollback needs weights in one piece"),
        ("_is_vlm", {"flat_groups": "resample"}, "flat_groups resample is for dense text models"),
        (
            "aux_loss_enabled",
            {"flat_groups": "skip", "schedule": "grpo", "sft_warmup_steps": 0},
            "flat_groups skip is for dense text models",
        ),
    ],
)
def test_what_an_engine_or_a_model_cannot_do_is_refused(tmp_path, monkeypatch, attribute, changes, message):
    trained = toy.trainer(tmp_path, **changes)
    engine_checks.check(trained)
    monkeypatch.setattr(trained, attribute, True)
    with pytest.raises(InputError, match=message):
        engine_checks.check(trained)


def test_a_copy_of_a_model_in_parts_is_refused(tmp_path, monkeypatch):
    trained = toy.trainer(tmp_path / "run", lm=toy.model(directory=tmp_path / "lm"), beta=0.1)
    for engine in ("is_deepspeed_enabled", "is_fsdp_enabled"):
        with monkeypatch.context() as patch:
            patch.setattr(trained, engine, True)
            with pytest.raises(InputError, match="set reference_model to initial"):
                Reference(trained)


def test_generations_leave_no_hooks(tmp_path):
    """transformers adds two for each where gradient checkpointing is on, and each is called for every token."""
    trained = toy.trainer(tmp_path, schedule="grpo", sft_warmup_steps=0, max_steps=6, gradient_checkpointing=True)
    trained.train()
    assert len(trained.model.get_input_embeddings()._forward_hooks) == 1
    assert max(norm for (norm,) in toy.history(trained, "grad_norm")) > 0
