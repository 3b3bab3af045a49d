"""The directory of `sasr exam`: what was asked, the completions so far, and the figures when it is done.

`completions.jsonl` grows by whole blocks of rows. After a kill, lines of a block that is not whole are dropped, and the
exam goes on with that block: each draws from a seed of its own, so the result is that of an exam without a stop.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sasr import locks
from sasr.adapters import is_adapter, read_adapter
from sasr.checkpoints import write_atomically
from sasr.errors import InputError
from sasr.metrics import MetricsFile, read_metrics
from sasr.tasks.base import Row

EXAM_FILE = "exam.json"
COMPLETIONS_FILE = "completions.jsonl"
_PACKAGES = ("sasr", "trl", "transformers", "torch")
# Evenly spread pieces of a weights file tell two checkpoints apart in no time.
_PIECES, _PIECE = 64, 4096


class ExamDirectory:
    """One exam on disk.

    Args:
        directory (`Path`): Where; need not exist.
        settings (`dict`): What decides the result, JSON-safe.
        command (`str`): With which to go on.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], command: str):
        self.directory, self.settings, self.command = directory, json.loads(json.dumps(settings)), command
        self._file: MetricsFile | None = None
        self._lock: Any = None

    def check(self) -> dict[str, Any] | None:
        """The figures, if the exam is already done. Writes nothing. Raises `InputError` if the directory holds anything
        else than this exam."""
        path = self.directory / EXAM_FILE
        above = next(folder for folder in (self.directory, *self.directory.absolute().parents) if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise InputError(f"output_dir {self.directory} cannot be written: {above} is a file, or without permission")
        if not path.is_file():
            if self.directory.is_dir() and any(found.name != locks.LOCK_FILE for found in self.directory.iterdir()):
                raise InputError(f"output_dir {self.directory} is not empty and holds no exam: choose another")
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): choose another output_dir") from None
        written = content.get("settings") if isinstance(content, dict) else None
        if not isinstance(written, dict):
            raise InputError(f"output_dir {self.directory} holds the exams of a run of sasr train: choose another")
        for key in [*self.settings, *written]:
            before, now = written.get(key), self.settings.get(key)
            if before != now:
                difference = f"{key} is {_short(before)} there, not {_short(now)}"
                raise InputError(
                    f"output_dir {self.directory} holds another exam ({difference}): choose another directory, or"
                    " repeat its command"
                )
        return content.get("figures")

    def open(self, rows: Sequence[Row], samples: int, block: int) -> list[dict[str, Any]]:
        """Claim the directory and return the records that it has, whole blocks of them."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = locks.hold(self.directory, "sasr exam")
        except OSError as error:
            raise InputError(f"output_dir {self.directory} cannot be written: {error.strerror or error}") from None
        self.check()  # another may have begun one there while this one loaded its model
        if not (self.directory / EXAM_FILE).is_file():
            self._write(None)
        path = self.directory / COMPLETIONS_FILE
        self._file = MetricsFile(path)
        records = read_metrics(path)
        for i, record in enumerate(records):
            known = record.get("row") == i < len(rows) and record.get("prompt") == rows[i]["prompt"]
            if not known or len(record.get("samples") or ()) != samples:
                raise InputError(f"{path}:{i + 1} is no record of this exam: remove it, or choose another output_dir")
        if len(records) < len(rows) and len(records) % block:
            records = records[: len(records) - len(records) % block]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
        return records

    def append(self, records: Iterable[dict[str, Any]], first: int) -> None:
        """Write the records of one block, whose first row has the index `first`."""
        assert self._file is not None
        for i, record in enumerate(records, first):
            self._file.append({"row": i, **record})

    def finish(self, figures: dict[str, Any]) -> None:
        """Write the figures."""
        self._write(figures)

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            self._lock.close()

    def _write(self, figures: dict[str, Any] | None) -> None:
        versions = {package: version(package) for package in _PACKAGES}
        if self.settings.get("engine") == "vllm":
            import vllm

            versions["vllm"] = vllm.__version__  # the name of the package depends on the machine
        content = {"settings": self.settings, "command": self.command, "versions": versions, "figures": figures}
        write_atomically(self.directory / EXAM_FILE, json.dumps(content, indent=2) + "\n")


def block_seed(seed: int, block: int) -> int:
    """The seed of one block of rows."""
    return zlib.crc32(f"exam/{seed}/{block}".encode())


def digest_of_model(name: str) -> str | None:
    """Tells apart the weights that a local path held at different times; `None` for a model on the Hub."""
    path = Path(name).expanduser()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    if is_adapter(path):
        files += sorted(Path(read_adapter(path).base).expanduser().glob("*.safetensors"))
    if not files:
        return None
    sha = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        sha.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for piece in range(_PIECES):
                content.seek(piece * max(size - _PIECE, 0) // (_PIECES - 1))
                sha.update(content.read(_PIECE))
    return sha.hexdigest()[:16]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
