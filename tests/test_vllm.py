"""`sasr exam --engine vllm` with real vLLM, against the engine that is used without it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import sasr.cli
import toy
from sasr.exam.engines import Sampling, TransformersEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

ROWS, SAMPLES = 96, 16
EXAM = ["--model", "lm", "--task", "jsonl", "--data", "rows.jsonl", "--max_new_tokens", "6"]
WHOLE = [*EXAM, "--rows", str(ROWS), "--n", str(SAMPLES)]
BLOCKS = [*EXAM, "--rows", "24", "--n", "4", "--batch_size", "2", "--engine", "vllm"]  # eight rows a block


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model that knows some sums, and a file of sums."""
    where = tmp_path_factory.mktemp("vllm")
    lm = toy.model(0, head_dim=32)  # the smallest that vLLM has a kernel for on a CPU
    trainer = toy.trainer(where / "run", lm=lm, data=toy.rows(ROWS), schedule="sft", sft_warmup_steps=0, max_steps=150)
    trainer.train()
    lm.save_pretrained(where / "lm")
    toy.tokenizer().save_pretrained(where / "lm")
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy.rows(ROWS)))
    before = Path.cwd()
    os.chdir(where)
    yield where
    os.chdir(before)


@pytest.fixture(scope="module")
def exams(place) -> dict[str, Path]:
    """The same exam by each engine."""
    for engine in ("transformers", "vllm"):
        assert sasr.cli.main(["exam", *WHOLE, "--engine", engine, "--output_dir", engine]) == 0
    return {engine: place / engine for engine in ("transformers", "vllm")}


@pytest.fixture(scope="module")
def engines(place):
    """Both engines on the same model."""
    from transformers import AutoModelForCausalLM

    from sasr.exam.vllm_engine import VllmEngine

    model = AutoModelForCausalLM.from_pretrained("lm", dtype=torch.float32).eval()
    return TransformersEngine(model), VllmEngine("lm", model.config, "float32", 32, 64)


def records_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()]


def figures_of(directory: Path) -> dict:
    return json.loads((directory / "exam.json").read_text())["figures"]


