"""What `sasr check` found: the figures of each split, and what is wrong, each in one line with what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sasr.check import facts
from sasr.demonstrations import empty_thought_notes, end_of_turn_id, tokenize_demonstrations, tokenize_prompts
from sasr.errors import InputError
from sasr.parsing import Settings
from sasr.rows import RowReader, check_needs, difficulty_notes
from sasr.tasks.base import Row, Task
from sasr.tasks.judging import to_judge
from sasr.tasks.loading import for_model

_SHOWN = 3  # places that a line names
_STUDIED = ("train", "demonstrations")  # splits


class Report:
    """The rows of a training, looked at.

    Args:
        task ([`Task`]), reader ([`RowReader`]), settings ([`Settings`]): Where the rows are from.
        splits (`dict`): Rows by the name of the split.
        tokenizer (*optional*): What lengths are counted with.

    Attributes:
        problems (`list[str]`): What should be mended before training.
        notes (`list[str]`): What may be as it should.
        counts (`dict`), lengths (`dict`), judged (`dict`), repeats (`dict`): By split; see [`sasr.check.facts`].
    """

    def __init__(
        self, task: Task, reader: RowReader, settings: Settings, splits: dict[str, list[Row]], tokenizer: Any = None
    ):
        self.task, self.reader, self.settings, self.splits, self.tokenizer = task, reader, settings, splits, tokenizer
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.named: dict[str, list[str]] = {}  # the places of every row that a line is about, by the line
        self.counts = {name: facts.counts(rows) for name, rows in splits.items()}
        self.lengths: dict[str, dict[str, facts.Lengths | None]] = {}
        self.judged: dict[str, facts.Judged] = {}
        self.repeats: dict[str, dict[str, int]] = {}

    def measure(self, progress: Callable[[int], None]) -> None:
        """Fill in the figures and what is wrong. `progress` is told how many demonstrations are judged."""
        train, demonstrations = self.splits["train"], self.splits.get("demonstrations", [])
        if not train and not self.problems:  # where the needs of a schedule are judged, that says it too
            self.problems.append("no training rows are left: give more data, or fewer exam_rows and validation_rows")
        notes = [*self.reader.notes(), *difficulty_notes(train, demonstrations, self.settings.training)]
        self.notes += [note.removeprefix("note: ") for note in notes]
        if self.tokenizer is not None:
            self._measure_lengths()
        done = 0

        def advance(new: int) -> None:
            progress(done + new)

        for name, rows in self.splits.items():
            self.judged[name] = facts.judge(self.task, rows, advance)
            done += self.judged[name].count
            self._say_judged(name)
        for name in self.splits:
            self._look_for_repeats(name)
        for name in ("test", "validation"):
            for other in _STUDIED:
                self._look_for_overlap(name, other)

    @property
    def to_judge(self) -> int:
        """Demonstrations that have an answer to be judged by."""
        return sum(len(to_judge(rows)) for rows in self.splits.values())

    def judge_needs(self) -> None:
        """Whether the schedule would find what it needs."""
        try:
            check_needs(self.task, self.splits["train"], self.splits.get("demonstrations", []), self.settings.training)
        except InputError as error:
            self.problems.append(str(error))

    def _measure_lengths(self) -> None:
        args, tokenizer = self.settings.training, self.tokenizer
        options = args.chat_template_kwargs or {}
        ends = [token for token in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)) if token is not None]
        for name, rows in self.splits.items():
            model = str(self.settings.model.model_name_or_path)
            asked = for_model(rows, model, tokenizer.chat_template is not None)
            places = [i for i, row in enumerate(asked) if row.get("completion")]
            taught = tokenize_demonstrations(
                [asked[i] for i in places],
                tokenizer,
                lambda p: tokenize_prompts(p, tokenizer, **options),
                ends,
                **options,
            )
            prompts = tokenize_prompts([row["prompt"] for row in asked], tokenizer, **options)
            most = args.max_completion_length
            self.lengths[name] = {
                "prompts": facts.lengths([len(ids) for ids in prompts], args.max_prompt_length),
                "demonstrations": facts.lengths([len(d.completion_ids) for d in taught], most),
            }
            self._say_long(name, places)
            if name in _STUDIED and args.kinds_of_steps(args.build_schedule())[0]:
                notes = empty_thought_notes([asked[i] for i in places], tokenizer, **options)
                self.notes += [note.removeprefix("note: ") for note in notes]

    def _say_long(self, name: str, places: list[int]) -> None:
        prompts, taught = self.lengths[name]["prompts"], self.lengths[name]["demonstrations"]
        if prompts is not None and prompts.over:
            self._problem(
                f"{len(prompts.over)} prompts of {name} are longer than max_prompt_length ({prompts.limit}), so "
                "training would not start: raise it, or drop the rows",
                name,
                prompts.over,
            )
        if taught is not None and taught.over and name in _STUDIED:
            self._note(
                f"{len(taught.over)} demonstrations of {name} are longer than max_completion_length ({taught.limit}): "
                "SFT teaches answers that rollouts and exams cut off; raise it, or drop the rows",
                name,
                [places[i] for i in taught.over],
            )

    def _say_judged(self, name: str) -> None:
        found = self.judged[name]
        if found.wrong:
            wrong = f"{len(found.wrong)} of {found.count} demonstrations of {name} are wrong by the task's own verifier"
            if name != ("demonstrations" if "demonstrations" in self.splits else "train"):
                self._problem(
                    f"{wrong}: correct the demonstration or the answer, by which others are judged", name, found.wrong
                )
            elif self.settings.task.wrong_demonstrations == "drop":
                self._note(f"{wrong}: SFT leaves them out (wrong_demonstrations drop)", name, found.wrong)
            else:
                self._problem(
                    f"{wrong}, while SFT would teach them: correct the demonstration or the answer, or leave the "
                    "question to GRPO (--wrong_demonstrations drop)",
                    name,
                    found.wrong,
                )
        if found.failed:
            reasons = "; ".join(dict.fromkeys(reason for _, reason in found.failed[:_SHOWN]))
            self._problem(
                f"{len(found.failed)} of {found.count} demonstrations of {name} could not be judged ({reasons}): "
                "correct the verifier, or give it more time",
                name,
                [i for i, _ in found.failed],
            )
        if found.malformed:
            self._note(
                f"{len(found.malformed)} of {found.count} demonstrations of {name} are right, but not in the format "
                "that is rewarded",
                name,
                found.malformed,
            )
        if found.untrue:
            self._note(
                f"{len(found.untrue)} of {found.count} demonstrations of {name} are right, but a step of them does not "
                "hold",
                name,
                found.untrue,
            )

    def _look_for_repeats(self, name: str) -> None:
        rows = self.splits[name]
        exact, alike = (facts.repeated(rows, key) for key in (facts.exactly, facts.normalised))
        self.repeats[name] = {"exactly": len(exact), "normalised": len(alike)}
        if alike:
            self._note(
                f"{len(alike)} prompts of {name} repeat another one ({len(exact)} exactly, the others in other case or "
                "spacing): they count as often as they are there",
                name,
                [i for i, _ in alike],
            )
        contrary = facts.contradictions(rows)
        if contrary:
            self._problem(
                f"{len(contrary)} rows of {name} repeat a prompt with another answer: at most one can be right",
                name,
                [i for i, _ in contrary],
            )

    def _look_for_overlap(self, name: str, other: str) -> None:
        if name not in self.splits or other not in self.splits:
            return
        rows, others = self.splits[name], self.splits[other]
        exact, alike = (facts.shared(rows, others, key) for key in (facts.exactly, facts.normalised))
        if alike:
            self._problem(
                f"{len(alike)} of {len(rows)} prompts of {name} are in {other} too ({len(exact)} exactly, the others "
                "in other case or spacing), so exams flatter: drop them from one of the two",
                name,
                [i for i, _ in alike],
            )

    def _problem(self, text: str, name: str, places: Sequence[int]) -> None:
        self.problems.append(self._placed(text, name, places))

    def _note(self, text: str, name: str, places: Sequence[int]) -> None:
        self.notes.append(self._placed(text, name, places))

    def _placed(self, text: str, name: str, places: Sequence[int]) -> str:
        every = [self.reader.place(self.splits[name][i]) for i in places]
        more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
        line = f"{text} ({', '.join(every[:_SHOWN])}{more})"
        self.named[line] = every
        return line

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        splits: dict[str, Any] = {}
        for name in self.splits:
            lengths = {
                key: found and {**asdict(found), "over": len(found.over)}
                for key, found in self.lengths.get(name, {}).items()
            }
            judged = self.judged[name]
            splits[name] = {
                **self.counts[name],
                "tokens": lengths,
                "judged": {
                    "count": judged.count,
                    **{key: len(getattr(judged, key)) for key in ("wrong", "failed", "malformed", "untrue")},
                },
                "repeated_prompts": self.repeats[name],
            }
        return {
            "task": self.task.name,
            "model": self.settings.model.model_name_or_path if self.tokenizer is not None else None,
            "splits": splits,
            "skipped": self.reader.skipped,
            "problems": [{"text": text, "rows": self.named.get(text, [])} for text in self.problems],
            "notes": [{"text": text, "rows": self.named.get(text, [])} for text in self.notes],
        }
