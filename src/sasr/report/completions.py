"""A bounded choice of an exam's completions to look at: the same questions from every exam of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sasr.report.document import Figure

QUESTIONS, FEWEST = 60, 8
TEXT = 2000  # characters of a prompt or completion
BUDGET = 1_500_000  # characters of all of them
_TRIES = 4
_SHORT = 120
# What these tasks take for the answer can be told from the text alone.
_MARKED = ("stories", "gsm8k", "math", "jsonl", "svamp", "multiarith")


def choose(rows: int, exams: int, mean_length: float = TEXT) -> list[int]:
    """Indices of the rows to show, spread evenly: fewer where completions are long and exams are many."""
    length = max(1.0, min(mean_length, TEXT))
    most = int(BUDGET / (max(1, exams) * (_TRIES + 1) * length))
    count = min(rows, max(FEWEST, min(QUESTIONS, most)))
    return [i * rows // count for i in range(count)] if count else []


def few(labels: Sequence[str], most: int = 8) -> list[str]:
    """At most `most` of the exams, the first and the last among them."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(i * (len(labels) - 1) / (most - 1))] for i in range(most)]


def tries(record: Mapping[str, Any], exam: int, task: str) -> list[dict[str, Any]]:
    """The completions of a record that say most: the greedy one, and of the samples the first right one, the first that
    is right for the wrong reason, and the first wrong one."""
    samples = list(record.get("samples") or ())
    right = sum(bool(sample.get("correct")) for sample in samples)
    shown = [(record.get("greedy"), "greedy")]
    for fits in (
        lambda s: s.get("correct") and s.get("steps_valid") is not False,
        lambda s: s.get("correct") and s.get("steps_valid") is False,
        lambda s: not s.get("correct"),
    ):
        found = next((s for s in samples if fits(s)), None)
        if found is not None:
            shown.append((found, "sample"))
    entries = []
    for completion, how in shown:
        if not isinstance(completion, Mapping):
            continue
        verdict, why = judged(completion, record, task)
        entry = {"exam": exam, "how": how, "verdict": verdict, "why": why, "tokens": completion.get("tokens")}
        entry["text"] = cut(completion.get("text"))
        entry["path"] = cut(completion.get("path"), 3 * _SHORT) if completion.get("path") else None
        entries.append(entry)
    if entries and samples:
        entries[0]["score"] = f"{right} of {len(samples)} samples right"
    return entries


def judged(completion: Mapping[str, Any], record: Mapping[str, Any], task: str) -> tuple[str, str]:
    """(verdict, why in words). The verdict is `right`, `reason` (right for the wrong one), `failed`, `cut`, `format` or
    `wrong`."""
    if completion.get("correct"):
        if completion.get("steps_valid") is False:
            return "reason", "right answer, but a step does not hold"
        return "right", "right"
    if completion.get("failure") is not None:
        return "failed", f"verifier failed: {cut(completion['failure'], _SHORT)}"
    if completion.get("truncated"):
        return "cut", f"cut at the limit of {completion.get('tokens')} tokens"
    if not completion.get("well_formed"):
        return "format", "bad format"
    return "wrong", f"wrong answer: {_got(completion, task)}expected {cut(record.get('answer'), _SHORT)}"


def _got(completion: Mapping[str, Any], task: str) -> str:
    if task not in _MARKED:
        return ""
    from sasr.tasks.jsonl import final_answer

    text = str(completion.get("text"))[-4 * TEXT :]
    _, mark, marked = text.rpartition("####")
    # To these two a mark is one way of several to state an answer.
    got = marked.strip("* \n").partition("\n")[0] if mark and task not in ("jsonl", "math") else final_answer(text)
    return f"got {cut(got, _SHORT)}, "


def question(row: int, record: Mapping[str, Any], note: str = "") -> dict[str, Any]:
    """What was asked."""
    prompt, difficulty = record.get("prompt"), record.get("difficulty")
    if not isinstance(prompt, str):  # messages
        from sasr.tasks.base import text_of

        prompt = text_of(prompt) if isinstance(prompt, list) else str(prompt)
    notes = [note, f"difficulty {difficulty}" if difficulty is not None else ""]
    return {
        "row": row,
        "prompt": cut(prompt),
        "answer": cut(record.get("answer"), _SHORT),
        "note": ", ".join(text for text in notes if text),
        "tries": [],
    }


def browser(questions: Iterable[Mapping[str, Any]], exams: Sequence[str], rows: int, caption: str) -> Figure | None:
    """The figure; `None` without completions."""
    kept = [asked for asked in questions if asked["tries"]]
    if not kept:
        return None
    return {
        "kind": "completions",
        "title": "Completions",
        "caption": f"{caption} {len(kept)} of {rows} questions.",
        "exams": list(exams),
        "questions": kept,
        "wide": True,
    }


def cut(text: Any, limit: int = TEXT) -> str:
    """The start of a text that the page's own limit would let through, with a note of what is missing."""
    from sasr.report.text import visible

    return visible(str(text), limit)
