"""The tasks of the package reasoning-gym: questions without end, each judged by its own scorer."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from sasr.counting import counted
from sasr.errors import InputError, did_you_mean, unknown
from sasr.tasks.base import Row, Task, Verdict
from sasr.tasks.gym_worker import CHUNK
from sasr.tasks.stories import split_of
from sasr.tasks.text import after_thinking, one_line, required_text
from sasr.tasks.worker import Worker

PREFIX = "reasoning_gym/"
INSTRUCTION = "Give the final answer between <answer> and </answer>."
REFUSED = {
    "composite": "it mixes other tasks: name one of them",
    "game_of_life_halting": "its scorer takes any text for right",
    "propositional_logic": "a premise copied from the question is right",
}
# No answer of a task comes near; a longer text is wrong, and is not worth the scorer's time.
LONGEST_ANSWER = 10_000
# What a scorer calls right although it is not: the distance to NaN counts as none.
_NEVER_RIGHT = {"complex_arithmetic": re.compile("nan", re.IGNORECASE)}
_NUMBERS = {"train": 1000, "test": 200}
# Making a question may be a search; the answer to one is judged in a moment.
_MAKE_LIMIT, _SCORE_LIMIT = 60.0, 10.0
# So many in a row without a new question mean that (nearly) all have been asked; so many failures, that there are none.
_PATIENCE, _FAILURES = 2000, 20
# One for all tasks of the process: starting it takes seconds.
WORKER = Worker("sasr.tasks.gym_worker", _SCORE_LIMIT)


class ReasoningGymTask(Task):
    """One task of reasoning-gym. A row keeps the seed and the index of its entry, from which the entry is made again,
    exactly, for its scorer. Right is what gets the full score.

    A hash of the question decides which split it belongs to, so no question is in both splits whatever the seeds and
    sizes. Demonstrations are the worked solutions of `gsm_symbolic`; the other tasks have none.

    Args:
        dataset (`str`): Its name in reasoning-gym.
        options (`Mapping`, *optional*): Fields of its configuration there, but `seed` and `size`.
    """

    def __init__(self, dataset: str, options: Mapping[str, Any] | None = None):
        self.name = PREFIX + dataset  # type: ignore[misc]
        self.dataset = dataset
        self.options = dict(options or {})
        if importlib.util.find_spec("reasoning_gym") is None:
            raise InputError(f"task {self.name} needs the package reasoning-gym: pip install 'sasr[gym]'")
        described = self._ask("describe", _MAKE_LIMIT)
        if "error" in described:
            raise InputError(f"task {self.name}: reasoning-gym does not work ({described['error']}): reinstall it")
        if "tasks" in described:
            hint = did_you_mean(dataset, described["tasks"]) or ", such as chain_sum: see its GALLERY.md"
            raise InputError(f"unknown task {self.name!r}: reasoning-gym has {len(described['tasks'])} others{hint}")
        if dataset in REFUSED:
            raise InputError(f"task {self.name} cannot be used: {REFUSED[dataset]}")
        for name in self.options:
            if name in ("seed", "size"):
                raise InputError(f"task {self.name}: {name} is no option: set the run's seed, train_rows, exam_rows")
            if name not in described["options"]:
                raise unknown(f"option of task {self.name}", name, described["options"])
        if described["refused"]:
            raise InputError(f"task {self.name}: wrong options: {one_line(described['refused'], 150)}")

    def generate(
        self, count: int | None = None, seed: int | None = None, split: Literal["train", "test"] = "train"
    ) -> list[Row]:
        """`count` different questions of one split. The same arguments give the same questions, and a larger count
        continues a smaller one."""
        count = _NUMBERS[split] if count is None else count
        return list(counted(self._questions(count, seed or 0, split), count, f"questions of {self.name} made"))

    def _questions(self, count: int, seed: int, split: str) -> Iterator[Row]:
        asked: set[str] = set()
        index = last_new = last_made = 0
        while len(asked) < count:
            place = {"gym_seed": _seed(seed, index // CHUNK), "gym_index": index % CHUNK}
            made = self._ask("make", _MAKE_LIMIT, place)
            index += 1
            if "error" in made:
                if index - last_made > _FAILURES or made["error"] == "timeout":
                    raise InputError(f"task {self.name} makes no question ({made['error']}): change task_options")
                continue
            last_made = index
            row = self._row(made, place)
            if row["prompt"] not in asked and split_of(row["prompt"]) == split:
                asked.add(row["prompt"])
                last_new = index
                yield row
            elif index - last_new > _PATIENCE:
                raise InputError(
                    f"task {self.name}: only {len(asked)} different questions found for split '{split}', not {count}; "
                    "ask for fewer (train_rows, exam_rows), or change task_options"
                )

    def _row(self, made: Mapping[str, Any], place: Mapping[str, int]) -> Row:
        completion = None
        if made["solution"]:
            steps = re.sub(r"\s*####[^\n]*\s*$", "", made["solution"])
            completion = f"{steps.strip()}\n<answer>{made['answer']}</answer>"
        return {
            "prompt": f"{made['question'].strip()}\n\n{INSTRUCTION}\n",
            "completion": completion,
            # There may be many right ones and none at hand; a row without an answer would serve SFT only.
            "answer": "(any that the scorer accepts)" if made["answer"] is None else made["answer"],
            "difficulty": made["difficulty"],
            **place,
        }

    def to_row(self, record: Mapping[str, Any]) -> Row:
        """A row that was written before, or one's own demonstration: prompt and completion."""
        prompt, *_ = required_text(record, "prompt")
        place = {key: record.get(key) for key in ("gym_seed", "gym_index")}
        judged = all(isinstance(value, int) for value in place.values())
        kept = {key: record.get(key) for key in ("completion", "difficulty")}
        return {"prompt": prompt, "answer": record.get("answer") if judged else None, **kept, **place}

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        return self.check_all([completion], [row])[0]

    def check_all(self, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        judged: dict[tuple[Any, ...], dict[str, Any]] = {}
        verdicts = []
        for completion, row in zip(completions, rows, strict=True):
            key = (final_answer(completion), row.get("gym_seed"), row.get("gym_index"))
            if key not in judged:
                judged[key] = self._judge(*key)
            reply = judged[key]
            # Scores are sums and ratios of floats.
            correct = reply.get("score", 0.0) >= 1 - 1e-9
            verdicts.append(Verdict(correct, self.well_formed(completion), reply.get("error")))
        return verdicts

    def _judge(self, text: str | None, seed: int | None, index: int | None) -> dict[str, Any]:
        never = _NEVER_RIGHT.get(self.dataset)
        if text is None or seed is None or len(text) > LONGEST_ANSWER or (never and never.search(text)):
            return {}
        place = {"gym_seed": seed, "gym_index": index}
        # Made first, so that the time for that is no part of the time for the answer.
        made = self._ask("make", _MAKE_LIMIT, place)
        return made if "error" in made else self._ask("score", _SCORE_LIMIT, place, text)

    def well_formed(self, completion: str) -> bool:
        completion = after_thinking(completion)
        once = completion.count("<answer>") == completion.count("</answer>") == 1
        return once and bool(final_answer(completion))

    def _ask(
        self, what: str, limit: float, place: Mapping[str, Any] | None = None, text: str | None = None
    ) -> dict[str, Any]:
        question: dict[str, Any] = {"do": what, "task": self.dataset, "options": self.options, "text": text}
        if place is not None:
            question |= {"seed": place["gym_seed"], "index": place["gym_index"]}
        return WORKER.ask(question, limit)


def final_answer(completion: str) -> str | None:
    """What the last `<answer>` after all thinking holds; `None` without one that is closed."""
    _, opened, rest = after_thinking(completion).rpartition("<answer>")
    inside, closed, _ = rest.partition("</answer>")
    return inside.strip() if opened and closed else None


def _seed(seed: int, chunk: int) -> int:
    # Entries come from the sum of seed and index, so those of neighbouring seeds would be the same but for one.
    return int.from_bytes(hashlib.sha256(f"{seed}/{chunk}".encode()).digest()[:4]) >> 1
