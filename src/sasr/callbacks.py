"""What happens around the optimizer steps of a command-line run: metrics file, live view, exams, stopping cleanly."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl.models.utils import unwrap_model_for_generation

from . import host_memory
from .checkpoints import write_atomically
from .disconnect import is_hangup, stop_signals
from .exam import examine_rows, merge_records, summarise
from .exam.engines import TransformersEngine
from .live import LiveView
from .metrics import METRICS_FILE, MetricsFile, sync_metrics
from .report.reading import read_json
from .safeguards import best_checkpoint
from .schedules import draw
from .tasks.base import Row, Task
from .work import size_of

if TYPE_CHECKING:
    from .task_config import TaskConfig
    from .tracking import Trackers
    from .trainer import SASRTrainer

# How metrics.jsonl names what TRL logs. What the trainer logs loses its `sasr/`; anything else keeps its name.
_NAMES = {"completions/mean_length": "completion_length", "completions/clipped_ratio": "truncation_rate"}


_LOGS_KEPT = 2000
_PASSED_ON_SECONDS = 2.0  # as long as a SIGTERM may take on its way through the process that started the run


class StopRequest:
    """Ctrl-C, SIGTERM or a closed terminal ends the run after the step under way, with a checkpoint; a second Ctrl-C or
    SIGTERM ends it at once. A SIGTERM within two seconds is the first one again: what ends all processes of a job
    reaches a run by itself, and as its comparison or launcher passes it on."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.say = say
        self.signal: int | None = None
        self._clock = clock
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in stop_signals():
            self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            passed_on = number == signal.SIGTERM and self._clock() - self._since < _PASSED_ON_SECONDS
            if is_hangup(number) or passed_on:
                return
            raise KeyboardInterrupt
        self._since, self.signal = self._clock(), number
        self.say("stopping after this step and saving; once more to stop at once")


class ExamStopped(KeyboardInterrupt):
    """A stop request has ended an exam, which can be taken again."""


