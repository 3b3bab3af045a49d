"""A task of the user's own in a process that can be killed: what `sasr.tasks.judging.OwnJudge` asks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from sasr.tasks.judging import judge_here
from sasr.tasks.worker import serve


def main() -> None:
    serve(_prepare, memory=None)


def _prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from sasr.tasks import load_own

    made_with = json.loads(sys.argv[2])
    task = load_own(made_with["task"], made_with["options"])

    def judge(question: dict[str, Any]) -> dict[str, Any]:
        verdicts = judge_here(task, question["completions"], question["rows"])
        return {"verdicts": [[verdict.correct, verdict.well_formed, verdict.failure] for verdict in verdicts]}

    return judge
