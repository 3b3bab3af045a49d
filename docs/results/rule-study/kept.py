"""Demonstrations kept from SFT on the study's eight tasks, 140 steps: the rule, static with its help, and the defaults.

Run: python docs/results/rule-study/kept.py run (like again.py, with the methods and seeds below). With and without
`run` it writes the tables of again/held-TASK.json into docs/rule-controls.md.
"""

from __future__ import annotations

import sys

from again import FAMILIES, gains, run
from page import HERE, TASKS, Values, finished, insert, read, shown

from sasr.compare.statistics import interval, mean

START, SEEDS = "held-", "45-46"
METHODS = {
    "sasr-held-out": "**SASR, 16 kept from SFT, warm-up `auto`**",
    "static-held-out": "static from the same warm-up",
    "sasr": "SASR's default, from 60",
    "static-100": "static, 100",
}


def tasks() -> dict[str, Values]:
    """pass@1 by task, method, seed and problem."""
    return {
        f"{family}: `{task}`": read(HERE / "again" / f"{START}{prefix}{task}.json")
        for family, (prefix, *_) in FAMILIES.items()
        for task in TASKS
    }


def lengths() -> dict[str, list[int]]:
    """Steps of the warm-ups that ended by themselves, by task, in the order of the seeds."""
    found: dict[str, list[int]] = {}
    for family, (prefix, *_) in FAMILIES.items():
        for task in TASKS:
            for one in finished(HERE / "again" / f"{START}{prefix}{task}.json"):
                if one["method"] == "static-held-out":  # all of its SFT
                    found.setdefault(f"{family}: `{task}`", []).append(one["sft_steps"])
    return found


def table(values: dict[str, Values]) -> list[str]:
    """Each task: pass@1. Each family: what the rule is above each of the others, paired by seed and problem."""
    rule, *others = METHODS
    lines = ["| 140 steps | warm-up found | " + " | ".join(METHODS.values()) + " |", "|---" * (len(METHODS) + 2) + "|"]
    found = lengths()
    for task, v in values.items():
        cells = [f"{mean(list(v[method].values())):.3f}" for method in METHODS]
        lines.append(f"| {task} | {', '.join(map(str, found[task]))} | {' | '.join(cells)} |")
    for family in FAMILIES:
        own = {task: v for task, v in values.items() if task.startswith(family)}
        means = [f"{mean([runs for v in own.values() for runs in v[method].values()]):.3f}" for method in METHODS]
        lines.append(f"| **{family}: all four** | | {' | '.join(means)} |")
        cells = []
        for method in others:
            differences = gains(own, rule, method)
            cells.append(shown(mean(differences), interval(differences), "+"))
        lines.append(f"| the rule - it | | | {' | '.join(cells)} |")
    return lines


def main() -> None:
    if sys.argv[1:] == ["run"]:
        run(list(METHODS), SEEDS, START)
    insert(HERE.parents[1] / "rule-controls.md", "held-out-short", table(tasks()))


if __name__ == "__main__":
    main()
