"""The rows of a run of the command line: those to train on, and those held out for exams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from . import curriculum
from .checkpoints import digest_rows, write_atomically
from .config import SASRConfig
from .counting import counted
from .demonstrations import tokenize_prompts
from .errors import InputError
from .held_out import kept_from_sft
from .task_config import TaskConfig
from .tasks.base import Row, Task, hold_out, question_of, text_of
from .tasks.judging import judged_demonstrations, to_judge
from .tasks.loading import generated_rows, located_rows
from .trained_on import WRONG_FILE


class RowReader:
    """Reads the rows of a task, and remembers where each comes from and what was left out.

    Args:
        task ([`Task`]): Whose rows.
        bad_rows (`str`): As in [`TaskConfig`].
        earlier (`Path`, *optional*): Directory of a run whose verdicts on the same demonstrations count again: a
            verifier that fails now and then would find others wrong.

    Attributes:
        skipped (`list[str]`): What is wrong with each record that was left out.
        wrong (`list[str]`): Where the demonstrations are that were left out for being wrong.
        held_out (`list[str]`): Where those are that were left out because their questions are held out.
        others (`list[str]`): Further notes, of whoever reads with it.
    """

    def __init__(self, task: Task, bad_rows: str = "error", earlier: Path | None = None):
        self.task, self.bad_rows, self.earlier = task, bad_rows, earlier
        self.skipped: list[str] = []
        self.wrong: list[str] = []
        self.held_out: list[str] = []
        self.others: list[str] = []
        self._places: dict[int, tuple[str, Row]] = {}
        self._verdicts: dict[str, Any] | None = None
        self._of_sft_trainer: set[str] = set()  # columns that TRL's SFTTrainer renders with each row

    def load(self, data: str | None, split: Literal["train", "test"]) -> list[Row]:
        """As [`sasr.tasks.load_rows`]."""
        return self._known(located_rows(self.task, data, split, self.skipped if self.bad_rows == "skip" else None))

    def generate(self, count: int | None, seed: int | None, split: Literal["train", "test"]) -> list[Row]:
        """As [`Task.generate`]."""
        return self._known(generated_rows(self.task, count, seed, split))

    def place(self, row: Row) -> str:
        """Where a row comes from, such as `rows.jsonl:12`."""
        return self._places[id(row)][0]

    def without_wrong(self, rows: list[Row]) -> list[Row]:
        """The rows, without the demonstrations that the task's own verifier rejects. All processes leave out alike."""
        digest = digest_rows(rows)
        known = None if self.earlier is None else _verdicts(self.earlier / WRONG_FILE)
        main = PartialState().is_main_process
        if main and (known is None or known["rows"] != digest):
            known = {"rows": digest, "wrong": self._judged(rows)}
        if PartialState().num_processes > 1:  # whatever the others can read: theirs may be another disk
            known = broadcast_object_list([known])[0]
        assert known is not None
        self._verdicts = known
        self.wrong += [self.place(rows[i]) for i in known["wrong"]]
        wrong = set(known["wrong"])
        return [self.changed(row, completion=None) if i in wrong else row for i, row in enumerate(rows)]

    def _judged(self, rows: list[Row]) -> list[int]:
        verdicts = counted(judged_demonstrations(self.task, rows), len(to_judge(rows)), "demonstrations judged")
        return sorted(i for i, verdict in verdicts if verdict.failure is None and not verdict.correct)

    def keep_verdicts(self, directory: Path) -> None:
        """Write which demonstrations were left out into the directory of the run, for when it goes on."""
        if self._verdicts is not None:
            write_atomically(directory / WRONG_FILE, json.dumps(self._verdicts) + "\n")

    def notes(self) -> list[str]:
        """What was left out, a line each."""
        lines = [*self.others]
        for name in sorted(self._of_sft_trainer):
            lines.append(f"note: the column {name} of the rows is in no prompt: write it into the messages")
        if self.skipped:
            lines.append(f"note: {len(self.skipped)} records left out (bad_rows skip), the first: {self.skipped[0]}")
        if self.held_out:
            lines.append(
                f"note: {len(self.held_out)} demonstrations are of questions that are held out for exams, and SFT "
                f"leaves them out, the first: {self.held_out[0]}"
            )
        if self.wrong:
            lines.append(
                f"note: {len(self.wrong)} demonstrations are wrong by the task's own verifier, and SFT leaves them out "
                f"(wrong_demonstrations drop), the first: {self.wrong[0]}"
            )
        return lines

    def changed(self, row: Row, **changes: Any) -> Row:
        """The row with other values, from the same place."""
        new = {**row, **changes}
        self._places[id(new)] = (self.place(row), new)
        return new

    def _known(self, located: list[tuple[str, Row]]) -> list[Row]:
        # By identity, with the row beside it: as long as it is kept, no other object has its id.
        self._places.update((id(row), (where, row)) for where, row in located)
        names = ("tools", "chat_template_kwargs")
        self._of_sft_trainer |= {name for _, row in located for name in names if row.get(name)}
        return [row for _, row in located]


