"""`sasr check` on the command line: read the rows as a training would, measure them, say what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sasr.errors import InputError
from sasr.model_files import expand

if TYPE_CHECKING:
    from sasr.parsing import Settings
    from sasr.rows import RowReader
    from sasr.tasks.base import Row, Task

USAGE = """\
usage: sasr check [--config RECIPE] [--task NAME] [--data FILE] [--model NAME] [--json FILE] [--SETTING VALUE ...]

What a task's data hold, before anything is trained on them: counts, lengths in tokens, whether the task's own verifier
accepts each demonstration, repeated rows, training rows among the held-out ones. It takes the recipes and settings of
sasr train, and loads no model: of --model the tokenizer alone.

  sasr check --task gsm8k --data train.jsonl --exam_data test.jsonl
  sasr check --config gsm8k --data train.jsonl          with the tokenizer and the limits of the recipe
  sasr check --task jsonl --data rows.jsonl --model Qwen/Qwen2.5-0.5B-Instruct
  sasr check --task my_task.py:MyTask --data rows.jsonl --json check.json

  --model NAME     count the tokens of this model; as --model_name_or_path [that of --config; else none are counted]
  --json FILE      write all of it there, every row that a problem names included
  --bad_rows skip  leave out records that cannot be used, and say how many [error]

Exit status: 0 nothing wrong, 1 problems found (each in one line), 2 wrong input."""


@dataclass(frozen=True)
class _Options:
    json: Path | None
    counts_tokens: bool  # a model was named
    judges_needs: bool  # a schedule was, so that what it needs is known


def check(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 where something is wrong with the data. Raises `InputError`."""
    from sasr.check.report import Report
    from sasr.check.view import show
    from sasr.rows import RowReader
    from sasr.tasks import get_task

    settings, options = _read(argv)
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise InputError(f"json {options.json}: there is no directory {options.json.parent}")
    task = get_task(settings.task.task, settings.task.task_options)
    tokenizer = _tokenizer(settings, task) if options.counts_tokens else None
    reader = RowReader(task, settings.task.bad_rows)
    splits = _splits(reader, settings)
    report = Report(task, reader, settings, splits, tokenizer)
    if options.judges_needs:
        report.judge_needs()
    show(report)
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"json {options.json} cannot be written: {error.strerror or error}") from None
    return 1 if report.problems else 0


def _read(argv: list[str]) -> tuple[Settings, _Options]:
    from sasr.parsing import RECIPES, base_recipe, parse, read_recipe
    from sasr.tasks import TASKS

    rest: list[str] = []
    file = None
    words = iter([part for word in argv for part in _divided(word)])
    for word in words:
        if word == "--json":
            file = next(words, None)
            if file is None or file.startswith("--"):
                raise InputError("--json needs the name of a file")
        else:
            rest.append("--model_name_or_path" if word == "--model" else word)
    named = {word.partition("=")[0] for word in rest if word.startswith("--")}
    task = next((rest[i + 1] for i, word in enumerate(rest[:-1]) if word == "--task"), next(iter(TASKS)))
    base = base_recipe({"task": task})
    recipe = "--config" in named or base == task
    judges_needs = recipe or "--schedule" in named
    # Without a recipe of its name nobody has asked for a training of this task yet: what it needs is not judged, but
    # the limits are those that a training would have.
    defaults = None if judges_needs else {**read_recipe(str(RECIPES / f"{base}.yaml")), "sft_warmup_steps": 1}
    settings = parse(["--output_dir", "unused", *rest], defaults)
    tiny = str(settings.model.model_name_or_path).startswith("tiny-")
    return settings, _Options(
        json=None if file is None else expand(file),
        counts_tokens=bool(named & {"--config", "--model_name_or_path"} or tiny)
        and settings.model.model_name_or_path is not None,
        judges_needs=judges_needs,
    )


def _divided(word: str) -> list[str]:
    """`--json=FILE`, `--model=NAME` and `--task=NAME` as two words."""
    flag, equals, value = word.partition("=")
    return [flag, value] if equals and flag in ("--json", "--model", "--task") else [word]


def _tokenizer(settings: Settings, task: Task) -> Any:
    from sasr.models import load_tokenizer
    from sasr.run import tokenizer_options

    name = settings.model.model_name_or_path
    assert name is not None
    return load_tokenizer(name, **tokenizer_options(name, task, settings))


def _splits(reader: RowReader, settings: Settings) -> dict[str, list[Row]]:
    """The rows by split, as a training would divide them; splits without rows are left out."""
    from sasr.rows import all_rows, separate_demonstrations

    rows, held_out = all_rows(reader, settings.task, settings.training.seed, whole_exam=True)
    demonstrations = separate_demonstrations(reader, settings.task, held_out)
    found = {"train": rows, "demonstrations": demonstrations, **held_out}
    return {name: part for name, part in found.items() if part or name == "train"}
