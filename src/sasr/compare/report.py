"""From finished runs to `results.json` and the table."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sasr.checkpoints import write_atomically
from sasr.exam.passk import proportion_interval
from sasr.live import format_duration
from sasr.redaction import is_secret, redacted_parts, without_hub_tokens

from . import statistics
from .measures import Measures, cost, metrics_of, per_problem
from .plan import Comparison, Run, Values
from .tuning import left_out, left_out_told

SCHEMA = 1
RESULTS_FILE, TABLE_FILE = "results.json", "table.md"
Figures = dict[str, Any]


def figures(
    comparison: Comparison, measured: Mapping[str, Measures], failed: Mapping[str, Measures] | None = None
) -> list[Figures]:
    """The rows of the table, in the order of the methods, from the runs that are finished, and what others cost that
    failed."""
    final = {
        method.name: {seed: measured[p] for seed, p in comparison.final_paths(method).items() if p in measured}
        for method in comparison.methods
    }
    samples = [m["problems"]["samples"] for runs in final.values() for m in runs.values()]
    metrics = metrics_of(min(samples)) if samples else []
    rows = []
    for method in comparison.methods:
        runs = final[method.name]
        row: Figures = {
            "method": method.name,
            "seeds": list(runs),
            "missing_seeds": [seed for seed in method.seeds if seed not in runs],
            "metrics": {metric: _level(list(runs.values()), metric) for metric in metrics if runs},
            "difference": {},
            "per_run": {name: total / len(runs) for name, total in cost(list(runs.values())).items()} if runs else {},
            "sft_share": _mean([m["sft_share"] for m in runs.values()]),
            "tuning_cost": None,
        }
        if method.grid:
            paths = [run.path for run in comparison.tuning_runs(method)]
            done = [measured[path] for path in paths if path in measured]
            lost = [failed[path] for path in paths if failed and failed.get(path)]
            row["tuning_cost"] = {"runs": len(done) + len(lost), **cost([*done, *lost])}
            row["tuning_cost"] |= {"failed": len(lost)} if lost else {}
        if method.name != comparison.baseline:
            row["difference"] = {metric: _difference(runs, final[comparison.baseline], metric) for metric in metrics}
        rows.append(row)
    for metric in metrics:
        tested = [row["difference"][metric] for row in rows if row["difference"].get(metric)]
        for difference, adjusted in zip(tested, statistics.holm([d["p"] for d in tested]), strict=True):
            difference["p_holm"] = adjusted
    return rows


def _level(runs: Sequence[Measures], metric: str) -> Figures:
    values = [per_problem(measures, metric) for measures in runs]
    every = np.concatenate(values)
    if (every == every[0]).all() and every[0] in (0.0, 1.0):
        # Resampled they stay the same. That of one exam's problems: no more is known to be independent.
        interval = list(proportion_interval(min(values, key=len)))
    else:
        interval = _interval(values, _crossed(runs))
    return {"mean": statistics.mean(values), "interval": interval}


def _difference(runs: Mapping[int, Measures], base: Mapping[int, Measures], metric: str) -> Figures | None:
    """Of the seeds that both have: the same seed asks the same problems, so they are paired one by one."""
    alike = [s for s in runs if s in base and runs[s]["problems"]["digest"] == base[s]["problems"]["digest"]]
    if not alike:
        return None
    values = [per_problem(runs[seed], metric) - per_problem(base[seed], metric) for seed in alike]
    return {
        "seeds": alike,
        "mean": statistics.mean(values),
        "interval": _interval(values, _crossed([runs[seed] for seed in alike])),
        "p": statistics.sign_flip_p([float(value.mean()) for value in values]),
        "p_holm": None,
    }


def _crossed(runs: Sequence[Measures]) -> bool:
    return len({measures["problems"]["digest"] for measures in runs}) == 1


def _interval(values: Sequence[np.ndarray], crossed: bool) -> list[float]:
    return list(_cached_interval(tuple(value.tobytes() for value in values), crossed))


@lru_cache(maxsize=1024)
def _cached_interval(values: tuple[bytes, ...], crossed: bool) -> tuple[float, float]:
    # The table is written after every run, and most of it is as it was.
    return statistics.interval([np.frombuffer(value) for value in values], crossed=crossed)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def results(
    comparison: Comparison,
    runs: Sequence[Run],
    measured: Mapping[str, Measures],
    status: Mapping[str, str],
    choices: Mapping[str, Values],
    command: str,
    shared_by: int = 1,
    failed: Mapping[str, Measures] | None = None,
) -> Figures:
    """All of it, JSON-safe. `status` has `finished`, `failed: WHY` or `stopped`; a run without one waits. `shared_by`:
    how many runs at most took the seconds of their budgets from one device. `failed`: what runs that failed had cost,
    as far as it is known."""
    failed = failed or {}
    packages = ("sasr", "trl", "transformers", "torch", "numpy")
    versions = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    listed = [
        {
            "directory": run.path,
            "stage": run.stage,
            "method": run.method or None,
            "seed": run.seed,
            "tuned": run.point,
            "warmup": run.warmup,
            "match_run": run.match,
            "status": status.get(run.path, "waiting"),
            **measured.get(run.path, failed.get(run.path, {})),
        }
        for run in runs
    ]
    return {
        "schema": SCHEMA,
        "command": command,
        "versions": versions,
        "comparison": _without_tokens(comparison.to_recipe()),
        "chosen": dict(choices),
        "left_out": left_out(comparison, choices, failed),
        "shared_by": shared_by,
        "methods": figures(comparison, measured, failed),
        "runs": listed,
    }


def _without_tokens(recipe: Values) -> Values:
    """The recipe's and its methods' settings without what logs in to the Hub, or is another secret: these files are
    shown to others, and nothing is run from them."""
    section = recipe["compare"]
    methods = {name: redacted_parts(without_hub_tokens(own)) for name, own in section["methods"].items()}
    shown = redacted_parts(without_hub_tokens(recipe)) | {"compare": section | {"methods": methods}}
    if isinstance(variables := recipe.get("env"), dict):  # as in config.yaml
        shown["env"] = {name: value for name, value in variables.items() if not is_secret(name)}
    return shown


def write(directory: Path, content: Figures) -> None:
    """Write `results.json` and `table.md`, each as a whole."""
    write_atomically(directory / RESULTS_FILE, json.dumps(content, indent=1, default=str) + "\n")
    write_atomically(directory / TABLE_FILE, markdown(content))


def markdown(content: Figures) -> str:
    """The table for people."""
    section = content["comparison"]["compare"]
    task = content["comparison"].get("task", "stories")
    head, *rows = table(content)
    lines = [
        f"# {escape(task)}: {len(rows)} methods at an equal budget of {escape(section['budget'])} per run",
        "",
        f"`{content['command'].replace('`', chr(39))}`".replace("\n", " "),
        "",
        "| " + " | ".join(escape(cell) for cell in head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows),
        "",
        *(f"- {escape(note)}" for note in notes(content)),
    ]
    return "\n".join(lines) + "\n"


def table(content: Figures) -> list[list[str]]:
    """Head and rows as text."""
    section, chosen = content["comparison"]["compare"], content["chosen"]
    metrics = next((list(row["metrics"]) for row in content["methods"] if row["metrics"]), ["pass@1"])
    primary, tuned = metrics[0], any(row["tuning_cost"] for row in content["methods"])
    head = ["method", *metrics, f"{primary} - {section['baseline']}", "p", "p (Holm)", "seeds", "SFT share"]
    head += ["steps", "time per run", "rollout tokens"] + ["tuned", "tuning cost"] * tuned
    rows = []
    for figure in content["methods"]:
        difference, per_run, cost_of = figure["difference"].get(primary), figure["per_run"], figure["tuning_cost"]
        count = len(figure["seeds"])
        row = [figure["method"]]
        row += [_with_interval(figure["metrics"].get(metric), "{:.3f}") for metric in metrics]
        row.append("baseline" if figure["method"] == section["baseline"] else _with_interval(difference, "{:+.3f}"))
        row += [_p(difference and difference["p"]), _p(difference and difference["p_holm"])]
        row.append(f"{count} of {count + len(figure['missing_seeds'])}" if figure["missing_seeds"] else str(count))
        row.append("-" if figure["sft_share"] is None else f"{figure['sft_share']:.2f}")
        row += [f"{per_run['steps']:.0f}", format_duration(per_run["seconds"])] if per_run else ["-", "-"]
        row.append(f"{per_run['rollout_tokens']:,.0f}" if per_run else "-")
        if tuned:
            row.append(", ".join(f"{k} {v}" for k, v in chosen.get(figure["method"], {}).items()) or "-")
            row.append(_tuning_cost(cost_of) if cost_of else "-")
        rows.append(row)
    return [head, *rows]


def brief(content: Figures) -> list[list[str]]:
    """The columns of `table` that fit on a terminal."""
    head, *rows = table(content)
    left_out = {"greedy", "steps", "rollout tokens", "tuning cost", *head[3 : head.index("p") - 1]}
    kept = [index for index, name in enumerate(head) if name not in left_out]
    return [[row[index] for index in kept] for row in (head, *rows)]


def notes(content: Figures) -> list[str]:
    """What a reader has to know to read the table."""
    section, methods = content["comparison"]["compare"], content["methods"]
    seeds = max((len(d["seeds"]) for row in methods for d in row["difference"].values() if d), default=0)
    lines = [
        "[...]: 95% interval, bootstrap over seeds and over problems. "
        "With one seed it covers the choice of problems only."
    ]
    if seeds:
        fewer = {row["method"]: len(d["seeds"]) for row in methods for d in row["difference"].values() if d}
        fewer = {name: count for name, count in fewer.items() if count < seeds}
        lines.append(
            f"difference to {section['baseline']}: paired by seed and problem. p: two-sided sign-flip permutation test "
            f"over seeds; with {seeds} seed{'s' * (seeds > 1)} it cannot be below {statistics.least_p(seeds):.2g}, "
            "whatever the difference. p (Holm): adjusted for the number of methods."
        )
        lines += [
            f"{name}: its p cannot be below {statistics.least_p(count):.2g}, {count} of its seeds being the baseline's"
            for name, count in fewer.items()
        ]
    lines.append(
        "SFT share: mean over the steps after the warm-up. Time: inside optimizer steps, warm-up included, exams apart."
    )
    if any(row["tuning_cost"] for row in methods):
        lines.append(
            f"tuning: on validation rows with seed{'s' * (len(section['tune_seeds']) > 1)} "
            f"{', '.join(map(str, section['tune_seeds']))}; the test rows were examined once, by the final runs. "
            "Its cost comes on top of the runs'."
        )
    lines += [left_out_told(method, points) for method, points in content.get("left_out", {}).items()]
    if content.get("shared_by", 1) > 1:
        lines.append(sharing_told(content["shared_by"]))
    for row in methods:
        if row["missing_seeds"]:
            lines.append(f"{row['method']}: not finished: seed {', '.join(map(str, row['missing_seeds']))}")
    failed = [run for run in content["runs"] if run["status"].startswith("failed")]
    lines += [f"{run['directory']} {run['status']}" for run in failed]
    return lines


def sharing_told(runs: int) -> str:
    """What is wrong with budgets of seconds when so many runs share a device."""
    return (
        f"runs that share a device or the CPU (--jobs: up to {runs} at a time) take time from each other, and the last "
        "have it for themselves, so their budgets in seconds are not equal: use --jobs 1, or a device for each"
    )


def escape(value: Any) -> str:
    """Text that cannot break a Markdown table or be taken for markup. Brackets are harmless unless they make a link."""
    return re.sub(r"([\\|`*<]|(?<=\])\()", r"\\\1", " ".join(str(value).split()))


def _with_interval(figure: Figures | None, form: str) -> str:
    if not figure:
        return "-"
    low, high = figure["interval"]
    return f"{form.format(figure['mean'])} [{form.format(low)}, {form.format(high)}]"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _tuning_cost(figure: Figures) -> str:
    failed = f" ({figure['failed']} failed)" if figure.get("failed") else ""
    return (
        f"{figure['runs']} runs{failed}, {figure['steps']:,} steps, {format_duration(figure['seconds'])}, "
        f"{figure['rollout_tokens']:,} tokens"
    )
