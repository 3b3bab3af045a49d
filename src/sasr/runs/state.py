"""How far a run, an exam or a comparison got, and whether it is at work now: for `sasr runs` and for reports."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sasr import locks
from sasr.report.document import number

CONFIG_HEAD = "# sasr "  # of a config.yaml: the command, as a comment
# The max_steps of a run in a comparison that another budget ends.
OUT_OF_REACH = 1_000_000
SAVED_MODEL = ("model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class State:
    """`name` is `finished`, `running`, `stopped` (it saved), `killed` (it could not), `failed`, or `unfinished` where
    nothing tells which of these; `text` says it with the details."""

    name: str
    text: str

    @property
    def tone(self) -> str:
        return "good" if self.name in ("finished", "running") else "warn"


def run_state(directory: Path, step: int, config: Mapping[str, Any], exams: Mapping[str, Any]) -> State:
    """Of a run of `sasr train` or `sasr.record`.

    Args:
        directory (`Path`): Its directory.
        step (`int`): The last one in its metrics.
        config (`Mapping`): Its settings: how many it was to make, and which budgets it had.
        exams (`Mapping`): What its exam.json holds.
    """
    max_steps = number(config.get("max_steps"))
    if max_steps is not None and max_steps <= 0:  # -1: as many as the epochs have
        max_steps = None
    of = f" of {max_steps:.0f}" if max_steps and max_steps < OUT_OF_REACH else ""
    if locks.is_held(directory):
        return State("running", f"running, step {step}{of}")
    outcome = locks.outcome(directory)
    if outcome is None:  # copied, or of an earlier version
        done = "final" in exams or any((directory / name).is_file() for name in SAVED_MODEL)
        done = done or (max_steps is not None and step >= max_steps)
        saved = bool(step) and (directory / f"checkpoint-{step}").is_dir()
        outcome = "finished" if done else "stopped" if saved else "unfinished"
    name, _, why = outcome.partition(": ")
    if name == "finished":
        # Without a budget the last steps have no line, where not every step has one.
        early = max_steps and step < max_steps and (config.get("max_seconds") or config.get("max_rollout_tokens"))
        return State(name, f"budget spent at step {step}" if early else name)
    if name == "failed":
        return State(name, f"failed at step {step}{of}: {why}")
    if name == "unfinished":
        return State(name, f"unfinished, step {step}{of}")
    return State(name or "killed", f"{name or 'killed'} at step {step}{of}")


def exam_state(directory: Path, done: bool, rows: int) -> State:
    """Of `sasr exam`, with so many rows examined."""
    if locks.is_held(directory):
        return State("running", f"running, {rows} rows examined")
    return State("finished", "finished") if done else State("stopped", f"stopped after {rows} rows")


def only_tuning_failed(results: Mapping[str, Any]) -> bool:
    """Whether a comparison has all its final runs, without the points of grids whose runs failed."""
    return bool(results.get("left_out")) and not any(method["missing_seeds"] for method in results["methods"])


def total_seconds(results: Mapping[str, Any]) -> float:
    """Seconds inside optimizer steps of all runs of a comparison; a warm-up that several share counts once, though it
    is in the seconds of each."""
    runs = results["runs"]
    seconds = [number(run.get("seconds")) or 0.0 for run in runs]
    pairs = list(zip(runs, seconds, strict=True))
    of_warmup = {run.get("directory"): spent for run, spent in pairs if run.get("stage") == "warmup"}
    return sum(spent - min(of_warmup.get(run.get("warmup"), 0.0), spent) for run, spent in pairs)


def comparison_state(directory: Path, results: Mapping[str, Any]) -> State:
    """Of `sasr compare`, from its results.json."""
    runs = results["runs"]
    done, failed = (sum(run["status"].startswith(name) for run in runs) for name in ("finished", "failed"))
    if locks.is_held(directory):
        return State("running", f"running, {done} of {len(runs)} runs done")
    if failed and only_tuning_failed(results):
        return State("finished", f"finished, but for {failed} run{'s' * (failed > 1)} to tune that failed")
    if failed:
        return State("failed", f"{failed} of {len(runs)} runs failed")
    if done < len(runs) or any(method["missing_seeds"] for method in results["methods"]):
        return State("stopped", f"stopped, {done} of {len(runs)} runs done")
    return State("finished", "finished")


def resume_command(command: str, directory: Path) -> str:
    """How to go on with `sasr train` or `sasr compare` in a directory."""
    return f"sasr {command} --output_dir {shlex.quote(str(directory))} --resume_from_checkpoint"
