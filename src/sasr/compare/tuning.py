"""Which point of its grid a method takes, also where runs to tune it have failed: the highest rate often does."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sasr.errors import InputError
from sasr.report.reading import read_json

from .measures import Measures, has_begun, pass_at_1
from .plan import Comparison, Method, Run, Values


def choice(
    comparison: Comparison, method: Method, measured: Mapping[str, Measures], failed: Collection[str]
) -> Values | None:
    """What the final runs of a method take; `None` as long as a run to tune it is to come, or if no point is left."""
    runs = comparison.tuning_runs(method)
    if not all(run.path in measured or is_lost(run, failed) for run in runs):
        return None
    return best_point(comparison, method, measured)


def best_point(comparison: Comparison, method: Method, measured: Mapping[str, Measures]) -> Values | None:
    """The point of the grid with the highest mean pass@1 on the validation rows; of equal ones the first. One that
    lacks a run is left out: the mean of other seeds is no measure of it. `None` if all are."""
    means = {}
    for index, runs in enumerate(_by_point(comparison, method)):
        if all(run.path in measured for run in runs):
            means[index] = float(np.mean([pass_at_1(measured[run.path]) for run in runs]))
    return method.points()[max(means, key=lambda index: means[index])] if means else None


def is_lost(run: Run, failed: Collection[str]) -> bool:
    """Whether a run has failed, or waits for one that has."""
    return any(path in failed for path in (run.path, *run.needs))


def left_out(comparison: Comparison, choices: Mapping[str, Values], failed: Collection[str]) -> dict[str, list[Values]]:
    """Of each method for which there is a choice the points that could not be chosen, since runs of theirs failed."""
    found = {}
    for method in comparison.tuned:
        if method.name in choices:
            points = zip(method.points(), _by_point(comparison, method), strict=True)
            lost = [point for point, runs in points if any(is_lost(run, failed) for run in runs)]
            found[method.name] = [point for point in lost if point != choices[method.name]]
    return {name: points for name, points in found.items() if points}


def left_out_told(method: str, points: Iterable[Mapping[str, Any]]) -> str:
    """The points that were left out, in words."""
    named = "; ".join(", ".join(f"{name} {value}" for name, value in point.items()) for point in points)
    return f"{method}: left out of the choice, since runs to tune it failed: {named}"


class Earlier(NamedTuple):
    """What an earlier start in the same directory knew: its choices, the status of its runs by path, and how many of
    them shared a device."""

    chosen: Values
    status: dict[str, str]
    shared_by: int

    def choice(self, directory: Path, comparison: Comparison, method: Method) -> Values | None:
        """The choice, if there is something of final runs that were given it: the others take the same, whatever has
        been tuned since."""
        alike = [method, *(other for other in comparison.methods if other.match == method.name)]
        finals = [path for other in alike for path in comparison.final_paths(other).values()]
        if method.name not in self.chosen or not any(has_begun(directory / path) for path in finals):
            return None
        then = self.chosen[method.name]
        return next((point for point in method.points() if json.loads(json.dumps(point, default=str)) == then), None)


def read_earlier(path: Path) -> Earlier:
    """From `results.json`, which is written before any final run is given a choice. Raises `InputError` if it cannot be
    read."""
    found = read_json(path)
    try:
        status = {str(run["directory"]): str(run["status"]) for run in found.get("runs", [])}
        return Earlier(dict(found.get("chosen", {})), status, int(found.get("shared_by", 1)))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path} is not as sasr writes it: restore it, or move it away") from None


def _by_point(comparison: Comparison, method: Method) -> list[list[Run]]:
    runs = comparison.tuning_runs(method)
    return [[run for run in runs if run.point == point] for point in method.points()]
