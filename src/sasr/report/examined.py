"""The figures of exams: those of a run over its steps, and the one of `sasr exam`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sasr.report.document import INK, MUTED, OTHERS, SFT, Figure, axis, lines, number, rate, series, table

Exam = Mapping[str, Any]
_TITLES = {"initial": "before", "warmup": "after warm-up", "final": "at the end"}


def ordered(content: Mapping[str, Any]) -> dict[str, Exam]:
    """The exams of an exam.json that have figures, by step."""
    known = {label: exam for label, exam in content.items() if isinstance(exam, dict) and score(exam)[1] is not None}
    return dict(sorted(known.items(), key=lambda item: number(item[1].get("step")) or 0))


def title(label: str, exam: Exam) -> str:
    """What people call it."""
    step = number(exam.get("step"))
    name = _TITLES.get(label, label)
    return f"step {step:.0f}" if label.startswith("step-") and step is not None else name


def score(exam: Exam) -> tuple[str, Any, Sequence[float] | None]:
    """(name, value, interval) of the figure that decides: pass@1, or without samples greedy accuracy."""
    value = number((exam.get("pass_at") or {}).get("1"))
    if value is not None:
        return "pass@1", value, (exam.get("pass_at_intervals") or {}).get("1")
    return "greedy accuracy", number(exam.get("greedy_accuracy")), exam.get("greedy_interval")


def best(exams: Mapping[str, Exam]) -> str | None:
    """The label of the exam with the highest score; of equal ones the last."""
    return max(reversed(list(exams)), key=lambda label: score(exams[label])[1], default=None)


def figures(exams: Mapping[str, Exam], last: int) -> list[Figure | None]:
    """Of the exams of a run whose last step is known: its other figures have the same axis."""
    if not exams:
        return []
    x = axis("optimizer step", 0, last, name="step")
    return [
        _over_steps(exams, x),
        pass_at_k({title(label, exam): exam for label, exam in _three(exams).items()}),
        difficulty({title(label, exam): exam for label, exam in _three(exams).items()}),
        _measure(
            exams,
            x,
            "Different ways to a right answer",
            "Mean number of different paths among the right samples of a question with two or more of them.",
            "paths per question",
            {
                "all": lambda exam: (exam.get("paths") or {}).get("distinct"),
                "valid steps": lambda exam: ((exam.get("paths") or {}).get("valid") or {}).get("distinct"),
            },
        ),
        _measure(
            exams,
            x,
            "Right for the wrong reason",
            "Share of the right samples in which a step does not hold, of those that can be checked.",
            "share",
            {"wrong reason": lambda exam: (exam.get("wrong_reason") or {}).get("rate")},
            high=1,
        ),
        _measure(
            exams,
            x,
            "Format and truncation",
            "Share of all completions in the task's format, and of those cut at the token limit.",
            "share",
            {"format": lambda exam: exam.get("format_rate"), "cut": lambda exam: exam.get("truncation_rate")},
            high=1,
        ),
        _table(exams),
    ]


def _three(exams: Mapping[str, Exam]) -> dict[str, Exam]:
    """The first, the one after the warm-up and the last: more curves than these cannot be told apart."""
    labels = list(exams)
    kept = {labels[0], "warmup", labels[-1]}
    return {label: exam for label, exam in exams.items() if label in kept}


def _over_steps(exams: Mapping[str, Exam], x: Mapping[str, Any]) -> Figure | None:
    largest = str(max((int(k) for exam in exams.values() for k in exam.get("pass_at") or {}), default=0))
    wanted = [("pass@1", INK, "1"), ("greedy", OTHERS[0], ""), (f"pass@{largest}", OTHERS[1], largest)]
    drawn = []
    for name, colour, k in wanted if largest not in ("0", "1") else wanted[:2]:
        found = [(number(exam.get("step")) or 0, *_value(exam, k)) for exam in exams.values()]
        known = [(x, y, interval) for x, y, interval in found if y is not None]
        bounds: dict[str, Any] = {}
        if all(interval for *_, interval in known):
            bounds = {"low": [i[0] for *_, i in known], "high": [i[1] for *_, i in known]}
        drawn.append(series(name, colour, [p[0] for p in known], [p[1] for p in known], style="dots", **bounds))
    rows = list(exams.values())[-1].get("rows")
    caption = f"{rows} held-out rows at each exam; whiskers are 95% bootstrap intervals over rows."
    return lines("Accuracy over training", caption, x, axis("share", 0), drawn, wide=True, group="step")


def _value(exam: Exam, k: str) -> tuple[float | None, Any]:
    if not k:
        return number(exam.get("greedy_accuracy")), exam.get("greedy_interval")
    return number((exam.get("pass_at") or {}).get(k)), (exam.get("pass_at_intervals") or {}).get(k)


def pass_at_k(exams: Mapping[str, Exam]) -> Figure | None:
    """pass@k over k, a curve for each exam."""
    drawn: list[dict[str, Any]] = []
    marks: list[Any] = []
    for colour, (name, exam) in zip(_colours(len(exams)), exams.items(), strict=True):
        ks = sorted((exam.get("pass_at") or {}), key=int)
        places = [math.log2(int(k)) for k in ks]
        marks = max(marks, [[place, k] for place, k in zip(places, ks, strict=True)], key=len)
        bounds: list[Any] = [(exam.get("pass_at_intervals") or {}).get(k) for k in ks]
        band: dict[str, Any] = {"low": [b[0] for b in bounds], "high": [b[1] for b in bounds]} if all(bounds) else {}
        drawn.append(series(name, colour, places, [exam["pass_at"][k] for k in ks], style="dots", **band))
    if len(marks) < 2:
        return None
    caption = "Chance that at least one of k samples is right. A curve that rises far has right answers that are rare."
    x = axis("k samples", name="k", marks=marks)
    return lines("pass@k", caption, x, axis("pass@k", 0), drawn)


def difficulty(exams: Mapping[str, Exam]) -> Figure | None:
    """pass@1 over difficulty, a curve for each exam; `None` where all rows are alike."""
    levels = list(dict.fromkeys(level for exam in exams.values() for level in exam.get("by_difficulty") or {}))
    if len(levels) < 2:
        return None
    drawn = []
    for colour, (name, exam) in zip(_colours(len(exams)), exams.items(), strict=True):
        groups = exam.get("by_difficulty") or {}
        known = [(float(i), number((groups.get(level) or {}).get("pass_at_1"))) for i, level in enumerate(levels)]
        kept = [(x, y) for x, y in known if y is not None]
        drawn.append(series(name, colour, [x for x, _ in kept], [y for _, y in kept], style="dots"))
    last = list(exams.values())[-1].get("by_difficulty") or {}
    rows = ", ".join(f"{level}: {(last.get(level) or {}).get('rows', 0)}" for level in levels)
    marks = [[float(i), level] for i, level in enumerate(levels)]
    caption = f"pass@1 of the rows of each level. Rows of each: {rows}."
    return lines("By difficulty", caption, axis("difficulty", name="difficulty", marks=marks), axis("pass@1", 0), drawn)


def _colours(count: int) -> list[str]:
    """Grey for before, that of SFT for what SFT alone made, ink for the end."""
    return {1: [INK], 2: [MUTED, INK]}.get(count, [MUTED, SFT, INK])


def _measure(
    exams: Mapping[str, Exam],
    x: Mapping[str, Any],
    heading: str,
    caption: str,
    unit: str,
    wanted: Mapping[str, Any],
    high: float | None = None,
) -> Figure | None:
    drawn = []
    for colour, (name, of) in zip((INK, OTHERS[0]), wanted.items(), strict=False):
        known = [(number(exam.get("step")) or 0, number(of(exam))) for exam in exams.values()]
        kept = [(x, y) for x, y in known if y is not None]
        drawn.append(series(name, colour, [x for x, _ in kept], [y for _, y in kept], style="dots"))
    return lines(heading, caption, x, axis(unit, 0, high), drawn, group="step")


def _table(exams: Mapping[str, Exam]) -> Figure | None:
    ks = sorted({int(k) for exam in exams.values() for k in exam.get("pass_at") or {}})
    head = ["exam", "step", "greedy", *(f"pass@{k}" for k in ks), "format", "cut", "wrong reason", "tokens", "failures"]
    rows: list[list[Any]] = []
    for label, exam in exams.items():
        row: list[Any] = [title(label, exam), f"{number(exam.get('step')) or 0:.0f}", rate(*_value(exam, ""))]
        row += [rate(*_value(exam, str(k))) for k in ks]
        reason = exam.get("wrong_reason") or {}
        checked = {**rate(number(reason.get("rate")))}
        if reason.get("checked"):
            checked["note"] = f"of {reason['checked']}"
        row += [rate(number(exam.get("format_rate"))), rate(number(exam.get("truncation_rate"))), checked]
        row += [f"{number(exam.get('mean_completion_tokens')) or 0:.1f}", str(exam.get("verifier_failures", "–"))]
        rows.append(row)
    caption = "Rates with 95% intervals below. failures: completions that the verifier could not judge."
    return table("All exams", caption, head, rows, wide=True)
