"""Tasks by name. To add one: a file with a `Task` subclass, and a line in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sasr import plugins
from sasr.errors import InputError, require, unknown
from sasr.tasks.base import Row, Task, Verdict, hold_out, text_of
from sasr.tasks.gsm8k import GSM8KTask
from sasr.tasks.gym import PREFIX, ReasoningGymTask
from sasr.tasks.jsonl import JsonlTask
from sasr.tasks.judging import OwnJudge, judge_all
from sasr.tasks.kk import KnightsKnavesTask
from sasr.tasks.loading import as_conversation, load_rows
from sasr.tasks.math import MathTask
from sasr.tasks.stories import StoriesTask
from sasr.tasks.word_problems import MultiArithTask, SVAMPTask

TASKS: dict[str, type[Task]] = {
    "stories": StoriesTask,
    "gsm8k": GSM8KTask,
    "math": MathTask,
    "kk": KnightsKnavesTask,
    "svamp": SVAMPTask,
    "multiarith": MultiArithTask,
    "jsonl": JsonlTask,
}

__all__ = [
    "TASKS",
    "GSM8KTask",
    "JsonlTask",
    "KnightsKnavesTask",
    "MathTask",
    "MultiArithTask",
    "ReasoningGymTask",
    "Row",
    "SVAMPTask",
    "StoriesTask",
    "Task",
    "Verdict",
    "as_conversation",
    "get_task",
    "hold_out",
    "judge_all",
    "load_rows",
    "text_of",
]


def get_task(spec: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task that a name stands for.

    Args:
        spec (`str`):
            A name in `TASKS`, `reasoning_gym/NAME`, or `module:object` for a task of one's own (see
            [`sasr.plugins.load`]): a `Task` subclass, a `Task`, or a function that returns one.
        options (`Mapping`, *optional*):
            Keyword arguments for the class or function: the setting `task_options`.
    """
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise InputError(f"task_options is {options!r}, but it must be `name: value` lines")
    if spec in TASKS:
        return plugins.call(TASKS[spec], options, f"task {spec}")
    if ":" not in spec:
        if spec.startswith(PREFIX):
            return ReasoningGymTask(spec.removeprefix(PREFIX), options)
        raise unknown("task", spec, [*TASKS, f"{PREFIX}NAME"], "module:object for your own")
    task = load_own(spec, options)
    if not isinstance(getattr(task, "name", None), str):
        raise InputError(f"task '{spec}': give its class a name, such as name = \"mine\"")
    if task.judged_apart:
        require(f"task '{spec}': check_timeout", task.check_timeout, lambda v: v > 0, "a number above 0")
        object.__setattr__(task, "judge", OwnJudge(spec, options, task.check_timeout))  # it may be a frozen dataclass
    return task


def load_own(spec: str, options: Mapping[str, Any]) -> Task:
    """The task that `module:object` stands for, judged in this process."""
    return plugins.load(spec, "task", lambda found: isinstance(found, Task), "sasr.tasks.Task", options)
