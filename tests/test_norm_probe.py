"""The gradient norm of SFT measured between SFT steps: it is that of the next one, measuring changes nothing else."""

from __future__ import annotations

import pytest
from peft import LoraConfig

import toy
from recorded_steps import Recorder, by_level, levels
from sasr import InputError, engine_checks


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_probe_is_the_norm_of_the_next_sft_step(tmp_path, accumulation):
    """With weights that all but stand still."""
    trained = toy.trainer(
        tmp_path, schedule="alternate", sft_warmup_steps=1, max_steps=9, sft_norm_every=1, learning_rate=1e-12,
        sft_learning_rate=1e-12, per_device_train_batch_size=8, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    norms = toy.observed_norms(trained)
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
    observed = toy.observed_norms(trained)
    recorder = Recorder(trained)
    trained.train()
    norms: dict[int, list[float]] = {}
    for step, norm in observed:
        norms.setdefault(step, []).append(norm)
    both = {step: found for step, found in norms.items() if len(found) == 2}
    assert any(recorder.steps[step - 1].queue for step in both), "some waited"
    assert len(both) > 2
    for probed, real in both.values():
        assert probed == pytest.approx(real, rel=1e-5)


def test_how_often_the_norm_is_probed(tmp_path):
    trained = toy.trainer(tmp_path, schedule="static", sft_warmup_steps=2, max_steps=14, sft_norm_every=3)
    probes = toy.observed_norms(trained)
    trained.train()
    assert [step for step, _ in probes] == [0, 1, 5, 8, 11], "before the steps that three GRPO steps precede"


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
        engine_checks.check(trained)
