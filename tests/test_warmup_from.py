"""A run that starts from another run's warm-up is the run that would have done it itself, bit for bit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import sasr.cli
import sasr.run
import toy
from refusals import checked
from sasr import InputError, SASRConfig, checkpoints
from test_distributed import run_script
from test_resume import TIMES, assert_same, outcome
from whole_runs import assert_same_run, command, finish, metrics, resume_command, start, without_times

W, END = 4, 12
SAVE = {"save_strategy": "steps", "save_steps": 4}


def build(directory, **changes):
    local = toy.model(directory=directory.parent / "lm") if changes.get("beta") else toy.model()
    return toy.trainer(directory, lm=local, **{**SAVE, **changes})


def donor(directory, **changes):
    """A warm-up and nothing else."""
    trained = build(directory, schedule="sft", max_steps=W, **changes)
    trained.train()
    return trained


def logged(trained):
    return [{k: v for k, v in entry.items() if not any(t in k for t in TIMES)} for entry in trained.state.log_history]


def assert_forked_equals_whole(tmp_path, donor_changes, **changes):
    donor(tmp_path / "donor", **donor_changes)
    whole = build(tmp_path / "whole", **changes)
    whole.train()
    forked = build(tmp_path / "forked", warmup_from=str(tmp_path / "donor"), **changes)
    forked.train()
    expected, found = outcome(tmp_path / "whole", END), outcome(tmp_path / "forked", END)
    for end in (expected, found):
        del end["signals"]["total_loss"]  # of the logs of this process
    assert found["signals"]["fingerprint"] == expected["signals"]["fingerprint"]
    assert_same(found, expected)
    assert forked.counts == whole.counts and forked.counts["sft_steps"] > W and forked.counts["grpo_steps"] > 0
    return whole, forked


# ---- settings of the donor, settings of both runs ----
VARIANTS = {
    "default": ({}, {}),
    "separate-moments": ({"separate_optimizer_states": True}, {"separate_optimizer_states": True}),
    "learning-rate": ({"learning_rate": 5e-4}, {"learning_rate": 2e-3, "sft_hybrid_learning_rate": 7e-4}),
    "shape": (
        {"lr_scheduler_type": "constant", "learning_rate": 0.3},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2, "learning_rate": 1e-3 / 3},
    ),
    "beta": ({}, {"beta": 0.1}),
    "beta-of-the-donor": ({"beta": 0.1}, {}),
    "initial-reference": ({}, {"beta": 0.1, "reference_model": "initial"}),
    "divergence": ({}, {"divergence_weight": 0.5, "divergence_every": 2, "divergence_probe": 4}),
    "rollouts": (
        {},
        {"num_generations": 2, "max_completion_length": 3, "steps_per_generation": 2, "num_iterations": 2},
    ),
    "sparse-logs": ({"logging_steps": 3}, {"logging_steps": 3}),
    "held-out": ({"held_out_demonstrations": 6}, {"held_out_demonstrations": 6, "gamma_schedule": "cosine"}),
    "share-of-flops": ({}, {"share_of": "flops"}),
    "growing-pull": ({}, {"gamma_schedule": "cosine", "useful_passes": 4.0}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_forked_run_is_the_uninterrupted_one(tmp_path, variant):
    assert_forked_equals_whole(tmp_path, VARIANTS[variant][0], **VARIANTS[variant][1])


def test_dropout_and_several_passes_over_the_data(tmp_path, monkeypatch):
    """The random state that the warm-up leaves is that of the run itself."""
    plain = toy.model
    monkeypatch.setattr(toy, "model", lambda **kwargs: _with_dropout(plain(**kwargs)))
    monkeypatch.setattr(toy, "rows", lambda count=5, rows=toy.rows: rows(5))
    assert_forked_equals_whole(tmp_path, {})


def _with_dropout(lm):
    lm.config.attention_dropout = 0.3
    for layer in lm.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return lm


def test_donor_of_another_schedule_that_went_on(tmp_path):
    """Its hybrid phase, its budget, its probe and its end leave no trace; the checkpoint itself can be named."""
    first = build(tmp_path / "first", divergence_weight=1.0, divergence_probe=3, reference_model="initial", max_steps=8)
    first.train()
    whole = build(tmp_path / "whole", gamma=0.5)
    whole.train()
    forked = build(tmp_path / "forked", gamma=0.5, warmup_from=str(tmp_path / "first" / "checkpoint-4"))
    forked.train()
    assert forked.state.global_step == forked.state.max_steps == END
    assert_same(outcome(tmp_path / "forked", END)["weights"], outcome(tmp_path / "whole", END)["weights"])
    ours, theirs = logged(forked), logged(whole)
    assert_same(ours[W:-1], theirs[W:-1])  # the last one is of the steps of this process
    assert not any("sasr/divergence" in entry for entry in ours[W:])


def test_probe_of_the_initial_model_is_taken_over(tmp_path):
    probe = {"divergence_weight": 0.5, "divergence_every": 2, "divergence_probe": 4, "reference_model": "initial"}
    build(tmp_path / "first", max_steps=8, gamma=3.0, **probe).train()
    whole = build(tmp_path / "whole", **probe)
    whole.train()
    forked = build(tmp_path / "forked", warmup_from=str(tmp_path / "first"), **probe)
    forked.train()
    assert_same(
        outcome(tmp_path / "forked", END)["sasr_tensors_0.pt"], outcome(tmp_path / "whole", END)["sasr_tensors_0.pt"]
    )
    assert_same(outcome(tmp_path / "forked", END)["weights"], outcome(tmp_path / "whole", END)["weights"])
    for other in ({"divergence_probe": 5}, {"temperature": 0.5}, {"max_completion_length": 3}, {"top_k": 2}):
        with pytest.raises(InputError, match="no answers of the model before the warm-up"):
            build(tmp_path / "other", warmup_from=str(tmp_path / "first"), **{**probe, **other}).train()


def test_probe_of_another_reference_is_not_taken_over(tmp_path):
    """The donor has answers of the model before the warm-up; this run measures from the policy at its end."""
    probe = {"divergence_weight": 0.5, "divergence_every": 2, "divergence_probe": 4}
    build(tmp_path / "first", max_steps=8, reference_model="initial", **probe).train()
    build(tmp_path / "whole", **probe).train()
    build(tmp_path / "forked", warmup_from=str(tmp_path / "first"), **probe).train()
    expected, found = outcome(tmp_path / "whole", END), outcome(tmp_path / "forked", END)
    for part in ("sasr_tensors_0.pt", "weights"):
        assert_same(found[part], expected[part])


def test_forked_run_resumes_as_any_other(tmp_path):
    whole, _ = assert_forked_equals_whole(tmp_path, {})
    shutil.rmtree(tmp_path / "donor")
    shutil.rmtree(tmp_path / "forked" / "checkpoint-12")
    resumed = build(tmp_path / "forked", warmup_from=str(tmp_path / "donor"))
    resumed.train(resume_from_checkpoint=True)
    assert_same(outcome(tmp_path / "forked", END)["weights"], outcome(tmp_path / "whole", END)["weights"])
    assert_same(logged(resumed)[:-1], logged(whole)[:-1])


def test_seconds_and_tokens_go_on_from_the_donors(tmp_path):
    seconds = donor(tmp_path / "donor").budget.seconds
    constant = {"lr_scheduler_type": "constant", "max_steps": 100}
    forked = build(tmp_path / "forked", warmup_from=str(tmp_path / "donor"), max_seconds=seconds + 0.05, **constant)
    forked.train()
    assert forked.budget_spent and W < forked.state.global_step < 100
    none = build(tmp_path / "none", warmup_from=str(tmp_path / "donor"), max_seconds=seconds, **constant)
    none.train()
    assert none.budget_spent and none.state.global_step == W


def test_the_donors_end_is_not_this_runs(tmp_path):
    donor(tmp_path / "donor")
    epochs = {"max_steps": -1, "num_train_epochs": 1.0}
    whole = build(tmp_path / "whole", **epochs)
    whole.train()
    forked = build(tmp_path / "forked", warmup_from=str(tmp_path / "donor"), **epochs)
    forked.train()
    assert forked.state.global_step == whole.state.global_step == 12
    assert_same(logged(forked)[W:-1], logged(whole)[W:-1])
    short = build(tmp_path / "short", warmup_from=str(tmp_path / "donor"), max_steps=W)
    short.train()
    assert (short.state.global_step, short.state.max_steps) == (W, W)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": 4}, "has another warm-up .seed: 3 then, 4 now"),
        ({"sft_learning_rate": 1e-3}, "sft_learning_rate: 0.003 then, 0.001 now"),
        ({"per_device_sft_batch_size": 4}, "per_device_sft_batch_size: 8 then, 4 now"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 then, 2 now"),
        ({"separate_optimizer_states": True}, "separate_optimizer_states: False then, True now"),
        ({"warmup_norm": "last"}, "warmup_norm: mean then, last now"),
        ({"sft_norm_ema": 0.5}, "sft_norm_ema: 0.0 then, 0.5 now"),
        ({"max_grad_norm": 0.5}, "max_grad_norm: 1.0 then, 0.5 now"),
        ({"data_rows": 20}, "data: "),
        ({"sft_warmup_steps": 3}, r"has no checkpoint-3, .*\(it has checkpoint-4\)"),
        ({"warmup_from": "nowhere"}, "there is no directory nowhere"),
        ({"warmup_from": "."}, "has no checkpoint-4"),
        ({"warmup_from": "donor/checkpoint-4", "sft_warmup_steps": 5}, "is at step 4, but sft_warmup_steps is 5"),
        (
            {"divergence_weight": 0.5, "reference_model": "initial"},
            "no answers of the model before the warm-up .* set reference_model to warmup",
        ),
    ],
)
def test_another_warmup_is_refused(tmp_path, monkeypatch, changes, match):
    donor(tmp_path / "donor")
    monkeypatch.chdir(tmp_path)
    settings = {"warmup_from": "donor", **changes}
    data = toy.rows(settings.pop("data_rows", 24))
    trained = toy.trainer(tmp_path / "forked", data=data, **{**SAVE, **settings})
    before = [p.clone() for p in trained.model.parameters()]
    with pytest.raises(InputError, match=match) as refused:
        trained.train()
    assert "\n" not in str(refused.value)
    assert all(torch.equal(a, b) for a, b in zip(before, trained.model.parameters(), strict=True))


def test_two_processes_start_from_the_same_warmup(tmp_path):
    run_script(
        tmp_path,
        """
