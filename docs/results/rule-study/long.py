"""Runs of 480 steps with the rule as it is by default, on the tasks on which RL must pay.

Run: python docs/results/rule-study/long.py. Writes a table into docs/rule-controls.md from controls/long-harder.json
and controls/long-poor.json, the results of long-default.yaml, and controls/long-held-*.json, those of its last method.
"""

from __future__ import annotations

from controls import against
from page import HERE, Values, insert, read, shown, spent

from sasr.compare.statistics import interval, mean

TASKS = {"easy demonstrations only": "harder", "half of the demonstrations wrong": "poor"}
KEPT = "sasr-held-out"
METHODS = {
    "sasr": "**SASR's default, from 60**",
    KEPT: "SASR, 16 kept from SFT, warm-up `auto`",
    "static-60": "static, 60",
    "static-200": "static, 200",
    "static-400": "static, 400",
    "sft": "SFT alone",
}


def files(task: str) -> list[str]:
    return [f"controls/long-{task}", f"controls/long-held-{task}"]


def table() -> list[str]:
    """Of each task and method pass@1, what SASR and SASR with kept demonstrations are above it, and what it took."""
    lines = ["| 480 steps | pass@1 | SASR - it | kept - it | minutes in steps | rollout tokens |", "|---" * 6 + "|"]
    for name, task in TASKS.items():
        values: Values = {}
        for file in files(task):
            values |= read(HERE / f"{file}.json")
        seconds, tokens = (spent(what, *files(task)) for what in ("seconds", "rollout_tokens"))
        for method, words in METHODS.items():
            runs = list(values[method].values())
            lines.append(
                f"| {name}: {words} ({len(runs)}) | {shown(mean(runs), interval(runs))} "
                f"| {' | '.join('' if one == method else against(values, one, method) for one in ('sasr', KEPT))} "
                f"| {seconds[method] / 60:.1f} | {tokens[method] / 1000:.0f}k |"
            )
    return lines


if __name__ == "__main__":
    insert(HERE.parents[1] / "rule-controls.md", "long-default", table())
