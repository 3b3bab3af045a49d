"""The arithmetic that a worked solution writes out: which equations it has, in a normal form, and whether they hold.

Only equations between numbers count, such as `12 x 2 = $24` or the chain `(3 + 4) * 2 = 7 * 2 = 14`. Whatever could
mean something else is left alone rather than judged: unknowns (`2 * 2S`), words inside an expression
(`2 pens * 3 = 6`), powers, roots, a number glued to a letter, `half of 20 + 5 = 15`. Nothing here raises on any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![A-Za-z0-9)])\.[0-9]+"
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})|(?P<word>\\?[A-Za-z]+)|(?P<space>[ \t]+)|(?P<sign>.)|(?P<line>\n)")
# Markdown's bold marks (not Python's power) and bullets.
_LAYOUT = re.compile(r"(?<![0-9)])\*\*|\*\*(?![0-9(])|(?m:^[ \t]*[-*•][ \t]+(?=[0-9($]))")
_SIGNS = {"+": "+", "-": "-", "−": "-", "–": "-", "*": "*", "×": "*", "·": "*", "/": "/", "÷": "/", "=": "="}
_OPERATORS = {"+", "-", "*", "/"}
_CURRENCY = "$£€"
# Beside one of these a number is not the whole of what is meant.
_HARD_SIGNS = "^!_{}\\|~≈°'"
_HARD_WORDS = {
    *("of", "times", "twice", "thrice", "half", "double", "triple", "plus", "minus", "mod", "percent", "remainder"),
    *("dozen", "hundred", "thousand", "million", "billion", "squared", "cubed", "cents"),
}
# What is numbered: `Week 1 + Week 2 = 70` is not about 1 and 2.
_LABELS = {"day", "days", "week", "weeks", "month", "months", "year", "years", "hour", "step", "group", "number"}
_SOFT_COMMANDS = {"\\text", "\\mathrm", "\\quad", "\\qquad", "\\implies", "\\Rightarrow", "\\therefore"}
# Far more than any real equation has; what a model repeats without end is not worth the time.
_MOST_TOKENS, _MOST_DIGITS, _MOST_SIDES = 60, 15, 20
_FACTOR_FOLLOWS = re.compile(r"\s*[$(]?\s*\.?[0-9]")
_NUMBER_FOLLOWS = re.compile(r" \$?\(?[0-9]")


@dataclass(frozen=True)
class Equation:
    """One step.

    Args:
        text (`str`): `expression=result` in normal form: no spaces, `1,200.0` as `1200`, the terms of a sum and the
            factors of a product sorted. `2*12=24` is also `12 x 2 = $24`, while `5-3=2` and `3-5=-2` stay different.
        holds (`bool`): It is true. A result with decimals may be rounded in its last place.
    """

    text: str
    holds: bool


@dataclass(frozen=True)
class _Value:
    """A parsed expression: its values with `%` as a hundredth and with `%` as a mere unit, and its normal form."""

    values: tuple[Fraction, Fraction]
    text: str
    operations: int = 0
    decimals: int = 0  # of a lone number
    bracketed: bool = False


def find_equations(text: str) -> list[Equation]:
    """The equations of a plain text (`$` is a currency sign), in order: each expression of a chain with its result."""
    return _equations(_LAYOUT.sub("", text))


def find_latex_equations(text: str) -> list[Equation]:
    r"""Like [`find_equations`] for LaTeX, where `$` sets mathematics apart; `\frac`, `\cdot` and `\times` of numbers
    are read, other commands are unknowns."""
    return _equations(_plain(text))


def path_of(equations: list[Equation]) -> tuple[str, ...] | None:
    """The multiset of equations, sorted: in which order they stand is no part of a path, since a result that a later
    step uses shows in its numbers. `None` without equations."""
    return tuple(sorted(equation.text for equation in equations)) or None


def all_hold(equations: list[Equation]) -> bool | None:
    """Whether no equation is false; `None` without equations."""
    return all(equation.holds for equation in equations) if equations else None


def sorted_step(left: str, sign: str, right: str, result: str) -> str:
    """One step of whole numbers in the form of [`Equation`]."""
    a, b = (str(int(number)) for number in (left, right))
    if sign in "+*":
        a, b = sorted((a, b), key=_order)
    return f"{a}{sign}{b}={int(result)}"


def _equations(text: str) -> list[Equation]:
    return [equation for run in _runs(text) for chain in _chains(run) for equation in _judged(chain)]


def _judged(chain: list[_Value]) -> list[Equation]:
    equations = []
    for i, side in enumerate(chain):
        if side.operations:
            # What it is said to be: the next lone number, or else the one before.
            lone = [other for other in (*chain[i + 1 :], *reversed(chain[:i])) if not other.operations]
            result = lone[0].text if lone else _number(side.values[0])
            equations.append(Equation(f"{side.text}={result}", all(_equal(side, other) for other in chain)))
    return equations


def _chains(run: list[str]) -> Iterator[list[_Value]]:
    """Stretches of two or more usable expressions that a run sets equal."""
    chain: list[_Value] = []
    for side in _sides(run):
        value = _parse(side) if side else None
        if value is not None and len(chain) < _MOST_SIDES:
            chain.append(value)
            continue
        if len(chain) > 1:
            yield chain
        chain = [] if value is None else [value]
    if len(chain) > 1:
        yield chain


def _runs(text: str) -> Iterator[list[str]]:
    """Maximal stretches of numbers, signs and brackets, as tokens; `?` stands for something at an end that makes the
    expression beside it unusable."""
    run: list[str] = []
    glued = hard = False  # no space before; what stands before a run spoils its first expression
    for match in _TOKEN.finditer(text):
        kind, token = str(match.lastgroup), match.group()
        if kind == "space":
            glued = False
            continue
        taken = _arithmetic(kind, token, text, match.end(), run, glued)
        if taken is None:
            if run:
                yield [*run, "?"] if _spoils(kind, token, text, match.end(), glued) else run
                run = []
            hard = _spoils_next(kind, token, text, match.end())
        elif taken:
            run += [taken] if run or not hard else ["?", taken]
            hard = False
        glued = kind != "line"
    if run:
        yield run


def _arithmetic(kind: str, token: str, text: str, end: int, run: list[str], glued: bool) -> str | None:
    """The token as one of an expression, empty for one to pass over, `None` for one that ends the run."""
    if kind == "number":
        return token
    if kind == "word" and token in ("x", "X") and run and (run[-1][-1].isdigit() or run[-1] == ")"):
        return "*" if _FACTOR_FOLLOWS.match(text, end) else None
    if kind != "sign":
        return None
    if token in _CURRENCY:
        return ""
    if token == "(":
        return "(*" if glued and run and (run[-1][-1].isdigit() or run[-1] == ")") else "("
    if token in ("-", "−", "–") and not run:
        # The rest of an expression in words, unless it clearly is the sign of a number.
        return "-" if not glued and (text[end : end + 1].isdigit() or text.startswith(" ((", end)) else None
    if token == "%":
        return "%" if run and run[-1][-1].isdigit() else None
    return _SIGNS.get(token, ")" if token == ")" else None)


def _spoils(kind: str, token: str, text: str, end: int, glued: bool) -> bool:
    """Whether an expression that ends here is not all of what is meant."""
    if kind == "line":
        return False
    if kind == "word":
        if token in _SOFT_COMMANDS:
            return False
        unknown = glued or token.startswith("\\") or _is_letter(token, text, end)
        return unknown or _is_mixed(token, text, end) or token.lower() in _HARD_WORDS
    if token in _HARD_SIGNS or token.isnumeric():  # such as ½
        return True
    following = text[end : end + 1]
    return token in ".:" and glued and following not in ("", " ", "\n", "\t", '"', ")", "]", "$", "*", "#", "<")


def _spoils_next(kind: str, token: str, text: str, end: int) -> bool:
    """Whether an expression that starts after this is not all of what is meant."""
    if kind == "line":
        return False
    following = text[end : end + 1]
    adjacent = following.isdigit() or (following in ("(", ".") and (kind == "word" or token in "}]!"))
    if kind == "word":
        command = token.startswith("\\") and token not in _SOFT_COMMANDS
        letter = _is_letter(token, text, end) or _is_mixed(token, text, end)
        return letter or adjacent or command or token.lower() in _HARD_WORDS | _LABELS
    return token in _SIGNS or token in "^_\\|" or token.isnumeric() or (adjacent and token not in '"[#>;')


def _is_letter(token: str, text: str, end: int) -> bool:
    """Whether a word is an unknown rather than an article."""
    return len(token) == 1 and not (token in "aAI" and text[end : end + 1] == " ")


def _is_mixed(token: str, text: str, end: int) -> bool:
    """Whether `and` stands inside a mixed number: `= 1 and 1/3`."""
    return token == "and" and _NUMBER_FOLLOWS.match(text, end) is not None


def _sides(run: list[str]) -> list[list[str]]:
    """The expressions between the equals signs of a run, each empty if it cannot be used."""
    sides: list[list[str]] = [[]]
    for token in run:
        if token == "=":
            sides.append([])
        else:
            sides[-1].append(token)
    if len(sides) == 1:
        return []
    sides = [[] if "?" in side or len(side) > _MOST_TOKENS else side for side in sides]
    sides[0], sides[-1] = _after_open(sides[0]), _before_close(sides[-1])
    return sides


def _after_open(side: list[str]) -> list[str]:
    """Without what an unfinished bracket sets apart: `12 (6 + 6` is `6 + 6`, `1) 5 + 3` is `5 + 3`."""
    start, opened = 0, []
    for i, token in enumerate(side):
        if token.startswith("("):
            opened.append(i + 1)
        elif token == ")" and opened:
            opened.pop()
        elif token == ")":
            start = i + 1
    start = max([start, *opened])
    # `100 + (100 * 2 = 300` has lost a bracket.
    return [] if start > 1 and side[start - 2] in _OPERATORS else side[start:]


def _before_close(side: list[str]) -> list[str]:
    opened: list[int] = []
    for i, token in enumerate(side):
        if token.startswith("("):
            opened.append(i)
        elif token == ")":
            if not opened:
                return side[:i]
            opened.pop()
    return side[: opened[0]] if opened else side


def _parse(tokens: list[str]) -> _Value | None:
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (ValueError, ZeroDivisionError):
        return None
    return value if parser.at == len(tokens) else None


class _Parser:
    def __init__(self, tokens: list[str]):
        self.tokens, self.at = tokens, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self) -> _Value:
        terms = [("+", self.product())]
        while self.peek() in ("+", "-"):
            sign = self.take()
            terms.append((sign, self.product()))
        if len(terms) == 1:
            return terms[0][1]
        values = [Fraction(0), Fraction(0)]
        for sign, value in terms:
            values = [v + w if sign == "+" else v - w for v, w in zip(values, value.values, strict=True)]
        return _Value((values[0], values[1]), _joined(terms, "+", "-"), _operations(terms))

    def product(self) -> _Value:
        factors = [("*", self.factor())]
        while self.peek() in ("*", "/", "(*"):
            sign = "*" if self.peek() == "(*" else self.take()
            if sign == factors[-1][0] == "/":
                raise ValueError("2 / 1/5 is not always meant from left to right")
            factors.append((sign, self.factor()))
        if len(factors) == 1:
            return factors[0][1]
        values = [Fraction(1), Fraction(1)]
        for sign, value in factors:
            values = [v * w if sign == "*" else v / w for v, w in zip(values, value.values, strict=True)]
        return _Value((values[0], values[1]), _joined(factors, "*", "/"), _operations(factors))

    def factor(self) -> _Value:
        token = self.peek()
        if token == "-":
            self.take()
            value = self.factor()
            opposite = (-value.values[0], -value.values[1])
            return _Value(opposite, f"-{_inner(value)}", value.operations, value.decimals)
        if token.startswith("("):
            self.take()
            value = self.sum()
            if self.peek() != ")":
                raise ValueError("an open bracket")
            self.take()
            return _Value(value.values, value.text, value.operations, bracketed=value.operations > 0)
        if not token or not token[-1].isdigit() or len(token) > _MOST_DIGITS:
            raise ValueError("no number")
        digits = self.take().replace(",", "")
        if digits[0] == "0" and digits[1:2].isdigit():
            raise ValueError("a time or a code")
        number, decimals = Fraction(digits), len(digits.partition(".")[2])
        if self.peek() == "%":
            self.take()
            return _Value((number / 100, number), f"{_number(number)}%", 0, decimals)
        return _Value((number, number), _number(number), 0, decimals)


def _operations(parts: list[tuple[str, _Value]]) -> int:
    return sum(value.operations for _, value in parts) + len(parts) - 1


def _joined(parts: list[tuple[str, _Value]], sign: str, inverse: str) -> str:
    first = sorted((_inner(value) for s, value in parts if s == sign), key=_order)
    second = sorted((_inner(value) for s, value in parts if s == inverse), key=_order)
    if second and sign == "*":
        first = [text for text in first if text != "1"] or ["1"]  # 1 / 2 * 48 is 48 / 2
    return sign.join(first) + "".join(inverse + text for text in second)


def _inner(value: _Value) -> str:
    return f"({value.text})" if value.bracketed else value.text


def _order(text: str) -> tuple[int, str]:
    return len(text), text


def _number(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.6f}".rstrip("0").rstrip(".")


def _equal(left: _Value, right: _Value) -> bool:
    for reading in (0, 1):
        difference = abs(left.values[reading] - right.values[reading])
        places = [v.decimals for v in (left, right) if not v.operations and v.decimals]
        percent = 100 if reading == 0 and any(v.text.endswith("%") and not v.operations for v in (left, right)) else 1
        if difference == 0 or any(difference * percent * 10**places_ < 1 for places_ in places):
            return True
    return False


def _plain(latex: str) -> str:
    text = re.sub(r"\\\\(?:\[[^\]]{0,20}\])?", "\n", latex)
    text = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\!|&|\\\$", "", text)
    text = re.sub(r"\\[\[\]()]|\$", "\n", text)
    text = re.sub(r"\\[,;: ]|~", " ", text).replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"\\(?:boxed|fbox)\s*\{([^{}]{0,200})\}", r"\1", text)
    number = r"([0-9][0-9.,]{0,20})"
    text = re.sub(rf"\\[dt]?frac\s*\{{\s*{number}\s*\}}\s*\{{\s*{number}\s*\}}", r" ((\1)/(\2))", text)
    text = re.sub(r"\\(?:cdot|times)(?![A-Za-z])", "*", text)
    return re.sub(r"\\div(?![A-Za-z])", "/", text)
