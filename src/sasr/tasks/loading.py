"""Where rows come from: JSONL files, a dataset on the Hub, or a task's own generator."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from sasr.errors import InputError
from sasr.tasks.base import Row, Task, text_of
from sasr.tasks.columns import Columns
from sasr.tasks.text import one_line

_ENDINGS = (".json", ".jsonl")
_SAVED_TO_DISK = ("state.json", "dataset_dict.json")
_STARTS = (".", "/", "~")


def load_rows(
    task: Task, data: str | None = None, split: Literal["train", "test"] = "train", skipped: list[str] | None = None
) -> list[Row]:
    """The rows of a task.

    Args:
        task (`Task`):
            Turns each record into a row.
        data (`str`, *optional*):
            JSONL files (a path, a glob, or several separated by commas) or a dataset on the Hub as `owner/name` or
            `owner/name:config`. By default the task's own: what it generates, or its dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"` or `"test"`; local files hold whatever they hold.
        skipped (`list[str]`, *optional*):
            Leave out the records that cannot be used, and append here what is wrong with each.

    Raises:
        [`InputError`]: A file cannot be read; no record can be used; or, without `skipped`, one cannot. The message
            names its file and line.
    """
    return [row for _, row in located_rows(task, data, split, skipped)]


def located_rows(
    task: Task, data: str | None = None, split: Literal["train", "test"] = "train", skipped: list[str] | None = None
) -> list[tuple[str, Row]]:
    """Like [`load_rows`], each row with the place it comes from, such as `rows.jsonl:12`."""
    if data is None:
        if task.generates:
            return generated_rows(task, None, None, split)
        if task.default_data is None:
            raise InputError(f"task {task.name} has no data of its own: give it a JSONL file or a Hub dataset as data")
        data = task.default_data
    rows, columns, bad = [], Columns(), 0
    for where, record in _records(task, data, split):
        try:
            row = _to_row(task, record, where)
            columns.add(row, where)
        except InputError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            bad += 1
        else:
            rows.append((where, row))
    if not rows and bad and skipped:
        raise InputError(f"{data}: none of the {bad} records can be used; the last one: {skipped[-1]}")
    if not rows:
        raise InputError(f"{data}: no records; give data that has at least one")
    return rows


def generated_rows(
    task: Task, count: int | None, seed: int | None, split: Literal["train", "test"]
) -> list[tuple[str, Row]]:
    """What a task generates, checked as rows of a file are, each with its place."""
    try:
        rows = list(task.generate(count, seed, split))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"task {task.name} cannot generate rows: {_shown(error)}; correct it") from error
    columns, found = Columns(), []
    for number, made in enumerate(rows, 1):
        where = f"generated row {number}"
        row = _checked(made, where, task)
        columns.add(row, where)
        found.append((where, row))
    return found


def as_conversation(row: Row) -> Row:
    """The row for a chat model: prompt and completion as lists of messages. Those that are, and all other columns,
    stay as they are."""
    converted = dict(row)
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(column), str):
            converted[column] = [{"role": role, "content": row[column]}]
    return converted


def for_model(rows: list[Row], name: str, has_chat_template: bool) -> list[Row]:
    """The rows in the form that training gives a model: conversations if its tokenizer has a chat template.
    Raises `InputError` for conversations without one."""
    if has_chat_template:
        return [row if isinstance(row["prompt"], list) else as_conversation(row) for row in rows]
    if any(isinstance(row["prompt"], list) for row in rows):
        raise InputError(f"the rows are conversations, but the tokenizer of {name} has no chat template: use text")
    return rows


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
            yield from _dataset_records(task, source, split)
        for path in paths.get(source, ()):
            yield from _file_records(path)


def _is_folder(source: str) -> bool:
    return os.path.isdir(os.path.expanduser(source))


def _is_file(source: str) -> bool:
    if _is_folder(source) or _is_folder(source.partition(":")[0]):
        return False
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
    if not glob.has_magic(path):
        raise InputError(f"{source}: no such file; check the path (from {os.getcwd()})")
    paths = sorted(found for found in glob.glob(path, recursive=True) if os.path.isfile(found))
    if not paths:
        raise InputError(f"{source}: no file matches; check the pattern (from {os.getcwd()})")
    return paths


def _file_records(path: str) -> Iterator[tuple[str, Any]]:
    try:
        # Bytes that are no UTF-8 become surrogates, so that the line that has them can be named, or left out.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _Line(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None


class _Line(str):
    """A record that is still to be parsed: one that cannot be is a bad record like any other."""


def _parsed(line: _Line, where: str) -> Any:
    try:
        line.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: not UTF-8 text; convert the file") from None
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: invalid JSON ({one_line(error)}); write one JSON object per line") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON: write null where there is no value")


def _dataset_records(task: Task, source: str, split: str) -> Iterator[tuple[str, Any]]:
    """Of a dataset on the Hub, or of a folder that is one: parquet, csv, a copy of one of the Hub, what `save_to_disk`
    has written."""
    name, config, wanted = (source, "", "") if _is_folder(source) else [*source.split(":", 2), "", ""][:3]
    folder = _is_folder(name)
    config_name, its_split = (None, split) if folder and not config else task.hub_query(config or None, split)
    its_split = wanted or its_split
    path = os.path.abspath(os.path.expanduser(name)) if folder else name
    try:
        # Imported here because it takes seconds, which local files need not pay.
        import datasets

        if folder and any(os.path.isfile(os.path.join(path, mark)) for mark in _SAVED_TO_DISK):
            saved = datasets.load_from_disk(path)
            dataset = saved[its_split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            dataset = datasets.load_dataset(path, config_name, split=its_split)
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error, 200)}"
        if folder:
            raise InputError(
                f"{source}: is a folder that datasets cannot load (configuration {config_name}, split {its_split}): "
                f"{why}; name its files, for example {os.path.join(name, '*.jsonl')}, or what to take of it, "
                f"{name}:config:split"
            ) from error
        raise InputError(
            f"data '{source}': cannot load it from the Hub (configuration {config_name}, split {its_split}): {why}; "
            "for local data, give a path that ends in .jsonl, for another split owner/name:config:split"
        ) from error
    for number, record in enumerate(dataset, 1):
        yield f"{source} [{its_split}] record {number}", record


def _to_row(task: Task, record: Any, where: str) -> Row:
    if isinstance(record, _Line):
        record = _parsed(record, where)
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: not a JSON object but {one_line(repr(record), 60)}; write one object per line")
    try:
        row = task.to_row(record)
    except KeyError as error:
        raise InputError(f"{where}: record has no field {error}; task {task.name} needs it") from error
    except InputError as error:
        raise InputError(f"{where}: {error} (task {task.name})") from None
    except Exception as error:
        raise InputError(f"{where}: task {task.name} cannot use this record: {_shown(error)}; correct it") from error
    row = _checked(row, where, task)
    answer = row["answer"]
    if answer is not None and _tries_answers(task):
        try:
            forms = task.stated(answer)
            hopeless = bool(forms) and not any(task.check(form, row).correct for form in forms)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{where}: task {task.name} cannot check the answer {one_line(repr(answer), 80)}: {_shown(error)}"
            ) from error
        if hopeless:
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
    prompt, completion, answer, difficulty = (row[key] for key in ("prompt", "completion", "answer", "difficulty"))
    if not _is_text(prompt) or not text_of(prompt).strip():
        raise InputError(f"{where}: task {task.name} finds no usable prompt; give it a non-empty text")
    if completion is not None and not _is_text(completion):
        raise InputError(
            f"{where}: task {task.name} must give the completion as text, messages or None, not"
            f" {one_line(repr(completion), 80)}"
        )
    if completion is not None and not text_of(completion).strip():
        row["completion"] = completion = None  # or SFT would teach to say nothing
    if completion is not None and isinstance(prompt, list) != isinstance(completion, list):
        raise InputError(
            f"{where}: one of prompt and completion is a list of messages, the other text; write both alike"
        )
    if not isinstance(answer, str | None):
        raise InputError(
            f"{where}: task {task.name} must give the answer as text or None, not {one_line(repr(answer))}"
        )
    if not isinstance(difficulty, str | int | float | None) or (
        isinstance(difficulty, float) and not math.isfinite(difficulty)
    ):
        raise InputError(f"{where}: difficulty must be a number, not {one_line(repr(difficulty), 80)}")
    return row


def _is_text(value: Any) -> bool:
    """Whether it is a text, or messages with one each."""
    if not isinstance(value, list):
        return isinstance(value, str)
    return bool(value) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value
    )


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
