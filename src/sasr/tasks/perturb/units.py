r"""Two ways to write the same quantity: `$5` and `5 dollars`, `10%` and `10 percent`, `twice` and `2 times`, `3 kg` and
`3 kilograms`.

Each rewriting asks for surroundings in which both ways mean the same and read well: `$5 million`, `a $20 bill`, `1/2
dollars`, `2 times more` stay as they are.
"""

from __future__ import annotations

import re

# A pattern and the template that takes its place, as in `re.Match.expand`.
Rewriting = tuple[re.Pattern[str], str]

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
# Not the end of a longer number, a fraction, a mixed number or a name like R2, and not said of a thing ("a 5 kg bag").
_ALONE = r"(?<![\w$.,/^\\{-])(?<![0-9] )(?<!\b[Aa] )(?<!\b[Aa]n )(?<!\b[Tt]he )"
_OVER = r"(?=[.,;:?!)](?:\s|$)|\s*$)"
_WORD_AFTER = (
    r"(?= (?:a|an|after|all|and|as|at|before|but|by|each|every|for|from|he|how|if|in|is|it|less|more|of|off|on|or|per"
    r"|she|so|than|that|the|then|they|to|total|was|when|which|while|with|worth)\b)"
)
_NOT_ONE = r"(?!1 )"


def _rule(pattern: str, new: str) -> Rewriting:
    return re.compile(pattern), new


def _both(short: str, long: str) -> list[Rewriting]:
    """A unit after a number, in both directions. One of it is left alone: the long form would be another word."""
    number = rf"{_ALONE}{_NOT_ONE}({_NUMBER})"
    after = rf"(?:{_OVER}|{_WORD_AFTER})"
    return [_rule(rf"{number} {short}{after}", rf"\1 {long}"), _rule(rf"{number} {long}{after}", rf"\1 {short}")]


_MULTIPLES = [
    _rule(r"\btwice (?=(?:as|the|that|a|his|her|their|its|this)\b)", "2 times "),
    _rule(rf"{_ALONE}2 times (?=(?:as|the|that|his|her|their|its|this)\b)", "twice "),
]

UNITS: list[Rewriting] = [
    _rule(
        # Not the kind of a bill: "10 $20 and 3 $5 bills", "$10 and $20 bills".
        rf"(?<![\w$.,/-])(?<!\b[Aa] )(?<!\b[Tt]he )(?<![0-9] )\$(?!1[.,;:?!)]*(?:\s|$))({_NUMBER})"
        rf"(?! (?:and|or) (?:[0-9]+ )?\${_NUMBER} ?(?:bill|note|coin|coupon|ticket)s?\b)(?:{_OVER}|{_WORD_AFTER})",
        r"\1 dollars",
    ),
    # Some of SVAMP has "$ 78 dollars".
    _rule(rf"(?<!\$ ){_ALONE}{_NOT_ONE}({_NUMBER}) dollars(?:{_OVER}|{_WORD_AFTER})", r"$\1"),
    _rule(rf"{_ALONE}({_NUMBER})%(?=[\s.,;:?!)]|$)", r"\1 percent"),
    _rule(rf"{_ALONE}({_NUMBER}) percent(?=[\s.,;:?!)]|$)", r"\1%"),
    *_MULTIPLES,
    *_both("kg", "kilograms"),
    *_both("km", "kilometers"),
    *_both("cm", "centimeters"),
    *_both("mph", "miles per hour"),
    # Not back to lbs: pounds may be money.
    _both("lbs", "pounds")[0],
]

# `$` begins a formula here, so sums of money stay as they are; other units stand in formulas, too.
LATEX_UNITS: list[Rewriting] = [
    _rule(rf"\$({_NUMBER})\\%\$", r"$\1$ percent"),
    _rule(rf"\$({_NUMBER})\$ percent\b", r"$\1\\%$"),
    _rule(rf"{_ALONE}({_NUMBER})\\%(?=[\s.,;:?!)]|$)", r"\1 percent"),
    _rule(rf"{_ALONE}({_NUMBER}) percent\b(?!-)", r"\1\\%"),
    *_MULTIPLES,
]
