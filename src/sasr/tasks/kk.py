"""Knights and Knaves: logic puzzles whose answer is a role for every person."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from sasr.errors import InputError
from sasr.tasks.base import Perturber, Row, Task, Verdict
from sasr.tasks.text import after_thinking, one_line, required, required_text, unified

MARK = "CONCLUSION:"
INSTRUCTION = (
    f"Think step by step, and end with `{MARK}` followed by one line for each person, like `(1) NAME is a knight`"
    " or `(2) NAME is a knave`."
)
_MARK = re.compile(re.escape(MARK), re.IGNORECASE)
_STATEMENT = re.compile(
    r"(?P<number>\([0-9]+\) ?)?(?:(?:[0-9]+[.):]|-) ?)?(?P<name>.+?) is a (?P<role>knight|knave) ?[.,;]?", re.IGNORECASE
)
_STEP = (
    r"(?:(?P<lead>assume|suppose|if|let's assume|so|then|thus|hence|therefore|and|but)(?: that)?,? )?"
    r"(?P<name>{people}) (?P<verb>is|must be|has to be|cannot be|can't be|can not be|must not be|is not|isn't) "
    r"an? (?P<role>knight|knave)\b"
)
# Longer than any statement, so that a line without end costs nothing.
_LONGEST_LINE = 200


class KnightsKnavesTask(Task):
    """Knights and Knaves in the schema of `K-and-K/knights-and-knaves` (`quiz`, `names`, `solution`,
    `solution_text_format`, `cot_head`, `cot_repeat_steps`, `cot_foot`).

    The Hub dataset keeps train and test in configurations and the numbers of people in splits. So what follows the
    colon of a Hub name is a split here, as in `K-and-K/knights-and-knaves:3ppl+4ppl`. Local JSONL files are the
    tested path.

    `answer` lists the roles (`Zoey=knave,Liam=knight`). The check asks for exactly that assignment after the last
    `CONCLUSION:`, in any order: every person once, nobody else. `difficulty` is the number of people.
    """

    name: ClassVar[str] = "kk"
    default_data: ClassVar[str | None] = "K-and-K/knights-and-knaves:3ppl+4ppl+5ppl+6ppl+7ppl"

    def hub_query(self, config: str | None, split: str) -> tuple[str | None, str]:
        return split, config or "3ppl+4ppl+5ppl+6ppl+7ppl"

    def perturbers(self) -> Mapping[str, Perturber]:
        # Imported here because it writes its conclusions as this module asks for them.
        from sasr.tasks.perturb.kk import PERTURBERS

        return PERTURBERS

    def to_row(self, record: Mapping[str, Any]) -> Row:
        quiz, head, foot, conclusion = required_text(record, "quiz", "cot_head", "cot_foot", "solution_text_format")
        names, solution, steps = required(record, "names", "solution", "cot_repeat_steps")
        for field, value, kind in (
            ("names", names, str),
            ("solution", solution, bool),
            ("cot_repeat_steps", steps, str),
        ):
            if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
                raise InputError(f"field '{field}' must be a list of {kind.__name__}, not {one_line(repr(value), 80)}")
        if not names or len(names) != len(solution):
            raise InputError(
                f"fields 'names' ({len(names)}) and 'solution' ({len(solution)}) must have the same length"
            )
        if len({_key(name) for name in names}) != len(names) or any(re.search("[=,]", name) for name in names):
            raise InputError(f"field 'names' must be distinct names without `=` or `,`, not {one_line(names, 80)}")
        roles = ["knight" if is_knight else "knave" for is_knight in solution]
        return {
            "prompt": f"{quiz.strip()}\n\n{INSTRUCTION}\n",
            "completion": "\n".join([head, *steps, foot, MARK, conclusion]),
            "answer": ",".join(f"{name}={role}" for name, role in zip(names, roles, strict=True)),
            "difficulty": len(names),
        }

    def check(self, completion: str, row: Mapping[str, Any]) -> Verdict:
        expected = row.get("answer")
        concluded = _assignment(_lines(after_thinking(completion)))
        correct = expected is not None and concluded is not None and concluded == _parse_answer(expected)
        return Verdict(correct=correct, well_formed=self.well_formed(completion))

    def stated(self, answer: str) -> tuple[str, ...]:
        pairs = (pair.partition("=") for pair in answer.split(","))
        lines = [f"({i}) {name} is a {role}" for i, (name, _, role) in enumerate(pairs, 1)]
        return ("\n".join([MARK, *lines]),)

    def well_formed(self, completion: str) -> bool:
        completion = after_thinking(completion)
        lines = _lines(completion)
        statements = [_statement(line) for line in lines]
        one_mark = len(_MARK.findall(completion)) == 1
        return one_mark and bool(lines) and all(found is not None and found["number"] for found in statements)

    def path(self, completion: str, row: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The order in which roles are assumed, ruled out or concluded before `CONCLUSION:`, such as
        `("assume zoey=knave", "zoey!=knight", "liam=knight")`. Their order counts: it is that of the deduction."""
        people = [re.escape(name) for name in _parse_answer(row.get("answer") or "")]
        if not people:
            return None
        step = re.compile(_STEP.format(people="|".join(people)), re.IGNORECASE)
        # A role counts where it begins a clause; what somebody claims about another is no deduction.
        said = after_thinking(completion)
        # A model that thinks deduces in its thought, and may say the conclusion alone.
        text = " ".join(unified(_MARK.split(said if step.search(said) else completion)[0]).replace("*", "").split())
        clauses = (step.match(clause) for clause in re.split(r"(?<=[.,;:!?]) ", text))
        return tuple(_deduction(found) for found in clauses if found) or None


def _deduction(found: re.Match[str]) -> str:
    verb = " ".join(found["verb"].lower().split())
    sign = "!=" if "not" in verb or "n't" in verb else "="
    assumed = "assume " if (found["lead"] or "").lower() in ("assume", "suppose", "if", "let's assume") else ""
    return f"{assumed}{_key(found['name'])}{sign}{found['role'].lower()}"


def _key(name: str) -> str:
    return " ".join(unified(name).casefold().split())


def _parse_answer(answer: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in answer.split(","))
    return {_key(name): role.strip() for name, _, role in pairs}


def _lines(completion: str) -> list[str]:
    """The non-blank lines after the last `CONCLUSION:`, without Markdown's asterisks and needless spaces."""
    parts = _MARK.split(completion)
    if len(parts) == 1:
        return []
    lines = (" ".join(line.replace("*", "").split()) for line in unified(parts[-1]).splitlines())
    return [line for line in lines if line]


def _statement(line: str) -> re.Match[str] | None:
    return _STATEMENT.fullmatch(line) if len(line) <= _LONGEST_LINE else None


def _assignment(lines: list[str]) -> dict[str, str] | None:
    """The roles that the lines assign; `None` if they name a person twice or speak of roles in any other form,
    because such a text could assign several roles at once."""
    roles: dict[str, str] = {}
    for line in lines:
        found = _statement(line)
        if found:
            name = _key(found["name"])
            if name in roles:
                return None
            roles[name] = found["role"].lower()
        elif re.search("knight|knave", line, re.IGNORECASE):
            return None
    return roles