def _verdicts(file: Path) -> dict[str, Any] | None:
    """What [`RowReader.keep_verdicts`] wrote; `None` if it is not there, or not as it was written."""
    try:
        found = json.loads(file.read_text())
        return {"rows": str(found["rows"]), "wrong": [int(i) for i in found["wrong"]]}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def collect_rows(
    task: Task, config: TaskConfig, args: SASRConfig, reader: RowReader | None = None
) -> tuple[list[Row], list[Row], list[Row]]:
    """(training rows, rows of a separate demonstration file, held-out rows of the split that the exams use). Raises
    `InputError` for a task that lacks what the schedule needs."""
    reader = RowReader(task, config.bad_rows) if reader is None else reader
    rows, held_out = all_rows(reader, config, args.seed)
    demonstrations = separate_demonstrations(reader, config, held_out)
    if config.wrong_demonstrations == "drop":
        if config.demonstrations:  # the rows' own are not studied then
            demonstrations = studied = reader.without_wrong(demonstrations)
        else:
            rows = studied = reader.without_wrong(rows)
        if reader.wrong and not any(row.get("completion") for row in studied):
            raise InputError(
                f"all {len(reader.wrong)} demonstrations are wrong by the verifier of task {task.name} (the first: "
                f"{reader.wrong[0]}), and wrong_demonstrations drop leaves them out: correct them, or their answers"
            )
    check_needs(task, rows, demonstrations, args)
    return rows, demonstrations, _with_answer(held_out[config.exam_split])


def separate_demonstrations(reader: RowReader, config: TaskConfig, held_out: dict[str, list[Row]]) -> list[Row]:
    """The rows of the file of demonstrations, if there is one, without those of questions that were set apart: SFT
    would study the worked solutions of the exam. Raises `InputError` if nothing is left."""
    if not config.demonstrations:
        return []
    apart = _set_apart(config, held_out["test"], held_out["validation"])
    left, solved = list[Row](), list[Row]()
    for row in reader.load(config.demonstrations, "train"):
        (solved if question_of(row["prompt"]) in apart else left).append(row)
    reader.held_out += [reader.place(row) for row in solved]
    if solved and not any(row.get("completion") for row in left):
        raise InputError(
            f"all {len(solved)} demonstrations are of questions that are held out for exams (the first: "
            f"{reader.held_out[0]}): add some of other questions, or ask others in the exams (exam_data)"
        )
    return left


def check_needs(task: Task, rows: list[Row], demonstrations: list[Row], args: SASRConfig) -> None:
    """Raise `InputError` if the schedule needs demonstrations or answers that there are not."""
    if not rows:
        raise InputError("no training rows are left: give more data, or fewer exam_rows and validation_rows")
    uses_sft, uses_grpo = args.kinds_of_steps(args.build_schedule())
    prompts = [text_of(row["prompt"]) for row in demonstrations or rows if row.get("completion")]
    if uses_sft and not prompts:
        raise InputError(
            f"task {task.name} has no demonstrations, but there are SFT steps or probes: add completions, or use grpo"
        )
    kept_from_sft(prompts, args)
    if uses_grpo and not any(row.get("answer") is not None for row in rows):
        raise InputError(
            f"task {task.name} has no answers to verify, but there are GRPO steps: add answers, or use sft"
        )


