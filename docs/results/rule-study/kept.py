"""Demonstrations kept from SFT on the study's eight tasks, 140 steps: the rule, static with its help, and the defaults.

Run: python docs/results/rule-study/kept.py run (like again.py, with the methods and seeds below). With and without
`run` it writes the table of again/held-TASK.json into docs/rule-controls.md, and one of again/kept-auto-*.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from again import AUTO, FAMILIES, ahead, merged, run, with_swept
from page import HERE, TASKS, finished, insert, read

from sasr.compare.statistics import mean

START, SEEDS = "held-", "45-46"
KEPT = "sasr-kept"
METHODS = {
    "sasr-held-out": "**SASR, 16 kept from SFT, warm-up `auto`**",
    "static-held-out": "static from the same warm-up",
    "sasr": "SASR's default, from 60",
    "static-100": "static, 100",
}


def files() -> dict[str, Path]:
    """The results of each task for which there are any."""
    found = {
        f"{family}: `{task}`": HERE / "again" / f"{START}{prefix}{task}.json"
        for family, (prefix, *_) in FAMILIES.items()
        for task in TASKS
    }
    return {task: path for task, path in found.items() if path.exists()}


def lengths(path: Path) -> str:
    """Steps of the warm-ups that ended by themselves, by seed: all that this static learnt by SFT."""
    return ", ".join(str(one["sft_steps"]) for one in finished(path) if one["method"] == "static-held-out")


def table() -> list[str]:
    """Each task: pass@1. Each family: what the rule is above each of the others, paired by seed and problem."""
    rule, *others = METHODS
    lines = ["| 140 steps | warm-up found | " + " | ".join(METHODS.values()) + " |", "|---" * (len(METHODS) + 2) + "|"]
    found = {task: read(path) for task, path in files().items()}
    for task, v in found.items():
        cells = [f"{mean(list(v[method].values())):.3f}" for method in METHODS]
        lines.append(f"| {task} | {lengths(files()[task])} | {' | '.join(cells)} |")
    for family in FAMILIES:
        own = {task: v for task, v in found.items() if task.startswith(family)}
        if not own:
            continue
        means = [f"{mean([runs for v in own.values() for runs in v[method].values()]):.3f}" for method in METHODS]
        lines.append(f"| **{family}: all four** | | {' | '.join(means)} |")
        cells = [ahead(own, rule, method) for method in others]
        lines.append(f"| the rule - it | | | {' | '.join(cells)} |")
    return lines


def ordered() -> list[str]:
    """`harder` once more, all methods with questions by their success, as is the default there."""
    others = {"sasr": "SASR's default", "static-60": "static, 60", "static-100": "static, 100", "static": "swept"}
    heads = " | ".join(f"it - {words}" for words in others.values())
    lines = [
        f"| 140 steps, `harder` (seeds) | SASR, 16 kept | {heads} |",
        "|---" * (len(others) + 2) + "|",
    ]
    found = {}
    for family, (prefix, *_) in FAMILIES.items():
        values = with_swept(merged([AUTO.format(f"{prefix}harder")]))
        found[family] = values | read(HERE / "again" / f"kept-auto-{prefix}harder.json")
    for name, own in ({family: {family: v} for family, v in found.items()} | {"**both**": found}).items():
        runs = [run for v in own.values() for run in v[KEPT].values()]
        cells = [ahead(own, KEPT, other) for other in others]
        lines.append(f"| {name} ({len(runs)}) | {mean(runs):.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    if sys.argv[1:] == ["run"]:
        run(list(METHODS), SEEDS, START)
    insert(HERE.parents[1] / "rule-controls.md", "held-out-short", table())
    insert(HERE.parents[1] / "rule-controls.md", "held-out-ordered", ordered())


if __name__ == "__main__":
    main()
