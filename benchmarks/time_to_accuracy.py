"""Seconds of training until held-out accuracy reaches a target: SASR, static with its switch swept, GRPO, SFT, CHORD.

Runs of `sasr train`, one after another, seed by seed, with the settings of a recipe (stories.yaml); exams are not
counted. Run: python benchmarks/time_to_accuracy.py [--target 0.2] [--seeds 3] [--steps 700] [--recipe FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from turns import save, show

import sasr
from sasr.metrics import read_metrics

RECIPE = Path(sasr.__file__).parent / "recipes" / "stories.yaml"


def methods(steps: int, warmup: int, chord_rate: float, switches: list[int]) -> dict[str, list[str]]:
    """Command-line settings of each method; `static` once for each switch from SFT to GRPO."""

    def chosen(name: str, warmup: int, *more: str) -> list[str]:
        return ["--schedule", name, "--sft_warmup_steps", str(min(warmup, steps - 1)), *more]

    paper = ("--gamma_schedule", "constant")
    found = {"sasr": chosen("sasr", warmup, *paper), "sft": chosen("sft", warmup), "grpo": chosen("grpo", 0)}
    # Both losses at one rate: its own, between those of SFT and GRPO.
    mixed = ("--mu_decay_steps", str(steps // 3), "--learning_rate", str(chord_rate))
    found["chord_mu"] = chosen("chord_mu", warmup, *mixed)
    found["sasr cosine"] = chosen("sasr", warmup // 3, "--gamma_schedule", "cosine")
    if steps >= 60:  # half of them may be warm-up, in which the end is looked for
        found["sasr cosine, auto"] = ["--schedule", "sasr", "--sft_warmup_steps", "auto", "--gamma_schedule", "cosine"]
    return found | {f"static {switch}": chosen("static", switch) for switch in switches}


def reached(directory: Path, target: float) -> tuple[float | None, float]:
    """(seconds of training until an exam's pass@1 reached the target, the pass@1 at the end)."""
    lines = read_metrics(directory / "metrics.jsonl")
    exams = sorted(json.loads((directory / "exam.json").read_text()).values(), key=lambda exam: exam["step"])
    for exam in exams:
        if exam["pass_at"]["1"] >= target:
            return sum(line["step_seconds"] for line in lines[: exam["step"]]), exams[-1]["pass_at"]["1"]
    return None, exams[-1]["pass_at"]["1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", type=float, default=0.2, help="pass@1 on held-out questions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--warmup", type=int, default=250, help="steps; a third of them for sasr cosine")
    parser.add_argument("--chord_rate", type=float, default=1e-3)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="of sasr train, or of sasr compare")
    parser.add_argument("--exam_every", type=int, default=25, help="steps between exams")
    parser.add_argument("--switches", type=int, nargs="+", default=[150, 250, 350, 450], help="swept by static")
    parser.add_argument("--quick", action="store_true", help="a few small steps: whether it works, not how fast")
    parser.add_argument("--json", type=Path, help="file for every measurement")
    options = parser.parse_args()
    small: list[str] = []
    if options.quick:
        options.seeds, options.steps, options.exam_every, options.switches, options.target = 1, 4, 2, [2], 0.0
        small = ["--train_rows", "40", "--exam_rows", "2", "--exam_samples", "1", "--max_completion_length", "4"]
    found: dict[str, list[tuple[float | None, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shared = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({k: v for k, v in shared.items() if k != "compare"}), encoding="utf-8")
        chosen = methods(options.steps, options.warmup, options.chord_rate, options.switches)
        for seed in range(1, options.seeds + 1):
            for name, settings in chosen.items():
                directory = Path(folder) / f"{name}-{seed}".replace(",", "").replace(" ", "-")
                common = ["--max_steps", options.steps, "--exam_every", options.exam_every, "--seed", seed]
                command: list[Any] = [sys.executable, "-m", "sasr", "train", "--config", recipe, *settings, *common]
                command += ["--save_strategy", "no", "--output_dir", directory, *small]
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name}: {done.stderr[-3000:]}")
                found.setdefault(name, []).append(reached(directory, options.target))
    rows = []
    for name, results in found.items():
        times = sorted(seconds if seconds is not None else float("inf") for seconds, _ in results)
        shown = ["not reached" if t == float("inf") else f"{t:.0f} s" for t in (statistics.median_low(times), *times)]
        last = statistics.mean(accuracy for _, accuracy in results)
        rows.append([name, shown[0], f"{shown[1]} - {shown[-1]}", f"{last:.3f}", str(len(results))])
    show(
        f"training time until pass@1 is {options.target:g}, {options.recipe.stem}, of {options.steps} steps",
        ("method", "median", "spread", "pass@1 at the end", "seeds"), rows,
        "the best of the static rows is static with its switch swept; its sweep is not in its time",
    )  # fmt: skip
    options.switches = " ".join(map(str, options.switches))
    options.recipe = options.recipe.name
    save(options, {"runs": found})


if __name__ == "__main__":
    main()
