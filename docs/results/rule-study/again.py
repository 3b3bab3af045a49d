"""SASR as it is by default on the study's eight tasks, with seeds that nothing was chosen on: the README's table.

Run: python docs/results/rule-study/again.py run [SEEDS] (trains the two base models and makes the eight comparisons of
again.yaml and told-again.yaml in runs/, where that is not done yet: five hours on a CPU core, with the seeds 41-44
half of that). With and without `run` it writes the tables of again/TASK.json into README.md and docs/rule-study.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from page import HERE, TASKS, Gains, Values, best_static, difference, flat, insert, p_value, pooled, read, shown, spent

from sasr.compare.statistics import holm, interval, mean

FAMILIES = {"digits": ("", "lengths", [3, 4, 5]), "stories": ("told-", "steps", [2, 3, 4])}
SEEDS = "41-48"
# The published runs were made in parts, in this order: TASK.json and those with something after the task's name. What
# `run` makes is all in TASK.json, which goes before the others.
PARTS = ("{}", "{}-45-46", "{}-45-48", "{}-47-48", "left-{}")
# `harder` was run anew, with fresh seeds, when `curriculum: auto` had become the default. On the other tasks that is
# the same as none, as their demonstrations are as hard as their questions.
AUTO = "auto-{}"
EARLIER = ", `curriculum: none`"
LATER = ", `curriculum: auto`"
HELD = "held-told-{}"  # kept.py has two of the stories' methods with seeds 45 and 46, from the same base model
METHODS = {
    "static": "static SFT-then-GRPO, swept",
    "static-100": "static, GRPO from step 100",
    "static-60": "static, GRPO from step 60",
    "cosine": "`--schedule cosine`: no signal",
    "sasr": "**`sasr`, its default**",
}
LATER_SWITCHES = ("static-140", "static-180")  # at equal seconds
SECONDS = "sasr-seconds"  # p as a share of the seconds
LEFT = "sasr-left"  # rules.py: SasrLeft; for docs/rule-controls.md
# With `curriculum: adaptive`, for the same page: adaptive-TASK*.json. In questions-TASK*.json, of commit 8afaf69, it
# orders questions alone and not demonstrations.
QUESTIONS = "sasr-questions"
ADAPTIVE = {"sasr": "sasr-adaptive", "static-60": "static-60-adaptive", "static-100": "static-100-adaptive"}


def options(family: str, task: str) -> list[str]:
    """The flags that make a task of the recipe, which has demonstrations for all questions."""
    _, name, sizes = FAMILIES[family]
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
            name = AUTO.format(prefix + task) if task == "harder" and not start else f"{start}{prefix}{task}"
            shutil.copy(directory / "results.json", HERE / "again" / f"{name}.json")


def parts(prefix: str, task: str) -> list[str]:
    """Names in again/ of the results of a task with the defaults."""
    return [AUTO.format(prefix + task)] if task == "harder" else without_order(prefix, task)


def without_order(prefix: str, task: str) -> list[str]:
    """The same without questions by difficulty on any task."""
    names = [name.format(prefix + task) for name in PARTS] + ([HELD.format(task)] if prefix else [])
    return [name for name in names if (HERE / "again" / f"{name}.json").exists()]


def merged(names: Sequence[str], ordered: bool = False) -> Values:
    """The runs of these results with the methods of the table; of two with the same method and seed the first. With
    `ordered` what has questions by difficulty is called so, also where it is the default."""
    values: Values = {}
    for name in names:
        for method, runs in read(HERE / "again" / f"{name}.json").items():
            if ordered and name.startswith(AUTO.format("")):  # the names of those with and without an order
                method = ADAPTIVE.get(method, method.removesuffix("-none"))
            if method in (*METHODS, *LATER_SWITCHES, *ADAPTIVE.values(), LEFT, SECONDS):
                values[method] = runs | values.get(method, {})
    return values


def by_task(found: Callable[[str, str], list[str]]) -> dict[str, list[str]]:
    """What there is of each task, by the name that the tables give it."""
    return {f"{family}: `{task}`": found(prefix, task) for family, (prefix, *_) in FAMILIES.items() for task in TASKS}


def names() -> dict[str, list[str]]:
    """Those of each task."""
    return by_task(parts)


def further(start: str) -> dict[str, list[str]]:
    """Those of each task that the main table leaves out."""
    return by_task(
        lambda prefix, task: [p.stem for p in sorted((HERE / "again").glob(f"{start}-{prefix}{task}*.json"))]
    )


def tasks(found: Callable[[str, str], list[str]] = parts) -> dict[str, Values]:
    """pass@1 by task, method, seed and problem."""
    return {task: with_swept(merged(own)) for task, own in by_task(found).items()}


def earlier() -> dict[str, Values]:
    """`harder` as it was before questions by difficulty were the default there, with its own seeds."""
    return {task + EARLIER: own for task, own in tasks(without_order).items() if "harder" in task}


def cost(what: str, members: Iterable[str]) -> dict[str, float]:
    """Of each method in these tasks, as [`spent`]."""
    known = names() | {task + EARLIER: own for task, own in by_task(without_order).items()}
    return spent(what, *(f"again/{name}" for task in members for name in known[task]))


def first_base() -> dict[str, Values]:
    """The same of the digits with the study's own base model, seeds 41 to 44."""
    return {f"digits: `{task}`": with_swept(merged([f"first-base/{task}"])) for task in TASKS}


