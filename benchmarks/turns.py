"""Trainers side by side in one process, one optimizer step each in turn: what the other benchmarks are made of.

A machine whose speed drifts slows both, so that the ratio of two steps taken one after the other says more than two
runs do. Each trainer keeps random state of its own: it draws what it would draw alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, Trainer, TrainerCallback

from sasr import get_task
from sasr.demonstrations import collate, tokenize_demonstrations, tokenize_prompts
from sasr.models import TINY_MODELS, load_model
from sasr.streams import RowStream

CUDA = torch.cuda.is_available()
# The same for all trainers, on a CPU and on a GPU.
COMMON: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "use_cpu": not CUDA,
    "bf16": CUDA,
    "gradient_checkpointing": False,
}


@dataclass
class Step:
    """One optimizer step, from the decision to the log, of one trainer."""

    wall: float  # seconds
    cpu: float  # seconds of all threads of the process


@dataclass
class Setting:
    """What is trained, on what: of the command line."""

    model: str
    task: str
    rollouts: int
    group: int
    demonstrations: int
    length: int
    steps: int
    skipped: int
    warmup: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def policy(self, quantization: Any = None) -> tuple[Any, Any]:
        """A model that has studied a little, always with the same weights, and its tokenizer. An untaught one never
        ends its completions and gets no rewards: no step of a real run is like that."""
        texts = get_task("stories").vocabulary_texts()
        device = torch.device("cuda" if CUDA else "cpu")
        model, tokenizer = load_model(self.model, tokenizer_texts=texts, quantization=quantization, device=device)
        if self.warmup and not self.weights:
            study(model, tokenizer, self.rows, self.warmup)
            self.weights = {key: value.clone() for key, value in model.state_dict().items()}
        if self.weights:
            model.load_state_dict(self.weights)
        return model, tokenizer

    @property
    def name(self) -> str:
        """The model's, without the folder that it is in."""
        return Path(self.model).name

    def dataset(self) -> Dataset:
        return Dataset.from_list(self.rows)

    def grpo_values(self, **changes: Any) -> dict[str, Any]:
        values = {
            "per_device_train_batch_size": self.rollouts, "num_generations": self.group,
            "max_completion_length": self.length, "max_steps": self.steps, "output_dir": tempfile.mkdtemp(),
        }  # fmt: skip
        return {**COMMON, **values, **changes}


def parse(
    description: str, *more: tuple[str, Any], steps: int = 40, skipped: int = 3
) -> tuple[argparse.Namespace, Setting]:
    """The command line that the benchmarks share, and the further options (name, default) of one."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", default="tiny-llama", help="name or directory, as for sasr train")
    parser.add_argument("--task", default="stories", help="a task whose rows need no download")
    parser.add_argument("--rollouts", type=int, default=64, help="completions in a GRPO step")
    parser.add_argument("--group", type=int, default=8, help="completions of one prompt")
    parser.add_argument("--demonstrations", type=int, default=32, help="demonstrations in an SFT step")
    parser.add_argument("--length", type=int, default=48, help="tokens of a completion, at most")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps that are measured")
    parser.add_argument("--skipped", type=int, default=skipped, help="first steps that are not")
    parser.add_argument("--warmup", type=int, default=150, help="SFT steps before, for a model made from scratch")
    parser.add_argument("--bf16", action="store_true", help="autocast on a CPU too; on a GPU it always is")
    parser.add_argument("--quick", action="store_true", help="a few small steps: whether it works, not how fast")
    parser.add_argument("--json", type=Path, help="file for every measurement")
    for name, default in more:
        parser.add_argument(name, type=type(default), default=default, help=f"default {default}")
    options = parser.parse_args()
    if options.quick:
        options.rollouts, options.group, options.demonstrations = 8, 4, 4
        options.length, options.steps, options.warmup = 6, 3, 0
    COMMON["bf16"] = CUDA or options.bf16
    if options.model not in TINY_MODELS:
        options.warmup = 0
    setting = Setting(
        options.model, options.task, options.rollouts, options.group, options.demonstrations, options.length,
        options.steps + options.skipped, options.skipped, options.warmup,
    )  # fmt: skip
    setting.rows = get_task(options.task).generate(512, 0, "train")
    return options, setting


def study(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], steps: int) -> None:
    """So many steps of SFT on batches of 32 rows, without a trainer: one made before the settings of the next ones
    would lose what they share."""
    known = tokenize_demonstrations(
        rows, tokenizer, lambda prompts: tokenize_prompts(prompts, tokenizer), [tokenizer.eos_token_id]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    stream = RowStream(len(known), seed=0)
    for _ in range(steps):
        model(**collate([known[i] for i in stream.take(32)], tokenizer.pad_token_id)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def without_printing(trainer: Trainer) -> Trainer:
    """The trainer, which does not print its logs."""
    trainer.remove_callback(PrinterCallback)
    return trainer


class _Lane(TrainerCallback):
    """One trainer's thread, which stops at the beginning of each optimizer step until it is told to go on."""

    def __init__(self, name: str, trainer: Trainer):
        self.name, self.trainer = name, trainer
        self.steps: list[Step] = []
        self.done, self.error = False, ""
        self._go, self._parked = threading.Semaphore(0), threading.Semaphore(0)
        self._random = _random_state()
        self._thread = threading.Thread(target=self._run, daemon=True)
        without_printing(trainer).add_callback(self)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.trainer.train()
        except BaseException:
            self.error = traceback.format_exc()
        self.done = True
        self._parked.release()

    def on_step_begin(self, args, state, control, **kwargs):
        # The callback of step i + 1 comes after its decision and its rows: they are counted with step i, one and all.
        self._parked.release()
        self._go.acquire()

    def turn(self, counted: bool) -> None:
        """Let it go on to the beginning of its next step, or to its end."""
        _set_random_state(self._random)
        started = now()
        self._go.release()
        self._parked.acquire()
        ended = now()
        self._random = _random_state()
        if self.error:
            raise SystemExit(f"{self.name}: {self.error}")
        if counted and not self.done:
            self.steps.append(Step(*(b - a for a, b in zip(started, ended, strict=True))))


