"""Compares mathematical expressions with math-verify (SymPy), in a process of its own, which can be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sasr.tasks.worker import Worker, serve


class MathVerifier(Worker):
    """A math-verify [`Worker`].

    Args:
        timeout (`float`): Seconds that one comparison may take.
    """

    def __init__(self, timeout: float = 5.0):
        super().__init__(__name__, timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.timeout,)

    def verify(self, expected: str, written: str) -> tuple[bool, str | None]:
        """Whether two LaTeX expressions are equal, and why that could not be decided (`None`: it could; `"timeout"`;
        `"crash: ..."`)."""
        reply = self.ask({"expected": expected, "written": written})
        return bool(reply.get("correct")), reply.get("error")

    def verify_all(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[bool, str | None]]:
        """`verify` for each distinct pair (expected, written); completions of one group often share an answer."""
        return {pair: self.verify(*pair) for pair in dict.fromkeys(pairs)}


def _near(expected: list[Any], written: list[Any]) -> bool:
    """Whether two numbers are equal to twenty significant digits, or to six where one of them is a decimal.
    math-verify rounds to six places, where 0.0000672 is 0.000067, and else at 2**-49: every small number is 0."""
    from sympy import Expr, Float, UnevaluatedExpr

    one, other = (next((value for value in values if isinstance(value, Expr)), None) for values in (expected, written))
    if one is None or other is None or not (one.is_number and other.is_number) or one == other:
        return True
    decimal = one.has(Float) or other.has(Float)
    if not decimal and (one.has(UnevaluatedExpr) or other.has(UnevaluatedExpr)):
        return True  # a percentage: 9\% is 9
    sizes = [_size(value) for value in (one, other, one - other)]
    return None in sizes or bool(sizes[2] <= max(sizes[:2]) * Float(10) ** (-6 if decimal else -20))


def _size(value: Any) -> Any:
    """How large a number is, in its real or its imaginary part; `None` where it is not finite."""
    # Not by `complex`, which overflows.
    parts = value.evalf(30).as_real_imag()
    if not all(part.is_Number and part.is_finite for part in parts):
        return None
    # Of a difference that is zero SymPy may find no digit, however many it tries.
    return max(abs(part) if getattr(part, "_prec", 2) > 1 else 0 for part in parts)


def main() -> None:
    serve(_prepare)


def _prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, parser, verify

    # math-verify takes any error for text that is no mathematics, which would make it a wrong answer. An expression
    # that was too much for it is none: that it could not be judged has to show.
    exhausted: list[BaseException] = []
    read = parser.latex2sympy

    def noting(*arguments: Any, **options: Any) -> Any:
        try:
            return read(*arguments, **options)
        except (RecursionError, MemoryError) as error:
            exhausted.append(error)
            raise

    parser.latex2sympy = noting
    # To it `4t` is 4 tonnes, and 9 p.m. is 9 a.m.: what a unit is, the task says.
    latex = LatexExtractionConfig()
    latex = LatexExtractionConfig(normalization_config=replace(latex.normalization_config, units=False))
    kinds = [latex, ExprExtractionConfig()]

    def compare(question: dict[str, Any]) -> dict[str, Any]:
        exhausted.clear()
        # Their own time-outs use SIGALRM, which is taken.
        expected, written = (
            parse(f"\\boxed{{{question[key]}}}", kinds, parsing_timeout=None, raise_on_error=True)
            for key in ("expected", "written")
        )
        correct = bool(verify(expected, written, timeout_seconds=None, raise_on_error=True))
        correct = correct and _near(expected, written)
        if exhausted and not correct:
            raise exhausted[0]
        return {"correct": correct}

    return compare
