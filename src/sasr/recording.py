"""For trainers made in Python: the live view and the run directory of `sasr train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import is_in_notebook

from . import checkpoints, locks
from .callbacks import Exams, RunCallback, StepCallback, StopRequest, is_finished
from .config import SASRConfig
from .errors import InputError
from .exam.request import LIMITS
from .exam.store import EXAM_FILE
from .live import LiveView
from .metrics import METRICS_FILE, MetricsFile
from .notebook import NotebookView
from .run_directory import CONFIG_FILE, reserved
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
        [`InputError`]: `output_dir` holds another run. `train()` raises it too: unless it goes on with that run, and
            while another process is at work there.
    """
    args, settings = trainer.args, settings or TaskConfig()
    directory, main = Path(args.output_dir), trainer.is_world_process_zero()
    if main and _is_used(directory) and checkpoints.last_checkpoint(directory) is None:
        raise InputError(f"output_dir {directory} holds a run without a checkpoint to go on from: choose another")
    about = {"task": task.name, "model_name_or_path": trainer.model.config._name_or_path or "a model made in Python"}
    names = ("seed", "max_steps", "learning_rate", *LIMITS, *SASRConfig.__annotations__)
    own = {name: getattr(args, name) for name in names}
    simple = str | int | float
    values = {k: v for k, v in {**own, **about}.items() if isinstance(v, simple) or (v and k in LIMITS)}
    view = (NotebookView() if is_in_notebook() else LiveView()) if main else None
    stop = StopRequest(print)  # never entered: Python's own Ctrl-C is left as it is
    trackers = Trackers(trainer, values)
    exams = Exams(task, list(exam_rows), settings, directory, view, stop, trackers)
    for callback in progress_callbacks(trainer):
        trainer.remove_callback(callback)
    trackers.follow(_Recording(trainer, exams, stop, directory, view, yaml.safe_dump(values)))
    return exams.results


class _Recording(RunCallback):
    """[`RunCallback`] that holds the run's directory during `trainer.train()`, and writes nothing there before it is
    known to be this run's.

    Args:
        config (`str`): What is to be in `config.yaml`. The other arguments are those of [`RunCallback`].
    """

    def __init__(
        self,
        trainer: SASRTrainer,
        exams: Exams,
        stop: StopRequest,
        directory: Path,
        view: LiveView | None,
        config: str,
    ):
        super().__init__(trainer, exams, stop, directory, view, owned=False)
        self.directory, self.config = directory, config
        self._begin: Callable[[], object] = lambda: None
        self._begun = False
        trainer.around_training = self._at_work

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin()
        super().on_train_begin(args, state, control, **kwargs)

    @contextmanager
    def _at_work(self, goes_on: bool) -> Iterator[None]:
        with ExitStack() as until_the_end:
            if self.view is not None:  # None also on all processes but the main one
                # An exception would leave the display open, and the cursor hidden.
                until_the_end.callback(self.view.stop)
                lock = until_the_end.enter_context(reserved(self.directory))
                # What this trainer has begun is its own: of a trained one train() tells itself.
                if not goes_on and not self._begun and _is_used(self.directory):
                    raise InputError(
                        f"output_dir {self.directory} holds another run: train(resume_from_checkpoint=True), or choose "
                        "another output_dir"
                    )
                tell: list[Callable[[str], None]] = []

                def begin() -> None:
                    # Not before: a checkpoint that is refused leaves how the run had ended.
                    tell.append(until_the_end.enter_context(locks.at_work(self.directory, "sasr train", lock)))
                    checkpoints.write_atomically(self.directory / CONFIG_FILE, self.config)
                    self.metrics, self._begun = MetricsFile(self.directory / METRICS_FILE), True

                self._begin = begin
            self.exams.failure = None
            yield
            if self.exams.failure is not None:
                raise self.exams.failure
            if self.view is not None and tell:
                tell[0]("finished" if is_finished(self.trainer) else "stopped")


def _is_used(directory: Path) -> bool:
    return any((directory / name).exists() for name in (METRICS_FILE, EXAM_FILE))


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
