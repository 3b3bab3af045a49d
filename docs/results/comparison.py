"""Draws a comparison made by `sasr compare` from its results.json.

Run: python docs/results/comparison.py docs/results/compare-stories (writes figure.svg beside results.json; needs
matplotlib). Left: pass@1 of each method with its 95% interval and every seed. Right: the paired difference to the
baseline. Of each method that was tuned over its switch step alone a further panel shows the sweep.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Results = dict[str, Any]
METRIC = "pass@1"


def seeds_of(results: Results, method: str) -> list[float]:
    """pass@1 of each finished run of a method."""
    runs = [r for r in results["runs"] if r["stage"] == "final" and r["method"] == method and "problems" in r]
    return [sum(r["problems"]["correct"]) / len(r["problems"]["correct"]) / r["problems"]["samples"] for r in runs]


def sweeps_of(results: Results, name: str = "switch_step") -> dict[str, dict[float, dict[int, float]]]:
    """Of each method that was tuned over three or more values of this setting and no other: value to tuning seed to
    pass@1 on the validation rows, of the runs that did not fail."""
    found: dict[str, dict[float, dict[int, float]]] = {}
    for run in results["runs"]:
        if run["stage"] == "tuning" and list(run["tuned"]) == [name] and "problems" in run:
            problems = run["problems"]
            rate = sum(problems["correct"]) / len(problems["correct"]) / problems["samples"]
            found.setdefault(run["method"], {}).setdefault(run["tuned"][name], {})[run["seed"]] = rate
    return {method: dict(sorted(at.items())) for method, at in found.items() if len(at) > 2}


def draw(directory: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sasr"  # the same file each time
    import matplotlib.pyplot as plt

    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    sweeps = sweeps_of(results)
    methods = sorted(results["methods"], key=lambda m: m["metrics"][METRIC]["mean"])
    panels = 2 + len(sweeps)
    figure, axes = plt.subplots(1, panels, figsize=(4.5 * panels, 1 + 0.32 * len(methods)), layout="constrained")
    for i, method in enumerate(methods):
        figures = method["metrics"][METRIC]
        low, high = figures["interval"]
        axes[0].plot([low, high], [i, i], color="tab:blue", lw=2)
        rates = seeds_of(results, method["method"])
        axes[0].plot(rates, [i] * len(rates), ".", color="0.6", ms=4)
        axes[0].plot(figures["mean"], i, "o", color="tab:blue", ms=5)
        difference = (method.get("difference") or {}).get(METRIC)
        if difference:
            axes[1].plot(difference["interval"], [i, i], color="tab:orange", lw=2)
            axes[1].plot(difference["mean"], i, "o", color="tab:orange", ms=5)
    names = [f"{method['method']} ({len(method['seeds'])})" for method in methods]
    axes[0].set_yticks(range(len(methods)), names)
    axes[0].set(xlabel=METRIC, title="method (seeds), 95% interval, each seed")
    axes[1].set_yticks([])
    axes[1].axvline(0, color="0.5", lw=0.8)
    axes[1].set(xlabel=f"{METRIC} - {results['comparison']['compare']['baseline']}", title="paired difference")
    for ax, (method, sweep) in zip(axes[2:], sweeps.items(), strict=True):
        for seed in sorted({seed for rates in sweep.values() for seed in rates}):
            own = {value: rates[seed] for value, rates in sweep.items() if seed in rates}
            ax.plot(list(own), list(own.values()), ".", color="0.6")
        ax.plot(list(sweep), [sum(rates.values()) / len(rates) for rates in sweep.values()], "o-", color="tab:green")
        title = "the sweep" if len(sweeps) == 1 else f"the sweep of {method}"
        ax.set(xlabel="switch step", ylabel=f"{METRIC}, validation rows", title=title)
    figure.savefig(directory / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/results/comparison.py DIRECTORY_WITH_RESULTS_JSON ...")
    for name in sys.argv[1:]:
        draw(Path(name))
