"""What the study shows at equal seconds: the tables `seconds`, `later`, `share`, `switch` and `dear` of
docs/rule-study.md, from again/{seconds,later,share,switch,dear}-*.json.

The runs, of which the log has the flags: sasr compare --config again.yaml --budget seconds=22 (told-again.yaml, 40)
--methods ... --seeds ..., eight tasks; `dear`: seconds=44 and 80, --per_device_train_batch_size 256, four tasks. Run:
python docs/results/rule-study/in_time.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from again import LATER, LATER_SWITCHES, SECONDS, Values, ahead, chance, further, merged, with_swept
from page import HERE, insert, spent

from sasr.compare.statistics import mean

WITH_SECONDS = ("79-80", "81-82")  # p as a share of the seconds too, in the parts of `later` with these seeds


def seconds() -> list[str]:
    """At equal seconds inside steps: pass@1 of each method, the steps it got, and SASR's differences."""
    found = further("seconds")
    groups = {task: [task] for task in found} | {"**all eight**": list(found)}
    # `harder` once more, with the default of today: on a machine twice as fast, so that it is not put among the others.
    later = {task + LATER: auto for task, auto in further("seconds-auto").items() if auto}
    kept = [task for task in found if task + LATER not in later]
    groups |= {task: [task] for task in later} | {"**all eight, these two in their place**": [*kept, *later]}
    return in_as_much_time(found | later, groups, ("static-60", "static-100"))


def later_switches() -> list[str]:
    """The same against static with a longer warm-up, for which there is time when SFT steps are cheap."""
    found = further("later")
    return in_as_much_time(found, {task: [task] for task in found} | {"**all eight**": list(found)}, LATER_SWITCHES)


def share_of_seconds() -> list[str]:
    """p as a share of the seconds instead of the steps, with the seeds that have both."""
    fresh = further("share")
    found = {task: [*own, *fresh[task]] for task, own in first_with_seconds().items()}
    lines = [
        f"| equal seconds | `sasr` (steps) | `{SECONDS}` (steps) | the latter - `sasr` | p |",
        "|---" * 5 + "|",
    ]
    groups = {task: {task: own} for task, own in found.items()} | {"**all eight**": found}
    for name, members in (groups | {"**all eight, seeds 83 to 90**": fresh}).items():
        own = {task: merged(parts) for task, parts in members.items()}
        cells = reached(own, (part for parts in members.values() for part in parts), ("sasr", SECONDS))
        cells += [ahead(own, SECONDS, "sasr"), chance(own, SECONDS, "sasr")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def first_with_seconds() -> dict[str, list[str]]:
    """The first runs with p as a share of the seconds, which have static beside them too."""
    return {task: [part for part in own if part.endswith(WITH_SECONDS)] for task, own in further("later").items()}


def share_and_switches() -> list[str]:
    """p as a share of the seconds against static with a late switch: these runs and fresh ones, and those alone."""
    fresh = further("switch")
    found = {task: [*own, *fresh[task]] for task, own in first_with_seconds().items()}
    groups = {task: [task] for task in found} | {"**all eight**": list(found)}
    lines = in_as_much_time(found, groups, LATER_SWITCHES, SECONDS)
    return lines + in_as_much_time(fresh, {"**all eight, seeds 99 to 106**": list(fresh)}, LATER_SWITCHES, SECONDS)[2:]


def reached(values: dict[str, Values], names: Iterable[str], methods: Sequence[str]) -> list[str]:
    """Cells with each method's pass@1 over these tasks, and the steps that it got by these results."""
    taken = spent("steps", *(f"again/{name}" for name in names))
    means = {m: mean([runs for v in values.values() for runs in v[m].values()]) for m in methods}
    return [f"{means[m]:.3f} ({taken[m]:.0f})" for m in methods]


def in_as_much_time(
    found: dict[str, list[str]], groups: dict[str, list[str]], switches: Sequence[str], ours: str = "sasr"
) -> list[str]:
    """A table of these groups of tasks, static with these switches and one of SASR."""
    methods = (*switches, ours)
    values = {task: with_swept(merged(own)) for task, own in found.items()}
    lines = [
        "| equal seconds | " + " | ".join(f"`{m}` (steps)" for m in methods) + " | "
        f"`{ours}` - `{switches[0]}` | " + " | ".join(f"- `{m}`" for m in switches[1:]) + " | - static, swept | p |",
        "|---" * (len(methods) + len(switches) + 3) + "|",
    ]
    for name, members in groups.items():
        own = {task: values[task] for task in members}
        cells = reached(own, (part for task in members for part in found[task]), methods)
        cells += [ahead(own, ours, other) for other in (*switches, "static")]
        lines.append(f"| {name} | {' | '.join(cells)} | {chance(own, ours, 'static')} |")
    return lines


def dear_rollouts() -> list[str]:
    """Of each task, and of all, both methods' pass@1 with the steps that they got, and the difference."""
    found = {task: parts for task, parts in further("dear").items() if parts}
    lines = [f"| rollouts dear | `sasr` (steps) | `{SECONDS}` (steps) | the latter - `sasr` | p |", "|---" * 5 + "|"]
    for name, members in ({task: [task] for task in found} | {"**all four**": list(found)}).items():
        values = {task: merged(found[task]) for task in members}
        cells = reached(values, (part for task in members for part in found[task]), ("sasr", SECONDS))
        cells += [ahead(values, SECONDS, "sasr"), chance(values, SECONDS, "sasr")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    tables = {
        "seconds": seconds(),
        "later": later_switches(),
        "share": share_of_seconds(),
        "switch": share_and_switches(),
        "dear": dear_rollouts(),
    }
    for name, lines in tables.items():
        insert(HERE.parents[1] / "rule-study.md", name, lines)
