"""SASR: step-wise adaptive integration of supervised fine-tuning and reinforcement learning (arXiv 2505.13026)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import SASRConfig
    from .errors import InputError
    from .recording import record
    from .schedules import SCHEDULES, Schedule, Signals, StepPlan
    from .task_config import TaskConfig
    from .tasks import get_task
    from .trainer import SASRTrainer

__version__ = "0.1.0"

# Imported on first use: TRL takes seconds to import, and `sasr --help` or a schedule alone needs none of it.
_WHERE = {
    "InputError": "errors",
    "SASRConfig": "config",
    "SASRTrainer": "trainer",
    "SCHEDULES": "schedules",
    "Schedule": "schedules",
    "Signals": "schedules",
    "StepPlan": "schedules",
    "TaskConfig": "task_config",
    "get_task": "tasks",
    "record": "recording",
}

__all__ = [
    "SCHEDULES",
    "InputError",
    "SASRConfig",
    "SASRTrainer",
    "Schedule",
    "Signals",
    "StepPlan",
    "TaskConfig",
    "get_task",
    "record",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sasr' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
