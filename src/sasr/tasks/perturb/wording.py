r"""Word problems in other words of the same meaning, so that the published answer stays the answer.

`names` puts uncommon first names for common ones, `whitespace` sets the text differently, and `units` writes units
another way. Sentences are not reordered: which of them refer to one another (`then`, `the rest`, `half as many`) cannot
be told with certainty from the words. No number is changed either, as nothing would check the new answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from sasr.tasks.base import Perturber, Row
from sasr.tasks.perturb.names import COMMON_MEN, COMMON_WOMEN, UNCOMMON_MEN, UNCOMMON_WOMEN
from sasr.tasks.perturb.units import LATEX_UNITS, UNITS

_SINGLE_SPACE = re.compile(r"(?<=[^\s\\]) (?=\S)")
_SENTENCE_END = re.compile(r"[.?!] [A-Z]")
# Formulas, drawings and tables, in which a space or a line break may mean something.
_LATEX = re.compile(
    r"\[asy\].*?\[/asy\]|\\begin\{.*\\end\{[^}]*\}|\\\[.*?\\\]|\\\(.*?\\\)"
    r"|(?<!\\)\$\$.*?\$\$|(?<!\\)\$(?:\\.|[^$\\])*\$",
    re.DOTALL,
)
# In such a problem the letters of a name may matter.
_SPELLING = re.compile(
    r"\b(?:letters?|spell(?:s|ed|ing)?|initials|alphabet\w*|vowels?|consonants?|palindromes?|anagrams?|syllables?|rhymes?"
    r"|names? (?:that )?(?:start|begin)s?|(?:short|long)e(?:r|st) names?)\b",
    re.IGNORECASE,
)
_CAPITALISED = re.compile(r"\b[A-Z][a-z]+\b")
# A place, a thing or a family rather than a person: St. Paul, San Diego, Lake Louise, an Oscar, Billy Mountain.
_NOT_A_PERSON = (
    r"(?:\b(?:[Ss]aint|San|Santa|St\.|Lake|Mount|Mt\.|Cape|Fort|Port|Hurricane|[Tt]he|[Aa]n?)\s+|\\){name}\b"
    r"|\b{name}s?\s+[A-Z][a-z]"
)
# One person may be called by two of these.
_SHORT_FORMS = tuple(
    frozenset(line.split())
    for line in (
        "Elizabeth Eliza Liz Lizzie Beth Betty Betsy",
        "Robert Bob Bobby Rob Robbie",
        "William Bill Billy Will Willy",
        "James Jim Jimmy Jimbo",
        "Richard Rick Ricky Rich Dick",
        "Katherine Kathryn Catherine Kate Katie Kathy Cathy Kat Kit",
        "Margaret Maggie Meg Peggy Marge",
        "Edward Eddie Ed Ted Teddy Ned Theodore Edwin",
        "John Jack Johnny Jon Jonathan",
        "Anthony Tony",
        "Rebecca Becky Becca",
        "Deborah Debbie Deb",
        "Andrew Andy Drew",
        "Joseph Joe Joey Jose",
        "Stephanie Steph",
        "Patricia Pat Patty Trish Trisha",
        "Charles Charlie Chuck",
        "Henry Harry Hank Harold Hal",
        "Lawrence Larry",
        "Suzanne Susan Susie Sue Suzie",
        "Jennifer Jenny Jenna Jen",
        "Samantha Sam Sammy",
        "Michael Mike Mikey Mick",
        "Nathaniel Nathan Nate",
        "Abigail Abby",
        "Isabella Isabel Bella Izzy",
        "Nicholas Nicolas Nick Nicky",
        "Zachary Zack Zach Zac",
        "Thomas Tom Tommy",
        "Jacob Jake Jakob",
        "Cynthia Cindy",
        "Amanda Mandy",
        "Christina Christine Kristina Tina Chris Chrissy",
        "Albert Bert Bertie Al",
        "Victoria Vicky Vicki Tori",
        "Terrence Terence Terry",
    )
)


def perturbers(instruction: str, latex: bool = False) -> dict[str, Perturber]:
    """The three kinds, for prompts that end with `instruction`, which stays as it is.

    Args:
        instruction (`str`): What the task puts after the problem.
        latex (`bool`, *optional*, defaults to `False`): Whether `$` begins a formula, not a sum of money.
    """
    ending = f"\n\n{instruction}\n"

    def problem_of(row: Row) -> tuple[str, str]:
        problem = row["prompt"].removesuffix(ending)
        return problem, row["prompt"][len(problem) :]

    def names(row: Row, rng: random.Random) -> Row | None:
        return _names(row, rng)

    def whitespace(row: Row, rng: random.Random) -> Row | None:
        problem, rest = problem_of(row)
        changed = _whitespace(problem, latex, rng)
        return None if changed is None else {"prompt": changed + rest}

    def units(row: Row, rng: random.Random) -> Row | None:
        problem, rest = problem_of(row)
        changed = _units(problem, latex, rng)
        return None if changed is None else {"prompt": changed + rest}

    return {"names": names, "whitespace": whitespace, "units": units}


def _names(row: Row, rng: random.Random) -> Row | None:
    prompt, completion = row["prompt"], row.get("completion")
    if not isinstance(completion, str | None):
        return None
    text = f"{prompt}\n{completion or ''}"
    words = list(dict.fromkeys(_CAPITALISED.findall(text)))
    if _SPELLING.search(text):
        return None
    names = [name for name in words if _is_certain(name, words, text, row)]
    new: dict[str, str] = {}
    for common, uncommon in ((COMMON_WOMEN, UNCOMMON_WOMEN), (COMMON_MEN, UNCOMMON_MEN)):
        known = [name for name in names if name in common]
        unused = [name for name in uncommon if name not in words]
        if len(known) > len(unused):
            return None
        new.update(zip(known, rng.sample(unused, len(known)), strict=True))
    if not new:
        return None
    pattern = re.compile(r"\b(?:" + "|".join(new) + r")\b")
    changed = {"prompt": pattern.sub(lambda match: new[match[0]], prompt)}
    if completion is not None:
        changed["completion"] = pattern.sub(lambda match: new[match[0]], completion)
    return changed


def _is_certain(name: str, words: list[str], text: str, row: Row) -> bool:
    """Whether a capitalised word is a person's first name wherever it stands, and nobody's under another form."""
    if name not in COMMON_WOMEN and name not in COMMON_MEN:
        return False
    in_both = all(
        re.search(rf"\b{name}\b", part) for part in (row["prompt"], row.get("completion")) if part is not None
    )
    in_answer = re.search(rf"\b{name}\b", row.get("answer") or "")
    other_use = re.search(_NOT_A_PERSON.format(name=name), text) or re.search(rf"\b{name.lower()}\b", text)
    return bool(in_both and not in_answer and not other_use and not any(_akin(name, word) for word in words))


def _akin(name: str, word: str) -> bool:
    """Whether the word may be another form, or a misspelling, of the name: Sam and Samantha, Natalia and Natalie."""
    if word == name:
        return False
    alike = word[:3] == name[:3] and (abs(len(word) - len(name)) < 3 or name.startswith(word) or word.startswith(name))
    return alike or any(name in forms and word in forms for forms in _SHORT_FORMS)


def _whitespace(problem: str, latex: bool, rng: random.Random) -> str | None:
    formulas = _formulas(problem) if latex else []
    if formulas is None:
        return None
    places = [
        match.start()
        for match in _SINGLE_SPACE.finditer(problem)
        if not any(start <= match.start() < end for start, end in formulas)
        # "10 000" is one number.
        and not re.fullmatch("[0-9] [0-9]", problem[match.start() - 1 : match.start() + 2])
    ]
    if not places:
        return None
    ends = {place for place in places if _SENTENCE_END.match(problem, place - 1)}
    chosen = [place for place in places if rng.random() < (0.5 if place in ends else 0.1)] or [rng.choice(places)]
    for place in reversed(chosen):
        problem = problem[:place] + ("\n" if place in ends else "  ") + problem[place + 1 :]
    return problem


def _units(problem: str, latex: bool, rng: random.Random) -> str | None:
    formulas = _formulas(problem) if latex else []
    if formulas is None:
        return None
    found = [
        [
            (match.start(), match.end(), match.expand(new))
            for match in pattern.finditer(problem)
            if all(_whole(formula, match) for formula in formulas)
        ]
        for pattern, new in (LATEX_UNITS if latex else UNITS)
    ]
    found = [matches for matches in found if matches]
    if not found:
        return None
    # One way of writing is replaced everywhere or nowhere.
    chosen = [matches for matches in found if rng.random() < 0.5] or [rng.choice(found)]
    return "".join(_rewritten(problem, sorted(match for matches in chosen for match in matches)))


def _whole(formula: tuple[int, int], match: re.Match[str]) -> bool:
    """Whether the match leaves the formula alone or has all of it."""
    start, end = formula
    return end <= match.start() or match.end() <= start or (match.start() <= start and end <= match.end())


def _rewritten(text: str, matches: list[tuple[int, int, str]]) -> Iterator[str]:
    done = 0
    for start, end, new in matches:
        if start >= done:
            yield text[done:start] + new
            done = end
    yield text[done:]


def _formulas(text: str) -> list[tuple[int, int]] | None:
    """Where the formulas are; `None` if that cannot be told, because a `$` has no counterpart."""
    spans = [match.span() for match in _LATEX.finditer(text)]
    outside = "".join(_rewritten(text, [(start, end, "") for start, end in spans]))
    return None if re.search(r"(?<!\\)\$", outside) else spans
