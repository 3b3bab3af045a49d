"""The metrics file of a run: one JSON object per line and optimizer step, safe against being killed at any moment."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sasr.errors import InputError

METRICS_FILE = "metrics.jsonl"  # in the run's directory
_SFT_SHARE = {"sft": 1.0, "grpo": 0.0}


class MetricsFile:
    """Appends metrics to a file in JSON Lines.

    Each line is handed to the system as soon as it is complete, so a killed run leaves at most one broken line, the
    last; opening the file again removes it. To be used by one process of a run.

    Args:
        path (`str` or `Path`): The file; it and its folder are made if missing, and a file that exists is continued.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _mend(self.path)
        else:
            self.path.touch()

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Write one line. NaN and infinities become `null`; numpy and torch scalars become numbers."""
        with open(self.path, "ab") as file:
            file.write(_line(_plain(metrics)))

    def truncate_after(self, step: int) -> None:
        """Drop the lines whose `step` is greater, for a run that resumes from a checkpoint of `step`.

        Atomic: after a kill the file is either the old or the new one. Lines without `step` stay.
        """
        kept = [metrics for metrics in read_metrics(self.path) if (metrics.get("step") or 0) <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "wb") as file:
            file.writelines(_line(metrics) for metrics in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def sync_metrics(directory: Path) -> None:
    """Flush the metrics of a run to disk, if it has any: after a power cut no checkpoint or exam is to be there without
    the lines of the steps before it."""
    with suppress(FileNotFoundError), open(directory / METRICS_FILE, "rb") as file:
        os.fsync(file.fileno())


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics file, also of a run that is still writing: a broken last line is left out.

    Raises:
        InputError: The file is missing, or another line is broken.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read metrics file {path}: {error.strerror}") from error
    metrics = []
    for number, line in enumerate(lines, start=1):
        parsed = _parse(line)
        if parsed is not None:
            metrics.append(parsed)
        elif line and number < len(lines):
            raise InputError(f"{path}:{number} is not a JSON object; remove the line or the file")
    return metrics


def seconds_of(line: Mapping[str, Any]) -> float:
    """Seconds of all steps since the line before; older files have only those of the last one."""
    return float(line.get("seconds", line.get("step_seconds")) or 0.0)


def steps_of(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, int]]:
    """For each line, the steps since the line before by their kind, as far as there are any: with `logging_steps` above
    1 there are several, which the totals tell. Without totals a line stands for one step."""
    found, last = [], (0.0, 0.0, 0.0)
    for line in lines:
        step, sft, grpo = (line.get(name) for name in ("step", "sft_steps", "grpo_steps"))
        alone = line.get("seconds") is not None and line["seconds"] == line.get("step_seconds")
        if step is None or sft is None or grpo is None or step - last[0] == 1 or alone:
            found.append({str(line.get("kind")): 1})
        else:
            steps, sft_steps, grpo_steps = (round(a - b) for a, b in zip((step, sft, grpo), last, strict=True))
            both = max(0, sft_steps + grpo_steps - steps)
            kinds = {"sft": sft_steps - both, "grpo": grpo_steps - both, "both": both}
            found.append({kind: count for kind, count in kinds.items() if count})
        last = (step or last[0], last[1] if sft is None else sft, last[2] if grpo is None else grpo)
    return found


def sft_share(lines: Iterable[Mapping[str, Any]]) -> float | None:
    """Mean share of SFT over a run's steps after the warm-up; a step of both losses counts with the weight of SFT's.
    `None` if there are none. For files with a line for every step."""
    shares = [_SFT_SHARE.get(line["kind"], line.get("p_sft")) for line in lines if line.get("phase") == "hybrid"]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def read_totals(path: str | os.PathLike[str]) -> tuple[dict[str, Any], float, float | None]:
    """(last line, seconds of all steps, [`sft_share`]) of a metrics file that a run wrote, without parsing every line:
    for lists of many runs. The line is empty if there is none."""
    content = Path(path).read_bytes()
    times = re.findall(rb'"step_seconds": ([\d.e+-]+)(?:, "seconds": ([\d.e+-]+))?', content)
    seconds = sum(float(all_of_them or last_one) for last_one, all_of_them in times)
    kinds = Counter(re.findall(rb'"phase": "hybrid", "kind": "(\w+)"', content))
    both = re.findall(rb'"phase": "hybrid", "kind": "both", [^\n]*?"p_sft": ([\d.e+-]+)', content)
    count = kinds[b"sft"] + kinds[b"grpo"] + len(both)
    share = (kinds[b"sft"] + sum(map(float, both))) / count if count else None
    parsed = map(_parse, reversed(content[-65536:].split(b"\n")))
    last: dict[str, Any] = next((line for line in parsed if line is not None), {})
    if (last.get("step") or 0) > content.count(b"\n"):
        share = None  # of the steps without a line of their own nothing is known
    return last, seconds, share


def _mend(path: Path) -> None:
    """Without this, the next line would be glued to what a kill left of the last one."""
    content = path.read_bytes()
    tail = content[content.rfind(b"\n") + 1 :]
    if not tail:
        return
    if _parse(tail) is not None:  # only its newline is missing
        with open(path, "ab") as file:
            file.write(b"\n")
    else:
        os.truncate(path, len(content) - len(tail))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _line(metrics: Mapping[str, Any]) -> bytes:
    return json.dumps(metrics, allow_nan=False).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return _plain(value.tolist())
    return str(value)
