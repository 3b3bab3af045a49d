"""Prints the tables of docs/evidence.md from the data in this folder. Run: python docs/results/table.py"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent


def stories(folder: str) -> None:
    print("| seed | greedy: warm-up -> end | pass@1: warm-up -> end | pass@8: warm-up -> end |\n|---|---|---|---|")
    gains = []
    for path in sorted((HERE / folder).glob("seed*.exam.json")):
        exams = json.loads(path.read_text())
        a, b = exams["warmup"], exams["final"]
        gains.append(b["pass_at"]["1"] - a["pass_at"]["1"])
        cells = [f"{a['greedy_accuracy']:.3f} -> {b['greedy_accuracy']:.3f}"]
        cells += [f"{a['pass_at'][k]:.3f} -> {b['pass_at'][k]:.3f}" for k in ("1", "8")]
        print(f"| {path.name.split('.')[0][4:]} | {' | '.join(cells)} |")
    print(f"\nmean gain in pass@1 {sum(gains) / len(gains):+.3f}, smallest {min(gains):+.3f}, {len(gains)} seeds\n")


def real_model(name: str) -> None:
    lines = [json.loads(line) for line in (HERE / name / "metrics.jsonl").read_text().splitlines()]
    print(f"{name}\n\n| step | kind | p_sft | u | grad norm | SFT loss | reward |\n|---|---|---|---|---|---|---|")
    for line in lines:
        shown = [f"{line[key]:.3f}" if line.get(key) is not None else "" for key in ("sft_loss", "reward")]
        numbers = [f"{line[key]:.3f}" for key in ("p_sft", "u", "grad_norm")]
        print(f"| {line['step']} | {line['kind']} | {' | '.join(numbers + shown)} |")
    for label, exam in json.loads((HERE / name / "exam.json").read_text()).items():
        print(
            f"\n{label}: greedy {exam['greedy_accuracy']:.3f}, pass@1 {exam['pass_at']['1']:.3f}, format "
            f"{exam['format_rate']:.3f}, truncated {exam['truncation_rate']:.3f} ({exam['rows']} rows)"
        )
    print()


if __name__ == "__main__":
    stories("stories-demo")
    stories("stories-demo/growing")
    for path in sorted(HERE.glob("smollm2-*/metrics.jsonl")):
        real_model(path.parent.name)
