"""The rows of a run of the command line: those to train on, and those held out for exams."""

from __future__ import annotations

from .config import SASRConfig
from .demonstrations import tokenize_prompts
from .errors import InputError
from .task_config import TaskConfig
from .tasks.base import Row, Task, hold_out, text_of
from .tasks.loading import load_rows


def collect_rows(task: Task, config: TaskConfig, args: SASRConfig) -> tuple[list[Row], list[Row], list[Row]]:
    """(training rows, rows of a separate demonstration file, held-out rows of the split that the exams use). Raises
    `InputError` for a task that lacks what the schedule needs."""
    rows, held_out = _all_rows(task, config, args.seed)
    if config.train_rows is not None:
        rows = rows[: config.train_rows]
    if config.demonstration_rows is not None:
        kept = config.demonstration_rows
        rows = [row if i < kept else {**row, "completion": None} for i, row in enumerate(rows)]
    demonstrations = load_rows(task, config.demonstrations, "train") if config.demonstrations else []
    if not rows:
        raise InputError("no training rows are left: give more data, or fewer exam_rows and validation_rows")
    uses_sft, uses_grpo = args.kinds_of_steps(args.build_schedule())
    if uses_sft and not any(row.get("completion") for row in demonstrations or rows):
        raise InputError(
            f"task {task.name} has no demonstrations, but there are SFT steps or probes: add completions, or use grpo"
        )
    if uses_grpo and not any(row.get("answer") is not None for row in rows):
        raise InputError(
            f"task {task.name} has no answers to verify, but there are GRPO steps: add answers, or use sft"
        )
    return rows, demonstrations, _with_answer(held_out[config.exam_split])


def held_out_rows(task: Task, config: TaskConfig, seed: int) -> list[Row]:
    """The rows that a run with these settings examines its model on."""
    return _with_answer(_all_rows(task, config, seed)[1][config.exam_split])


def _all_rows(task: Task, config: TaskConfig, seed: int) -> tuple[list[Row], dict[str, list[Row]]]:
    if config.data is None and task.generates:
        return _generated(task, config, seed)
    return _loaded(task, config)


def _with_answer(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("answer") is not None]


def _generated(task: Task, config: TaskConfig, seed: int) -> tuple[list[Row], dict[str, list[Row]]]:
    rows = task.generate(config.train_rows, seed, "train")
    if config.exam_data is not None:
        return _split(rows, config, _exam_rows(task, config))
    count = config.exam_rows + config.validation_rows
    held_out = task.generate(count, seed, "test") if count else []
    # The test rows come first: how many validation rows follow does not change them.
    return rows, {"test": held_out[: config.exam_rows], "validation": held_out[config.exam_rows :]}


def _loaded(task: Task, config: TaskConfig) -> tuple[list[Row], dict[str, list[Row]]]:
    rows = load_rows(task, config.data, "train")
    return _split(rows, config, None if config.exam_data is None else _exam_rows(task, config))


def _exam_rows(task: Task, config: TaskConfig) -> list[Row]:
    return hold_out(load_rows(task, config.exam_data, "test"), config.exam_rows)[1]


def _split(rows: list[Row], config: TaskConfig, test: list[Row] | None) -> tuple[list[Row], dict[str, list[Row]]]:
    """Set held-out rows apart: the test rows too unless they are given, then those for validation, by the same hash
    order, so that the test rows are the same with and without validation rows."""
    verifiable = [row for row in rows if row.get("answer") is not None]
    # The exam may not eat up a small dataset: a tenth of it at most, for each of the two.
    most = max(len(verifiable) // 10, 1)
    if test is None:
        test = hold_out(verifiable, min(config.exam_rows, most))[1]
    tested = _prompts(test)
    others = [row for row in verifiable if text_of(row["prompt"]) not in tested]
    validation = hold_out(others, min(config.validation_rows, most))[1]
    apart = _prompts(validation) | (tested if config.exam_data is None else set())
    return [row for row in rows if text_of(row["prompt"]) not in apart], {"test": test, "validation": validation}


def _prompts(rows: list[Row]) -> set[str]:
    return {text_of(row["prompt"]) for row in rows}


def check_lengths(rows: list[Row], tokenizer, args: SASRConfig) -> None:
    """Raise `InputError` for the first prompt that is longer than `max_prompt_length`."""
    if args.max_prompt_length is None:
        return
    options = args.chat_template_kwargs or {}
    for row, ids in zip(rows, tokenize_prompts([row["prompt"] for row in rows], tokenizer, **options), strict=True):
        if len(ids) > args.max_prompt_length:
            text = " ".join(str(row["prompt"]).split())[:60]
            raise InputError(
                f"a prompt has {len(ids)} tokens, more than max_prompt_length ({args.max_prompt_length}): raise the "
                f"limit or drop the row that begins {text!r}"
            )
