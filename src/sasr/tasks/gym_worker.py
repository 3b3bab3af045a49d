"""reasoning-gym in a process of its own: it makes entries, scores answers, and evaluates nothing that a model wrote.

Nine of its scorers would run an answer as Python: `eval` in binary_matrix, n_queens, spiral_matrix, string_insertion,
and SymPy's parser in countdown, puzzle24, polynomial_multiplication and the two integrations. Here an audit hook
refuses the former (it earns part of the score at best), and the latter builds expressions from a list of functions;
countdown and puzzle24 are judged here, by exact arithmetic, as are a few whose scorers call wrong answers right.
A process of its own also because generators set NumPy's random numbers and the precision of decimals for everybody.
"""

from __future__ import annotations

import ast
import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from fractions import Fraction
from functools import lru_cache
from typing import Any

from sasr.tasks.text import leading_number, parse_number, without_currency
from sasr.tasks.worker import serve

# Entries of one dataset: some allow no more, or make all of them at once.
CHUNK = 1000
# Metadata that hold an answer where the entry gives none because there are many.
_EXAMPLES = ("possible_answer", "example_correct_answer", "example_answer")
# A knob with more values than this tells rows apart, not levels.
_MOST_LEVELS = 50
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
_NAMES = {
    "Integer", "Float", "Rational", "Symbol", "pi", "E", "I", "sqrt", "exp", "log", "ln", "Abs", "sin", "cos", "tan",
    "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc", "sinh", "cosh", "tanh", "coth", "asinh",
    "acosh", "atanh",
}  # fmt: skip
_DIGITS = re.compile(r"[0-9]+")
_ARITHMETIC = re.compile(r"[0-9+*/() -]+")
# The letters or words that match add up to a full score, whatever else the answer has.
_PARTIAL = {"spell_backward", "letter_jumble", "figlet_font"}
# The texts that may be evaluated: those of the task itself. None: nothing is being scored.
_own: set[str] | None = None


def main() -> None:
    serve(_prepare)


def _prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
    import reasoning_gym  # noqa: F401  (the import is what takes long)
    from sympy.parsing import sympy_parser

    sympy_parser.eval_expr = plain_expression
    sys.addaudithook(_refuse)
    kinds: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"describe": describe, "make": make, "score": score}
    return lambda question: kinds[question["do"]](question)


def describe(question: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks there are, if this is none; the options that it has; and why those given cannot be used, if so."""
    from reasoning_gym.factory import DATASETS

    task, given = question["task"], question["options"]
    if task not in DATASETS:
        return {"tasks": list(DATASETS)}
    known = [field.name for field in fields(DATASETS[task][1]) if field.name not in ("seed", "size")]
    refused = None
    if all(name in known for name in given):
        try:
            _dataset(task, json.dumps(given), 0)
        except Exception as error:
            refused = str(error) or type(error).__name__
    return {"options": known, "refused": refused}


def make(question: Mapping[str, Any]) -> dict[str, Any]:
    """One entry, as far as a row needs it."""
    entry = _entry(question)
    metadata = entry["metadata"]
    answer = entry["answer"]
    if answer is None:
        answer = next((metadata[key] for key in _EXAMPLES if key in metadata), None)
        answer = answer if isinstance(answer, str | None) else json.dumps(answer)
    return {
        "question": entry["question"],
        "answer": answer,
        "solution": metadata.get("answer_cot"),
        "difficulty": level(metadata),
    }


def score(question: Mapping[str, Any]) -> dict[str, Any]:
    """What reasoning-gym's own scorer gives for an answer, or what the answer is worth where that is mistaken."""
    global _own
    dataset, entry = _dataset(*_place(question)[:3]), _entry(question)
    known = _known(question["task"], question["text"], entry)
    if known is not None:
        return {"score": float(known)}
    texts = {value for value in (entry["answer"], *entry["metadata"].values()) if isinstance(value, str)}
    _own = {*texts, "from sympy import *"}  # the latter by SymPy's parser
    try:
        return {"score": float(dataset.score_answer(question["text"], entry))}
    finally:
        _own = None


def _known(task: str, text: str, entry: Mapping[str, Any]) -> bool | None:
    """The verdict where the scorer would take a wrong answer for right, or read another one; else `None`."""
    if task in ("countdown", "puzzle24"):
        # Their scorers see other numbers than are there, those of the question or not, and round the value.
        metadata = entry["metadata"]
        own = sorted(_DIGITS.findall(text)) == sorted(str(number) for number in metadata["numbers"])
        return own and exact_value(text) == Fraction(metadata.get("target", 24))
    if task in _PARTIAL:
        between = "" if task == "figlet_font" else " "
        said, expected = (between.join(words.casefold().split()) for words in (text, entry["answer"]))
        return said == expected
    if task == "gsm_symbolic":
        # The scorer takes the first digits: 1 of 1,200, and 5 of -5.
        number, right = leading_number(without_currency(text.strip())), parse_number(entry["answer"])
        return None if number is None or right is None else number == right
    return None


def exact_value(text: str) -> Fraction | None:
    """The value of an expression of whole numbers and `+ - * / ( )`; `None` for any other text."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.UnaryOp):
            return _OPERATORS[type(node.op)](value(node.operand))
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"{type(node).__name__} is no arithmetic")

    if not _ARITHMETIC.fullmatch(text) or "**" in text:
        return None
    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def level(metadata: Mapping[str, Any]) -> int | None:
    """The number that says how hard an entry is: a knob called difficulty, or the entry's own value of the only knob
    that varies. `None` where there is no such number."""
    knobs = metadata.get("difficulty")
    if not isinstance(knobs, dict):
        return None
    varying = [
        name
        for name, value in knobs.items()
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] != value[1]
    ]
    found = knobs.get("difficulty")
    if found is None and len(varying) == 1:
        low, high = knobs[varying[0]]
        own = metadata.get(varying[0])
        few = isinstance(low, int) and isinstance(high, int) and high - low < _MOST_LEVELS
        found = own if few and isinstance(own, int) and low <= own <= high else None
    return found if isinstance(found, int) else None


def plain_expression(code: str, local_dict: Mapping[str, Any], global_dict: Mapping[str, Any]) -> Any:
    """SymPy's `eval_expr`, but it builds the expression part by part and calls only what is listed here."""

    def build(node: ast.AST) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return node.value
        if isinstance(node, ast.Name) and (node.id in local_dict or node.id in _NAMES):
            return local_dict[node.id] if node.id in local_dict else global_dict[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _NAMES:
            return build(node.func)(*map(build, node.args), **{str(k.arg): build(k.value) for k in node.keywords})
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](build(node.left), build(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](build(node.operand))
        raise ValueError(f"{type(node).__name__} is no plain mathematics")

    return build(ast.parse(code.strip(), mode="eval").body)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "compile" and _own is not None and arguments[1] == "<string>":
        text = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
        if text not in _own:
            raise PermissionError("only text of the task itself may be evaluated")


def _place(question: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return question["task"], json.dumps(question["options"]), question["seed"], question["index"]


def _entry(question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _made(*_place(question))
    except Exception:
        # word_ladder makes no entry after one that it could not make; what can be made must not depend on that.
        _dataset.cache_clear()
        raise


@lru_cache(maxsize=1024)
def _made(task: str, options: str, seed: int, index: int) -> dict[str, Any]:
    return _dataset(task, options, seed)[index]


@lru_cache(maxsize=16)
def _dataset(task: str, options: str, seed: int) -> Any:
    from reasoning_gym import create_dataset

    return create_dataset(task, seed=seed, size=CHUNK, **json.loads(options))
