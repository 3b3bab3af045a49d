"""What a run left behind, as numbers: its exam, its share of SFT and what it cost."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sasr.checkpoints import last_checkpoint
from sasr.errors import InputError
from sasr.exam.passk import pass_at_k
from sasr.metrics import METRICS_FILE, read_metrics, seconds_of, sft_share

from .plan import Run

Measures = dict[str, Any]
COSTS = ("steps", "seconds", "exam_seconds", "sft_tokens", "rollout_tokens")


def is_finished(directory: Path, run: Run) -> bool:
    """Whether nothing of the run is left to do. Read from what it wrote, so that no file of ours can be wrong about
    it."""
    if run.stage == "warmup":
        checkpoint = last_checkpoint(directory / run.path)
        return checkpoint is not None and checkpoint.name == f"checkpoint-{run.settings['max_steps']}"
    return _has_final_exam(directory / run.path)


def has_begun(where: Path) -> bool:
    """Whether a final run is finished, or goes on from a checkpoint: without one it begins anew."""
    return _has_final_exam(where) or last_checkpoint(where) is not None


def _has_final_exam(where: Path) -> bool:
    try:
        return "final" in json.loads((where / "exam.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError, TypeError):
        # What is there is not to be taken for nothing, and trained anew: reading the figures says what is wrong.
        return last_checkpoint(where) is None


def last_step(where: Path) -> int | None:
    """The step that a run has come to, from the end of its metrics file."""
    try:
        with open(where / METRICS_FILE, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            found = re.findall(rb'^\{"step": (\d+),', file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[-1]) if found else None


def measure(directory: Path, run: Run) -> Measures:
    """The figures of a finished run. Raises `InputError` if its files cannot be read."""
    try:
        return _measure(directory, run)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{directory / run.path}: a file in it is not as sasr writes it ({what}): remove the directory and start "
            "again"
        ) from None


def spent(directory: Path, run: Run) -> Measures:
    """What a run that failed had cost by then; nothing where that is not known."""
    try:
        costs = _spent(directory, run)
    except (InputError, KeyError, TypeError, AttributeError):
        return {}
    return costs if costs["steps"] else {}


def _spent(directory: Path, run: Run) -> Measures:
    lines = read_metrics(directory / run.path / METRICS_FILE)
    if run.warmup is not None and lines and lines[0]["step"] > 1:  # the steps that it shares with others
        shared = read_metrics(directory / run.warmup / METRICS_FILE)
        lines = [line for line in shared if line["step"] < lines[0]["step"]] + lines
    measures: Measures = {"steps": lines[-1]["step"] if lines else 0, "sft_share": sft_share(lines)}
    measures["seconds"] = sum(map(seconds_of, lines))
    for name in ("sft_steps", "grpo_steps", "sft_tokens", "rollout_tokens"):
        measures[name] = int(next((line[name] for line in reversed(lines) if line.get(name) is not None), 0))
    return measures


def _measure(directory: Path, run: Run) -> Measures:
    where, measures = directory / run.path, _spent(directory, run)
    if run.stage == "warmup":
        return measures
    try:
        exam = json.loads((where / "exam.json").read_text(encoding="utf-8"))["final"]
        text = (where / "exams" / "final.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{where}: its exam cannot be read ({error}): remove the directory and start again") from None
    if not records or len(records) != exam.get("rows", len(records)):
        raise InputError(
            f"{where / 'exams' / 'final.jsonl'} has {len(records)} of {exam.get('rows')} rows: remove {where} and "
            "start again"
        )
    if exam.get("step", measures["steps"]) != measures["steps"]:
        raise InputError(
            f"{where / METRICS_FILE} ends at step {measures['steps']}, but the run's exam was at step {exam['step']}: "
            f"remove {where} and start again"
        )
    measures["exam_seconds"] = exam.pop("seconds", 0.0)
    prompts = json.dumps([[record["prompt"], record["answer"]] for record in records], sort_keys=True, default=str)
    measures["exam"] = exam
    measures["problems"] = {
        "digest": hashlib.sha256(prompts.encode()).hexdigest()[:16],
        "samples": exam["samples"],
        "correct": [sum(sample["correct"] for sample in record["samples"]) for record in records],
        "greedy": [int(record["greedy"]["correct"]) for record in records],
    }
    return measures


def metrics_of(samples: int) -> list[str]:
    """The columns of the table, the first being the one that decides."""
    return ["pass@1", "greedy"] + [f"pass@{2 ** (samples.bit_length() - 1)}"] * (samples > 1)


def per_problem(measures: Measures, metric: str) -> np.ndarray:
    """One number per problem of the exam, shape `(problems,)`: greedy correctness, or unbiased pass@k."""
    problems = measures["problems"]
    if metric == "greedy":
        return np.asarray(problems["greedy"], dtype=np.float64)
    return pass_at_k(problems["samples"], problems["correct"], int(metric.removeprefix("pass@")))


def pass_at_1(measures: Measures) -> float:
    return float(per_problem(measures, "pass@1").mean())


def cost(all_measures: Sequence[Measures]) -> dict[str, float]:
    """The costs of several runs together."""
    return {name: sum(measures.get(name) or 0 for measures in all_measures) for name in COSTS}
