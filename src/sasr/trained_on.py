"""What a run was trained on, as digests of its questions in its directory.

`sasr exam` asks what a run held out, and finds that by dividing the run's data again. Data that have changed since are
divided otherwise, and then only this tells which questions the run has studied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .checkpoints import write_atomically
from .tasks.base import Row, question_of, text_of

TRAINED_ON_FILE = "trained_on.json"
WRONG_FILE = "wrong_demonstrations.json"  # the verifier's judgement of each demonstration


def digests(rows: Iterable[Row]) -> list[str]:
    """Of the questions, each once. The order of the rows shows nothing, and is lost."""
    return sorted({_digest(question_of(row["prompt"])) for row in rows})


def keep(directory: Path, found: Sequence[str]) -> None:
    """Write them into the directory of the run."""
    write_atomically(directory / TRAINED_ON_FILE, json.dumps({"prompts": found}) + "\n")


def without_studied(directory: Path, rows: list[Row]) -> list[Row]:
    """The rows without those that the run of the directory was trained on; all if nothing tells which these are."""
    try:
        known = set(json.loads((directory / TRAINED_ON_FILE).read_text())["prompts"])
    except (OSError, ValueError, TypeError, KeyError):
        return rows  # of an earlier version, or not as it was written
    # Earlier versions kept the digest of the prompt as it is written.
    asked = ((row, (question_of(row["prompt"]), text_of(row["prompt"]))) for row in rows)
    return [row for row, texts in asked if known.isdisjoint(map(_digest, texts))]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
