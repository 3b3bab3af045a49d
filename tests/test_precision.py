"""Mixed precision that nobody asked for: that of the machine. GPUs of before Ampere only emulate bfloat16."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

import sasr.cli
import toy
from refusals import SMALL
from sasr import InputError, SASRConfig, engine_checks, precision
from sasr.exam.examiner import Examiner
from sasr.parsing import parse

NOTE = "note: this GPU only emulates bf16, so "


@pytest.fixture
def old_gpu(monkeypatch):
    """As on a T4, where transformers takes bf16 for supported."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(precision, "emulates_bf16", lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


def settings(**changes) -> SASRConfig:
    values = {"output_dir": "unused", "sft_warmup_steps": 4, "max_steps": 10, "report_to": "none", **changes}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = SASRConfig(**values)
    assert [str(w.message) for w in caught if NOTE in str(w.message)] == found.precision_notes
    return found


@pytest.mark.parametrize(
    ("changes", "bf16", "fp16", "said"),
    [
        ({}, False, True, ["fp16 is taken"]),
        ({"sft_norm_every": 3}, False, False, ["float32 is taken (fp16 does not go with sft_norm_every)"]),
        ({"bf16": True}, True, False, []),
        ({"bf16": False}, False, False, []),
        ({"fp16": True}, False, True, []),
        ({"use_cpu": True}, False, False, []),
    ],
    ids=str,
)
def test_what_an_old_gpu_computes_in(old_gpu, changes, bf16, fp16, said):
    given = settings(**changes)
    assert (given.bf16, given.fp16) == (bf16, fp16)
    assert given.mixed_precision == ("bf16" if bf16 else "fp16" if fp16 else "no")
    assert given.precision_notes == [f"{NOTE}{one}: set bf16 to true or to false to have it otherwise" for one in said]


def test_another_gpu_keeps_bf16(old_gpu, monkeypatch):
    monkeypatch.setattr(precision, "emulates_bf16", lambda: False)
    given = settings()
    assert (given.bf16, given.fp16, given.gradient_checkpointing, given.precision_notes) == (True, False, True, [])


def test_a_cpu_that_is_asked_for_is_one_also_beside_a_gpu(old_gpu):
    """There bf16 and checkpointing, which make a CPU slower, were on."""
    given = settings(use_cpu=True)
    assert (given.bf16, given.gradient_checkpointing) == (False, False)
    asked = settings(use_cpu=True, bf16=True, gradient_checkpointing=True)
    assert asked.bf16 and asked.gradient_checkpointing


@pytest.mark.parametrize(
    ("flags", "fp16"),
    [
        ([], True),
        (["--dtype", "bfloat16"], False),  # the loss scaler wants gradients in float32
        (["--dtype", "auto"], False),
        (["--dtype", "bfloat16", "--use_peft", "true"], True),
    ],
    ids=str,
)
def test_weights_that_are_trained_in_16_bits_take_no_fp16(old_gpu, flags, fp16):
    found = parse(["--output_dir", "unused", *flags])
    assert (found.training.bf16, found.training.fp16) == (False, fp16)
    assert "bf16" not in found.given, "what a run on another machine would go on with"


def test_such_weights_of_a_trainer_made_in_python(tmp_path):
    narrow, wide = toy.trainer(tmp_path, lm=toy.model().to(torch.bfloat16)), toy.trainer(tmp_path)
    for trained in (narrow, wide):
        trained.args.fp16, trained.args.precision_notes = True, [NOTE]
    engine_checks.check(wide)
    with pytest.raises(InputError, match="trains no weights of 16 bits: load the model in float32"):
        engine_checks.check(narrow)


def test_the_command_says_so_before_the_model_is_loaded(clean, old_gpu, monkeypatch, capsys):
    def loaded(*args, **kwargs):
        raise InputError("far enough")

    monkeypatch.setattr("sasr.run.load_model", loaded)
    assert sasr.cli.main(["train", *SMALL]) == 2
    out, err = capsys.readouterr()
    assert f"{NOTE}fp16 is taken" in out and err == "sasr: error: far enough\n"


def test_whether_a_gpu_emulates_it(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, n=native: n)
        for there in (True, False):
            monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
            assert precision.emulates_bf16() == (there and not native)


@pytest.mark.parametrize(
    ("run", "compute"),
    [
        (None, torch.float16),
        ({"sft_norm_every": 2}, torch.float32),
        ({"bf16": True}, torch.bfloat16),
        ({"bf16": False}, torch.float32),
        ({"fp16": True}, torch.float16),
    ],
    ids=str,
)
def test_an_exam_in_4_bits_computes_as_the_run_did(old_gpu, monkeypatch, run, compute):
    def config_of(settings, dtype):
        raise InputError(str(dtype))

    monkeypatch.setattr("sasr.exam.examiner.config_of", config_of)
    monkeypatch.setattr("sasr.exam.examiner.accelerator_or_cpu", lambda: torch.device("cuda"))
    examiner = object.__new__(Examiner)
    examiner.request = SimpleNamespace(load_in_4bit=True, run=run)
    examiner.task = SimpleNamespace(vocabulary_texts=lambda: [])
    with pytest.raises(InputError, match=str(compute)):
        examiner._load("lm")