def with_swept(values: Values) -> Values:
    """With `static`: of each seed the switch that did better over the other seeds of the task."""
    switches = [method for method in values if method.removeprefix("static-").isdigit()]
    swept = {}
    for seed in values[switches[0]]:
        others = {m: [runs for s, runs in values[m].items() if s != seed] for m in switches}
        swept[seed] = values[max(switches, key=lambda m: mean(others[m]))][seed]
    return values | {"static": swept}


def gains(values: dict[str, Values], one: str, other: str) -> Gains:
    """Differences by seed, of all tasks."""
    return pooled((v[one], v[other]) for v in values.values())


def runs_of(values: dict[str, Values], one: str, other: str) -> int:
    """Pairs of runs, of all tasks."""
    return len(flat(gains(values, one, other)))


def ahead(values: dict[str, Values], one: str, other: str) -> str:
    """What one method is above the other over all runs."""
    return difference(gains(values, one, other))


def chance(values: dict[str, Values], one: str, other: str) -> str:
    """p of that difference, by sign flips of seeds."""
    return as_p(p_value(gains(values, one, other)))


def as_p(p: float) -> str:
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def summary(values: dict[str, Values]) -> list[str]:
    """The README's table: over the tasks, and on the worst of them."""
    lines = [
        "| method, 140 steps | pass@1, 8 tasks | `sasr` - it | p (Holm) | worst task, to the better switch "
        "| rollout tokens |",
        "|---" * 6 + "|",
    ]
    tokens = cost("rollout_tokens", values)
    better = {task: best_static(v) for task, v in values.items()}
    found = {method: p_value(gains(values, "sasr", method)) for method in METHODS if method != "sasr"}
    corrected = dict(zip(found, holm(list(found.values())), strict=True))
    for method, name in METHODS.items():
        own = [runs for v in values.values() for runs in v[method].values()]
        gain, p = "", ""
        if method in found:
            gain, p = ahead(values, "sasr", method), f"{as_p(found[method])} ({as_p(corrected[method])})"
        worst = min(mean(flat(gains({task: v}, method, better[task]))) for task, v in values.items())
        rollouts = f"{tokens[method] / 1000:.0f}k" if method in tokens else ""
        lines.append(f"| {name} | {mean(own):.3f} | {gain} | {p} | {worst:+.3f} | {rollouts} |")
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
        lines.append(f"| {task} | {' | '.join(cells)} | {ahead({task: v}, 'sasr', 'static')} |")
    return lines


def signal(values: dict[str, Values]) -> list[str]:
    """SASR and the same growth without its signal, with what each took of SFT: is it the signal or the share? Last with
    the runs of `harder` that the table had before."""
    few = [task for task in values if "few" in task]
    groups = {
        "all but `few`": [task for task in values if task not in few],
        "`few`, where repeats wear out": few,
        "all eight": list(values),
    }
    values = values | earlier()
    groups["these and the earlier `harder`, without questions by difficulty"] = list(values)
    lines = ["| tasks | runs | SFT steps: SASR, cosine | SASR - cosine | p |", "|---" * 5 + "|"]
    for name, members in groups.items():
        own, taken = {task: values[task] for task in members}, cost("sft_steps", members)
        runs, steps = runs_of(own, "sasr", "cosine"), f"{taken['sasr']:.1f}, {taken['cosine']:.1f}"
        gain, p = ahead(own, "sasr", "cosine"), chance(own, "sasr", "cosine")
        lines.append(f"| {name} | {runs} | {steps} | {gain} | {p} |")
    return lines


def adapted() -> dict[str, Values]:
    """Of each task the runs with and without questions by difficulty."""
    known, questions, values = by_task(without_order), further("questions"), {}
    auto = by_task(lambda prefix, task: parts(prefix, task) if task == "harder" else [])
    for task, more in further("adaptive").items():
        alone = merged(questions[task]).get(ADAPTIVE["sasr"])
        all_of_it = merged([*known[task], *more, *auto[task]], ordered=True)
        values[task] = all_of_it | ({} if alone is None else {QUESTIONS: alone})
    return values


GROUPS = {
    "**all but the digits' `harder`**": lambda task: task != "digits: `harder`",
    "**all eight**": lambda task: True,
}


