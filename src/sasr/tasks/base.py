"""What a task is: rows, a reward, an answer check, a held-out split.

A task turns records of a published dataset into rows

    {"prompt": str, "completion": str | None, "answer": str | None, "difficulty": int | None}

and judges a completion against a row's answer. Nothing here knows the trainer, torch or a tokenizer.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sasr.errors import InputError, unknown

if TYPE_CHECKING:
    from sasr.tasks.judging import OwnJudge

Row = dict[str, Any]
# Gives the columns that change, or None where the row cannot be perturbed so.
Perturber = Callable[[Row, random.Random], Row | None]


@dataclass(frozen=True)
class Verdict:
    """What the answer check says of one completion.

    Args:
        correct (`bool`): The final answer is right.
        well_formed (`bool`): The completion has the format that the task asks for.
        failure (`str` or `None`): Why the verifier could not judge (time-out, crash). Then `correct` is `False`, and
            the completion is to be counted apart from wrong answers.
    """

    correct: bool
    well_formed: bool
    failure: str | None = None


class Task(ABC):
    """Base class of all tasks. A new task is one file with one subclass, and one line in `tasks/__init__.py`.

    Class attributes:
        name: What `--task` calls it.
        default_data: Dataset on the Hub (`owner/name` or `owner/name:config`) when no file is given; `None` for tasks
            that generate their rows or need a file.
        judged_apart: Whether the completions of a task named `module:object` are judged in a process of its own, which
            is killed when it hangs. `False` for one that has to share this process's memory.
        check_timeout: Seconds that the check of one completion may take there.
    """

    name: ClassVar[str]
    default_data: ClassVar[str | None] = None
    judged_apart: ClassVar[bool] = True
    check_timeout: ClassVar[float] = 10.0
    judge: OwnJudge | None = None

    @abstractmethod
    def to_row(self, record: Mapping[str, Any]) -> Row:
        """One record in the dataset's published schema as a row. Raises `InputError` naming the missing field."""

    @abstractmethod
    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        """Judge the text of one completion against `row["answer"]`. Never raises on model output."""

    @abstractmethod
    def well_formed(self, completion: str) -> bool:
        """Whether the completion has the format that the task asks for, right or wrong. Fast, never raises."""

    def hub_query(self, config: str | None, split: str) -> tuple[str | None, str]:
        """Configuration and split to ask the Hub for, given what follows the colon in `owner/name:config` and
        `"train"` or `"test"`. For datasets that lay out their splits differently."""
        return config, split

    def generate(
        self, count: int | None = None, seed: int | None = None, split: Literal["train", "test"] = "train"
    ) -> list[Row]:
        """`count` rows of a split, for tasks that need no data. No prompt may be in both splits."""
        raise InputError(f"task {self.name} does not generate rows: give --data")

    @property
    def generates(self) -> bool:
        """Whether the task has a `generate` of its own."""
        return type(self).generate is not Task.generate

    def vocabulary_texts(self) -> list[str]:
        """Texts that together have every word that can occur: what a tiny from-scratch model's tokenizer is made from.
        None by default: such models cannot learn the task."""
        return []

    def stated(self, answer: str) -> tuple[str, ...]:
        """Completions that state an answer, in every form that `check` reads. A record whose answer none of them gets
        right is refused: nothing ever could. None by default: then answers are not tried."""
        return ()

    def path(self, completion: str, row: Mapping[str, Any]) -> tuple[str, ...] | str | None:
        """The way of reasoning that a completion takes, in a form in which equal ways are equal: what exams count as
        different solutions of one problem. `None` where it cannot be told. Never raises on model output."""
        return None

    def steps_valid(self, completion: str, row: Mapping[str, Any]) -> bool | None:
        """Whether the steps of a completion hold, whatever its answer: a right answer with a step that does not is
        right for the wrong reason. `None` where it cannot be checked. Never raises on model output."""
        return None

    def perturbers(self) -> Mapping[str, Perturber]:
        """How the rows of this task can be perturbed, by name. None by default."""
        return {}

    def perturbations(self) -> tuple[str, ...]:
        """The kinds of perturbation that `perturb` knows."""
        return tuple(self.perturbers())

    def perturb(self, row: Row, kind: str, seed: int) -> Row | None:
        """The row with another prompt and the answer (and, where there is one, the demonstration) that belongs to it;
        `original_prompt` has the prompt that it was made from. `None` if this row cannot be perturbed so: its text is
        not what the task knows to take apart, or it has nothing to change. The same arguments give the same row."""
        perturbers = self.perturbers()
        if kind not in perturbers:
            if not perturbers:
                raise InputError(f"task {self.name} has no perturbations; give it perturbers()")
            raise unknown(f"perturbation of task {self.name}", kind, perturbers)
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            return None
        changes = perturbers[kind](row, random.Random(f"{seed}/{kind}/{prompt}"))
        if changes is None or changes["prompt"] == prompt:
            return None
        return {**row, **changes, "original_prompt": prompt}

    def check_all(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Judge many; a task whose verifier can batch overrides this."""
        return [self.check(completion, row) for completion, row in zip(completions, rows, strict=True)]

    def reward_funcs(self) -> list[Callable[..., list[float | None]]]:
        """Rewards in TRL's form, in this order: correctness, format. A completion that the verifier could not judge
        gets `None` from both: TRL leaves it out of its group, and [`SASRTrainer`] counts it in `verifier_failures`."""
        judged = _Judged(self)
        return [_Correctness(judged), _Format(judged)]


class _Judged:
    """The verdicts of the last completions, which both rewards ask for: a check may be expensive."""

    def __init__(self, task: Task):
        self.task = task
        self._asked: tuple[list[str], list[Row]] | None = None
        self._verdicts: list[Verdict] = []

    def __call__(self, prompts: list, completions: Sequence[Any], columns: Mapping[str, Any]) -> list[Verdict]:
        from sasr.tasks.judging import judge_all

        lists = {key: value for key, value in columns.items() if isinstance(value, list)}
        if prompts:
            lists["prompt"] = prompts  # which TRL gives by another name; a row is to be whole, as in exams
        rows = [{key: value[i] for key, value in lists.items()} for i in range(len(completions))]
        asked = [text_of(completion) for completion in completions], rows
        if asked != self._asked:
            self._verdicts = judge_all(self.task, *asked)
            self._asked = asked
        return self._verdicts


class _Correctness:
    __name__ = "correctness"
    reads_opened_thought = True  # completions begin with the `<think>` that ended their prompts
    judges = True  # no other reward can make up for one that it does not give

    def __init__(self, judged: _Judged):
        self.judged = judged
        self.failures: list[str] = []

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        verdicts = self.judged(prompts, completions, columns)
        self.failures = [verdict.failure for verdict in verdicts if verdict.failure is not None]
        return [None if verdict.failure is not None else float(verdict.correct) for verdict in verdicts]


class _Format:
    __name__ = "format"
    reads_opened_thought = True

    def __init__(self, judged: _Judged):
        self.judged = judged

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        # None with that of correctness: a completion without any reward is left out of its group, one with this reward
        # alone would be taken for a wrong one.
        verdicts = self.judged(prompts, completions, columns)
        return [None if verdict.failure is not None else float(verdict.well_formed) for verdict in verdicts]


def text_of(value: Any) -> str:
    """The text of a prompt or completion, standard (`str`) or conversational (list of messages)."""
    if isinstance(value, str):
        return value
    return "\n".join(str(message.get("content") or "") for message in value)


def question_of(prompt: Any) -> str:
    """What a prompt asks, for telling whether two ask the same: its text without regard to case, spacing and how
    accents are encoded. Copies of a dataset differ in these."""
    return " ".join(unicodedata.normalize("NFC", text_of(prompt)).casefold().split())


def hold_out(rows: Sequence[Row], count: int) -> tuple[list[Row], list[Row]]:
    """Split rows into (train, held-out) by a hash of the prompt: the same for every seed and row order, and no
    question on both sides even when the data repeats it."""
    ranked = sorted({_digest(row["prompt"]) for row in rows})
    chosen = set(ranked[:count])
    held: dict[str, Row] = {}
    for row in rows:
        if _digest(row["prompt"]) in chosen:
            held.setdefault(_digest(row["prompt"]), row)
    questions = {question_of(row["prompt"]) for row in held.values()}
    train = [row for row in rows if question_of(row["prompt"]) not in questions]
    return train, [held[key] for key in ranked[:count]]


def _digest(prompt: Any) -> str:
    return hashlib.sha256(text_of(prompt).encode()).hexdigest()