save = dict(save_strategy="steps", save_steps=4, learning_rate=5e-4, sft_hybrid_learning_rate=3e-3)
toy.trainer(out / "donor", schedule="sft", max_steps=4, **{**save, "learning_rate": 1e-3}).train()
toy.trainer(out / "whole", **save).train()
toy.trainer(out / "forked", warmup_from=str(out / "donor"), **save).train()
""",
    )
    expected, found = outcome(tmp_path / "whole", END), outcome(tmp_path / "forked", END)
    for end in (expected, found):
        del end["signals"]["total_loss"]
    assert_same(found, expected)
    one = toy.trainer(tmp_path / "one", warmup_from=str(tmp_path / "donor"))
    with pytest.raises(InputError, match="world_size: 2 then, 1 now"):
        one.train()


def test_needs_a_warmup(tmp_path):
    with pytest.raises(InputError, match=r"warmup_from needs .* set sft_warmup_steps"):
        SASRConfig(output_dir=str(tmp_path), schedule="grpo", warmup_from="x", use_cpu=True, report_to="none")


def test_settings_that_are_free_exist():
    """A name that TRL drops would free nothing, and one that is free in any case says nothing here."""
    settings = SASRConfig(output_dir="x", sft_warmup_steps=1, use_cpu=True).to_dict()
    known = checkpoints.fingerprint(settings, rule="", depends_on_length=True)
    assert known.keys() >= checkpoints.AFTER_WARMUP


def test_command_line(tmp_path, monkeypatch, capsys):
    """Forked from a warm-up, killed and resumed: the files are those of the run that did it all."""
    finish(start(command(tmp_path / "whole")))
    finish(
        start(command(tmp_path / "donor", "--schedule", "sft", "--max_steps", str(W), "--beta", "0", "--gamma", "1"))
    )
    forked = tmp_path / "forked"
    printed = finish(start(command(forked, "--warmup_from", str(tmp_path / "donor"))))
    assert "the warm-up is that of" in printed and "resumed after step 4" in printed
    assert_same_run(forked, tmp_path / "whole")
    lines = metrics(forked)
    assert without_times(lines[:W]) == without_times(metrics(tmp_path / "donor"))
    assert lines[:W] == metrics(tmp_path / "donor"), "seconds too"

    part = tmp_path / "part"
    part.mkdir()
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "exam.json",
        "initial_model",
        "checkpoint-9",
        "reference_model",
    ):
        source = forked / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, part / name)
    exams = json.loads((part / "exam.json").read_text())
    del exams["final"]
    (part / "exam.json").write_text(json.dumps(exams))
    finish(start(resume_command(part)))
    assert_same_run(part, tmp_path / "whole")

    def loaded(*args, **kwargs):
        raise AssertionError("the model was loaded before the error was found")

    monkeypatch.setattr(sasr.run, "load_model", loaded)
    for flags, text in (
        (["--seed", "6"], "seed: 5 then, 6 now"),
        (["--warmup_from", str(tmp_path / "nothing")], "there is no directory"),
        (["--sft_warmup_steps", "5"], "no checkpoint-5"),
        (["--schedule", "grpo", "--gamma", "1", "--sft_warmup_steps", "0"], "set sft_warmup_steps to 1 or more"),
        (["--divergence_weight", "0.5", "--reference_model", "initial", "--beta", "0"], "reference_model to warmup"),
    ):
        arguments = command(tmp_path / "refused", "--warmup_from", str(tmp_path / "donor"), *flags)[3:]
        status = sasr.cli.main(arguments)
        out, err = capsys.readouterr()
        assert text in checked(status, out, err)
        assert not (tmp_path / "refused").exists()
