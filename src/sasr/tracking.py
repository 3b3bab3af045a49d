"""What the trackers of `report_to` are told besides what transformers tells them: the run's settings, and its exams."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK, TensorBoardCallback, TrackioCallback, WandbCallback

from .errors import InputError
from .redaction import is_secret, redacted
from .tasks.text import one_line

if TYPE_CHECKING:
    from .trainer import SASRTrainer


class Trackers:
    """The trackers of a trainer. They can be told things from the first step on, until training ends.

    Args:
        trainer ([`SASRTrainer`]): The trainer.
        settings (`Mapping`): What `config.yaml` holds, the task and the model included. Secrets are kept from them.
    """

    def __init__(self, trainer: SASRTrainer, settings: Mapping[str, Any]):
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        self.trainer = trainer
        self.settings = {k: redacted(v) for k, v in settings.items() if not is_secret(k)}
        self.callbacks = [c for c in trainer.callback_handler.callbacks if isinstance(c, kinds)]
        for callback in self.callbacks:
            callback.on_train_begin = _told(callback.on_train_begin, type(callback).__name__)  # type: ignore[method-assign]
        self._waiting: list[tuple[str, int, dict[str, float]]] = []
        self._ready = False

    def follow(self, callback: TrainerCallback) -> None:
        """Add a callback that comes before them, so that it can still tell them of the end."""
        for tracker in self.callbacks:
            self.trainer.remove_callback(tracker)
        for each in (callback, *self.callbacks):
            self.trainer.add_callback(each)

    def begin(self) -> None:
        """They are set up: tell them the settings, and of the exam that came before. Does nothing the second time."""
        if self._ready or not self.trainer.is_world_process_zero():
            return
        self._ready = True
        for callback in self.callbacks:
            if isinstance(callback, TensorBoardCallback):
                text = yaml.safe_dump(self.settings, sort_keys=True, allow_unicode=True)
                callback.tb_writer.add_text("config.yaml", f"```yaml\n{text}```")
            elif isinstance(callback, WandbCallback | TrackioCallback):
                _client(callback).config.update(self.settings, allow_val_change=True)
        while self._waiting:
            self._tell(*self._waiting.pop(0))

    def end(self) -> None:
        """Tell them of exams of a run that had no step left to do, and so never began."""
        trainer = self.trainer
        if self._waiting and trainer.is_world_process_zero():
            for name in ("on_train_begin", "on_train_end"):
                for callback in self.callbacks:
                    getattr(callback, name)(trainer.args, trainer.state, trainer.control, model=trainer.model)
                self.begin()

    def exam(self, label: str, result: Mapping[str, Any]) -> None:
        """Tell them of an exam, as `exam.json` has it."""
        figures = exam_figures(result)
        if self._ready:
            self._tell(label, result["step"], figures)
        else:
            self._waiting.append((label, result["step"], figures))

    def _tell(self, label: str, step: int, figures: dict[str, float]) -> None:
        trainer = self.trainer
        for callback in self.callbacks:
            if isinstance(callback, TensorBoardCallback):
                for name, value in figures.items():
                    callback.tb_writer.add_scalar(name, value, step)
                callback.tb_writer.add_text("exam/label", label, step)
                callback.tb_writer.flush()
            elif isinstance(callback, WandbCallback | TrackioCallback):
                _client(callback).log({**figures, "exam/label": label, "train/global_step": step})
            else:
                callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(figures), model=trainer.model)


def exam_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an exam, by the names that trackers show: `exam/pass@1`, `exam/greedy_accuracy`, ..."""
    figures = {f"exam/pass@{k}": value for k, value in result["pass_at"].items()}
    plain: dict[str, Any] = {
        k: v for k, v in result.items() if isinstance(v, int | float) and k not in ("step", "rows", "samples")
    }
    for level, group in (result.get("by_difficulty") or {}).items():
        plain[f"pass@1/difficulty_{level}"] = group["pass_at_1"]
    for group, name in (("wrong_reason", "rate"), ("paths", "distinct")):
        plain[f"{group}/{name}"] = (result.get(group) or {}).get(name)
    return figures | {f"exam/{name}": value for name, value in plain.items() if value is not None}


def _told(begin: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A tracker's beginning, whose failure is one line: nobody is logged in, its server cannot be reached."""

    @functools.wraps(begin)
    def begin_or_tell(*arguments: Any, **options: Any) -> Any:
        try:
            return begin(*arguments, **options)
        except Exception as error:  # each has classes of its own
            raise InputError(
                f"report_to: {name} cannot begin: {type(error).__name__}: {one_line(error, 300)}; log in, use the "
                "tracker offline, or leave it out"
            ) from error

    return begin_or_tell


def _client(callback: Any) -> Any:
    return callback._wandb if isinstance(callback, WandbCallback) else callback._trackio
