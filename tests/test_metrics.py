"""The metrics file survives kills at any byte and resumes without lines of the future."""

import json
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr.errors import InputError
from sasr.metrics import MetricsFile, read_metrics


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


def test_errors_are_one_line_with_the_place(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_metrics(tmp_path / "missing")
    (tmp_path / "m").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match="m:2 "):
        read_metrics(tmp_path / "m")
