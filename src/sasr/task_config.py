"""The settings of what to train on and how to examine the model."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, require, unknown

RECIPES = Path(__file__).parent / "recipes"  # those that come with sasr

EXAMS = ("initial", "warmup", "final")
BAD_ROWS = ("error", "skip")
WRONG_DEMONSTRATIONS = ("study", "drop")


def setting(default, text: str):
    """A dataclass field with the help text that the command line prints."""
    return field(default=default, metadata={"help": text})


def json_mapping(text: str) -> dict[str, Any]:
    """A mapping as flags write it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""{text[:60]!r} is no JSON object, such as '{{"steps": 5}}'""")
    return value


@dataclass
class TaskConfig:
    r"""
    What `sasr train` trains on and how it examines the model.

    Args:
        task (`str`, *optional*, defaults to `"stories"`):
            A built-in task (`stories`, `gsm8k`, `math`, `kk`, `svamp`, `multiarith`, `jsonl`), `reasoning_gym/NAME`, or
            your own as `module:object`.
        task_options (`dict`, *optional*):
            Keyword arguments for the task's constructor, or fields of the configuration of a reasoning-gym task; on the
            command line as JSON (for `stories`: `{"steps": 5}`).
        data (`str`, *optional*):
            Training rows: JSONL file(s) in the dataset's published schema, or a dataset on the Hub (`owner/name`).
            Defaults to the task's own dataset.
        demonstrations (`str`, *optional*):
            Rows whose worked solutions SFT uses instead of those in `data`; those of questions that are held out from
            `data` are left out.
        bad_rows (`str`, *optional*, defaults to `"error"`):
            What a record means that cannot be used (no JSON, a missing field, an answer that nothing can match, ...):
            `"error"` ends before training and names its file and line, `"skip"` leaves it out and says how many were.
        wrong_demonstrations (`str`, *optional*, defaults to `"study"`):
            What to do with a worked solution that the task's own verifier rejects: `"study"`, since some teach the form
            all the same, or `"drop"`, which leaves its question to GRPO and says how many were.
        exam_data (`str`, *optional*):
            Held-out rows. By default rows are set apart from `data`, chosen by a hash of the prompt: at most a tenth of
            its questions, with all rows of each.
        train_rows (`int`, *optional*):
            Use this many training rows (for `stories`: generate that many).
        demonstration_rows (`int`, *optional*):
            Keep the worked solution of the first so many training rows only; the others serve GRPO.
        exam_rows (`int`, *optional*, defaults to `128`):
            Held-out rows per exam; 0 switches exams off.
        exam_samples (`int`, *optional*, defaults to `8`):
            Sampled completions per row, for pass@1 and pass@k.
        exam_at (`list[str]`, *optional*, defaults to `["initial", "warmup", "final"]`):
            When to examine: before the first step, at the end of the warm-up, at the end. None of them: no exams.
        exam_every (`int`, *optional*, defaults to `0`):
            Examine after every so many optimizer steps too (label `step-N`), for a learning curve; where the end of the
            warm-up or the last step has an exam of its own, that one stands. 0 for never.
        validation_rows (`int`, *optional*, defaults to `0`):
            Set so many further rows apart (at most another tenth of the questions of `data`; a task that generates its
            rows generates more), for choices that the test rows must not influence. The test rows stay the same.
        exam_split (`str`, *optional*, defaults to `"test"`):
            Which held-out rows the exams use: `"test"` or `"validation"`.
    """

    task: str = setting(
        "stories", "stories, gsm8k, math, kk, svamp, multiarith, jsonl, reasoning_gym/NAME, or your own: module:object."
    )
    task_options: dict | None = field(
        default=None, metadata={"help": "Options of the task, as JSON: '{\"steps\": [1, 2, 3]}' for stories."}
    )
    data: str | None = setting(None, "Training rows: JSONL file(s), glob, or a Hub dataset. Default: the task's own.")
    demonstrations: str | None = setting(None, "Rows whose worked solutions SFT uses instead of those in data.")
    bad_rows: str = setting("error", "A record that cannot be used: error, or skip, which leaves it out and counts it.")
    wrong_demonstrations: str = setting(
        "study", "A worked solution that the task's verifier rejects: study, or drop, which leaves it out of SFT."
    )
    exam_data: str | None = setting(None, "Held-out rows. Default: set apart from data by a hash of the prompt.")
    train_rows: int | None = setting(None, "Use this many training rows (stories: generate that many).")
    demonstration_rows: int | None = setting(None, "Keep the worked solution of only so many training rows.")
    exam_rows: int = setting(128, "Held-out rows per exam; 0 switches exams off.")
    exam_samples: int = setting(8, "Sampled completions per held-out row, for pass@1 and pass@k.")
    exam_at: list[str] = field(
        default_factory=lambda: list(EXAMS),
        metadata={"help": "When to examine: any of initial, warmup, final."},
    )
    exam_every: int = setting(0, "Examine after every so many optimizer steps too; 0 for never.")
    validation_rows: int = setting(0, "Set so many further rows apart, beside the test rows of the exams.")
    exam_split: str = setting("test", "Held-out rows that the exams use: test or validation.")

    def __post_init__(self):
        for name in ("train_rows", "demonstration_rows"):
            if getattr(self, name) is not None:
                require(name, getattr(self, name), lambda v: v >= 1, "1 or more")
        for name in ("exam_rows", "exam_every", "validation_rows"):
            require(name, getattr(self, name), lambda v: v >= 0, "0 or more")
        require("exam_samples", self.exam_samples, lambda v: v >= 1, "1 or more")
        if not isinstance(self.exam_at, list):
            raise InputError(f"exam_at is {self.exam_at!r}: it must be a list of {', '.join(EXAMS)}")
        for label in self.exam_at:
            if label not in EXAMS:
                raise unknown("exam_at", label, EXAMS)
        if len(set(self.exam_at)) < len(self.exam_at):
            raise InputError(f"exam_at names a moment twice ({', '.join(self.exam_at)}): each exam is taken once")
        if self.bad_rows not in BAD_ROWS:
            raise unknown("bad_rows", self.bad_rows, BAD_ROWS)
        if self.wrong_demonstrations not in WRONG_DEMONSTRATIONS:
            raise unknown("wrong_demonstrations", self.wrong_demonstrations, WRONG_DEMONSTRATIONS)
        if self.exam_split not in ("test", "validation"):
            raise unknown("exam_split", self.exam_split, ("test", "validation"))
        if self.exam_split == "validation" and not self.validation_rows:
            raise InputError("exam_split validation needs rows: set validation_rows to 1 or more")