def difficulty_notes(rows: list[Row], demonstrations: list[Row], args: SASRConfig) -> list[str]:
    """A note if there is to be SFT and GRPO, and GRPO asks what is harder than all that SFT shows."""
    harder, schedule = harder_than_shown(rows, demonstrations), args.build_schedule()
    if not harder or not all(args.kinds_of_steps(schedule)):
        return []
    levels = ", ".join(f"{level:g}" for level in harder[:3]) + (", ..." if len(harder) > 3 else "")
    what = f"note: the questions of difficulty {levels} are harder than every demonstration"
    mode = curriculum.chosen_mode(args, schedule, harder)
    if mode == "none":
        return [f"{what}, and SFT may teach to answer them as if they were easy: --curriculum adaptive has helped"]
    if args.curriculum == "auto":
        return [f"{what}: after the warm-up those are asked most that succeed now and then (--curriculum {mode})"]
    return []


def harder_than_shown(rows: Sequence[Row], demonstrations: Sequence[Row]) -> list[float]:
    """The difficulties of verifiable questions that are above those of all demonstrations, in ascending order; none if
    they are few, or a row has no difficulty."""
    shown = [row for row in demonstrations or rows if row.get("completion")]
    asked = [row for row in rows if row.get("answer") is not None]
    try:
        known, levels = ([curriculum.level_of(row.get("difficulty"), "") for row in part] for part in (shown, asked))
    except InputError:
        return []
    return curriculum.harder_than_shown(levels, known)


def held_out_rows(reader: RowReader, config: TaskConfig, seed: int) -> list[Row]:
    """The rows that a run with these settings examines its model on."""
    return _with_answer(all_rows(reader, config, seed)[1][config.exam_split])


def all_rows(
    reader: RowReader, config: TaskConfig, seed: int, whole_exam: bool = False
) -> tuple[list[Row], dict[str, list[Row]]]:
    """(training rows, held-out rows by split), the rows without an answer among them. With `whole_exam` the test rows
    are all those of `exam_data`, if it is given, instead of `exam_rows` different ones."""
    test = None
    if config.exam_data is not None:
        test = reader.load(config.exam_data, "test")
        # As many as are wanted of those that can be judged.
        test = test if whole_exam else hold_out(_with_answer(test), config.exam_rows)[1]
    if config.data is None and reader.task.generates:
        rows, held_out = _generated(reader, config, seed, test)
    else:
        rows, held_out = _split(reader.load(config.data, "train"), config, test)
    if config.train_rows is not None:
        rows = rows[: config.train_rows]
    if config.demonstration_rows is not None:
        kept = config.demonstration_rows
        rows = [row if i < kept else reader.changed(row, completion=None) for i, row in enumerate(rows)]
    return rows, held_out


