"""The rule study's table and figure, from the results.json of its comparisons.

Run: python docs/results/rule-study/page.py (needs matplotlib). Writes table.md and figure.svg beside itself,
and the tables into docs/rule-study.md, from design/TASK.json (the rules were looked for there) and
confirm/TASK.json (fresh tasks and seeds) of sasr compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sasr.compare.statistics import interval, mean, pooled_differences, pooled_interval, sign_flip_p

HERE = Path(__file__).parent
TASKS = {
    "all": "every question demonstrated",
    "few": "100 of 4,000 demonstrated",
    "poor": "half of the demonstrations wrong",
    "harder": "only the easiest third demonstrated",
}
FAMILIES = {
    "static": ("static", "tab:orange"),
    "sasr": ("SASR, constant pull", "tab:blue"),
    "sasr-cosine": ("SASR, growing pull", "tab:green"),
}
FOUND = {"static-agreement": "tab:orange", "sasr-cosine-agreement": "tab:green"}
PAIRS = (
    ("sasr-cosine-20", "sasr-60"),
    ("sasr-cosine-60", "sasr-60"),
    ("sasr-cosine-60", "static-60"),
    ("sasr-cosine-60", "static-100"),
    ("sasr-cosine-60", "sasr-cosine-20"),
    ("sasr-worn-60", "sasr-cosine-60"),
    ("sasr-worn-60", "static-60"),
    ("sasr-cosine-agreement", "static-agreement"),
    ("sasr-cosine-agreement", "cosine-agreement"),
    ("sasr-cosine-20", "cosine-20"),
    ("sasr-cosine-20", "static-60"),
    ("static-agreement", "static-60"),
    ("sasr-agreement", "sasr-60"),
    ("sasr-agreement", "static-agreement"),
    ("sasr-cosine-20", "static-agreement"),
    ("sasr-60", "sft"),
)
SUMMARY = {
    "static-100": ("static SFT-then-GRPO", "100, swept"),
    "static-60": ("static", "60"),
    "sft": ("SFT alone", ""),
    "sasr-60": ("SASR, constant pull: the paper's rule", "60"),
    "sasr-cosine-60": ("SASR, a pull that grows: the default", "60"),
    "sasr-cosine-20": ("SASR, the same", "20"),
    "sasr-cosine-agreement": ("SASR, the same, `sft_warmup_steps: auto`", "found: 60 to 90"),
    "static-agreement": ("static, `sft_warmup_steps: auto`", "found: 60 to 90"),
    "sasr-agreement": ("SASR, constant pull, `auto`, `sft_norm: repeatable`", "found: 60 to 90"),
}
# What the methods of the second round are called beside those of the others.
RENAMED = {
    "sasr-agreement": "sasr-agreement, SFT rate / 5",
    "sasr-agreement-cosine": "sasr-cosine-agreement, SFT rate / 5",
    "static-agreement-anneal": "static-agreement + 40% at SFT rate / 5",
}
Values = dict[str, dict[int, np.ndarray]]  # method -> seed -> pass@1 of each problem
Gains = dict[int, list[np.ndarray]]  # seed -> of each of its tasks what one method is above another, by problem


def finished(path: Path) -> list[dict]:
    """The examined final runs of a comparison's results.json."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return [run for run in runs if run["stage"] == "final" and "problems" in run]


def read(path: Path) -> Values:
    """pass@1 by method, seed and problem."""
    values: Values = {}
    for run in finished(path):
        problems = run["problems"]
        values.setdefault(run["method"], {})[run["seed"]] = np.array(problems["correct"]) / problems["samples"]
    return values


