"""Tasks by name. To add one: a file with a `Task` subclass, and a line in `TASKS`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from types import ModuleType

from sasr.errors import InputError
from sasr.tasks.base import Row, Task, Verdict, hold_out, text_of
from sasr.tasks.gsm8k import GSM8KTask
from sasr.tasks.jsonl import JsonlTask
from sasr.tasks.kk import KnightsKnavesTask
from sasr.tasks.loading import as_conversation, load_rows
from sasr.tasks.math import MathTask
from sasr.tasks.stories import StoriesTask
from sasr.tasks.text import one_line

TASKS: dict[str, type[Task]] = {
    "stories": StoriesTask,
    "gsm8k": GSM8KTask,
    "math": MathTask,
    "kk": KnightsKnavesTask,
    "jsonl": JsonlTask,
}

__all__ = [
    "TASKS",
    "GSM8KTask",
    "JsonlTask",
    "KnightsKnavesTask",
    "MathTask",
    "Row",
    "StoriesTask",
    "Task",
    "Verdict",
    "as_conversation",
    "get_task",
    "hold_out",
    "load_rows",
    "text_of",
]


def get_task(spec: str) -> Task:
    """The task that a name stands for.

    Args:
        spec (`str`):
            A name in `TASKS`, or `module:object` for a task of one's own. The module is importable (the current
            directory is on the path) or a file, as in `my/tasks.py:MyTask`. The object is a `Task` subclass, a `Task`,
            or a function without arguments that returns one.
    """
    if spec in TASKS:
        return TASKS[spec]()
    module_name, colon, object_name = spec.rpartition(":")
    if not colon:
        close = difflib.get_close_matches(spec, TASKS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"unknown task '{spec}': use one of {', '.join(TASKS)}, or module:object for your own{hint}")
    if not module_name or not object_name:
        raise InputError(f"task '{spec}': give both parts of module:object, for example my_tasks.py:MyTask")
    found = _import(module_name, spec)
    for part in object_name.split("."):
        if not hasattr(found, part):
            raise InputError(f"task '{spec}': {module_name} has no '{object_name}'; check the name after the colon")
        found = getattr(found, part)
    task = found
    if not isinstance(found, Task) and callable(found):
        try:
            task = found()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"task '{spec}': calling {object_name}() failed: {_describe(error)}; correct it"
            ) from error
    if not isinstance(task, Task):
        raise InputError(
            f"task '{spec}': must be a sasr.tasks.Task (subclass, instance or function that returns one),"
            f" not {one_line(repr(task), 80)}"
        )
    return task


def _import(name: str, spec: str) -> ModuleType:
    # Last, so that a folder named like an installed package does not hide it.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = os.path.abspath(os.path.expanduser(name))
        if not os.path.isfile(path):
            raise InputError(f"task '{spec}': no such file {name}; check the path (from {os.getcwd()})")
        loader_spec = importlib.util.spec_from_file_location(f"_sasr_task_{abs(hash(path))}", path)
        assert loader_spec is not None and loader_spec.loader is not None
        module = importlib.util.module_from_spec(loader_spec)
        # Registered first: dataclasses and pickle look a class's module up by name.
        sys.modules[loader_spec.name] = module
        loader_spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"task '{spec}': cannot import {name}: {_describe(error)}; correct it") from error


def _describe(error: Exception) -> str:
    """The error and the line of the user's code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "" if not last or last[0].filename.startswith("<") else f" ({last[0].filename}:{last[0].lineno})"
    return f"{type(error).__name__}: {one_line(error)}{place}"
