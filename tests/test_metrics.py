"""The metrics file survives kills at any byte and resumes without lines of the future."""

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr import checkpoints
from sasr.errors import InputError
from sasr.metrics import MetricsFile, read_metrics, read_totals, seconds_of, steps_of


def test_append_is_readable_at_once_and_null_for_what_is_not_finite(tmp_path):
    path = tmp_path / "made" / "metrics.jsonl"
    file = MetricsFile(path)
    assert read_metrics(path) == []
    file.append({"step": 1, "loss": math.nan, "deep": {"list": [math.inf, 1.5, (2, "é")]}, "flag": True})
    assert read_metrics(path) == [{"step": 1, "loss": None, "deep": {"list": [None, 1.5, [2, "é"]]}, "flag": True}]
    file.append({"step": np.int64(2), "loss": np.float32(0.5), "bad": np.float64("nan"), "row": np.arange(2)})
    assert read_metrics(path)[1] == {"step": 2, "loss": 0.5, "bad": None, "row": [0, 1]}


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(0, 12), cut=st.integers(0, 200), keep=st.integers(0, 14))
def test_killed_at_any_byte_then_resumed(tmp_path_factory, steps, cut, keep):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [{"step": step, "loss": step / 3} for step in range(1, steps + 1)]
    file = MetricsFile(path)
    for line in lines:
        file.append(line)
    size = max(0, path.stat().st_size - cut)
    os.truncate(path, size)
    survived = read_metrics(path)
    assert survived == lines[: len(survived)]
    content = path.read_bytes()
    assert len(survived) >= content.count(b"\n")

    file = MetricsFile(path)
    file.truncate_after(keep)
    assert read_metrics(path) == survived[:keep]
    file.append({"step": keep + 1})
    assert read_metrics(path) == [*survived[:keep], {"step": keep + 1}]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_opening_removes_a_broken_last_line_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    file = MetricsFile(path)
    file.append({"step": 2})
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2}']


def test_a_failed_replacement_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1})
    file.append({"step": 2})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        file.truncate_after(1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_checkpoint_is_not_there_before_the_metrics_that_led_to_it(tmp_path, monkeypatch):
    """After a power cut a run went on behind lines that were lost."""
    MetricsFile(path := tmp_path / "metrics.jsonl").append({"step": 3})
    (staged := tmp_path / checkpoints.STAGING / "checkpoint-3").mkdir(parents=True)
    (staged / "weights").write_text("1")
    done, sync, rename = [], os.fsync, os.rename

    def synced(file):
        done.append(next(p.name for p in (path, *staged.iterdir()) if os.path.samestat(os.fstat(file), p.stat())))
        sync(file)

    def renamed(source, target):
        done.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    checkpoints.publish(staged, tmp_path / "checkpoint-3")
    assert sorted(done[:-1]) == ["metrics.jsonl", checkpoints.MANIFEST, "weights"] and done[-1] == "checkpoint-3"


def test_errors_are_one_line_with_the_place(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_metrics(tmp_path / "missing")
    (tmp_path / "m").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match="m:2 "):
        read_metrics(tmp_path / "m")


def test_steps_and_seconds_without_a_line_of_their_own_count(tmp_path):
    """With logging_steps 10 a run of 40 steps was one of 4 steps and of a tenth of its time."""
    counts = [(10, 7, 3), (20, 12, 10), (30, 12, 20), (40, 22, 28)]
    lines = [
        {"step": step, "kind": "grpo", "sft_steps": float(sft), "grpo_steps": float(grpo)}
        | {"step_seconds": 1.0, "seconds": 12.5}
        for step, sft, grpo in counts
    ]
    wanted = [{"sft": 7, "grpo": 3}, {"sft": 3, "grpo": 5, "both": 2}, {"grpo": 10}, {"sft": 2, "both": 8}]
    assert steps_of(lines) == wanted
    assert [seconds_of(line) for line in [*lines, {"step_seconds": 2.0}, {}]] == [12.5] * 4 + [2.0, 0.0]
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for line in [*lines, {"step": 41, "step_seconds": 2.0}]:
        file.append(line)
    assert read_totals(file.path)[1] == 52.0


def test_a_line_for_every_step_counts_as_its_kind():
    """A step of both that found no demonstration too, and the first line of a run that has no lines of its warm-up."""
    kinds = ["sft", "both", "grpo"]
    lines = [{"step": step, "kind": kind, "sft_steps": 5.0, "grpo_steps": 2.0} for step, kind in enumerate(kinds, 5)]
    timed = [{**line, "step_seconds": 1.5, "seconds": 1.5} for line in lines]
    assert steps_of(timed) == steps_of([{"kind": kind} for kind in kinds]) == [{kind: 1} for kind in kinds]
