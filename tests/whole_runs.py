"""Whole runs of the real command, and whether two of them are the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

INSTALLED = str(Path(sys.executable).with_name("sasr"))  # not `python -m sasr`: it is never forked (zygote.py)
LIMIT = 240  # seconds: a hanging run fails

SETTINGS = {
    "train_rows": 200,
    "exam_rows": 8,
    "exam_samples": 2,
    "max_steps": 24,
    "sft_warmup_steps": 4,
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "beta": 0.05,  # so few steps earn no reward: this gives the rollouts a gradient
    "gamma": 0.8,
    "sft_norm_ema": 0.0,
    "per_device_sft_batch_size": 8,
    "max_completion_length": 32,
    "save_steps": 3,
    "save_total_limit": 20,
    "seed": 5,
}
LAST = SETTINGS["max_steps"]


def command(directory: Path | None, *more: str) -> list[str]:
    flags = [text for key, value in SETTINGS.items() for text in (f"--{key}", str(value))]
    where = [] if directory is None else ["--output_dir", str(directory)]
    return [sys.executable, "-m", "sasr", "train", *flags, *where, *more]


def resume_command(directory: Path) -> list[str]:
    return [sys.executable, "-m", "sasr", "train", "--output_dir", str(directory), "--resume_from_checkpoint"]


def start(arguments: list[str], cwd: Path | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        arguments,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    try:
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    told = out + (errors or "")  # which may be one stream
    assert process.returncode == status, told[-6000:]
    assert "Traceback" not in told
    return out


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_times(lines: list[dict]) -> list[dict]:
    times = ("step_seconds", "seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    assert without_times(metrics(a)) == without_times(metrics(b))
    ends = [directory / f"checkpoint-{LAST}" for directory in (a, b)]
    weights, others = (load_file(next(end.glob("*model.safetensors"))) for end in ends)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    moments, other_moments = (torch.load(end / "optimizer.pt", weights_only=True)["state"] for end in ends)
    assert moments.keys() == other_moments.keys()
    for key, state in moments.items():
        assert all(torch.equal(state[name], other_moments[key][name]) for name in state)
    exams = [json.loads((directory / "exam.json").read_text()) for directory in (a, b)]
    for exam in exams:
        for figures in exam.values():
            del figures["seconds"]
    assert exams[0] == exams[1]
