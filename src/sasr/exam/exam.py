"""Examine a model on held-out rows: one greedy completion and several sampled ones per row, judged by the task.

Generation is plain `model.generate`, or that of an engine that is given, so that an exam in the middle of training, one
after it, and one of a foreign checkpoint are the same code. An exam leaves the world as it found it: a run with exams
takes the same path as one without.

On several processes each examines `rows[rank::world]` with [`examine_rows`], the records are gathered, and
`summarise(merge_records(parts), samples)` is the result of all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasr.demonstrations import tokenize_prompts
from sasr.errors import InputError
from sasr.exam.engines import Engine, Progress, Sampling, TransformersEngine
from sasr.exam.generation import eos_ids_of, untouched
from sasr.exam.measures import by_difficulty, path_diversity, wrong_reason
from sasr.exam.passk import pass_at_k, proportion_interval
from sasr.tasks.base import Row, Task, Verdict
from sasr.tasks.judging import judge_all
from sasr.tasks.text import one_line
from sasr.thoughts import with_opened_thought

Record = dict[str, Any]


@dataclass(frozen=True)
class ExamResult:
    """What an exam measured. Rates are in [0, 1]; intervals are 95% bootstrap intervals over rows
    (see [`proportion_interval`]).

    A completion that the verifier could not judge counts as not correct in the accuracies, and is counted in
    `verifier_failures`: accuracy is a lower bound, off by at most failures per completion. The same holds for
    completions cut at the token limit, which are judged as they are.

    Args:
        rows (`int`): Rows examined.
        samples (`int`): Sampled completions per row.
        greedy_accuracy (`float`): Share of rows whose greedy completion is correct.
        greedy_interval (`tuple[float, float]`): Its interval.
        pass_at (`dict[int, float]`): k to mean unbiased pass@k, for those asked for or k = 1, 2, 4, ... <= `samples`;
            empty without samples. `pass_at[1]` is the mean accuracy of a sampled completion.
        pass_at_intervals (`dict[int, tuple[float, float]]`): Their intervals.
        format_rate (`float`): Share of all completions (greedy and sampled) with the task's format.
        truncation_rate (`float`): Share of all completions that had no end-of-sequence token within the limit.
        verifier_failures (`int`): Completions that the verifier could not judge.
        mean_completion_tokens (`float`): Tokens per completion, end-of-sequence token included.
        generated_tokens (`int`): Their sum.
        seconds (`float`): Wall-clock time of the exam, generation and judging.
        by_difficulty (`dict`), wrong_reason (`dict`), paths (`dict`): See [`sasr.exam.measures`].
        completions (`list[dict]`): Per row `{prompt, answer, difficulty, greedy, samples}`, where `greedy` and each
            entry of `samples` is `{text, tokens, correct, well_formed, truncated, failure, path, steps_valid}`. The
            last two are what the task says of a correct completion, and `None` for others.
    """

    rows: int
    samples: int
    greedy_accuracy: float
    greedy_interval: tuple[float, float]
    pass_at: dict[int, float]
    pass_at_intervals: dict[int, tuple[float, float]]
    format_rate: float
    truncation_rate: float
    verifier_failures: int
    mean_completion_tokens: float
    generated_tokens: int
    seconds: float
    by_difficulty: dict[str, dict[str, float | int | None]]
    wrong_reason: dict[str, float | int | None]
    paths: dict[str, Any]
    completions: list[Record] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-safe values (string keys, lists, no NaN), without `completions`."""
        figures = asdict(self)
        del figures["completions"]
        figures["greedy_interval"] = list(self.greedy_interval)
        figures["pass_at"] = {str(k): value for k, value in self.pass_at.items()}
        figures["pass_at_intervals"] = {str(k): list(value) for k, value in self.pass_at_intervals.items()}
        return figures


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Row],
    *,
    samples: int = 8,
    **options: Any,
) -> ExamResult:
    """Examine `model` on `rows` in this process. Arguments are those of [`examine_rows`]."""
    started = time.monotonic()
    records = examine_rows(model, tokenizer, task, rows, samples=samples, **options)
    return summarise(records, samples, seconds=time.monotonic() - started)


