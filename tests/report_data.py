"""Run directories as `sasr train` writes them, without training: for tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> \u202egpj.exe \x07\x1b[2J \ud800 &lt;"
)


def completion(text: str, correct: bool = False, **more: Any) -> dict[str, Any]:
    plain = {"tokens": 12, "well_formed": True, "truncated": False, "failure": None, "path": None, "steps_valid": None}
    return {"text": text, "correct": correct, **plain, **more}


def record(row: int, greedy: str = "3 + 4 = 7 . #### 7", **more: Any) -> dict[str, Any]:
    samples = [completion("3 + 4 = 8 . #### 8"), completion("3 + 4 = 7 . #### 7", True, path="3+4=7", steps_valid=True)]
    asked = {"prompt": f"Question {row}: what is 3 + 4?", "answer": "7", "difficulty": 1 + row % 3}
    return {**asked, "greedy": completion(greedy, "#### 7" in greedy), "samples": samples, **more}


def figures(step: int, value: float, rows: int = 6) -> dict[str, Any]:
    """`value` is pass@1; greedy accuracy is another."""
    rates = {"1": value, "2": min(1.0, 1.5 * value)}
    greedy = 0.75 * value
    return {
        "step": step,
        "rows": rows,
        "samples": 2,
        "greedy_accuracy": greedy,
        "greedy_interval": [max(0.0, greedy - 0.1), greedy + 0.1],
        "pass_at": rates,
        "pass_at_intervals": {k: [max(0.0, v - 0.05), v + 0.05] for k, v in rates.items()},
        "format_rate": 0.9,
        "truncation_rate": 0.1,
        "verifier_failures": 0,
        "mean_completion_tokens": 20.0,
        "generated_tokens": 360,
        "seconds": 2.5,
        "by_difficulty": {
            str(n): {"rows": 2, "greedy_accuracy": greedy / n, "pass_at_1": value / n} for n in (1, 2, 3)
        },
        "wrong_reason": {"checked": 5, "rate": 0.2},
        "paths": {"problems": 3, "distinct": 1.5, "pairs_differ": 0.4, "valid": {"problems": 2, "distinct": 1.0}},
    }


def line(step: int, warmup: int, rng: random.Random) -> dict[str, Any]:
    kind = "sft" if step <= warmup or rng.random() < 0.4 else "grpo"
    found = {"step": step, "phase": "warm-up" if step <= warmup else "hybrid", "kind": kind, "u": rng.random()}
    found |= {"p_sft": 1.0 if step <= warmup else 0.4 + 0.1 * math.sin(step / 300), "loss": rng.gauss(0, 0.02)}
    found |= {"sft_grad_norm": 1 + rng.random(), "warmup_grad_norm": 1.4, "step_seconds": 0.2, "rollout_tokens": step}
    if kind == "sft":
        return found | {"sft_loss": 5 / (1 + step / 50) + 0.1 * rng.random()}
    rates = {"truncation_rate": 0.02, "frac_reward_zero_std": rng.random()}
    lengths = {"completion_length": 30 + rng.random(), "entropy": rng.random(), "divergence": step / 1e4}
    rates |= {"success/3": 0.9, "success/4.5": 0.4, "success/12": 0.1}
    return found | rates | lengths | {"reward": 0.3 + 0.2 * rng.random(), "reward_std": 0.3}


def run(directory: Path, steps: int = 40, exams: int = 3, rows: int = 6, **config: Any) -> Path:
    """A run that is finished, with exams at even distances."""
    rng = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "task": "stories",
        "schedule": "sasr",
        "model_name_or_path": "tiny-llama",
        "seed": 1,
        "max_steps": steps,
    }
    (directory / "config.yaml").write_text("# sasr train\n" + yaml.safe_dump(settings | config))
    lines = [json.dumps(line(step, steps // 3, rng)) for step in range(1, steps + 1)]
    (directory / "metrics.jsonl").write_text("".join(text + "\n" for text in lines))
    at = [round(i * steps / max(1, exams - 1)) for i in range(exams)]
    labels = ["initial", *(f"step-{step}" for step in at[1:-1]), "final"][:exams]
    results = {label: figures(step, 0.1 + 0.5 * step / steps, rows) for label, step in zip(labels, at, strict=True)}
    (directory / "exam.json").write_text(json.dumps(results))
    (directory / "exams").mkdir(exist_ok=True)
    for label in labels:
        write_records(directory / "exams" / f"{label}.jsonl", [record(row) for row in range(rows)])
    return directory


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
