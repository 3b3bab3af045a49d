"""The rows of a training run: which serve GRPO, which demonstrations there are, and which of them answers which row."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from datasets import Dataset

from . import held_out
from .curriculum import Curriculum, Levels, chosen_mode, harder_than_shown, level_of
from .demonstrations import Demonstration, Ids, tokenize_demonstrations
from .errors import InputError, did_you_mean
from .rows import check_readable

if TYPE_CHECKING:
    from .trainer import SASRTrainer


class TrainingRows(NamedTuple):
    """What [`collect`] returns.

    Args:
        rl_rows (`list[int]`): Rows of the training dataset that GRPO may ask: every reward column is filled.
        demonstrations (`list[Demonstration]`): Of the training dataset, or of the separate dataset.
        kept (`list[Demonstration]`): Further ones, which are kept from SFT.
        demonstration_of_row (`dict[int, int]`): GRPO row to the index of the demonstration that answers it: its own, or
            the first one with the same prompt in the separate dataset.
        levels ([`Levels`]): Of the GRPO rows; none if one of them has no `difficulty`, or all the same.
        curriculum ([`Curriculum`] or `None`): Over both, if one is wanted.
    """

    rl_rows: list[int]
    demonstrations: list[Demonstration]
    kept: list[Demonstration]
    demonstration_of_row: dict[int, int]
    levels: Levels
    curriculum: Curriculum | None


def collect(trainer: SASRTrainer, demonstration_dataset: Dataset | None) -> TrainingRows:
    """The rows of a trainer. Raises `InputError` for a prompt longer than `max_prompt_length`, and for a curriculum
    over rows without difficulty."""
    args, rows = trainer.args, trainer.train_dataset
    for what, dataset in (("train_dataset", rows), ("demonstration_dataset", demonstration_dataset)):
        if dataset is not None and "prompt" not in getattr(dataset, "column_names", ()):
            have = ", ".join(getattr(dataset, "column_names", ())) or f"it is a {type(dataset).__name__}"
            raise InputError(
                f"{what} needs the column 'prompt' ({have}): of a conversation all messages but the answer, which is "
                "its 'completion'"
            )
    needed = [name for name in args.reward_columns if name in rows.column_names]
    missing = [name for name in args.reward_columns if name not in needed]
    if missing and args.reward_columns != ["answer"]:  # which is the default, and not every reward reads it
        raise InputError(
            f"reward_columns: the rows have no {missing[0]!r}{did_you_mean(missing[0], rows.column_names)}"
        )
    filled = zip(*(rows[name] for name in needed), strict=True) if needed else ((True,) for _ in rows)
    rl_rows = [i for i, values in enumerate(filled) if all(v is not None and v != "" for v in values)]
    source = rows if demonstration_dataset is None else demonstration_dataset
    chosen: list[int] = []
    demonstrations: list[Demonstration] = []
    if "completion" in source.column_names:
        chosen = [i for i, completion in enumerate(source["completion"]) if completion]
        demonstrations = tokenize_demonstrations(
            [source[i] for i in chosen],
            trainer._tokenizer,
            lambda prompts: trainer._tokenize_prompts(prompts)[0],
            trainer.eos_token_ids,
            **trainer.chat_template_kwargs,
        )
    what = "row" if source is rows else "row of the demonstrations"
    if args.kinds_of_steps(trainer.schedule)[0]:
        for i, demonstration in zip(chosen, demonstrations, strict=True):
            where = f"the prompt of {what} {i + 1} with its completion"
            check_readable(demonstration.length, trainer.model.config, where, "shorten it, or drop the row")
    if args.max_prompt_length is not None:
        prompts = trainer._tokenize_prompts([rows[i]["prompt"] for i in rl_rows])[0] if rl_rows else []
        asked: list[tuple[str, Ids]] = [(f"row {i + 1}", ids) for i, ids in zip(rl_rows, prompts, strict=True)]
        asked += [(f"{what} {i + 1}", d.prompt_ids) for i, d in zip(chosen, demonstrations, strict=True)]
        for where, ids in asked:
            if len(ids) > args.max_prompt_length:
                raise InputError(
                    f"the prompt of {where} has {len(ids)} tokens, more than max_prompt_length "
                    f"({args.max_prompt_length}): raise the limit or drop the row"
                )
    # Their questions stay: without a demonstration, for GRPO alone.
    away = set(held_out.kept_from_sft([tuple(d.prompt_ids) for d in demonstrations], args))
    kept = [demonstrations[i] for i in sorted(away)]
    chosen = [row for i, row in enumerate(chosen) if i not in away]
    demonstrations = [d for i, d in enumerate(demonstrations) if i not in away]
    place = {row: i for i, row in enumerate(chosen)}
    if demonstration_dataset is None:
        answers = {row: place[row] for row in rl_rows if row in place}
    else:
        first: dict[str, int] = {}
        for i in chosen:
            first.setdefault(_as_key(source[i]["prompt"]), place[i])
        prompts_of = {row: _as_key(rows[row]["prompt"]) for row in rl_rows}
        answers = {row: first[prompt] for row, prompt in prompts_of.items() if prompt in first}
    by_difficulty = _by_difficulty(trainer, rl_rows, source, chosen)
    return TrainingRows(rl_rows, demonstrations, kept, answers, *by_difficulty)


def _as_key(prompt: Any) -> str:
    """The same for equal conversations, whatever the order of a message's keys and the empty ones among them."""
    if isinstance(prompt, str):
        return prompt
    messages = [{k: v for k, v in message.items() if v is not None} for message in prompt]
    return json.dumps(messages, sort_keys=True, default=str)


def _by_difficulty(
    trainer: SASRTrainer, rl_rows: list[int], source: Dataset, chosen: list[int]
) -> tuple[Levels, Curriculum | None]:
    args, rows = trainer.args, trainer.train_dataset

    def levels(dataset: Dataset, wanted: list[int]) -> list[float]:
        what = "row" if dataset is rows else "row of the demonstrations"
        column = list(dataset["difficulty"]) if "difficulty" in dataset.column_names else [None] * len(dataset)
        return [level_of(column[i], f"{what} {i + 1}") for i in wanted]

    questions: dict[int, float] = {}
    try:
        questions = dict(zip(rl_rows, levels(rows, rl_rows), strict=True))
        demonstrations = dict(enumerate(levels(source, chosen)))
    except InputError:
        if args.curriculum not in ("auto", "none"):
            raise
        demonstrations = {}
    harder = harder_than_shown(questions.values(), demonstrations.values())
    mode = chosen_mode(args, trainer.schedule, harder)
    if mode == "none":
        return Levels(questions if len(set(questions.values())) > 1 else {}), None
    known = Levels(questions, demonstrations.values())
    return known, Curriculum(mode, known, demonstrations, args.seed)