def examine_rows(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Row],
    *,
    samples: int = 8,
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    eos_token_ids: Sequence[int] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    keep_token_ids: bool = False,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Generate and judge: the heavy part of an exam. Has no collective operations, so ranks may hold unequal shares.

    Args:
        model (`PreTrainedModel`): Unwrapped, with all its parameters on this process. `None` will do where `engine` and
            `eos_token_ids` are given.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer. The padding side is of no matter.
        task (`Task`): Judges the completions, all at once, by `check_all`.
        rows (`Sequence[dict]`): Rows with `prompt` (text, or messages) and `answer`.
        samples (`int`, *optional*, defaults to `8`): Sampled completions per row; `0` for the greedy ones alone.
        max_new_tokens (`int`): Limit of a completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`): Of the sampled completions. Nothing else shapes the
            distribution: defaults of the checkpoint's generation config (top-k, top-p, penalties) do not apply.
        batch_size (`int`, *optional*, defaults to `64`): Completions generated at once.
        seed (`int`, *optional*, defaults to `0`): Of the sampling. Give ranks different ones.
        eos_token_ids (`Sequence[int]`, *optional*): Tokens that end a completion. By default those of the model's
            generation config and of the tokenizer, as in TRL.
        chat_template_kwargs (`Mapping`, *optional*): Passed to the chat template, as in `GRPOConfig`.
        keep_token_ids (`bool`, *optional*, defaults to `False`): Whether completions have their `token_ids` too.
        engine ([`Engine`], *optional*): What generates; by default `model.generate`.
        progress (`Callable[[int, int], None]`, *optional*): Called after each batch with completions generated so
            far and in all.

    Returns:
        `list[dict]`: Per row, in the order of `rows`, a JSON-safe record (see [`ExamResult`]).

    Raises:
        InputError: No rows, a row without prompt or answer, a number out of range, or no end-of-sequence token.
    """
    if not rows:
        raise InputError("the exam has no rows; give held-out rows with prompt and answer")
    for index, row in enumerate(rows):
        if row.get("answer") is None:
            raise InputError(f"row {index} of the exam has no answer, so a completion of it cannot be judged")
    for name, value, least in (
        ("samples", samples, 0),
        ("max_new_tokens", max_new_tokens, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise InputError(f"{name} of the exam must be at least {least}, got {value}")
    if samples and not temperature > 0:
        raise InputError(f"temperature of the exam must be positive, got {temperature}; greedy decoding is done anyway")
    eos_ids = eos_ids_of(model.generation_config if model is not None else None, tokenizer, eos_token_ids)
    # Exactly as GRPO tokenises them: the exam asks what training asked.
    template = dict(chat_template_kwargs or {})
    prompt_ids = tokenize_prompts([row["prompt"] for row in rows], tokenizer, **template)
    for index, ids in enumerate(prompt_ids):
        if not ids:
            raise InputError(f"the prompt of row {index} of the exam has no tokens")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    sampling = Sampling(max_new_tokens, temperature, eos_ids, pad_id, batch_size, seed)
    if engine is None:
        assert model is not None
        engine = TransformersEngine(model)
    with untouched(torch.nn.Module() if model is None else model, seed), torch.no_grad():
        completion_ids = engine.complete(prompt_ids, samples, sampling, progress)
        flat = [ids for of_row in completion_ids for ids in of_row]
        texts = tokenizer.batch_decode(flat, skip_special_tokens=True)
        asked = [row for row in rows for _ in range(1 + samples)]
        turns = with_opened_thought([row["prompt"] for row in asked], texts, tokenizer, **template)
        verdicts = judge_all(task, turns, asked)
    step = 1 + samples
    judged = [
        {
            "text": text,
            "tokens": len(ids),
            "correct": bool(verdict.correct),
            "well_formed": bool(verdict.well_formed),
            "truncated": ids[-1] not in eos_ids,
            **_reasoning(task, turn, row, verdict),
            **({"token_ids": ids} if keep_token_ids else {}),
        }
        for ids, text, turn, row, verdict in zip(flat, texts, turns, asked, verdicts, strict=True)
    ]
    return [
        {
            "prompt": row["prompt"],
            "answer": row["answer"],
            "difficulty": row.get("difficulty"),
            "greedy": judged[i * step],
            "samples": judged[i * step + 1 : (i + 1) * step],
        }
        for i, row in enumerate(rows)
    ]


def _reasoning(task: Task, text: str, row: Row, verdict: Verdict) -> Record:
    """Only of correct completions, the only ones that are looked at: on MATH it takes longer than the check."""
    path = steps_valid = None
    failure = verdict.failure
    if verdict.correct:
        try:
            path = task.path(text, row)
            # As text, because JSON has no tuples and lists cannot be counted.
            path = path if path is None or isinstance(path, str) else " ; ".join(path)
            steps_valid = task.steps_valid(text, row)
        except Exception as error:  # in a task of the user's own, hours into a run
            path, failure = None, f"path or steps_valid: {type(error).__name__}: {one_line(error, 150)}"
    return {"failure": failure, "path": path, "steps_valid": steps_valid}


def merge_records(parts: Sequence[Sequence[Record]]) -> list[Record]:
    """Records of `rows[rank::world]` of each rank, `parts[rank]`, in the order of `rows`."""
    merged: list[Record] = [{}] * sum(len(part) for part in parts)
    for rank, part in enumerate(parts):
        merged[rank :: len(parts)] = part
    return merged


def summarise(
    records: Sequence[Record], samples: int, *, ks: Sequence[int] = (), seconds: float = 0.0, seed: int = 0
) -> ExamResult:
    """The result of an exam from its records. Pure: the same records give the same figures.

    Args:
        records (`Sequence[dict]`): From [`examine_rows`], of all ranks.
        samples (`int`): Sampled completions per row.
        ks (`Sequence[int]`, *optional*): Which k of pass@k; by default the powers of two up to `samples`.
        seconds (`float`, *optional*, defaults to `0.0`): Wall-clock time to report.
        seed (`int`, *optional*, defaults to `0`): Of the bootstrap.

    Raises:
        InputError: No records, or one with another number of samples.
    """
    if not records:
        raise InputError("the exam has no records to summarise")
    for index, record in enumerate(records):
        if len(record["samples"]) != samples:
            raise InputError(f"record {index} of the exam has {len(record['samples'])} samples instead of {samples}")
    greedy = [float(record["greedy"]["correct"]) for record in records]
    correct = np.array([sum(sample["correct"] for sample in record["samples"]) for record in records])
    passes = {k: pass_at_k(samples, correct, k) for k in ks or [2**e for e in range(samples.bit_length())]}
    every = [completion for record in records for completion in (record["greedy"], *record["samples"])]
    tokens = sum(completion["tokens"] for completion in every)
    return ExamResult(
        rows=len(records),
        samples=samples,
        greedy_accuracy=float(np.mean(greedy)),
        greedy_interval=proportion_interval(greedy, seed=seed),
        pass_at={k: float(values.mean()) for k, values in passes.items()},
        pass_at_intervals={k: proportion_interval(values, seed=seed) for k, values in passes.items()},
        format_rate=float(np.mean([completion["well_formed"] for completion in every])),
        truncation_rate=float(np.mean([completion["truncated"] for completion in every])),
        verifier_failures=sum(completion["failure"] is not None for completion in every),
        mean_completion_tokens=tokens / len(every),
        generated_tokens=tokens,
        seconds=seconds,
        by_difficulty=by_difficulty(records),
        wrong_reason=wrong_reason(records),
        paths=path_diversity(records),
        completions=list(records),
    )
