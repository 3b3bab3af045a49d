"""Demonstrations kept from SFT on the study's eight tasks, 140 steps, four of them from a second base model too.

The rule, static with its help, and the defaults. Run: python docs/results/rule-study/kept.py run (like again.py, with
the methods and seeds below). With and without `run` it writes the table of again/held-*.json into
docs/rule-controls.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from again import FAMILIES, gains, run
from page import HERE, TASKS, Values, finished, insert, read, shown

from sasr.compare.statistics import interval, mean, sign_flip_p

SEEDS = "45-46"
# Where the results of a family of tasks are, in again/, and the seed of its base model.
FILES = {"digits": ("held-", 42), "stories": ("held-told-", 42), "digits, base 7": ("held-7-", 7)}
METHODS = {
    "sasr-held-out": "**SASR, 16 kept from SFT, warm-up `auto`**",
    "static-held-out": "static from the same warm-up",
    "sasr": "SASR's default, from 60",
    "static-100": "static, 100",
}


def files() -> dict[str, Path]:
    """The results of each task."""
    return {
        f"{family}: `{task}`": HERE / "again" / f"{start}{task}.json"
        for family, (start, _) in FILES.items()
        for task in TASKS
    }


def length(path: Path) -> str:
    """Steps of the warm-ups that ended by themselves: all that this static learnt by SFT."""
    return ", ".join(str(one["sft_steps"]) for one in finished(path) if one["method"] == "static-held-out")


def table(values: dict[str, Values]) -> list[str]:
    """Each task and all of them: pass@1, and what the rule is above each of the others, paired by seed and problem."""
    rule, *others = METHODS
    lines = ["| 140 steps | warm-up found | " + " | ".join(METHODS.values()) + " |", "|---" * (len(METHODS) + 2) + "|"]
    for task, path in files().items():
        cells = [f"{mean(list(values[task][method].values())):.3f}" for method in METHODS]
        lines.append(f"| {task} | {length(path)} | {' | '.join(cells)} |")
    means = [f"{mean([runs for v in values.values() for runs in v[method].values()]):.3f}" for method in METHODS]
    lines.append(f"| **all twelve** | | {' | '.join(means)} |")
    cells = []
    for method in others:
        differences = gains(values, rule, method)
        p = sign_flip_p([float(gain.mean()) for gain in differences])
        cells.append(f"{shown(mean(differences), interval(differences), '+')}, p = {p:.2f}")
    lines.append(f"| the rule - it | | | {' | '.join(cells)} |")
    worst = [min(mean(gains({task: v}, rule, method)) for task, v in values.items()) for method in others]
    return [*lines, f"| the same, worst task | | | {' | '.join(f'{value:+.3f}' for value in worst)} |"]


def main() -> None:
    if sys.argv[1:] == ["run"]:
        for family, (start, base_seed) in FILES.items():
            family = family.split(",")[0]
            run(list(METHODS), SEEDS, start.removesuffix(FAMILIES[family][0]), [family], base_seed)
    values = {task: read(path) for task, path in files().items()}
    insert(HERE.parents[1] / "rule-controls.md", "held-out-short", table(values))


if __name__ == "__main__":
    main()
