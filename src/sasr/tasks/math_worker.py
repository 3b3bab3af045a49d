"""Compares mathematical expressions with math-verify (SymPy), in a process of its own, which can be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """Whether two numbers, one of them a decimal, are equal to six significant digits. math-verify rounds to six
    places, where 0.0000672 is 0.000067 and every small number is 0."""
    from sympy import Expr, Float

    one, other = (next((value for value in values if isinstance(value, Expr)), None) for values in (expected, written))
    if one is None or other is None or not (one.is_number and other.is_number):
        return True
    if not (one.has(Float) or other.has(Float)):
        return True
    a, b = complex(one), complex(other)
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def main() -> None:
    serve(_prepare)


def _prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    from math_verify import parse, parser, verify

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

    def compare(question: dict[str, Any]) -> dict[str, Any]:
        exhausted.clear()
        # Their own time-outs use SIGALRM, which is taken.
        expected, written = (
            parse(f"\\boxed{{{question[key]}}}", parsing_timeout=None, raise_on_error=True)
            for key in ("expected", "written")
        )
        correct = bool(verify(expected, written, timeout_seconds=None, raise_on_error=True))
        correct = correct and _near(expected, written)
        if exhausted and not correct:
            raise exhausted[0]
        return {"correct": correct}

    return compare
