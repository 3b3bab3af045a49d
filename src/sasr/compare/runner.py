"""Carries out a comparison: each run an ordinary `sasr train` in a process of its own, several at a time.

What is finished, and what is left to do, is read from the runs' directories. So a comparison can be stopped at any
moment, even by a power cut, and started again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.filesize import decimal

from sasr import locks
from sasr.callbacks import StopRequest
from sasr.checkpoints import last_checkpoint, step_of
from sasr.disconnect import STOPS
from sasr.errors import InputError
from sasr.live import format_duration

from . import report, starting, tuning
from .check import plain
from .measures import Measures, is_finished, last_step, measure, pass_at_1, spent
from .pace import AtWork, Pace
from .plan import Comparison, Method, Run, Values
from .view import CompareView, Progress, Row, name_of

_LOGS = "logs"
_POLL_SECONDS = 0.2


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen
    slot: int
    log: Path
    log_start: int
    fresh: bool
    begun: float
    first: int  # the step that it goes on from


class Runner:
    """Runs a comparison to its end or to a stop request.

    Args:
        comparison ([`Comparison`]): What to run, checked.
        directory (`Path`): Where; made and claimed by the caller.
        jobs (`int`): Processes at a time.
        devices (`Sequence[str]`): CUDA devices, handed out in turn; none leaves the choice to the run.
        view ([`CompareView`]): Shows it.
        command (`str`): For `results.json`.
    """

    def __init__(
        self,
        comparison: Comparison,
        directory: Path,
        jobs: int,
        devices: Sequence[str],
        view: CompareView,
        command: str,
    ):
        self.comparison, self.directory, self.view, self.command = comparison, directory, view, command
        self.jobs, self.devices = jobs, devices
        self.status: dict[str, str] = {}
        self.measured: dict[str, Measures] = {}
        self.choices: dict[str, Values] = {}
        self.failed: dict[str, Measures] = {}  # what they cost by then; of those that a signal ended nothing
        self.runs: list[Run] = []
        self._tuning = {method.name: comparison.tuning_runs(method) for method in comparison.methods}
        self._children: list[_Child] = []
        self._earlier = tuning.read_earlier(directory / report.RESULTS_FILE)
        self.shared_by = self._earlier.shared_by
        self._pace = Pace()
        self._lock: Any = None
        self._space_told = False

    def run(self) -> int:
        """Returns the exit status: 0, 1 if a run failed, 128 + the signal that stopped it."""
        self._lock = lock(self.directory)
        try:
            return self._run()
        finally:
            self._lock.close()

    def content(self) -> report.Figures:
        """What `results.json` holds now."""
        found = self.measured, self.status, self.choices
        return report.results(self.comparison, self.runs, *found, self.command, self.shared_by, self.failed)

    def _run(self) -> int:
        self._keep_choices()
        self._look_around()
        report.write(self.directory, self.content())
        with self.view, StopRequest(lambda text: self.view.message(_STOPPING)) as stop:
            try:
                self._work(stop)
            except KeyboardInterrupt:
                self._end_children(signal.SIGKILL)
            finally:
                # Whatever went wrong here, no process stays behind.
                for child in self._children:
                    child.process.kill()
                    child.process.wait()
                    self.status[child.run.path] = "stopped"
        report.write(self.directory, self.content())
        if stop.signal is not None:
            return 128 + stop.signal
        return 0 if all(self.status.get(run.path) == "finished" for run in self.runs) and self._complete() else 1

    def _work(self, stop: StopRequest) -> None:
        told = False
        while True:
            if self._reap(stop.signal is not None):
                self._look_around()
                report.write(self.directory, self.content())
            if stop.signal is None:
                self._start_what_can_be()
            elif not told:
                told = True
                self._end_children(signal.SIGTERM)
            if not self._children:
                return
            self.view.update(self._progress())
            time.sleep(_POLL_SECONDS)

    def _complete(self) -> bool:
        finals = [path for m in self.comparison.methods for path in self.comparison.final_paths(m).values()]
        return all(path in self.measured for path in finals)

    # ---- what there is ----

    def _keep_choices(self) -> None:
        """Go on with what final runs were given before, and without the runs to tune that had failed by then: nothing
        could follow from them any more."""
        for method in self.comparison.tuned:
            chosen = self._earlier.choice(self.directory, self.comparison, method)
            if chosen is None:
                continue
            self.choices[method.name] = chosen
            for run in self._tuning[method.name]:
                status = self._earlier.status.get(run.path, "")
                if status.startswith("failed") and not is_finished(self.directory, run):
                    self.status[run.path], self.failed[run.path] = status, spent(self.directory, run)

    def _look_around(self) -> None:
        """Find what is finished, choose what that allows to choose, and so on until nothing changes."""
        while True:
            self.runs = self.comparison.runs(self.choices)
            for run in self.runs:
                if run.path not in self.status and is_finished(self.directory, run):
                    self._take_in(run)
            known = len(self.choices)
            for method in self.comparison.tuned:
                if method.name not in self.choices:
                    self._choose(method)
            if len(self.choices) == known:
                return

    def _choose(self, method: Method) -> None:
        chosen = tuning.choice(self.comparison, method, self.measured, self.failed)
        if chosen is None:
            return
        self.choices[method.name] = chosen
        for run in self._tuning[method.name]:
            if run.path not in self.status:
                self.status[run.path], self.failed[run.path] = f"failed: its warm-up did ({run.warmup})", {}
        for name, points in tuning.left_out(self.comparison, {method.name: chosen}, self.failed).items():
            self.view.message(f"note: {tuning.left_out_told(name, points)}")

    def _take_in(self, run: Run) -> None:
        try:
            self.measured[run.path] = measure(self.directory, run)
            self.status[run.path] = "finished"
        except InputError as error:
            self.status[run.path] = f"failed: {error}"

    # ---- processes ----

    def _start_what_can_be(self) -> None:
        free = [slot for slot in range(self.jobs) if slot not in {child.slot for child in self._children}]
        for run in self.runs:
            if not free:
                return
            if run.path not in self.status and all(self.status.get(path) == "finished" for path in run.needs):
                try:
                    self._children.append(self._start(run, free[0]))
                except InputError as error:
                    self.status[run.path] = f"failed: {error}"
                    continue
                self.status[run.path] = "running"
                del free[0]
                if self.comparison.budget.kind == "seconds":
                    at_work = Counter(child.slot % max(1, len(self.devices)) for child in self._children)
                    self.shared_by = max(self.shared_by, *at_work.values())

    def _start(self, run: Run, slot: int) -> _Child:
        where = self.directory / run.path
        checkpoint = last_checkpoint(where)
        # -P: no file of the current directory stands in for a package, as with the command itself.
        command = [sys.executable, "-P", "-m", "sasr", "train", "--output_dir", str(where)]
        log = self.directory / _LOGS / f"{run.path}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if checkpoint is not None:
            command.append("--resume_from_checkpoint")
            values, first = starting.recipe_to_go_on(run), step_of(checkpoint)
        else:
            starting.clear(self.directory, run)
            values = starting.recipe_of(run, self.directory, self.measured, self.runs, bool(self.devices))
            first = int(run.settings["sft_warmup_steps"]) if run.warmup is not None else 0
        if values:
            recipe = log.with_name(log.name.removesuffix(".log") + ".yaml")
            recipe.write_text(yaml.safe_dump(plain(values), allow_unicode=True), encoding="utf-8")
            command += ["--config", str(recipe)]
        with open(log, "ab") as output:
            start = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(slot),
                start_new_session=True,  # the terminal's Ctrl-C is for us, who tell them in our own way
                pass_fds=[self._lock.fileno()],  # locked until the last of us is gone, also if it survives us
            )
        return _Child(run, process, slot, log, start, checkpoint is None, time.monotonic(), first)

    def _environment(self, slot: int) -> dict[str, str]:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.jobs)))
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return environment

    def _reap(self, stopping: bool) -> bool:
        ended = [child for child in self._children if child.process.poll() is not None]
        for child in ended:
            self._children.remove(child)
            self._judge(child, stopping)
        return bool(ended)

    def _judge(self, child: _Child, stopping: bool) -> None:
        run, code = child.run, child.process.returncode
        if code == 0 and is_finished(self.directory, run):
            self._take_in(run)
            if child.fresh:
                self._pace.took(run.method, time.monotonic() - child.begun)
            self.view.message(self._told(run))
            if run.stage != "warmup" and not self._space_told:
                self._tell_space(run)
        elif stopping and code in (143, 130, -signal.SIGTERM, -signal.SIGKILL):
            self.status[run.path] = "stopped"
        else:
            why = starting.why(child.log, child.log_start, code)
            self.status[run.path] = f"failed: {why} (see {_LOGS}/{run.path}.log)"
            if code not in _SIGNALS:  # whoever ended it did not mean that it cannot be trained
                self.failed[run.path] = spent(self.directory, run)
        if self.status[run.path].startswith("failed"):
            self.view.message(f"{name_of(run)} {self.status[run.path]}")

    def _tell_space(self, run: Run) -> None:
        """Say so if the runs to come will not find room, each leaving as much as this one."""
        taken = sum(file.stat().st_size for file in (self.directory / run.path).rglob("*") if file.is_file())
        done, total, _ = self._counts()
        needed, free = (total - done) * taken, shutil.disk_usage(self.directory).free
        if needed > free:
            self._space_told = True
            self.view.message(
                f"note: a run leaves {decimal(taken)}, the {total - done} to come {decimal(needed)}, and "
                f"{decimal(free)} are free: make room (checkpoints of finished runs are not needed, those in "
                "warmups/ are), or the comparison stops when the disk is full, and goes on when there is room"
            )

    def _end_children(self, number: int) -> None:
        for child in self._children:
            child.process.send_signal(number)

    # ---- what is shown ----

    def _told(self, run: Run) -> str:
        measures = self.measured.get(run.path, {})
        scores = f"pass@1 {pass_at_1(measures):.3f}, " if "problems" in measures else ""
        spent = f"{measures['steps']} steps in {format_duration(measures['seconds'])}" if measures else ""
        done, total, left = self._counts()
        time_left = f", about {format_duration(left)} left" if left else ""
        return f"{name_of(run)}: {scores}{spent}  ({done} of {total} runs{time_left})"

    def _counts(self) -> tuple[int, int, float | None]:
        """(runs that are done, all of them, seconds left)"""
        done = sum(status == "finished" for status in self.status.values())
        return done, len(self.runs) + len(self._waiting()), self._left()

    def _waiting(self) -> list[str]:
        """The methods of the final runs that wait for tuning, one for each: they are not in the list yet, nor are
        their warm-ups."""
        known, methods = {run.path for run in self.runs}, self.comparison.methods
        return [m.name for m in methods for path in self.comparison.final_paths(m).values() if path not in known]

    def _left(self) -> float | None:
        now = time.monotonic()
        at_work = [AtWork(c.run.method, now - c.begun, self._share(c), c.fresh) for c in self._children]
        ahead = [run.method for run in self.runs if run.path not in self.status] + self._waiting()
        left = self._pace.left(at_work, ahead)
        return None if left is None else left / self.jobs

    def _share(self, child: _Child) -> float | None:
        """The share of its steps that a process has taken."""
        step, last = last_step(self.directory / child.run.path), child.run.settings["max_steps"]
        if step is None or self.comparison.budget.kind != "steps":
            return None
        return (step - child.first) / (last - child.first) if child.first < step <= last else None

    def _progress(self) -> Progress:
        done, total, left = self._counts()
        return Progress(
            [self._row(method) for method in self.comparison.methods],
            [f"{name_of(child.run)}  {self._stand(child.run)}" for child in self._children],
            done,
            total,
            left,
        )

    def _row(self, method: Method) -> Row:
        final = list(self.comparison.final_paths(method).values())
        paths = final + [run.path for run in self._tuning[method.name]]
        scores = [pass_at_1(self.measured[path]) for path in final if path in self.measured]
        return Row(
            method.name,
            sum(path in self.measured for path in paths),
            len(paths),
            sum(self.status.get(path, "").startswith("failed") for path in paths),
            ", ".join(f"{name} {value}" for name, value in self.choices.get(method.name, {}).items()),
            sum(scores) / len(scores) if scores else None,
        )

    def _stand(self, run: Run) -> str:
        """Where a run is, in words."""
        step, steps = last_step(self.directory / run.path), run.settings["max_steps"]
        if step is None:
            return "starting"
        of = f"/{steps}" if self.comparison.budget.kind == "steps" else ""
        return "exam" if of and step >= steps and run.stage != "warmup" else f"step {step}{of}"


# Exit statuses of a run that was asked to stop. (SIGKILL is not among them: the system sends it for lack of memory.)
_SIGNALS = {status for number in STOPS for status in (-number, 128 + number)}
_STOPPING = "stopping: the runs finish their step and save; once more to stop at once"


def lock(directory: Path) -> Any:
    """An open file that only one comparison and its runs can hold. Raises `InputError` if another one does."""
    return locks.hold(directory, "sasr compare, or a run it left")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
