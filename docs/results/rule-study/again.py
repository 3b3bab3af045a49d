"""SASR as it is by default on the study's eight tasks, with seeds that nothing was chosen on: the README's table.

Run: python docs/results/rule-study/again.py run (trains the two base models and makes the eight comparisons of
again.yaml and told-again.yaml in runs/, where that is not done yet: two to three hours on a CPU core). With and
without `run` it writes the tables of again/TASK.json into README.md and docs/rule-study.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from page import HERE, TASKS, Values, best_static, gather, insert, paired, read, shown, spent

from sasr.compare.statistics import interval, mean, sign_flip_p

FAMILIES = {"digits": ("", "design", "lengths", [3, 4, 5]), "stories": ("told-", "confirm", "steps", [2, 3, 4])}
SEEDS = "41-44"
METHODS = {
    "static": "static SFT-then-GRPO, swept",
    "static-100": "static, GRPO from step 100",
    "static-60": "static, GRPO from step 60",
    "cosine": "`--schedule cosine`: no signal",
    "sasr": "**`sasr`, its default**",
}


def options(family: str, task: str) -> list[str]:
    """The flags that make a task of the recipe, which has demonstrations for all questions."""
    _, _, name, sizes = FAMILIES[family]
    given = {"poor": {"wrong": 0.5}, "harder": {"demonstrated": sizes[:1]}}.get(task)
    if task == "few":
        return ["--demonstration_rows", "100"]
    return ["--task_options", json.dumps({name: sizes, **given})] if given else []


def run(methods: Sequence[str], seeds: str, start: str = "") -> None:
    """Train the bases and compare these methods on the eight tasks, where that is not done yet. The results go to
    again/, as `start` with the task's name."""
    sasr = [sys.executable, "-m", "sasr"]
    for family, (prefix, *_) in FAMILIES.items():
        base = Path("runs") / f"{prefix.removesuffix('-') or family}-base"
        if not (base / "model.safetensors").exists():
            command = ["train", "--config", str(HERE / f"{prefix}base.yaml"), "--output_dir", str(base)]
            subprocess.run([*sasr, *command], check=True)
        for task in TASKS:
            directory = Path("runs") / f"again-{start}{prefix}{task}"
            command = ["compare", "--config", str(HERE / f"{prefix}again.yaml"), *options(family, task)]
            command += ["--methods", *methods, "--seeds", seeds, "--output_dir", str(directory)]
            subprocess.run([*sasr, *command], check=True)  # goes on where it was
            (HERE / "again").mkdir(exist_ok=True)
            shutil.copy(directory / "results.json", HERE / "again" / f"{start}{prefix}{task}.json")


def tasks() -> dict[str, Values]:
    """pass@1 by task, method, seed and problem; `static` is the switch that did better with the study's own seeds."""
    found = {}
    for family, (prefix, part, *_) in FAMILIES.items():
        studied = gather(part)
        for task in TASKS:
            values = read(HERE / "again" / f"{prefix}{task}.json")
            swept = best_static({m: runs for m, runs in studied[task].items() if m in values})
            found[f"{family}: `{task}`"] = values | {"static": values[swept]}
    return found


def gains(values: dict[str, Values], one: str, other: str) -> list:
    """Differences by run, of all tasks."""
    return [gain for v in values.values() for gain in paired(v[one], v[other])]


def summary(values: dict[str, Values]) -> list[str]:
    """The README's table: over the tasks, and on the worst of them."""
    lines = [
        "| method, 140 steps | pass@1, 8 tasks | `sasr` - it | p | worst task, to the better switch | rollout tokens |",
        "|---" * 6 + "|",
    ]
    tokens = spent("rollout_tokens", *(f"again/{prefix}{task}" for prefix, *_ in FAMILIES.values() for task in TASKS))
    better = {task: best_static(v) for task, v in values.items()}
    for method, name in METHODS.items():
        own = [runs for v in values.values() for runs in v[method].values()]
        difference, p = "", ""
        if method != "sasr":
            found = gains(values, "sasr", method)
            difference = shown(mean(found), interval(found), "+")
            p = f"{sign_flip_p([float(gain.mean()) for gain in found]):.3f}"
        worst = min(mean(gains({task: v}, method, better[task])) for task, v in values.items())
        cost = f"{tokens[method] / 1000:.0f}k" if method in tokens else ""
        lines.append(f"| {name} | {mean(own):.3f} | {difference} | {p} | {worst:+.3f} | {cost} |")
    return lines


def table(values: dict[str, Values]) -> list[str]:
    """Each task: pass@1 of each method, and SASR's difference to the swept static."""
    methods = [method for method in METHODS if method != "static"]
    lines = [
        "| fresh seeds | " + " | ".join(f"`{m}`" for m in methods) + " | `sasr` - static, swept |",
        "|---" * (len(methods) + 2) + "|",
    ]
    for task, v in values.items():
        cells = [shown(mean(runs), interval(runs)) for runs in (list(v[m].values()) for m in methods)]
        found = gains({task: v}, "sasr", "static")
        lines.append(f"| {task} | {' | '.join(cells)} | {shown(mean(found), interval(found), '+')} |")
    return lines


def main() -> None:
    if sys.argv[1:] == ["run"]:
        run([method for method in METHODS if method != "static"], SEEDS)
    values = tasks()
    insert(HERE.parents[2] / "README.md", "table", summary(values))
    insert(HERE.parents[1] / "rule-study.md", "again", table(values))


if __name__ == "__main__":
    main()