class Exams:
    """Examines the model on held-out rows at up to three moments, and every so many steps, and keeps the results.

    `exam.json` holds the figures by label (`initial`, `warmup`, `final`, `step-N`); `exams/LABEL.jsonl` every
    completion.

    Args:
        task ([`Task`]): Judges the completions.
        rows (`list[dict]`): Held-out rows; none switches exams off.
        config ([`TaskConfig`]): When to examine, on which split, with how many sampled completions per row.
        directory (`Path`): The run's directory.
        view ([`LiveView`] or `None`): Shows the progress, on the main process.
        stop ([`StopRequest`]): Ends an exam too: it can be taken again.
        trackers ([`Trackers`]): Told the figures.
    """

    def __init__(
        self,
        task: Task,
        rows: list[Row],
        config: TaskConfig,
        directory: Path,
        view: LiveView | None,
        stop: StopRequest,
        trackers: Trackers,
    ):
        self.task, self.rows, self.directory, self.view, self.stop = task, rows, directory, view, stop
        self.trackers = trackers
        self.samples, self.moments, self.split = config.exam_samples, config.exam_at, config.exam_split
        self.every = config.exam_every
        self.path = directory / "exam.json"
        self.results: dict[str, Any] = read_json(self.path)
        self.failure: Exception | None = None  # of an exam after a step

    def take(self, moment: str | None, trainer: SASRTrainer) -> None:
        """Run the exam that is due now, if any: that of `moment` if it is wanted, else that of every so many steps. One
        whose result is there already is not taken again. All ranks take part, each with a share of the rows. The random
        state and the model are left as they were. Raises [`ExamStopped`] when asked to stop."""
        step = trainer.state.global_step
        label = moment if moment in self.moments else None
        if label is None and self.every and step and step % self.every == 0:
            label = f"step-{step}"
        # The final exam of a run that has been given more steps since is not its final one any more.
        if not self.rows or label is None or (label in self.results and self.results[label]["step"] == step):
            return
        args, started = trainer.args, time.monotonic()

        def progress(done: int, total: int) -> None:
            # Among several processes one that left would keep the others waiting for its share.
            if self.stop.signal is not None and args.world_size == 1:
                raise ExamStopped
            if self.view is not None:
                self.view.exam(label, done, total)

        # A sharded model has its weights whole for one layer at a time; there is nothing to be cast once.
        sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        around = nullcontext if sharded else trainer.accelerator.autocast
        rows = self.rows[args.process_index :: args.world_size]
        share = len(rows)
        if sharded:
            # Generation is collective there, so each process needs as many batches: with a row whose result is dropped.
            rows = rows + self.rows[:1] * (-(-len(self.rows) // args.world_size) - share)
        progress(0, len(rows) * (1 + self.samples))
        kwargs = {"gradient_checkpointing_kwargs": args.gradient_checkpointing_kwargs}
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **kwargs) as model:
            # With fewer rows than processes some have none.
            own = rows and examine_rows(
                model,
                trainer._tokenizer,
                self.task,
                rows,
                samples=self.samples,
                max_new_tokens=args.max_completion_length,
                temperature=args.temperature,
                batch_size=args.per_device_eval_batch_size,
                seed=args.seed + args.process_index,
                eos_token_ids=trainer.eos_token_ids,
                chat_template_kwargs=trainer.chat_template_kwargs,
                progress=progress,
                engine=TransformersEngine(model, around),
            )
        parts = gather_object([own[:share]]) if args.world_size > 1 else [own]
        result = summarise(merge_records(parts), self.samples, seconds=time.monotonic() - started)
        self.results[label] = {"step": step, "split": self.split, **result.to_dict()}
        if args.process_index:
            return
        sync_metrics(self.directory)
        (self.directory / "exams").mkdir(exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in result.completions)
        write_atomically(self.directory / "exams" / f"{label}.jsonl", lines)
        write_atomically(self.path, json.dumps(self.results, indent=2) + "\n")
        self.trackers.exam(label, self.results[label])
        if self.view is not None:
            self.view.message(exam_line(label, self.results[label]))

    def drop_after(self, step: int, main: bool) -> None:
        """Drop the exams of later steps, for a run that resumes from a checkpoint of `step`: their weights are gone,
        and the steps that are taken again need not come to the same ones, as on a GPU. All processes forget them, and
        the main one removes their files."""
        late = [label for label, result in self.results.items() if result["step"] > step]
        for label in late:
            del self.results[label]
        if late and main:
            write_atomically(self.path, json.dumps(self.results, indent=2) + "\n")
            for label in late:
                (self.directory / "exams" / f"{label}.jsonl").unlink(missing_ok=True)


def exam_line(label: str, result: dict[str, Any]) -> str:
    """One exam in one line."""
    pass_at = "  ".join(f"pass@{k} {v:.3f}" for k, v in result["pass_at"].items() if k in ("1", "8"))
    failures = f"  verifier failures {result['verifier_failures']}" if result["verifier_failures"] else ""
    return (
        f"exam {label}: greedy {result['greedy_accuracy']:.3f}  {pass_at}  format {result['format_rate']:.3f}"
        f"  truncated {result['truncation_rate']:.3f}{failures}  ({result['rows']} rows, {result['seconds']:.1f} s)"
    )


def exam_table(results: dict[str, Any], width: int = 1000) -> list[str]:
    """The exams under one another, one line each, in order of step; as many pass@k as fit the width."""
    if not results:
        return []
    # A run that went on with another exam_samples has exams with more of them and with fewer.
    ks = sorted({k for result in results.values() for k in result["pass_at"]}, key=int)
    while len(ks) > 1 and 43 + 9 * len(ks) > width:
        del ks[-2 if len(ks) > 2 else -1]
    names = {"initial": "before", "warmup": "after warm-up", "final": "at the end"}
    lines = [
        f"{'exam':<15}{'greedy':>8}" + "".join(f"{'pass@' + k:>9}" for k in ks) + f"{'format':>9}{'truncated':>11}"
    ]
    for label, result in sorted(results.items(), key=lambda item: item[1]["step"]):
        rates = "".join(f"{pass_at[k]:>9.3f}" if k in (pass_at := result["pass_at"]) else " " * 9 for k in ks)
        lines.append(
            f"{names.get(label, label.replace('-', ' ')):<15}{result['greedy_accuracy']:>8.3f}{rates}"
            f"{result['format_rate']:>9.3f}{result['truncation_rate']:>11.3f}"
        )
    return lines


def is_finished(trainer: SASRTrainer) -> bool:
    """Whether nothing is left to train."""
    return trainer.budget_spent or trainer.state.global_step >= trainer.state.max_steps


class StepCallback(TrainerCallback):
    """Shows each optimizer step, and writes it to `metrics.jsonl`.

    Args:
        trainer ([`SASRTrainer`]): The trainer it serves.
        view ([`LiveView`] or `None`): On the main process only.
        task (`str`, *optional*): What it trains on, to be shown.
        directory (`Path`, *optional*): The run's; without it nothing is written.
    """

    def __init__(self, trainer: SASRTrainer, view: LiveView | None, task: str = "", directory: Path | None = None):
        self.trainer, self.view, self.task = trainer, view, task
        self.metrics = MetricsFile(directory / METRICS_FILE) if view is not None and directory is not None else None
        self._warnings: list[str] = []
        trainer.tell = self._warn

    def on_train_begin(self, args, state, control, **kwargs):
        if self.metrics is not None:
            self.metrics.truncate_after(state.global_step)  # what a killed run wrote after its last checkpoint
        if self.view is not None:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            size = sum(map(size_of, model.parameters()))
            on = f" on {self.task}" if self.task else ""
            title = f"{args.schedule}{on}, {size / 1e6:.3g}M parameters, seed {args.seed}"
            self.view.budget(self.trainer.budget.spent)
            self.view.start(state.max_steps, state.global_step, self.trainer.warmup.bound, title)

    def on_step_end(self, args, state, control, **kwargs):
        # The last steps too have a line where logging_steps does not divide their number.
        control.should_log |= is_finished(self.trainer) and args.logging_strategy == "steps"

    def on_train_end(self, args, state, control, **kwargs):
        if self.view is not None:
            self.view.stop()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.view is None or not logs or "sasr/p_sft" not in logs or "grad_norm" not in logs:
            return
        logs = {k: v for k, v in logs.items() if k not in ("sasr/sft_weight", "sasr/grpo_weight", "step_time")}
        step, plan = state.global_step, self.trainer.plan
        if self.trainer.watch.skipped_in_a_row:
            logs["loss"] = None  # transformers puts a mean of others in the place of one that is no number
        warnings, self._warnings = self._warnings, []
        line = {
            "step": step,
            "phase": "warm-up" if step <= self.trainer.warmup.bound else "hybrid",
            "kind": plan.kind,
            "u": draw(args.seed, step - 1),
            **{_NAMES.get(key, key.removeprefix("sasr/")): value for key, value in logs.items()},
            **({"warnings": warnings} if warnings else {}),
            "step_seconds": self.trainer.budget.step_seconds,
            "seconds": self.trainer.budget.line_seconds,
        }
        if self.metrics is not None:
            self.metrics.append(line)
            # transformers keeps all of them, in memory and in each checkpoint; the file has them.
            del state.log_history[:-_LOGS_KEPT]
        self.view.budget(self.trainer.budget.spent)
        self.view.step(line)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        if self.view is not None:
            self.view.message(f"warning: {text}")


class RunCallback(StepCallback):
    """Runs the exams from the first step on, and stops on request.

    Args:
        trainer ([`SASRTrainer`]): The trainer it serves.
        exams ([`Exams`]): Takes the exams.
        stop ([`StopRequest`]): Asked after each step.
        directory (`Path`): The run's directory.
        view ([`LiveView`] or `None`): On the main process only.
        owned (`bool`, *optional*, defaults to `True`): The directory is this run's already: `metrics.jsonl` is opened.
    """

    def __init__(
        self,
        trainer: SASRTrainer,
        exams: Exams,
        stop: StopRequest,
        directory: Path,
        view: LiveView | None,
        owned: bool = True,
    ):
        super().__init__(trainer, view, exams.task.name, directory if owned else None)
        self.exams, self.stop = exams, stop
        trainer.best_checkpoint = lambda: best_checkpoint(directory, exams.results, trainer.state.global_step)

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.exams.drop_after(state.global_step, main=not args.process_index)

    def on_step_begin(self, args, state, control, **kwargs):
        host_memory.renew()
        self.exams.trackers.begin()
        # After the checkpoint of the warm-up's end; and what a stop left out, in the run that goes on.
        moment = "warmup" if self.trainer.warmup.ends_at(state.global_step) else None
        with self.trainer.budget.paused():
            self.exams.take(moment if state.global_step else "initial", self.trainer)

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control)
        warmup_ends = self.trainer.warmup.ends_at(state.global_step)
        stopping = self._stop_requested()
        # The last step is the final exam's; those before are examined ahead of their checkpoint, so that a stop in the
        # exam still has the step saved.
        if not (stopping or warmup_ends or control.should_training_stop):
            try:
                self.exams.take(None, self.trainer)
                # What may be gone back to has to be there.
                examined = args.on_collapse == "rollback" and f"step-{state.global_step}" in self.exams.results
                control.should_save = control.should_save or examined
            except ExamStopped:
                stopping = True
            except Exception as error:
                if args.world_size > 1:
                    raise
                host_memory.release()
                self.exams.failure, stopping = error, True  # to be raised when the step is logged and saved
        if stopping:
            control.should_save = control.should_training_stop = True
        if warmup_ends:
            # The natural point to come back to: other schedules can start here, and a stop in the exam loses nothing.
            control.should_save = True
            if self.view is not None and self.trainer.warmup.reason:
                self.view.warmup_ended(state.global_step, self.trainer.warmup.reason)

    def on_train_end(self, args, state, control, **kwargs):
        if is_finished(self.trainer):
            self.exams.take("final", self.trainer)  # the trackers, which come after this callback, close next
        super().on_train_end(args, state, control)

    def _stop_requested(self) -> bool:
        requested = self.stop.signal is not None
        if self.trainer.args.world_size > 1:
            # The signal reaches the ranks at different steps; all must stop at the same one.
            flag = torch.tensor(float(requested), device=self.trainer.accelerator.device)
            requested = bool(self.trainer.accelerator.reduce(flag, reduction="sum") > 0)
        return requested