def grouped(values: dict[str, Values]) -> dict[str, dict[str, Values]]:
    """Each task, and then the groups of them that a table sums up."""
    single = {task: {task: own} for task, own in values.items()}
    return single | {name: {t: v for t, v in values.items() if member(t)} for name, member in GROUPS.items()}


def adaptive() -> list[str]:
    """What the order is worth to each method; what SASR has of questions alone; and SASR with it against static
    without."""
    pairs = {f"`{m}`: adaptive - none (runs)": (with_it, m) for m, with_it in ADAPTIVE.items()}
    pairs["`sasr`: questions alone - all"] = (QUESTIONS, ADAPTIVE["sasr"])
    pairs |= {f"`sasr`, adaptive - `{m}`, none": (ADAPTIVE["sasr"], m) for m in ("static-60", "static-100")}
    lines = ["| 140 steps | " + " | ".join(pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for name, members in grouped(adapted()).items():
        cells = []
        for one, other in pairs.values():
            found = gains({task: own for task, own in members.items() if one in own and other in own}, one, other)
            cells.append(f"{difference(found)} ({len(flat(found))})" if found else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def alike() -> list[str]:
    """All three with questions by difficulty, and SASR against static and its sweep, over the seeds that all have."""
    values = {}
    for task, found in adapted().items():
        own = {method: found.get(with_it, {}) for method, with_it in ADAPTIVE.items()}
        seeds = set.intersection(*map(set, own.values()))
        if len(seeds) > 1:
            values[task] = with_swept({method: {seed: runs[seed] for seed in seeds} for method, runs in own.items()})
    lines = [
        "| all with questions by difficulty (runs) | "
        + " | ".join(f"`{m}`" for m in ADAPTIVE)
        + " | `sasr` - `static-60` | - `static-100` | - static, swept | p |",
        "|---" * (len(ADAPTIVE) + 5) + "|",
    ]
    for name, members in grouped(values).items():
        means = [mean([runs for v in members.values() for runs in v[m].values()]) for m in ADAPTIVE]
        cells = [f"{value:.3f}" for value in means]
        cells += [ahead(members, "sasr", other) for other in ("static-60", "static-100", "static")]
        runs = runs_of(members, "sasr", "static")
        lines.append(f"| {name} ({runs}) | {' | '.join(cells)} | {chance(members, 'sasr', 'static')} |")
    return lines


def dropped(values: dict[str, Values]) -> list[str]:
    """The stories' `poor` with the wrong demonstrations left out, beside the same seeds with all of them studied."""
    studied, without = values["stories: `poor`"], merged(["dropped-told-poor"])
    lines = ["| stories: `poor` (seeds) | all studied | wrong ones left out | difference |", "|---" * 4 + "|"]
    for method, runs in without.items():
        same = [studied[method][seed] for seed in runs]
        gain = difference(pooled([(runs, studied[method])]))
        lines.append(f"| `{method}` ({len(runs)}) | {mean(same):.3f} | {mean([*runs.values()]):.3f} | {gain} |")
    return lines


def left(values: dict[str, Values]) -> list[str]:
    """What SASR does with what is left to learn: by task, family and in all, over the seeds that it was run with."""
    others = {"sasr": "SASR's default", "static-60": "static, 60", "static-100": "static, 100", "static": "swept"}
    lines = [
        "| 140 steps (runs) | p times it | " + " | ".join(f"{name}: it -" for name in others.values()) + " |",
        "|---" * (len(others) + 2) + "|",
    ]
    groups = {task: [task] for task in values}
    groups |= {f"**{family}: all four**": [task for task in values if task.startswith(family)] for family in FAMILIES}
    groups["**all eight**"] = list(values)
    for name, members in groups.items():
        own = {task: values[task] for task in members}
        runs = [run for v in own.values() for run in v[LEFT].values()]
        cells = [ahead(own, LEFT, other) for other in others]
        lines.append(f"| {name} ({len(runs)}) | {mean(runs):.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        run([*(method for method in METHODS if method != "static"), LEFT], (sys.argv[2:] or [SEEDS])[0])
    values = tasks()
    insert(HERE.parents[2] / "README.md", "table", summary(values))
    insert(HERE.parents[1] / "rule-study.md", "again", table(values | earlier()))
    insert(HERE.parents[1] / "rule-study.md", "first-base", table(first_base()))
    insert(HERE.parents[1] / "rule-study.md", "signal", signal(values))
    insert(HERE.parents[1] / "rule-controls.md", "dropped", dropped(values))
    insert(HERE.parents[1] / "rule-controls.md", "adaptive", adaptive())
    insert(HERE.parents[1] / "rule-controls.md", "alike", alike())
    insert(HERE.parents[1] / "rule-controls.md", "left", left(tasks(without_order)))


if __name__ == "__main__":
    main()