def test_the_same_exam(exams, capfd):
    """Greedy completions are equal but for near ties; samples have the same accuracy and the same characters."""
    ours, theirs = (records_of(exams[engine]) for engine in ("vllm", "transformers"))
    same = sum(a["greedy"] == b["greedy"] for a, b in zip(ours, theirs, strict=True))
    a, b = (figures_of(exams[engine]) for engine in ("vllm", "transformers"))
    with capfd.disabled():
        print(f"\ngreedy completions equal: {same} of {ROWS}; pass@1 {a['pass_at']['1']:.3f}, {b['pass_at']['1']:.3f}")
    assert same >= 0.98 * ROWS
    assert 0.1 < b["pass_at"]["1"] < 0.95, "a model that knows something but not all, or this says little"
    # Samples of one row are independent given the row, so this is the largest that the deviation can be.
    deviation = (2 * 0.25 / (ROWS * SAMPLES)) ** 0.5
    assert abs(a["pass_at"]["1"] - b["pass_at"]["1"]) < 4 * deviation
    assert abs(a["truncation_rate"] - b["truncation_rate"]) < 4 * deviation
    counts = [Counter("".join(s["text"] for r in part for s in r["samples"])) for part in (ours, theirs)]
    for character in counts[1]:
        one, other = (count[character] for count in counts)
        assert abs(one - other) < 5 * (one + other) ** 0.5, character
    versions = json.loads((exams["vllm"] / "exam.json").read_text())["versions"]
    assert "vllm" in versions and len({s["text"] for s in ours[0]["samples"]}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_are_drawn_from_the_models_distribution(engines, temperature):
    """All of it: without top-k, top-p, and with the temperature."""
    transformers, vllm = engines
    prompt, count = [7, 12, 9, 14], 6000
    made = vllm.complete([prompt], count, Sampling(1, temperature, (1,), 0, 64, 5), None)[0][1:]
    with torch.no_grad():
        logits = transformers.model(torch.tensor([prompt])).logits[0, -1]
    expected = count * (logits.double() / temperature).softmax(0)
    seen = torch.bincount(torch.tensor([ids[0] for ids in made]), minlength=len(expected)).double()
    common = expected >= 5
    chi2 = ((seen - expected) ** 2 / expected)[common].sum()
    freedom = int(common.sum()) - 1
    assert freedom >= 2 and chi2 < freedom + 5 * (2 * freedom) ** 0.5
    assert seen[~common].sum() < 5 * (expected[~common].sum() + 5)


@pytest.mark.parametrize("eos_ids", [(1,), (4,), (1, 3, 5), (14,)])
def test_completions_end_at_the_same_tokens(engines, eos_ids):
    """After the first of these and at nothing else, the end-of-sequence token of the model's config included."""
    prompts = [[3 + i % 10, 13, 3 + i // 4, 14] for i in range(24)]
    sampling = Sampling(8, 1.0, eos_ids, 0, 64, 0)
    made, known = (engine.complete(prompts, 2, sampling, None) for engine in reversed(engines))
    assert [row[0] for row in made] == [row[0] for row in known]
    ended = 0
    for ids in (ids for row in made for ids in row):
        assert not set(ids[:-1]) & set(eos_ids)
        assert ids[-1] in eos_ids or len(ids) == 8
        ended += len(ids) < 8
    assert ended or eos_ids == (14,)


def test_each_completion_has_its_seed(engines):
    """Whatever else is in the batch."""
    vllm, sampling = engines[1], Sampling(6, 1.0, (1,), 0, 64, 0)
    prompts = [[3 + i, 13, 4, 14] for i in range(8)]
    seen = []
    whole = vllm.complete(prompts, 4, sampling, lambda *numbers: seen.append(numbers))
    assert seen[-1] == (40, 40) and seen == sorted(seen) and len(seen) > 1
    assert vllm.complete(prompts, 4, sampling, None) == whole
    assert [row[:3] for row in vllm.complete(prompts[:3], 2, sampling, None)] == [row[:3] for row in whole[:3]]
    assert vllm.complete(prompts, 4, Sampling(6, 1.0, (1,), 0, 64, 1), None) != whole


def test_going_on_gives_the_same_exam(place, capfd):  # vLLM wants files, so no capsys here
    assert sasr.cli.main(["exam", *BLOCKS, "--output_dir", "straight"]) == 0
    shutil.copytree("straight", "part")
    content = json.loads(Path("part/exam.json").read_text())
    Path("part/exam.json").write_text(json.dumps({**content, "figures": None}))
    lines = Path("straight/completions.jsonl").read_text().splitlines(keepends=True)
    Path("part/completions.jsonl").write_text("".join(lines[:11]))
    capfd.readouterr()
    assert sasr.cli.main(["exam", *BLOCKS, "--output_dir", "part"]) == 0
    assert "going on after 8 rows" in capfd.readouterr().out
    assert Path("part/completions.jsonl").read_bytes() == Path("straight/completions.jsonl").read_bytes()
    assert sasr.cli.main(["exam", *BLOCKS[:-1], "transformers", "--output_dir", "part"]) == 2
    assert "engine is vllm there, not transformers" in capfd.readouterr().err


def test_ctrl_c(place):
    """Between two blocks or within one: vLLM stops with sasr, and the exam can go on."""
    command = [sys.executable, "-m", "sasr", "exam", *WHOLE, "--batch_size", "1", "--engine", "vllm"]
    process = subprocess.Popen(
        [*command, "--output_dir", "stopped"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    path, deadline = Path("stopped/completions.jsonl"), time.monotonic() + 240
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert "stopped; go on with: sasr exam" in out and len(records_of(Path("stopped"))) < ROWS


def test_what_only_transformers_measures(place):
    """The model is loaded beside vLLM, and scores vLLM's samples."""
    flags = ["--initial_model", "lm", "--nll_task", "jsonl", "--nll_data", "rows.jsonl", "--output_dir", "scored"]
    assert sasr.cli.main(["exam", *BLOCKS, *flags]) == 0
    figures, records = figures_of(Path("scored")), records_of(Path("scored"))
    assert figures["entropy"] > 0 and figures["kl"] == pytest.approx(0, abs=1e-6)
    assert figures["nll"]["per_token"] == figures["nll"]["initial_per_token"] > 0
    assert "token_ids" not in records[0]["greedy"] and "entropy" in records[0]["samples"][0]


def test_a_model_that_vllm_cannot_run(place, capfd):
    toy.model(0, place / "narrow")  # heads of 16 numbers, for which it has no kernel on a CPU
    assert sasr.cli.main(["exam", *EXAM, "--model", "narrow", "--engine", "vllm", "--output_dir", "none"]) == 2
    err = capfd.readouterr().err
    assert "sasr: error: model 'narrow': cannot load the model into vLLM (Unsupported CPU attention" in err
    assert "Traceback" not in err and not Path("none/exam.json").exists()
