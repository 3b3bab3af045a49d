"""The language of the Knights and Knaves dataset: its puzzles taken apart, written again, and solved exactly.

Formulas have the dataset's own form (its field `statements`): `("telling-truth", 2)`, `("lying", 0)`,
`("not", formula)`, `("and", formula, ...)`, `("or", formula, ...)`, `("->", formula, formula)` and
`("<=>", formula, formula)`, with people as numbers. The dataset is that of Xie et al., arXiv 2410.23123.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sasr.errors import InputError
from sasr.tasks.text import one_line

Formula = tuple[Any, ...]
ROLES = ("knight", "knave")
SAYINGS = (
    "{name} said that {claim}.",
    "{name} told you that {claim}.",
    "{name} expressed that {claim}.",
    '{name} said, "{claim}."',
    '{name} stated, "{claim}".',
    '{name} noted, "{claim}".',
    '{name} remarked, "{claim}".',
    '{name} commented, "{claim}".',
    '{name} was heard saying, "{claim}".',
    '{name} asserted: "{claim}".',
    'According to {name}, "{claim}".',
    'As {name} put it, "{claim}".',
    'In {name}\'s words: "{claim}".',
    'In a statement by {name}: "{claim}".',
    '"{claim}," {name} declared.',
    '"{claim}," {name} mentioned.',
    '"{claim}," {name} claimed.',
    '"{claim}" - {name}.',
)
# A truth table has 2^n bits: more people than the dataset ever has would take long.
MOST_PEOPLE = 12

_QUIZ = re.compile(
    r"A very special island is inhabited only by (?P<truthful>knight|knave)s and (?P<lying>knight|knave)s\. "
    r"(?P<Truthful>Knight|Knave)s always tell the truth, and (?P<lying_too>knight|knave)s always lie\. "
    r"You meet (?P<count>[0-9]+) inhabitants: (?P<names>[^.]+)\. (?P<said>.+) "
    r"So who is a (?P<truthful_too>knight|knave) and who is a (?P<lying_three>knight|knave)\?",
    re.DOTALL,
)
_NAME, _CLAIM = r"(?P<name>[^\",.:]+?)", r"(?P<claim>[^\",.:]+)"
_SAYINGS = [
    (saying, re.compile(re.escape(saying).replace(r"\{name\}", _NAME).replace(r"\{claim\}", _CLAIM)))
    for saying in SAYINGS
]
_NEGATED = re.compile(r"(?P<name>.+) is not a (?P<role>knight|knave)")
# "if and only if" before "and", which it contains.
_WORDS = {"<=>": " if and only if ", "and": " and ", "or": " or "}
_PLAIN = re.compile(r"(?P<name>.+?) is a (?P<role>knight|knave)")


@dataclass(frozen=True)
class Puzzle:
    """One puzzle.

    Args:
        names (`tuple[str, ...]`): Everybody, in the order in which they are introduced.
        formulas (`tuple[Formula, ...]`): What each of them says.
        said (`tuple[tuple[int, str], ...]`): Who speaks when, and the saying that the claim is put in.
        truthful (`str`, *optional*, defaults to `"knight"`): The word for those who always tell the truth.
    """

    names: tuple[str, ...]
    formulas: tuple[Formula, ...]
    said: tuple[tuple[int, str], ...]
    truthful: str = "knight"

    @property
    def roles(self) -> dict[bool, str]:
        return {True: self.truthful, False: ROLES[1 - ROLES.index(self.truthful)]}

    def claim(self, person: int) -> str:
        """What a person says, in words."""
        return _write(self.formulas[person], self.names, self.roles)

    def quiz(self) -> str:
        """The text, exactly as the dataset words it."""
        truthful, lying = self.roles[True], self.roles[False]
        people = ", ".join(self.names[:-1]) + ", and " + self.names[-1]
        return " ".join(
            [
                f"A very special island is inhabited only by {truthful}s and {lying}s.",
                f"{truthful.capitalize()}s always tell the truth, and {lying}s always lie.",
                f"You meet {len(self.names)} inhabitants: {people}.",
                *(saying.format(name=self.names[person], claim=self.claim(person)) for person, saying in self.said),
                f"So who is a {truthful} and who is a {lying}?",
            ]
        )


def read(quiz: str) -> Puzzle | None:
    """The puzzle that a text is; `None` if it is not exactly in the language, or not everybody says one thing."""
    found = _QUIZ.fullmatch(quiz)
    if found is None:
        return None
    truthful, lying = found["truthful"], found["lying"]
    names = tuple(found["names"].replace(", and ", ", ").split(", "))
    if not 2 <= len(set(names)) == len(names) <= MOST_PEOPLE or truthful == lying:
        return None
    words = {truthful: True, lying: False}
    formulas: dict[int, Formula] = {}
    said, rest = [], found["said"] + " "
    while rest:
        matches = [(saying, match) for saying, pattern in _SAYINGS if (match := pattern.match(rest))]
        matches = [(saying, match) for saying, match in matches if match["name"] in names]
        if len(matches) != 1:
            return None
        saying, match = matches[0]
        person, formula = names.index(match["name"]), _formula(match["claim"], names, words)
        if formula is None or person in formulas or rest[match.end() : match.end() + 1] != " ":
            return None
        formulas[person] = formula
        said.append((person, saying))
        rest = rest[match.end() + 1 :]
    if len(formulas) != len(names):
        return None
    puzzle = Puzzle(names, tuple(formulas[person] for person in range(len(names))), tuple(said), truthful)
    # Whatever the expressions above let through (another count of people, say) shows here.
    return puzzle if puzzle.quiz() == quiz else None


def _formula(claim: str, names: Sequence[str], words: Mapping[str, bool]) -> Formula | None:
    """A claim as a formula; `None` if it is none."""
    if negated := _NEGATED.fullmatch(claim):
        inner = _leaf(f"{negated['name']} is a {negated['role']}", names, words)
        return inner and ("not", inner)
    if claim.startswith("If "):
        sign, parts = "->", claim.removeprefix("If ").split(" then ")
    else:
        sign = next((sign for sign, word in _WORDS.items() if word in claim), "")
        parts = claim.split(_WORDS[sign]) if sign else [claim]
    leaves = [_leaf(part, names, words) for part in parts]
    if any(leaf is None for leaf in leaves) or (sign in ("->", "<=>") and len(leaves) != 2):
        return None
    return (sign, *leaves) if sign else leaves[0]


def _leaf(text: str, names: Sequence[str], words: Mapping[str, bool]) -> Formula | None:
    found = _PLAIN.fullmatch(text)
    if found is None or found["name"] not in names:
        return None
    return ("telling-truth" if words[found["role"]] else "lying", names.index(found["name"]))


def _write(formula: Formula, names: Sequence[str], roles: Mapping[bool, str]) -> str:
    sign, *parts = formula
    if sign in ("telling-truth", "lying"):
        return f"{names[parts[0]]} is a {roles[sign == 'telling-truth']}"
    written = [_write(part, names, roles) for part in parts]
    if sign == "not":
        return written[0].replace(" is a ", " is not a ")
    if sign == "->":
        return f"If {written[0]} then {written[1]}"
    return _WORDS[sign].join(written)


def read_statements(text: str, people: int) -> tuple[Formula, ...]:
    """The dataset's field `statements`, which is a Python tuple written out."""
    try:
        formulas = ast.literal_eval(text)
        for formula in formulas:
            truth_table(formula, people)
    except (ValueError, SyntaxError, TypeError, IndexError, KeyError, RecursionError, MemoryError):
        raise InputError(
            f"field 'statements' must be a tuple of formulas about {people} people, not {one_line(text, 80)}"
        ) from None
    return tuple(formulas)


