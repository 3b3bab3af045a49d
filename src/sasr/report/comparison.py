"""The report of `sasr compare`, as far as its runs got."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sasr.compare.report import RESULTS_FILE, notes
from sasr.compare.report import table as table_of
from sasr.errors import InputError
from sasr.live import format_duration
from sasr.report import examined
from sasr.report.document import (
    GRPO,
    INK,
    MUTED,
    OTHERS,
    SFT,
    Document,
    Figure,
    axis,
    between,
    document,
    lines,
    number,
    section,
    series,
    table,
)
from sasr.report.reading import read_json
from sasr.runs.state import comparison_state, total_seconds

Results = Mapping[str, Any]
METRIC = "pass@1"
_INTERVAL = re.compile(r"(\S+) \[(\S+), (\S+)\]")


def comparison_document(directory: Path, page: Path) -> Document:
    """Raises `InputError` for a file that cannot be read."""
    results = read_json(directory / RESULTS_FILE)
    if not results:
        raise InputError(f"the comparison in {directory} has no {RESULTS_FILE} yet: go on with it")
    task, budget = results["comparison"].get("task", "stories"), results["comparison"]["compare"]["budget"]
    methods = [method for method in results["methods"] if method["metrics"]]
    colours = _colours(results)
    finals = [run for run in results["runs"] if run["stage"] == "final"]
    done = sum(run["status"] == "finished" for run in results["runs"])
    best = max(methods, key=lambda method: method["metrics"][METRIC]["mean"], default=None)
    facts = [{"title": "Budget of each run", "value": str(budget), "note": "the warm-up counts, exams do not"}]
    if best is not None:
        level = best["metrics"][METRIC]
        note = f"{METRIC} {level['mean']:.3f}; 95% interval {between(level['interval'])}"
        facts.insert(0, {"title": "Highest accuracy", "value": best["method"], "note": note})
    baseline = results["comparison"]["compare"]["baseline"]
    facts.append({"title": "Methods", "value": str(len(results["methods"])), "note": f"baseline {baseline}"})
    seconds = total_seconds(results)
    runs = f"{done} of {len(results['runs'])} runs done, tuning and warm-ups included"
    facts.append({"title": "Time", "value": format_duration(seconds), "note": f"inside optimizer steps; {runs}"})
    ranked = sorted(methods, key=lambda method: -method["metrics"][METRIC]["mean"])
    sections = [
        section(
            "The result",
            "",
            [_levels(results, ranked, colours), _differences(ranked, colours, baseline), _table(results)],
        ),
        section(
            "Accuracy and cost",
            "Equal steps are not equal time: a GRPO step generates, an SFT step does not.",
            [
                _against(methods, colours, "seconds", "seconds inside optimizer steps, per run"),
                _against(methods, colours, "rollout_tokens", "rollout tokens, per run"),
                _learning(directory, finals),
            ],
        ),
        section(
            "Tuning",
            "On validation rows and seeds of its own.",
            [*_sweeps(results), _tuning_cost(results), _grid(results)],
        ),
        section("Runs", "", [_runs(directory, page, results)]),
    ]
    state = comparison_state(directory, results)
    title = f"{len(results['methods'])} methods on {task}"
    return document("comparison", title, directory, state, facts, sections)


def _colours(results: Results) -> dict[str, str]:
    """SFT and GRPO alone have the colours of their steps, the baseline is grey."""
    compare, others = results["comparison"]["compare"], cycle([INK, *OTHERS])
    found = {}
    for name, settings in compare["methods"].items():
        schedule = (settings or {}).get("schedule", name)
        plain = MUTED if name == compare["baseline"] else {"sft": SFT, "grpo": GRPO}.get(schedule)
        found[name] = plain or next(others)
    return found


def rate_of(run: Results) -> float | None:
    """pass@1 of a run that is finished."""
    problems = run.get("problems")
    if not problems or not problems["correct"] or not problems["samples"]:
        return None
    return sum(problems["correct"]) / len(problems["correct"]) / problems["samples"]


def _plain_colour(colours: Mapping[str, str], name: str) -> str:
    # Where each row has its name, a colour for each would say nothing.
    return colours[name] if colours[name] in (SFT, GRPO, MUTED) else INK


def _levels(results: Results, methods: Sequence[Results], colours: Mapping[str, str]) -> Figure | None:
    rows = []
    for method in methods:
        level, name = method["metrics"][METRIC], method["method"]
        runs = [run for run in results["runs"] if run["stage"] == "final" and run["method"] == name]
        seeds = [rate for rate in map(rate_of, runs) if rate is not None]
        rows.append(_row(f"{name} ({len(method['seeds'])})", level, _plain_colour(colours, name), "{:.3f}", seeds))
    if not rows:
        return None
    caption = "Method (seeds): mean over seeds, 95% interval over seeds and problems. Faint: each seed."
    return {"kind": "intervals", "title": METRIC, "caption": caption, "x": {"label": METRIC}, "rows": rows}


def _differences(methods: Sequence[Results], colours: Mapping[str, str], baseline: str) -> Figure | None:
    rows = []
    for method in methods:
        difference = (method.get("difference") or {}).get(METRIC)
        if difference:
            row = _row(method["method"], difference, _plain_colour(colours, method["method"]), "{:+.3f}")
            p = f"{difference['p']:.3f}" if difference["p"] >= 0.001 else f"{difference['p']:.0e}"
            row["text"] = f"{difference['mean']:+.3f}, p {p}"
            rows.append(row)
    if not rows:
        return None
    caption = f"{METRIC} minus that of {baseline}, paired by seed and problem: 95% interval, p before correction."
    title, label = f"Difference to {baseline}", f"difference of {METRIC}"
    return {"kind": "intervals", "title": title, "caption": caption, "x": {"label": label}, "rows": rows, "zero": True}


def _row(name: str, figure: Results, colour: str, form: str, points: Sequence[float] = ()) -> dict[str, Any]:
    low, high = figure["interval"]
    text = f"{form.format(figure['mean'])} [{form.format(low)}, {form.format(high)}]"
    value = figure["mean"]
    return {"name": name, "value": value, "low": low, "high": high, "colour": colour, "text": text, "points": points}


def _table(results: Results) -> Figure | None:
    head, *rows = table_of(dict(results))
    kept = [i for i, name in enumerate(head) if not name.startswith("tun")]  # these have a table of their own
    cells = [[_cell(row[i]) for i in kept] for row in rows]
    return table("Every figure", "", [head[i] for i in kept], cells, wide=True, notes=notes(dict(results)))


def _cell(text: str) -> Any:
    found = _INTERVAL.fullmatch(text)
    return {"text": found[1], "note": f"{found[2]} to {found[3]}"} if found else text


def _against(methods: Sequence[Results], colours: Mapping[str, str], cost: str, label: str) -> Figure | None:
    drawn, what = [], label.partition(",")[0]
    for method in methods:
        level, spent = method["metrics"][METRIC], number((method["per_run"] or {}).get(cost))
        if spent is not None:
            bounds: dict[str, Any] = {"low": [level["interval"][0]], "high": [level["interval"][1]]}
            colour = _plain_colour(colours, method["method"])
            drawn.append(series(method["method"], colour, [spent], [level["mean"]], style="points", **bounds))
    caption = f"Mean of the runs of each method; bars are 95% intervals of {METRIC}."
    return lines(f"Accuracy against {what}", caption, axis(label, name=what), axis(METRIC), drawn, wide=True)


def _learning(directory: Path, runs: Sequence[Results]) -> Figure | None:
    """pass@1 over steps, of methods whose runs were examined at several."""
    curves: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        for exam in examined.ordered(read_json(directory / run["directory"] / "exam.json")).values():
            name, value, _ = examined.score(exam)
            if name == METRIC:
                at = curves.setdefault(run["method"], {})
                at.setdefault(number(exam.get("step")) or 0.0, []).append(value)
    drawn, colours = [], cycle([INK, *OTHERS])
    for method, at in curves.items():
        steps = sorted(at)
        if len(steps) > 1:
            colour = {"sft": SFT, "grpo": GRPO}.get(method) or next(colours)
            mean, low, high = ([of(at[step]) for step in steps] for of in (lambda v: sum(v) / len(v), min, max))
            drawn.append(series(method, colour, steps, mean, low=low, high=high))
    caption = "Mean over the seeds examined at a step; the band is from the lowest seed to the highest."
    x = axis("optimizer step", 0, name="step")
    return lines("Learning curves", caption, x, axis(METRIC, 0), drawn, wide=True, group="step")


def _tuning(results: Results) -> dict[str, dict[str, list[tuple[Any, float | None]]]]:
    """Method to the points of its grid, as text, to (values, pass@1) of each tuning run."""
    found: dict[str, dict[str, list[tuple[Any, float | None]]]] = {}
    for run in results["runs"]:
        if run["stage"] == "tuning":
            point = ", ".join(f"{name} {value}" for name, value in run["tuned"].items())
            found.setdefault(run["method"], {}).setdefault(point, []).append((run["tuned"], rate_of(run)))
    return found


def _sweeps(results: Results) -> list[Figure | None]:
    """Of each method that was tuned over three or more values of one setting, such as its switch step."""
    figures = []
    for method, points in _tuning(results).items():
        values = [(tuned, rate) for runs in points.values() for tuned, rate in runs if rate is not None]
        names = {name for tuned, _ in values for name in tuned}
        if len(names) != 1:
            continue
        (name,) = names
        at: dict[float, list[float]] = {}
        for tuned, rate in values:
            value = _tried(tuned[name])
            if value is not None:
                at.setdefault(value, []).append(rate)
        if len(at) < 3:
            continue
        xs, caption = sorted(at), f"{METRIC} on the validation rows; the line is the mean, bars are from seed to seed."
        bounds: dict[str, Any] = {"low": [min(at[x]) for x in xs], "high": [max(at[x]) for x in xs]}
        line = series("mean", INK, xs, [sum(at[x]) / len(at[x]) for x in xs], style="dots", **bounds)
        chosen = _tried((results["chosen"].get(method) or {}).get(name))
        if chosen is not None:
            caption += f" Chosen: {chosen:g}."
        label = name.replace("_", " ")
        figures.append(lines(f"{method}: {label}", caption, axis(label, name=label), axis(METRIC), [line]))
    return figures


def _tried(value: Any) -> float | None:
    """The number that a value of a grid is. YAML reads `1e-5`, without a point, as text; the run takes it as a number,
    but its directory has the name of the text, so that it stays one up to here."""
    try:
        value = float(value) if isinstance(value, str) else number(value)
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def _tuning_cost(results: Results) -> Figure | None:
    rows = []
    for method in results["methods"]:
        cost = method["tuning_cost"]
        if cost:
            chosen = ", ".join(f"{k} {v}" for k, v in (results["chosen"].get(method["method"]) or {}).items())
            runs = {"text": str(cost["runs"]), "note": f"{cost['failed']} failed" if cost.get("failed") else ""}
            row = [method["method"], chosen or "–", runs, f"{cost['steps']:,}"]
            rows.append([*row, format_duration(cost["seconds"]), f"{cost['rollout_tokens']:,}"])
    head = ["method", "chosen", "runs", "steps", "time", "rollout tokens"]
    return table("What tuning chose, and cost", "On top of the cost of the final runs.", head, rows, wide=True)


def _grid(results: Results) -> Figure | None:
    rows = []
    for method, points in _tuning(results).items():
        chosen = ", ".join(f"{name} {value}" for name, value in (results["chosen"].get(method) or {}).items())
        left_out = results.get("left_out", {}).get(method, [])
        for point, runs in points.items():
            rates = [rate for _, rate in runs if rate is not None]
            mean = f"{sum(rates) / len(rates):.3f}" if rates else "–"
            stands = "chosen" if point == chosen else "left out" if runs[0][0] in left_out else ""
            rows.append([method, point, mean, f"{len(rates)} of {len(runs)}", stands])
    head = ["method", "tried", f"{METRIC}, validation", "seeds", ""]
    caption = "Of each method's grid; the highest mean is chosen, of the points whose runs did not fail."
    return table("Every point", caption, head, rows, wide=True, folded=len(rows) > 12)


def _runs(directory: Path, page: Path, results: Results) -> Figure | None:
    rows = []
    for run in results["runs"]:
        rate, seconds = rate_of(run), number(run.get("seconds"))
        cell: dict[str, Any] = {"text": run["directory"]}
        report = directory / run["directory"] / "report.html"
        if report.is_file():
            cell["href"] = quote(os.path.relpath(report, page.parent))
        tuned = ", ".join(f"{name} {value}" for name, value in run["tuned"].items())
        rows.append(
            [
                cell,
                str(run["seed"]),
                {"text": run["status"].partition(":")[0], "note": run["status"].partition(": ")[2]},
                tuned or "–",
                "–" if rate is None else f"{rate:.3f}",
                f"{run['steps']}" if run.get("steps") else "–",
                format_duration(seconds) if seconds else "–",
                f"{run['rollout_tokens']:,}" if run.get("rollout_tokens") is not None else "–",
            ]
        )
    caption = f"{METRIC}: of tuning runs on the validation rows. A linked run has a report of its own."
    head = ["run", "seed", "state", "tuned", METRIC, "steps", "time", "rollout tokens"]
    return table("All runs", caption, head, rows, wide=True, folded=len(rows) > 12)
