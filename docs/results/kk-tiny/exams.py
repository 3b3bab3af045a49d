"""The dataset's own test puzzles put to the final models of compare.yaml: what they learnt, how, and what it cost.

Run: python docs/results/kk-tiny/exams.py runs/kk-main DIR (of the dataset's 3ppl_test.jsonl and 4ppl_test.jsonl; runs
`sasr exam` where that is not done yet, and writes exams.json beside itself), then without arguments: writes the tables,
of exams.json and of the comparisons' results.json and time.json, into docs/evidence.md, and those of the stories with
100 demonstrations (../rule-study/told-tuned.json, told-tuned-time.json) too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "rule-study"))

from page import Values, insert, paired, read, shown  # noqa: E402

from sasr.compare.statistics import interval, mean  # noqa: E402

PAGE = HERE.parents[1] / "evidence.md"
TASK = "docs/results/kk-tiny/puzzles.py:Puzzles"
METHODS = ("sasr", "cosine", "static", "sft", "chord_mu")


def examine(comparison: Path, data: Path) -> None:
    found = []
    for method in METHODS:
        for run in sorted(comparison.glob(f"runs/{method}/seed-*")):
            if not (run / "model.safetensors").exists():
                continue
            for people in (3, 4):
                target = comparison / "exams" / f"{method}-{run.name}-{people}"
                command = ["exam", "--model", run, "--initial_model", "runs/kk-base", "--task", TASK]
                command += ["--data", data / f"{people}ppl_test.jsonl", "--max_new_tokens", 72 if people == 3 else 120]
                figures = figures_in(target / "exam.json")
                if figures is None:
                    command = [sys.executable, "-m", "sasr", *map(str, command), "--output_dir", str(target)]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    figures = figures_in(target / "exam.json")
                found.append({"method": method, "seed": run.name, "people": people, "figures": figures})
    (HERE / "exams.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def figures_in(exam: Path) -> dict | None:
    """Those of an exam that has ended."""
    return json.loads(exam.read_text(encoding="utf-8"))["figures"] if exam.exists() else None


def best_first(path: Path) -> tuple[list[dict], dict]:
    """The methods of a comparison, and what was tuned for each."""
    results = json.loads(path.read_text(encoding="utf-8"))
    return sorted(results["methods"], key=lambda m: -m["metrics"]["pass@1"]["mean"]), results["chosen"]


def accuracy(values: Values, method: dict) -> str:
    """Cells of a method: pass@1, pass@8, the difference in pass@1 to static, and SASR's to it."""
    right, other = method["metrics"]["pass@1"], (method.get("difference") or {}).get("pass@1")
    difference = shown(other["mean"], other["interval"], "+") if other else ""
    gains = paired(values["sasr"], values[method["method"]])
    sasr = shown(mean(gains), interval(gains), "+") if method["method"] != "sasr" else ""
    cells = [shown(right["mean"], right["interval"]), f"{method['metrics']['pass@8']['mean']:.3f}", difference, sasr]
    return " | ".join(cells)


def compared(path: Path) -> list[str]:
    """At equal steps, best first."""
    lines = [
        "| method | tuned, of 3 or 4 points | pass@1 | pass@8 | it - static | `sasr` - it | SFT share | time "
        "| rollout tokens |",
        "|---" * 9 + "|",
    ]
    (methods, tuned), values = best_first(path), read(path)
    for method in methods:
        name, each = method["method"], method["per_run"]
        chosen = ", ".join(f"{key} {value:g}" for key, value in tuned.get(name, {}).items())
        lines.append(
            f"| `{name}` ({len(method['seeds'])}) | {chosen} | {accuracy(values, method)} "
            f"| {method['sft_share']:.2f} | {each['seconds']:.0f} s | {each.get('rollout_tokens', 0) / 1000:.0f}k |"
        )
    return lines


def timed(path: Path) -> list[str]:
    """At equal seconds, best first; with what was tuned, if anything was."""
    (methods, tuned), values = best_first(path), read(path)
    lines = [
        f"| method, equal seconds | {'tuned | ' if tuned else ''}steps | pass@1 | pass@8 | it - static | `sasr` - it "
        "| SFT share | rollout tokens |",
        "|---" * (8 + bool(tuned)) + "|",
    ]
    for method in methods:
        name, each = method["method"], method["per_run"]
        chosen = ", ".join(f"{key} {value:g}" for key, value in tuned.get(name, {}).items())
        lines.append(
            f"| `{name}` ({len(method['seeds'])}) | {f'{chosen} | ' if tuned else ''}{each['steps']:.0f} "
            f"| {accuracy(values, method)} "
            f"| {method['sft_share']:.2f} | {each.get('rollout_tokens', 0) / 1000:.0f}k |"
        )
    return lines


def examined() -> list[str]:
    exams = json.loads((HERE / "exams.json").read_text(encoding="utf-8"))

    def over_seeds(method: str, people: int, *keys: str) -> str:
        values = []
        for exam in exams:
            if (exam["method"], exam["people"]) == (method, people):
                value = exam["figures"]
                for key in keys:
                    value = value[key]
                values.append(value)
        return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    lines = [
        "| method | pass@1 | pass@8 | distinct paths of correct samples | right for the wrong reason | KL to the base "
        "| 4 people: pass@1 |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = ((3, "pass_at", "1"), (3, "pass_at", "8"), (3, "paths", "distinct"), (3, "wrong_reason", "rate"))
    columns += ((3, "kl"), (4, "pass_at", "1"))
    for method in METHODS:
        lines.append(f"| `{method}` | " + " | ".join(over_seeds(method, *column) for column in columns) + " |")
    return lines


def main() -> None:
    if len(sys.argv) == 3:
        examine(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    insert(PAGE, "kk-table", compared(HERE / "results.json"))
    insert(PAGE, "kk-time", timed(HERE / "time.json"))
    insert(PAGE, "kk-exams", examined())
    insert(PAGE, "told-time", timed(HERE.parent / "rule-study" / "told-tuned-time.json"))
    insert(PAGE, "told-table", compared(HERE.parent / "rule-study" / "told-tuned.json"))


if __name__ == "__main__":
    main()