def seen_in(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Those of `rows` whose question is one of `others` too."""
    known = _questions(others)
    return [row for row in rows if question_of(row["prompt"]) in known]


def overlap_notes(asked: list[Row], rows: list[Row], demonstrations: list[Row]) -> list[str]:
    """A note if what exams ask is studied as well, which no split of one file brings about."""
    seen = len(seen_in(asked, [*rows, *(row for row in demonstrations if row.get("completion"))]))
    if not seen:
        return []
    studied = "training rows or demonstrations" if demonstrations else "training rows"
    return [
        f"note: {seen} of the {len(asked)} rows of the exams are {studied} too, so the exams flatter: "
        "take them out of one of the files (sasr check names them)"
    ]


def _with_answer(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("answer") is not None]


def _generated(
    reader: RowReader, config: TaskConfig, seed: int, test: list[Row] | None
) -> tuple[list[Row], dict[str, list[Row]]]:
    rows = reader.generate(config.train_rows, seed, "train")
    if test is not None:
        return _split(rows, config, test)
    count = config.exam_rows + config.validation_rows
    held_out = reader.generate(count, seed, "test") if count else []
    # The test rows come first: how many validation rows follow does not change them.
    return rows, {"test": held_out[: config.exam_rows], "validation": held_out[config.exam_rows :]}


def _split(rows: list[Row], config: TaskConfig, test: list[Row] | None) -> tuple[list[Row], dict[str, list[Row]]]:
    """Set held-out rows apart: the test rows too unless they are given, then those for validation, by the same hash
    order, so that the test rows are the same with and without validation rows."""
    verifiable = [row for row in rows if row.get("answer") is not None]
    # The exam may not eat up a small dataset: a tenth of its questions at most, for each of the two. All rows of a
    # question leave with it.
    most = max(len({text_of(row["prompt"]) for row in verifiable}) // 10, 1)
    if test is None:
        test = hold_out(verifiable, min(config.exam_rows, most))[1]
    tested = _questions(test)
    others = [row for row in verifiable if question_of(row["prompt"]) not in tested]
    validation = hold_out(others, min(config.validation_rows, most))[1]
    apart = _set_apart(config, test, validation)
    return [row for row in rows if question_of(row["prompt"]) not in apart], {"test": test, "validation": validation}


def _set_apart(config: TaskConfig, test: list[Row], validation: list[Row]) -> set[str]:
    """The questions that must not be studied. Those of `exam_data` may be: it is for the user to say which file they
    are to be taken out of."""
    return _questions(validation) | (_questions(test) if config.exam_data is None else set())


def _questions(rows: Sequence[Row]) -> set[str]:
    return {question_of(row["prompt"]) for row in rows}


def check_lengths(rows: list[Row], tokenizer, args: SASRConfig) -> int:
    """Raise `InputError` for the first prompt that is longer than `max_prompt_length`. Returns the length of the
    longest."""
    longest, limit = 0, args.max_prompt_length
    options = args.chat_template_kwargs or {}
    for row, ids in zip(rows, tokenize_prompts([row["prompt"] for row in rows], tokenizer, **options), strict=True):
        if limit is not None and len(ids) > limit:
            text = " ".join(str(row["prompt"]).split())[:60]
            raise InputError(
                f"a prompt has {len(ids)} tokens, more than max_prompt_length ({limit}): raise the limit or drop the "
                f"row that begins {text!r}"
            )
        longest = max(longest, len(ids))
    return longest


def positions_of(model_config: Any) -> tuple[int | None, bool]:
    """For how many tokens a model was made, `None` where nothing says, and whether it reads on beyond, as with rotary
    positions."""
    config = model_config.get_text_config()
    return getattr(config, "max_position_embeddings", None), bool(getattr(config, "rope_parameters", None))


def check_positions(
    longest: int, model_config: Any, most: int, setting: str = "max_completion_length", hard: bool = False
) -> list[str]:
    """Of the longest prompt with a completion of at most so many tokens, which a setting decides: a line to print where
    they are more than the model was made for, and `InputError` where it has no positions for them, or where the
    engine takes no more (`hard`)."""
    positions, goes_beyond = positions_of(model_config)
    if positions is None or longest + most <= positions:
        return []
    fact = f"a prompt has {longest} tokens, which with {setting} ({most}) is more"
    if goes_beyond and not hard:  # and few completions are that long
        return [f"note: {fact} than the {positions} tokens that the model was made for"]
    raise InputError(f"{fact} than the {positions} positions of the model: lower {setting}, or leave the row out")


def check_readable(length: int, model_config: Any, where: str, remedy: str) -> None:
    """Raise `InputError` for a demonstration of so many tokens, its prompt included, if the model has no positions for
    them."""
    positions, goes_beyond = positions_of(model_config)
    if positions is not None and length > positions and not goes_beyond:
        raise InputError(f"{where} has {length} tokens, more than the {positions} positions of the model: {remedy}")
