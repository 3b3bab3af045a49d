"""What there is to list: each run, exam or comparison as one flat object."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from sasr import checkpoints
from sasr.errors import InputError
from sasr.locks import is_held
from sasr.metrics import METRICS_FILE, read_totals
from sasr.report import examined
from sasr.report.document import number
from sasr.report.reading import find_kind, read_json, read_yaml
from sasr.runs.state import (
    CONFIG_HEAD,
    OUT_OF_REACH,
    State,
    comparison_state,
    exam_state,
    resume_command,
    run_state,
    total_seconds,
)

Entry = dict[str, Any]
_DEPTH = 4  # folders of folders; deeper ones belong to something else
_WRITTEN = (METRICS_FILE, "exam.json", "results.json", "completions.jsonl", "config.yaml", "comparison.yaml")


def find(root: Path, skip: Callable[[str], None], seen: set[str] | None = None) -> list[Entry]:
    """Every run, exam and comparison in a directory; the runs of a comparison if it is one. Links are followed.

    Args:
        root (`Path`): Where to look.
        skip (`Callable[[str], None]`): Told of every directory in it that is or holds none that can be read.
        seen (`set[str]`, *optional*): Where folders really are that were looked at before; these join them.
    """
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(root))
    found = _entries(root, skip)
    is_comparison = bool(found) and found[0].get("kind") == "comparison"
    if found and not is_comparison:
        return found
    for folder in _folders(root, skip):
        inside = list(_walk(folder, skip, _DEPTH, seen))
        if not inside and not is_comparison:  # which has folders of its own
            begins = is_held(folder)  # which writes nothing before its model is loaded
            skip(f"{folder}: {'a run is beginning there' if begins else 'no run, exam or comparison in it'}")
        found += [entry for entry in inside if entry]
    return found


def _walk(folder: Path, skip: Callable[[str], None], depth: int, seen: set[str]) -> Iterator[Entry]:
    """What a folder is or else holds; an empty entry for what was skipped, or listed under another name."""
    where = os.path.realpath(folder)
    if where in seen:  # a link to it, or one that leads round in a circle
        yield {}
        return
    seen.add(where)
    entries = _entries(folder, skip)
    if entries or not depth:
        yield from entries
        return
    for inner in _folders(folder, skip):
        yield from _walk(inner, skip, depth - 1, seen)


def _folders(directory: Path, skip: Callable[[str], None]) -> list[Path]:
    try:
        found = [path for path in directory.iterdir() if path.is_dir()]
    except OSError as error:
        skip(f"{directory}: {error.strerror or error}")
        return []
    # Links last: what is here is listed by its own name.
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: (path.is_symlink(), path))


def _entries(directory: Path, skip: Callable[[str], None]) -> list[Entry]:
    """The entry of this directory, if it has one; an empty one if it cannot be read."""
    try:
        kind = find_kind(directory)
    except InputError as error:
        skip(str(error))
        return [{}]
    except OSError as error:  # a folder of somebody else
        skip(f"{directory}: {error.strerror or error}")
        return [{}]
    if kind is None:
        return []
    try:
        entry = {"run": _run, "exam": _exam, "comparison": _comparison}[kind](directory)
        written = [directory / name for name in _WRITTEN]
        changed = max(path.stat().st_mtime for path in written if path.is_file())
    except (InputError, OSError) as error:
        skip(str(error))
        return [{}]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        skip(f"{directory}: a file in it is not as sasr writes it ({type(error).__name__})")
        return [{}]
    changed_at = datetime.fromtimestamp(changed).astimezone().isoformat(timespec="seconds")
    return [{"directory": str(directory), "kind": kind, **entry, "changed": changed_at}]


def _run(directory: Path) -> Entry:
    config, exams = read_yaml(directory / "config.yaml"), examined.ordered(read_json(directory / "exam.json"))
    path, max_steps = directory / METRICS_FILE, number(config.get("max_steps"))
    last, seconds, share = read_totals(path) if path.is_file() else ({}, 0.0, None)
    step = int(number(last.get("step")) or 0)
    state = run_state(directory, step, config, exams)
    resumable = state.name not in ("finished", "running") and checkpoints.last_checkpoint(directory) is not None
    # One of `sasr.record` goes on in Python, with a model and data that only its script knows.
    resumable = resumable and (directory / "config.yaml").read_bytes().startswith(CONFIG_HEAD.encode())
    return {
        **_about(config.get("task"), config.get("model_name_or_path"), config.get("schedule")),
        **_state(state, resume_command("train", directory) if resumable else None),
        "steps": step,
        "max_steps": int(max_steps) if max_steps and 0 < max_steps < OUT_OF_REACH else None,
        "best": _score(exams, examined.best(exams)),
        "last": _score(exams, next(reversed(list(exams)), None)),
        "sft_share": share,
        "seconds": seconds + sum(number(exam.get("seconds")) or 0.0 for exam in exams.values()),
    }


def _exam(directory: Path) -> Entry:
    content = read_json(directory / "exam.json")
    figures, settings = content.get("figures"), content["settings"]
    path = directory / "completions.jsonl"
    rows = path.read_bytes().count(b"\n") if path.is_file() else 0
    state = exam_state(directory, figures is not None, rows)
    score = _score({"exam": figures}, "exam") if figures else None
    return {
        **_about(settings.get("task"), settings.get("model"), None),
        **_state(state, content.get("command") if state.name == "stopped" else None),
        "rows": rows,
        "best": score,
        "last": score,
        "seconds": number((figures or {}).get("seconds")),
    }


def _comparison(directory: Path) -> Entry:
    results = read_json(directory / "results.json")
    if not results:
        raise InputError(f"{directory}: a comparison without results.json: go on with it")
    state, settings = comparison_state(directory, results), results["comparison"]
    means = {row["method"]: row["metrics"]["pass@1"]["mean"] for row in results["methods"] if row["metrics"]}
    best = max(means, key=lambda name: means[name], default=None)
    return {
        **_about(settings.get("task", "stories"), settings.get("model_name_or_path"), None),
        **_state(state, resume_command("compare", directory) if state.name in ("stopped", "failed") else None),
        "method": " ".join(row["method"] for row in results["methods"]),
        "runs_done": sum(run["status"] == "finished" for run in results["runs"]),
        "runs": len(results["runs"]),
        "best": None if best is None else {"label": best, "figure": "pass@1", "value": means[best]},
        "seconds": total_seconds(results),
    }


def _about(task: Any, model: Any, method: Any) -> Entry:
    return {name: None if v is None else str(v) for name, v in (("task", task), ("model", model), ("method", method))}


def _state(state: State, go_on: str | None) -> Entry:
    return {"state": state.name, "state_text": state.text, "go_on": go_on}


def _score(exams: dict[str, Any], label: str | None) -> Entry | None:
    if label is None:
        return None
    figure, value, _ = examined.score(exams[label])
    return {"label": label, "step": exams[label].get("step"), "figure": figure, "value": value}
