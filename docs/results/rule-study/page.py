"""The rule study's table and figure, from the results.json of its comparisons.

Run: python docs/results/rule-study/page.py (needs matplotlib). Writes table.md and figure.svg beside itself, from
design/TASK.json (the rules were looked for there) and confirm/TASK.json (fresh tasks and seeds) of sasr compare.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sasr.compare.statistics import interval, mean, sign_flip_p

HERE = Path(__file__).parent
TASKS = {
    "all": "every question demonstrated",
    "few": "100 of 4,000 demonstrated",
    "poor": "half of the demonstrations wrong",
    "harder": "only the easiest third demonstrated",
}
Values = dict[str, dict[int, np.ndarray]]  # method -> seed -> pass@1 of each problem


def read(path: Path) -> tuple[Values, dict[str, dict[str, float]]]:
    """pass@1 by method, seed and problem; and what a run of each method cost."""
    results = json.loads(path.read_text(encoding="utf-8"))
    values: Values = {}
    for run in results["runs"]:
        if run["stage"] == "final" and "problems" in run:
            problems = run["problems"]
            values.setdefault(run["method"], {})[run["seed"]] = np.array(problems["correct"]) / problems["samples"]
    costs = {
        m["method"]: {"share": m["sft_share"], "tokens": m["per_run"]["rollout_tokens"]} for m in results["methods"]
    }
    return values, costs


def best_static(values: Values) -> str:
    """The static switch point with the highest mean on these very rows: what no sweep could beat."""
    return max((m for m in values if m.startswith("static")), key=lambda m: mean(list(values[m].values())))


def shown(value: float, bounds: tuple[float, float], sign: str = "") -> str:
    return f"{value:{sign}.3f} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def table(part: str) -> list[str]:
    data = {task: read(HERE / part / f"{task}.json") for task in TASKS if (HERE / part / f"{task}.json").exists()}
    methods = [m for m in next(iter(data.values()))[0] if all(m in values for values, _ in data.values())]
    lines = [
        f"| {part} | " + " | ".join(f"{task}: pass@1" for task in data) + " | mean regret | worst | p |",
        "|---|" + "---|" * (len(data) + 3),
    ]
    best = {task: best_static(values) for task, (values, _) in data.items()}
    for method in methods:
        cells, regrets, worst = [], [], -1.0
        for task, (values, _) in data.items():
            seeds = sorted(values[method])
            own = [values[method][s] for s in seeds]
            bold = "**" if method == best[task] else ""
            cells.append(bold + shown(mean(own), interval(own)) + bold)
            lost = [values[best[task]][s] - values[method][s] for s in seeds]
            regrets += lost
            worst = max(worst, mean(lost))
        p = sign_flip_p([float(r.mean()) for r in regrets]) if any(r.any() for r in regrets) else 1.0
        lines.append(
            f"| `{method}` | {' | '.join(cells)} | {shown(mean(regrets), interval(regrets), '+')} "
            f"| {worst:+.3f} | {p:.3f} |"
        )
    return lines


def draw(part: str, axes) -> None:
    tasks = [task for task in TASKS if (HERE / part / f"{task}.json").exists()]
    for ax, task in zip(axes, tasks, strict=False):
        values, _ = read(HERE / part / f"{task}.json")
        for family, colour in (("static", "tab:orange"), ("sasr", "tab:blue")):
            lengths = {m: m.removeprefix(family + "-") for m in values}
            found = {int(length): m for m, length in lengths.items() if length.isdigit()}
            xs = sorted(found)
            runs = [list(values[found[x]].values()) for x in xs]
            bounds = np.array([interval(r) for r in runs]).T
            ax.fill_between(xs, *bounds, color=colour, alpha=0.15, lw=0)
            ax.plot(xs, [mean(r) for r in runs], "o-", color=colour, label=family, ms=4)
        for method, style in (("cosine-20", "tab:green"), ("sasr-cosine-20", "tab:purple"), ("sft", "0.5")):
            if method in values:
                runs = list(values[method].values())
                ax.axhline(mean(runs), color=style, lw=1.2, ls="--", label=method)
        ax.set(title=f"{part}: {TASKS[task]}", xlabel="warm-up steps of 140", ylim=(0, None))
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("pass@1, 95% interval")
    axes[0].legend(fontsize=7)


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sasr"  # the same file each time
    import matplotlib.pyplot as plt

    parts = [part for part in ("design", "confirm") if any((HERE / part).glob("*.json"))]
    (HERE / "table.md").write_text("\n\n".join("\n".join(table(part)) for part in parts) + "\n", encoding="utf-8")
    figure, grid = plt.subplots(len(parts), 4, figsize=(13, 3 * len(parts)), layout="constrained", squeeze=False)
    for part, axes in zip(parts, grid, strict=True):
        draw(part, axes)
    figure.savefig(HERE / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
