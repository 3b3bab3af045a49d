"""An exam that takes seconds: what `sasr exam` is asked for, and how its results are read. Its files: `exam_place` in
conftest.py."""

from __future__ import annotations

import json
from pathlib import Path

import sasr.cli

ROWS = 12
SMALL = ["--n", "4", "--batch_size", "4", "--max_new_tokens", "4"]  # four rows a block
MORE = ["--initial_model", "start", "--nll_task", "jsonl", "--nll_data", "rows.jsonl"]
EXAM = ["--model", "lm", "--task", "jsonl", "--data", "rows.jsonl", *SMALL]


def content(directory: Path) -> dict:
    return json.loads((directory / "exam.json").read_text())


def assert_same_exam(a: Path, b: Path) -> None:
    assert (a / "completions.jsonl").read_bytes() == (b / "completions.jsonl").read_bytes()
    one, other = content(a), content(b)
    for exam in (one, other):
        exam["figures"].pop("seconds"), exam.pop("command")
    assert one == other


def refused(capsys, flags: list[str]) -> str:
    status = sasr.cli.main(["exam", *flags])
    out, err = capsys.readouterr()
    assert status == 2 and out == "", (status, out, err)
    assert err.startswith("sasr: error: ") and err.count("\n") == 1 and len(err) < 420, err
    return err.removeprefix("sasr: error: ").strip()
