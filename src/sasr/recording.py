"""For trainers made in Python: the live view and the run directory of `sasr train`."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import is_in_notebook

from . import checkpoints
from .callbacks import Exams, RunCallback, StepCallback, StopRequest
from .config import SASRConfig
from .errors import InputError
from .live import LiveView
from .notebook import NotebookView
from .task_config import TaskConfig
from .tasks.base import Row, Task
from .tracking import Trackers

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def record(
    trainer: SASRTrainer, task: Task, exam_rows: Sequence[Row] = (), settings: TaskConfig | None = None
) -> dict[str, Any]:
    """Let `trainer.train()` show what `sasr train` shows and leave in `output_dir` what it leaves: `metrics.jsonl`,
    exams with every completion, settings. `sasr runs`, `sasr report` and [`sasr.report.figures.draw`] can read that.

    Args:
        trainer ([`SASRTrainer`]): Before its training.
        task ([`Task`]): Judges the completions of the exams.
        exam_rows (`Sequence[dict]`, *optional*): Held-out rows with `prompt` and `answer`; none switches exams off.
        settings ([`TaskConfig`], *optional*): When to examine, and with how many samples.

    Returns:
        `dict`: The exams by label (`initial`, `warmup`, `step-N`, `final`), as they come.

    Raises:
        [`InputError`]: `output_dir` holds another run.
    """
    args, settings = trainer.args, settings or TaskConfig()
    directory, main = Path(args.output_dir), trainer.is_world_process_zero()
    used = main and any((directory / name).exists() for name in ("metrics.jsonl", "exam.json"))
    if used and checkpoints.last_checkpoint(directory) is None:
        raise InputError(f"output_dir {directory} holds a run without a checkpoint to go on from: choose another")
    about = {"task": task.name, "model_name_or_path": trainer.model.config._name_or_path or "a model made in Python"}
    own = {name: getattr(args, name) for name in ("seed", "max_steps", "learning_rate", *SASRConfig.__annotations__)}
    values = {key: value for key, value in {**own, **about}.items() if isinstance(value, str | int | float)}
    if main:
        directory.mkdir(parents=True, exist_ok=True)
        checkpoints.write_atomically(directory / "config.yaml", yaml.safe_dump(values))
    view = (NotebookView() if is_in_notebook() else LiveView()) if main else None
    if view is not None:
        atexit.register(view.stop)  # an exception leaves the display open, and the cursor hidden
    stop = StopRequest(print)  # never entered: Python's own Ctrl-C is left as it is
    trackers = Trackers(trainer, values)
    exams = Exams(task, list(exam_rows), settings, directory, view, stop, trackers)
    for callback in progress_callbacks(trainer):
        trainer.remove_callback(callback)
    trackers.follow(RunCallback(trainer, exams, stop, directory, view))
    return exams.results


def show_in_notebook(trainer: SASRTrainer) -> None:
    """In place of transformers' table, which has a row for each step and mixes the losses of SFT and GRPO."""
    table = [callback for callback in progress_callbacks(trainer) if type(callback).__name__.startswith("Notebook")]
    if table and trainer.args.eval_strategy == "no":
        trainer.remove_callback(table[0])
        trainer.add_callback(StepCallback(trainer, NotebookView()))


def progress_callbacks(trainer: SASRTrainer) -> list[TrainerCallback]:
    """What shows progress now, to be removed."""
    kinds: tuple[type, ...] = (PrinterCallback, ProgressCallback, StepCallback)
    if is_in_notebook():
        from transformers.utils.notebook import NotebookProgressCallback

        kinds = (*kinds, NotebookProgressCallback)
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]
