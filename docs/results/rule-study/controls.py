"""The rule study's controls: what carries the rule, peers, too high a rate, and warm-ups of 20 to 400 steps.

Run: python docs/results/rule-study/controls.py (needs matplotlib). Writes warmups.svg and held-out.svg beside itself
and the tables into docs/rule-controls.md, from controls/ and design/: the results.json of carries.yaml, hot.yaml,
hot-told.yaml, moments.yaml, half.yaml, peers.yaml, long.yaml and held-out.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from page import HERE, TASKS, Values, difference, finished, gather, insert, p_value, paired, pooled, read, shown, spent

from sasr.compare.statistics import interval, mean

PAGE = HERE.parents[1] / "rule-controls.md"
CHANGES = {
    "random": "a coin with SASR's own share of SFT",
    "divergence": "p from the divergence",
    "norm-and-divergence": "p from both, half each",
    "last-norm": "the last batch's norm, not smoothed",
    "last-warmup-norm": "against the warm-up's last norm",
    "gamma-3": "gamma 3",
    "failed-questions": "SFT on questions that rollouts failed",
    "one-rate": "SFT at GRPO's rate after the warm-up",
    "shared-moments": "one Adam state for both",
}
GROWING = {
    "cosine-60": "no signal: the cosine alone",
    "sasr-cosine-divergence": "p from the divergence",
}
# What was changed on all four tasks of the search: the files of its runs, its method, and the method it is one of.
FOUR = {
    "one Adam state for both: SASR": ("moments", "sasr-cosine-60", "sasr-cosine-60"),
    "one Adam state for both: static, 60": ("moments", "static-60", "static-60"),
    "one Adam state for both: static, 100": ("moments", "static-100", "static-100"),
    "gamma .5 (and `useful_passes: 16`): SASR": ("half", "sasr-half-60", "sasr-cosine-60"),
}
PEERS = ("chord_mu", "hpt", "luffy", "srft")
# A rule's name, and what its run at the study's rate is called; RULE-hot is the other.
RULES = {
    "static": ("static", "static-60"),
    "random": ("a coin, p = .44", "random"),
    "cosine": ("cosine, no signal", "cosine-60"),
    "sasr": ("SASR, constant pull", "sasr"),
    "sasr-cosine": ("SASR, growing pull", "sasr-cosine-60"),
}
# Tasks of 480 steps, and the files in controls/ that their runs are in.
LONG = {
    "fresh `few`": ("long-few", "long-few-first", "long-few-worn", "long-few-2"),
    "`few`": ("long-digits",),
    "fresh `all`": ("long-all", "long-all-worn", "long-all-2"),
}
WARMUPS = (20, 60, 100, 200, 400)
ROWS = {
    "static": {n: f"static-{n}" for n in WARMUPS},
    "SASR, constant pull": {n: f"sasr-{n}" for n in WARMUPS},
    "SASR, growing pull": {n: f"sasr-cosine-{n}" for n in WARMUPS},
    "and `useful_passes: 16`": {60: "sasr-worn-60"},
    "or `warmup_norm: first`": {60: "sasr-first-60", 200: "sasr-first-200"},
    "or both": {200: "sasr-worn-first-200"},
}
COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple", "tab:brown")
LONG_PAIRS = (
    ("static-60", "static-400"),
    ("static-200", "static-400"),
    ("sasr-cosine-60", "static-60"),
    ("sasr-cosine-60", "static-200"),
    ("sasr-cosine-60", "static-400"),
    ("sasr-worn-60", "static-60"),
    ("sasr-worn-60", "static-200"),
    ("sasr-worn-60", "static-400"),
    ("sasr-worn-60", "sasr-cosine-60"),
    ("sasr-first-60", "sasr-cosine-60"),
)


# Runs of held-out.yaml, on a base model that was trained anew, so that they are compared with each other only.
HELD_OUT = {
    "fresh `few`": ("held-few-21", "held-few-22", "left-few-21"),
    "fresh `all`": ("held-all-21", "held-all-22"),
}
HELD_OUT_METHODS = {
    "sasr-held-out": "SASR, 16 kept from SFT, warm-up `auto`",
    "sasr": "SASR's default, from 60",
    "sasr-left": "SASR, p times `left_to_learn`, from 60",
    "static-held-out": "static, 16 kept from SFT, warm-up `auto`",
    "static-200": "static, 200",
    "static-400": "static, 400",
}


def poor() -> Values:
    """pass@1 on `poor` by method, seed and problem: the design and the controls beside it."""
    found = dict(gather("design")["poor"])
    for name in ("carries", "peers", "hot"):
        found |= read(HERE / "controls" / f"{name}-poor.json")
    return found


def cell(values: Values, method: str) -> str:
    runs = list(values[method].values())
    return shown(mean(runs), interval(runs))


def against(values: Values, method: str, baseline: str) -> str:
    """The difference, paired by seed and problem. Three seeds can give no p below .25, so there is none."""
    gains = paired(values[method], values[baseline])
    return shown(mean(gains), interval(gains), "+")


def carries(values: Values) -> list[str]:
    lines = ["| one thing changed | pass@1 | difference |", "|---|---|---|"]
    for baseline, name, changes in (
        ("sasr", "**the paper's rule**: gradient norm, constant pull", CHANGES),
        ("sasr-cosine-60", "**growing pull**", GROWING),
    ):
        lines.append(f"| {name} | {cell(values, baseline)} | |")
        lines += [f"| {what} | {cell(values, m)} | {against(values, m, baseline)} |" for m, what in changes.items()]
    return lines


def four() -> list[str]:
    """What a change makes of the growing pull, or of static, on each task of the search and over all four."""
    studied = gather("design")
    lines = ["| changed: with - without | " + " | ".join(f"`{task}`" for task in TASKS) + " | all four | p |"]
    lines.append("|---" * (len(TASKS) + 3) + "|")
    for name, (files, method, baseline) in FOUR.items():
        cells, shared = [], []
        for task in TASKS:
            runs, others = read(HERE / "controls" / f"{files}-{task}.json")[method], studied[task][baseline]
            cells.append(f"{mean(list(runs.values())):.3f} - {mean([others[seed] for seed in runs]):.3f}")
            shared.append((runs, others))
        gains = pooled(shared)
        lines.append(f"| {name} | {' | '.join(cells)} | {difference(gains)} | {p_value(gains):.2f} |")
    return lines


def peers(values: Values) -> list[str]:
    tokens = spent("rollout_tokens", "design/poor", "design/poor-4", "controls/peers-poor")
    lines = ["| method | pass@1 | SASR, growing pull - it | rollout tokens |", "|---|---|---|---|"]
    for method in ("sasr-cosine-60", "sasr-60", "static-60", "static-100", "sft", *PEERS):
        other = against(values, "sasr-cosine-60", method) if method != "sasr-cosine-60" else ""
        lines.append(f"| `{method}` | {cell(values, method)} | {other} | {tokens[method] / 1000:.0f}k |")
    return lines


def rates(values: Values) -> list[str]:
    lines = ["| after the warm-up | 1e-4 | 5e-4 | what the rate costs |", "|---" * 4 + "|"]
    for rule, (name, proper) in RULES.items():
        hot = f"{rule}-hot"
        lines.append(f"| {name} | {cell(values, proper)} | {cell(values, hot)} | {against(values, hot, proper)} |")
    return lines


def rates_told(values: Values) -> list[str]:
    """The high rate on the stories."""
    title = "stories, 5e-4 after the warm-up"
    lines = [f"| {title} | pass@1 | - static | pass@8 | right for the wrong reason |", "|---" * 5 + "|"]
    exams: dict[str, list[tuple[float, float]]] = {}
    for one in finished(HERE / "controls" / "hot-told.json"):
        found = one["exam"]["pass_at"]["8"], one["exam"]["wrong_reason"]["rate"]
        exams.setdefault(one["method"], []).append(found)
    for rule in ("static", "random", "sasr", "sasr-cosine"):
        hot = f"{rule}-hot"
        other = against(values, hot, "static-hot") if rule != "static" else ""
        varied, wrong = np.mean(exams[hot], axis=0)
        lines.append(f"| {RULES[rule][0]} | {cell(values, hot)} | {other} | {varied:.2f} | {wrong:.2f} |")
    return lines


def merged(tasks: Mapping[str, Sequence[str]]) -> dict[str, Values]:
    """Runs by task, method, seed and problem, from the files in controls/ that each task has."""
    found: dict[str, Values] = {task: {} for task in tasks}
    for task, names in tasks.items():
        for name in names:
            for method, runs in read(HERE / "controls" / f"{name}.json").items():
                found[task].setdefault(method, {}).update(runs)
    return found


def warmups(tasks: dict[str, Values]) -> list[str]:
    """pass@1 against the warm-up, and what the static sweep costs."""
    lines = ["| 480 steps (seeds) | 20 | 60 | 100 | 200 | 400 |", "|---" * 6 + "|"]
    for task, values in tasks.items():
        for name, methods in ROWS.items():
            runs = {n: list(values[m].values()) for n, m in methods.items() if m in values}
            if runs:
                row = [f"{mean(runs[n]):.3f} ({len(runs[n])})" if n in runs else "" for n in WARMUPS]
                lines.append(f"| {task}: {name} | {' | '.join(row)} |")
        if "sft" in values:
            alone = list(values["sft"].values())
            lines.append(f"| {task}: SFT alone | {mean(alone):.3f} ({len(alone)}) | | | | |")
    seconds = spent("seconds", "controls/long-few")
    sweep = sum(time for method, time in seconds.items() if method.startswith("static")) / 60
    one = seconds["sasr-cosine-60"] / 60
    return [
        *lines,
        "",
        f"A sweep of static over five warm-ups on the first task: {sweep:.0f} minutes inside steps for each seed. One "
        f"run of SASR: {one:.1f}.",
    ]


def longer_pairs(tasks: dict[str, Values]) -> list[str]:
    lines = ["| difference | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for one, other in LONG_PAIRS:
        cells = [against(values, one, other) if one in values and other in values else "" for values in tasks.values()]
        lines.append(f"| `{one}` - `{other}` | {' | '.join(cells)} |")
    return lines


def held_out(tasks: dict[str, Values]) -> list[str]:
    """pass@1, and how far SASR with demonstrations kept from SFT is above it, paired by seed and problem."""
    lines = ["| 480 steps | " + " | ".join(f"{task} | SASR, kept - it" for task in tasks) + " |"]
    lines.append("|---" * (1 + 2 * len(tasks)) + "|")
    for method, name in HELD_OUT_METHODS.items():
        cells = []
        for values in tasks.values():
            runs = values.get(method, {})
            cells.append(f"{cell(values, method)} ({len(runs)})" if runs else "")
            cells.append(against(values, "sasr-held-out", method) if runs and method != "sasr-held-out" else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(tasks: dict[str, Values]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sasr"  # the same file each time
    import matplotlib.pyplot as plt

    tasks = {task: values for task, values in tasks.items() if task != "`few`"}  # which has one length only
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.8), layout="constrained", sharey=True)
    for ax, (task, values) in zip(axes, tasks.items(), strict=True):
        for (name, methods), colour in zip(ROWS.items(), COLOURS, strict=True):
            found = {n: list(values[m].values()) for n, m in methods.items() if m in values}
            if found:
                bounds = np.array([interval(runs) for runs in found.values()])
                means = np.array([mean(runs) for runs in found.values()])
                errors = np.abs(bounds.T - means)
                ax.errorbar(
                    list(found),
                    means,
                    errors,
                    fmt="o-",
                    color=colour,
                    label=name.replace("`", ""),
                    ms=4,
                    lw=1.2,
                    capsize=2,
                )
        if "sft" in values:
            ax.axhline(mean(list(values["sft"].values())), color="0.4", lw=1.2, ls="--", label="SFT alone")
        ax.set(title=task.replace("`", ""), xlabel="warm-up steps of 480")
        ax.title.set_fontsize(9)
    axes[0].set(ylabel="pass@1, 95% interval", ylim=(0, 0.75))
    axes[0].legend(fontsize=7)
    figure.savefig(HERE / "warmups.svg", metadata={"Date": None})


def draw_losses() -> None:
    """What demonstrations kept from SFT show in two runs of SFT alone."""
    import matplotlib.pyplot as plt

    runs = json.loads((HERE / "held-out.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (task, run), colour in zip(runs.items(), COLOURS, strict=False):
        steps = [point["step"] for point in run["held_out"]]
        means = np.convolve(run["sft_loss"], np.ones(10) / 10, "valid")
        left.plot(steps, [point["held_out_loss"] for point in run["held_out"]], color=colour, label=f"{task}: held out")
        left.plot(np.arange(len(means)) + 10, means, color=colour, ls="--", lw=1, label=f"{task}: studied")
        right.plot(steps, [point["carry_over"] for point in run["held_out"]], color=colour, label=task)
    left.set(xlabel="step of SFT", ylabel="nats a token", yscale="log", title="loss of demonstrations")
    right.set(xlabel="step of SFT", ylim=(0, 1.05), title="carry_over")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.savefig(HERE / "held-out.svg", metadata={"Date": None})


def main() -> None:
    values, tasks = poor(), merged(LONG)
    for mark, make in (("carries", carries), ("peers", peers), ("rates", rates)):
        insert(PAGE, mark, make(values))
    insert(PAGE, "rates-told", rates_told(read(HERE / "controls" / "hot-told.json")))
    insert(PAGE, "four", four())
    insert(PAGE, "held-out", held_out(merged(HELD_OUT)))
    insert(PAGE, "warmups", [*warmups(tasks), "", *longer_pairs(tasks)])
    draw(tasks)
    draw_losses()


if __name__ == "__main__":
    main()