def take_turns(
    args: dict[str, Callable[[], Any]], trainers: dict[str, Callable[[Any], Trainer]], skipped: int
) -> tuple[dict[str, list[Step]], dict[str, Trainer]]:
    """Train all by turns, in an order that is reversed every round; what each counted step took, and the trainers.

    Args:
        args (`dict`): Makes the settings of each trainer. All are made before the first trainer, because transformers
            resets what they share.
        trainers (`dict`): Makes each trainer from its settings.
        skipped (`int`): First steps that are not counted.
    """
    made = {name: make() for name, make in args.items()}
    lanes = [_Lane(name, trainers[name](made[name])) for name in trainers]
    rounds = 0
    while not all(lane.done for lane in lanes):
        for lane in lanes if rounds % 2 else reversed(lanes):
            if not lane.done:
                lane.turn(counted=rounds > skipped)  # round 0 is what comes before the first step
        rounds += 1
    return {lane.name: lane.steps for lane in lanes}, {lane.name: lane.trainer for lane in lanes}


def now() -> tuple[float, float]:
    """Wall-clock time and CPU time of the process, in seconds, when the device has done what it was told."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all()


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    torch.cuda.set_rng_state_all(state[3])


# ---- figures ----


@dataclass
class Spread:
    """Median of a sample, its quartiles, and a 95% bootstrap interval of the median."""

    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        rng = np.random.default_rng(0)
        medians = np.median(rng.choice(np.asarray(values), (2000, len(values))), axis=1)
        interval = tuple(float(x) for x in np.quantile(medians, (0.025, 0.975)))
        return cls(middle, (low, high), (interval[0], interval[1]), len(values))

    def cells(self, form: str = ".3f") -> list[str]:
        pairs = (self.quartiles, self.interval)
        return [f"{self.median:{form}}", *(f"{a:{form}} - {b:{form}}" for a, b in pairs), str(self.count)]


SPREAD = ("median", "quartiles", "95% of the median", "pairs")


def ratios(steps: dict[str, list[Step]], ours: str, peer: str) -> dict[str, Spread]:
    """Of each step over the peer's step taken beside it, in wall-clock time and in CPU time."""
    return {
        clock: Spread.of([getattr(a, clock) / getattr(b, clock) for a, b in zip(steps[ours], steps[peer], strict=True)])
        for clock in ("wall", "cpu")
    }


def largest_difference(ours: Trainer, peer: Trainer, key: str = "loss") -> float:
    """Between the logged values of two runs, over the largest value. No number if all are 0."""
    mine, theirs = ([entry[key] for entry in t.state.log_history if key in entry] for t in (ours, peer))
    if len(mine) != len(theirs) or not mine:
        raise SystemExit(f"the runs logged {len(mine)} and {len(theirs)} values of {key}: they did not do the same")
    return max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / (max(map(abs, theirs)) or math.nan)


def hardware() -> dict[str, Any]:
    """What it ran on. No names of the machine or its folders."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if CUDA else None, "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=max(100, Console().width))
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def save(options: argparse.Namespace, what: dict[str, Any]) -> None:
    """Write every measurement, with the options and the hardware, if a file is given."""
    if options.json is not None:
        given = {key: value for key, value in vars(options).items() if key != "json"}
        if "model" in given:
            given["model"] = Path(given["model"]).name  # results are published: no folders of this machine
        options.json.write_text(json.dumps({"options": given, "hardware": hardware(), **what}, indent=1) + "\n")
