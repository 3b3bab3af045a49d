"""What a directory holds, and its files read so that whatever is wrong with one is said in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sasr.errors import InputError
from sasr.metrics import METRICS_FILE

_COMPARISON = ("results.json", "comparison.yaml")
_RUN = (METRICS_FILE, "exam.json", "config.yaml")


def find_kind(directory: Path) -> str | None:
    """`run`, `exam` or `comparison`, from the files there are; `None` if it is none of them. Raises `InputError` if
    there is no such directory, or an exam.json that cannot be read."""
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory}: name the output_dir of sasr train, exam or compare")
    if any((directory / name).is_file() for name in _COMPARISON):
        return "comparison"
    exam = directory / "exam.json"
    if exam.is_file() and isinstance(read_json(exam).get("settings"), dict):
        return "exam"
    if any((directory / name).is_file() for name in _RUN):
        return "run"
    return None


def kind_of(directory: Path) -> str:
    """As [`find_kind`], but raises `InputError` also if it is none of them."""
    kind = find_kind(directory)
    if kind is None:
        raise InputError(
            f"{directory} is no run, exam or comparison (it has none of {', '.join((*_RUN, _COMPARISON[0]))}): name "
            "the output_dir of sasr train, exam or compare"
        )
    return kind


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it, or move it away") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object: restore it, or move it away")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file; an empty one if there is no file."""
    import yaml

    try:
        # The loader in C, where there is one, reads a run's settings ten times as fast.
        value = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}): restore it") from None
    return value if isinstance(value, dict) else {}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines, one at a time: completions may be many. A broken last line, of a file that
    is being written, is left out."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                except ValueError:
                    if not line.endswith(b"\n"):
                        return
                    value = None
                if not isinstance(value, dict):
                    raise InputError(f"{path}:{number} is not a JSON object; remove the line or the file")
                yield value
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
