"""Where rows come from: JSONL files, a dataset on the Hub, or a task's own generator."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sasr.errors import InputError
from sasr.tasks.base import Row, Task, text_of
from sasr.tasks.text import one_line

_ENDINGS = (".json", ".jsonl")
_STARTS = (".", "/", "~")


def load_rows(task: Task, data: str | None = None, split: Literal["train", "test"] = "train") -> list[Row]:
    """The rows of a task.

    Args:
        task (`Task`):
            Turns each record into a row.
        data (`str`, *optional*):
            JSONL files (a path, a glob, or several separated by commas) or a dataset on the Hub as `owner/name` or
            `owner/name:config`. By default the task's own: what it generates, or its dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"test"`; local files hold whatever they hold.
    """
    return [row for _, row in located_rows(task, data, split)]


def located_rows(
    task: Task, data: str | None = None, split: Literal["train", "test"] = "train"
) -> list[tuple[str, Row]]:
    """Like [`load_rows`], each row with the place it comes from, such as `rows.jsonl:12`."""
    if data is None:
        if task.generates:
            places = ((f"generated row {i}", row) for i, row in enumerate(task.generate(split=split), 1))
            return [(where, _checked(row, where, task)) for where, row in places]
        if task.default_data is None:
            raise InputError(f"task {task.name} has no data of its own: give it a JSONL file or a Hub dataset as data")
        data = task.default_data
    rows = [(where, _to_row(task, record, where)) for where, record in _records(task, data, split)]
    if not rows:
        raise InputError(f"{data}: no records; give data that has at least one")
    return rows


def as_conversation(row: Row) -> Row:
    """The row for a chat model: prompt and completion as lists of messages. Those that are, and all other columns,
    stay as they are."""
    converted = dict(row)
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(column), str):
            converted[column] = [{"role": role, "content": row[column]}]
    return converted


def _records(task: Task, data: str, split: str) -> Iterator[tuple[str, Any]]:
    """Every record with the place it comes from, for messages."""
    # A file may have a comma in its name.
    sources = [data] if os.path.isfile(data) else [part.strip() for part in data.split(",")]
    if "" in sources:
        raise InputError(f"data '{data}': empty name between commas; remove the extra comma")
    # All paths first: a mistyped one should show before a long download.
    paths = {source: _paths(source) for source in sources if _is_file(source)}
    for source in sources:
        if source not in paths:
            yield from _hub_records(task, source, split)
        for path in paths.get(source, ()):
            yield from _file_records(path)


def _is_file(source: str) -> bool:
    return (
        source.endswith(_ENDINGS)
        or source.startswith(_STARTS)
        or any(sign in source for sign in "*?[")
        or os.path.isfile(source)
    )


def _paths(source: str) -> list[str]:
    path = os.path.expanduser(source)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        raise InputError(f"{source}: is a folder; name its files, for example {os.path.join(source, '*.jsonl')}")
    if not glob.has_magic(path):
        raise InputError(f"{source}: no such file; check the path (from {os.getcwd()})")
    paths = sorted(found for found in glob.glob(path, recursive=True) if os.path.isfile(found))
    if not paths:
        raise InputError(f"{source}: no file matches; check the pattern (from {os.getcwd()})")
    return paths


def _file_records(path: str) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"{path}:{number}: invalid JSON ({one_line(error)}); write one JSON object per line"
                    ) from None
                yield f"{path}:{number}", record
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: after line {number}: not UTF-8 text ({one_line(error)}); convert the file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


def _hub_records(task: Task, source: str, split: str) -> Iterator[tuple[str, Any]]:
    name, _, config = source.partition(":")
    config_name, hub_split = task.hub_query(config or None, split)
    try:
        # Imported here because it takes seconds, which local files need not pay.
        import datasets

        dataset = datasets.load_dataset(name, config_name, split=hub_split)
    except Exception as error:
        raise InputError(
            f"data '{source}': cannot load it from the Hub (configuration {config_name}, split {hub_split}):"
            f" {type(error).__name__}: {one_line(error, 200)}; for local data, give a path that ends in .jsonl"
        ) from error
    for number, record in enumerate(dataset, 1):
        yield f"{source} [{hub_split}] record {number}", record


def _to_row(task: Task, record: Any, where: str) -> Row:
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: not a JSON object but {one_line(repr(record), 60)}; write one object per line")
    try:
        row = task.to_row(record)
    except KeyError as error:
        raise InputError(f"{where}: record has no field {error}; task {task.name} needs it") from error
    except InputError as error:
        raise InputError(f"{where}: {error} (task {task.name})") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where}: task {task.name} cannot use this record: {type(error).__name__}: {one_line(error)}; correct it"
        ) from error
    row = _checked(row, where, task)
    answer = row["answer"]
    if answer is not None and _tries_answers(task):
        forms = task.stated(answer)
        if forms and not any(task.check(form, row).correct for form in forms):
            raise InputError(
                f"{where}: no completion could ever match the answer {one_line(repr(answer), 80)}: correct it, or leave"
                f" the row out (task {task.name})"
            )
    return row


def _tries_answers(task: Task) -> bool:
    """Not for a subclass that judges in another way than the class whose `stated` it has."""
    stated, *judges = (
        next(cls for cls in type(task).__mro__ if name in vars(cls)) for name in ("stated", "check", "check_all")
    )
    return all(issubclass(stated, judge) for judge in judges)


def _checked(row: Row, where: str, task: Task) -> Row:
    """The row with all four columns, if a trainer can use it. Tasks written by users pass here too."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: task {task.name} must give a row (dict), not {one_line(repr(row), 60)}")
    row = {"prompt": None, "completion": None, "answer": None, "difficulty": None, **row}
    prompt, answer = row["prompt"], row["answer"]
    if not isinstance(prompt, str | list) or not prompt or not text_of(prompt).strip():
        raise InputError(f"{where}: task {task.name} finds no usable prompt; give it a non-empty text")
    if not isinstance(answer, str | None):
        raise InputError(
            f"{where}: task {task.name} must give the answer as text or None, not {one_line(repr(answer))}"
        )
    return row
