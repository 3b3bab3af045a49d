"""The example notebook: its cells run in order, and what is committed is a notebook with its outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "stories.ipynb"


def cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_it_is_a_notebook_that_was_run_from_top_to_bottom():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'sasr[test]'")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3


# What begins with a slash or a drive, or is a file URL; not a ratio (3/4), a relative path, a web address, an HTML tag.
MACHINE_PATH = re.compile(r"(?<![\w./<])/[A-Za-z_][\w.-]*|\b[A-Za-z]:\\|\bfile:/")


def texts(value: Any) -> Iterator[str]:
    """Every text in the notebook; images are left out, their base64 has slashes anywhere."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not key.startswith("image/"):
                yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved in /home/me/run", True), ("'/srv/x'", True), ("see /data", True), ("C:\\runs", True),
        ("file:///x", True), ("(/opt/x:1)", True), ("240/240 at 0.6 s/step, ../docs and a/b", False),
        ("https://arxiv.org/abs/1", False), ("</span>", False),
    ],
)  # fmt: skip
def test_what_is_a_path_of_a_machine(text, found):
    assert bool(MACHINE_PATH.search(text)) == found


def test_it_names_no_path_of_a_machine():
    notebook = json.loads(NOTEBOOK.read_text())
    assert sum(len(text) for text in texts(notebook["cells"])) > 1000
    assert [text for text in texts(notebook) if MACHINE_PATH.search(text)] == []


def test_its_cells_run(tmp_path):
    """Without a kernel: what only a notebook has is left out."""
    pytest.importorskip("matplotlib")
    code = "\n".join(source(cell) for cell in cells()).replace("%matplotlib inline", "")
    code = code.replace("from IPython.display import display", "display = print")
    (tmp_path / "cells.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**os.environ, "SASR_NOTEBOOK_STEPS": "12", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 12/12" in done.stdout and "pass@1" in done.stdout
    (run,) = tmp_path.glob("stories-*")
    exams = json.loads((run / "exam.json").read_text())
    assert [exam["step"] for exam in exams.values()] == [0, 2, 4, 6, 8, 10, 12]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 12
    assert (run / "report.html").is_file()