def paired(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> list[np.ndarray]:
    """The differences of two methods, by problem, for each seed that both have."""
    return [one[seed] - other[seed] for seed in one if seed in other]


def pooled(pairs: Iterable[tuple[dict[int, np.ndarray], dict[int, np.ndarray]]]) -> Gains:
    """The same over several tasks, a pair of methods of each. Runs with one seed are kept together, whatever task and
    family of tasks: they share the coins of the schedules, and often the questions."""
    found: Gains = {}
    for one, other in pairs:
        for seed in one:
            if seed in other:
                found.setdefault(seed, []).append(one[seed] - other[seed])
    return found


def flat(gains: Gains) -> list[np.ndarray]:
    """By run."""
    return [gain for of_seed in gains.values() for gain in of_seed]


def difference(gains: Gains) -> str:
    """The mean over the runs, with its interval over seeds, each with all of its tasks. Two seeds have no interval over
    several tasks, but the mean of each: resampled they would give those two again."""
    if len(gains) < 3 and any(len(of_seed) > 1 for of_seed in gains.values()):
        each = ", ".join(f"{mean(gains[seed]):+.3f}" for seed in sorted(gains))
        return f"{mean(flat(gains)):+.3f} (seeds: {each})"
    return shown(mean(flat(gains)), pooled_interval(list(gains.values())), "+")


def p_value(gains: Gains) -> float:
    """By sign flips, one sign per seed."""
    return sign_flip_p(pooled_differences(list(gains.values())))


def spent(what: str, *names: str) -> dict[str, float]:
    """Of each method in these results, mean over its runs: `seconds` inside optimizer steps, the warm-up included, or
    `rollout_tokens`."""
    found: dict[str, list[float]] = {}
    for name in names:
        for run in finished(HERE / f"{name}.json"):
            found.setdefault(run["method"], []).append(run[what])
    return {method: float(np.mean(values)) for method, values in found.items()}


def gather(part: str) -> dict[str, Values]:
    """The rounds of each task together."""
    found: dict[str, Values] = {}
    for task in TASKS:
        for name in (task, *(f"{task}-{n}" for n in (2, 3, 4, 5, 6))):
            path = HERE / part / f"{name}.json"
            if not path.exists():
                continue
            values = read(path)
            if part == "design" and name.endswith("-2"):
                values = {RENAMED.get(method, method): runs for method, runs in values.items()}
            found.setdefault(task, {}).update({m: runs for m, runs in values.items() if m not in found.get(task, {})})
    return found


def best_static(values: Values) -> str:
    """The static switch point with the highest mean on these very rows: no sweep could choose better."""
    swept = [m for m in values if m.removeprefix("static-").isdigit()]
    return max(swept, key=lambda m: mean(list(values[m].values())))


def shown(value: float, bounds: tuple[float, float], sign: str = "") -> str:
    return f"{value:{sign}.3f} [{bounds[0]:{sign}.3f}, {bounds[1]:{sign}.3f}]"


def table(part: str) -> list[str]:
    """Of each method: pass@1 on each task; what it loses to the best static, over the seeds of all tasks, paired."""
    data = gather(part)
    best = {task: best_static(values) for task, values in data.items()}
    methods = list(dict.fromkeys(m for values in data.values() for m in values))
    tasks = " | ".join(data)
    lines = [f"| {part} | {tasks} | pass@1 - best static | worst task | p |", "|---|" + "---|" * (len(data) + 3)]
    for method in methods:
        cells, shared, by_task = [], [], []
        for task, values in data.items():
            if method not in values:
                cells.append("")
                continue
            own = list(values[method].values())
            bold = "**" if method == best[task] else ""
            cells.append(f"{bold}{shown(mean(own), interval(own))}{bold} ({len(own)})")
            shared.append((values[method], values[best[task]]))
            by_task.append(mean(paired(*shared[-1])))
        over = "" if len(by_task) == len(data) else f" ({len(by_task)} tasks)"
        gains = pooled(shared)
        p = f"{p_value(gains):.3f}" if any(gain.any() for gain in flat(gains)) else ""
        lines.append(f"| `{method}` | {' | '.join(cells)} | {difference(gains)}{over} | {min(by_task):+.3f} | {p} |")
    return lines


def labels() -> list[str]:
    """pass@1 against the number of questions with a demonstration; few.yaml and all.yaml have two of the points."""
    found = {int(path.stem): read(path) for path in (HERE / "labels").glob("*.json")}
    design = gather("design")
    found |= {100: design["few"], 4000: design["all"]}
    methods = ("sft", "static-60", "static-100", "sasr-60", "sasr-cosine-60")
    lines = ["| demonstrations of 4,000 | " + " | ".join(f"`{m}`" for m in methods) + " |", "|---" * 6 + "|"]
    for count in sorted(found):
        runs = [list(found[count][m].values()) if m in found[count] else [] for m in methods]
        best = max(mean(r) for r in runs if r)
        cells = [shown(mean(r), interval(r)) if r else "" for r in runs]
        cells = [f"**{cell}**" if r and mean(r) == best else cell for r, cell in zip(runs, cells, strict=True)]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return lines


def summary() -> list[str]:
    """Of the methods that matter to a user: what each loses to the best static in both parts."""
    lines = [
        "| method, 140 steps | warm-up | pass@1 - best static: 4 tasks of the search | 4 fresh tasks |",
        "|---|---|---|---|",
    ]
    rows = [
        {line.split(" | ")[0].strip("| `"): line.split(" | ")[-3] for line in table(part)[2:]}
        for part in ("design", "confirm")
    ]
    for method, (name, warmup) in SUMMARY.items():
        lines.append(f"| {name} | {warmup} | {' | '.join(part.get(method, 'not run') for part in rows)} |")
    return lines


def insert(path: Path, mark: str, lines: list[str]) -> None:
    """Put lines between the two marks of a page."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    assert end, f"{path} has no {mark}"
    path.write_text(f"{before}<!-- {mark} -->\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")


def pairs(part: str) -> list[str]:
    """Methods against each other, paired by seed and problem, over the tasks that have both, and the seeds of all."""
    data = gather(part)
    lines = [f"| {part} | difference in pass@1 | tasks, runs, seeds | p |", "|---|---|---|---|"]
    for a, b in PAIRS:
        shared = [(v[a], v[b]) for v in data.values() if a in v and b in v]
        gains = pooled(shared)
        if gains:
            counts = f"{len(shared)}, {len(flat(gains))}, {len(gains)}"
            lines.append(f"| `{a}` - `{b}` | {difference(gains)} | {counts} | {p_value(gains):.3f} |")
    return lines


def draw(part: str, axes) -> None:
    tasks = gather(part)
    for ax in axes[len(tasks) :]:
        ax.set_visible(False)
    for ax, (task, values) in zip(axes, tasks.items(), strict=False):
        for family, (label, colour) in FAMILIES.items():
            found = {int(n): m for m in values if (n := m.removeprefix(family + "-")).isdigit()}
            xs = sorted(found)
            runs = [list(values[found[x]].values()) for x in xs]
            ax.fill_between(xs, *np.array([interval(r) for r in runs]).T, color=colour, alpha=0.15, lw=0)
            ax.plot(xs, [mean(r) for r in runs], "o-", color=colour, label=label, ms=4)
        for method, colour in FOUND.items():
            if method in values:
                ax.axhline(mean(list(values[method].values())), color=colour, lw=1.2, ls="--", label=f"{method} (auto)")
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
    tables = "\n\n".join("\n".join(make(part)) for part in parts for make in (table, pairs))
    (HERE / "table.md").write_text(tables + "\n", encoding="utf-8")
    insert(HERE.parents[1] / "rule-study.md", "tables", tables.splitlines())
    insert(HERE.parents[1] / "rule-study.md", "labels", labels())
    insert(HERE.parents[1] / "rule-study.md", "summary", summary())
    figure, grid = plt.subplots(len(parts), 4, figsize=(13, 3 * len(parts)), layout="constrained", squeeze=False)
    for part, axes in zip(parts, grid, strict=True):
        draw(part, axes)
    figure.savefig(HERE / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
