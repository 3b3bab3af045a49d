"""What the final models of the README's table know beside the task: variety, other wordings, longer questions, and what
they forgot of their base model.

Run: python docs/results/rule-study/exams.py run DIR ... (comparisons of again.yaml and told-again.yaml, as again.py
made them in runs/; examines their final models with `sasr exam`, where that is not done yet, and writes exams.json).
With and without `run` it writes the table of exams.json into docs/rule-study.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from page import HERE, TASKS, Gains, difference, insert

from sasr.tasks import get_task

METHODS = ("static-60", "static-100", "cosine", "sasr")
ROWS = {"digits": 128, "stories": 64}  # which are asked in four other ways too
# Options that make the questions a step longer than any that was trained on, and the longest answer.
LONGER = {"digits": ({"lengths": [6]}, 36), "stories": ({"steps": [5]}, 64)}
FIGURES: dict[str, Callable[[dict], float | None]] = {
    "pass@1": lambda e: e["own"]["pass_at"]["1"],
    "pass@8": lambda e: e["own"]["pass_at"]["8"],
    "entropy, nats a token": lambda e: e["own"]["entropy"],
    "right for the wrong reason": lambda e: e["own"]["wrong_reason"]["rate"],
    "KL to the base, nats a token": lambda e: e["own"]["kl"],
    "NLL of the base's form, nats a token": lambda e: e["own"]["nll"]["per_token"],
    "one step longer: pass@1": lambda e: e["longer"]["pass_at"]["1"],
    "other names: pass@1": lambda e: perturbed(e, "names"),
    "other numbers: pass@1": lambda e: perturbed(e, "numbers"),
    "reordered: pass@1": lambda e: perturbed(e, "order"),
    "a sentence too many: pass@1": lambda e: perturbed(e, "distractor"),
}


def perturbed(exam: dict, kind: str) -> float | None:
    found = exam["own"].get("robustness")
    return None if not found else found[kind]["pass_at_1"]


def what_it_trains(comparison: dict[str, Any]) -> tuple[str, str]:
    """The family and the task of a comparison."""
    family = "digits" if "digits.py" in comparison["task"] else "stories"
    options = comparison.get("task_options") or {}
    if comparison.get("demonstration_rows"):
        return family, "few"
    return family, "poor" if "wrong" in options else "harder" if "demonstrated" in options else "all"


def of_the_base(family: str, task: str) -> Path:
    """Demonstrations in the form that the base model knows."""
    name = "steps" if family == "stories" else "lengths"
    rows = get_task(task, {"plain": True, name: [2, 3] if family == "stories" else [3, 4]}).generate(200, None, "test")
    path = Path("runs") / f"exams-{family}-base.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def figures(directory: Path, run: Path, task: str, *further: Any) -> dict[str, Any]:
    """Of one exam, begun, gone on with or done before."""
    from sasr.exam.command import exam

    command = ["--model", run, "--task", task, "--n", 8, *further, "--output_dir", directory]
    with redirect_stdout(StringIO()):
        if exam([str(word) for word in command]):
            raise SystemExit(130)
    return json.loads((directory / "exam.json").read_text(encoding="utf-8"))["figures"]


def examine(comparisons: Sequence[Path]) -> None:
    found: dict[tuple, dict[str, Any]] = {}
    for directory in comparisons:
        comparison = json.loads((directory / "results.json").read_text(encoding="utf-8"))["comparison"]
        family, task = what_it_trains(comparison)
        longer, limit = LONGER[family]
        base = comparison["model_name_or_path"]
        forgetting = ["--initial_model", base, "--nll_task", comparison["task"]]
        forgetting += ["--nll_data", of_the_base(family, comparison["task"])]
        if family == "stories":
            forgetting += ["--perturb", "all"]
        for method in METHODS:
            for run in sorted(directory.glob(f"runs/{method}/seed-*")):
                if not (run / "model.safetensors").exists():
                    continue
                place = Path("runs") / "exams" / f"{directory.name}-{method}-{run.name}"
                one = {"family": family, "task": task, "method": method, "seed": int(run.name.removeprefix("seed-"))}
                own = figures(place, run, comparison["task"], "--rows", ROWS[family], *forgetting)
                further = ["--rows", 128, "--task_options", json.dumps(longer), "--max_new_tokens", limit]
                after = figures(Path(f"{place}-longer"), run, comparison["task"], *further)
                values = {name: figure({"own": own, "longer": after}) for name, figure in FIGURES.items()}
                found[tuple(one.values())] = one | {"figures": values}
                print(*one.values(), f"{own['pass_at']['1']:.3f}", flush=True)
    text = json.dumps([found[key] for key in sorted(found)], indent=1)
    (HERE / "exams.json").write_text(text + "\n", encoding="utf-8")


def table() -> list[str]:
    """Mean of each method over tasks and seeds, and SASR's paired difference to both switches of static."""
    exams = json.loads((HERE / "exams.json").read_text(encoding="utf-8"))
    values = {(e["family"], e["task"], e["seed"], e["method"]): e for e in exams}
    others = METHODS[:2]
    lines = []
    for family in dict.fromkeys(key[0] for key in values):
        runs = sorted({key[:3] for key in values if key[0] == family}, key=lambda key: (list(TASKS).index(key[1]), key))
        runs = [key for key in runs if all((*key, method) in values for method in METHODS)]
        if not runs:  # of a part of the comparisons
            continue
        seeds = len({key[2] for key in runs})
        heads = [f"{family} ({len(runs)} runs each, {seeds} seeds)", *(f"`{method}`" for method in METHODS)]
        heads += [f"`sasr` - `{method}`" for method in others]
        lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for name in FIGURES:
            columns = {m: [values[(*key, m)]["figures"][name] for key in runs] for m in METHODS}
            if any(value is None for column in columns.values() for value in column):
                continue
            arrays = {m: np.array(column, dtype=float) for m, column in columns.items()}
            cells = [f"{column.mean():.3f}" for column in arrays.values()]
            for other in others:
                gains: Gains = {}
                for key, gain in zip(runs, arrays["sasr"] - arrays[other], strict=True):
                    gains.setdefault(key[2], []).append(np.array([gain]))
                cells.append(difference(gains))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines[1:]


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        examine([Path(name) for name in sys.argv[2:]])
    insert(HERE.parents[1] / "rule-study.md", "exams", table())


if __name__ == "__main__":
    main()
