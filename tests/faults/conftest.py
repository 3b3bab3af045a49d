"""The table of faults at the end of `make test-faults`: a test calls `survived(FAULT)` each time nothing was lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from whole_runs import command, finish, start

_TRIED = "tried"
_SURVIVED = "survived"


@pytest.fixture
def tried(request):
    """Call it with the fault's name before the fault."""
    return lambda fault: request.node.user_properties.append((_TRIED, fault))


@pytest.fixture
def survived(request):
    """Call it with the fault's name when all is known to be as without it."""
    return lambda fault: request.node.user_properties.append((_SURVIVED, fault))


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    directory = tmp_path_factory.mktemp("faults") / "whole"
    finish(start(command(directory)))
    return directory


def pytest_terminal_summary(terminalreporter) -> None:
    counts: dict[str, Counter] = {_TRIED: Counter(), _SURVIVED: Counter()}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for kind, fault in report.user_properties:
                    counts[kind][fault] += 1
    if not counts[_TRIED]:
        return
    width = max(map(len, counts[_TRIED])) + 2
    terminalreporter.write_sep("-", "faults")
    terminalreporter.write_line(f"{'fault':<{width}}tried  survived")
    for fault, count in counts[_TRIED].items():
        terminalreporter.write_line(f"{fault:<{width}}{count:>5}  {counts[_SURVIVED][fault]:>8}")
    total, kept = (sum(counts[kind].values()) for kind in (_TRIED, _SURVIVED))
    terminalreporter.write_line(f"{'all':<{width}}{total:>5}  {kept:>8}")