def truth_table(formula: Formula, people: int) -> int:
    """In which of the 2^people assignments the formula holds: bit `a` is for the assignment in which person `i` tells
    the truth where bit `i` of `a` is set."""
    everywhere = (1 << (1 << people)) - 1
    sign, *parts = formula
    if sign in ("telling-truth", "lying"):
        (person,) = parts
        if not 0 <= person < people:
            raise IndexError(person)
        # 0011 0011 ... for person 1: the bits of all assignments in which the person tells the truth.
        period, half = 2 << person, 1 << person
        truthful = everywhere // ((1 << period) - 1) * (((1 << half) - 1) << half)
        return truthful if sign == "telling-truth" else everywhere ^ truthful
    tables = [truth_table(part, people) for part in parts]
    if sign == "not":
        (table,) = tables
        return everywhere ^ table
    if sign == "and":
        return _all(tables)
    if sign == "or":
        return everywhere ^ _all([everywhere ^ table for table in tables])
    left, right = tables
    return {"->": everywhere ^ left | right, "<=>": everywhere ^ left ^ right}[sign]


def _all(tables: Sequence[int]) -> int:
    table = tables[0]
    for other in tables[1:]:
        table &= other
    return table


def solve(formulas: Sequence[Formula]) -> list[tuple[bool, ...]]:
    """Every assignment of roles (`True`: tells the truth) in which each person's claim is as true as the person."""
    people = len(formulas)
    equal = [truth_table(("<=>", ("telling-truth", i), formula), people) for i, formula in enumerate(formulas)]
    table = _all(equal)
    return [tuple(bool(a >> i & 1) for i in range(people)) for a in range(1 << people) if table >> a & 1]


def some_formula(people: int, rng: random.Random) -> Formula:
    """A formula of the dataset's grammar: each of its six forms equally often, and no claim about the same twice."""
    leaves = [(sign, person) for sign, person in itertools.product(("telling-truth", "lying"), range(people))]
    sign = rng.choice(("leaf", "not", "and", "or", "->", "<=>"))
    if sign == "leaf":
        return rng.choice(leaves)
    return (sign, *rng.sample(leaves, 1 if sign == "not" else 2))
