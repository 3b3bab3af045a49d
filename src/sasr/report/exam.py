"""The report of `sasr exam`, done or as far as it got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sasr.exam import measures
from sasr.exam.store import COMPLETIONS_FILE, EXAM_FILE
from sasr.exam.view import figure_rows
from sasr.live import format_duration
from sasr.report import completions, examined
from sasr.report.document import INK, MUTED, OTHERS, Document, Figure, between, document, section, settings_table, table
from sasr.report.reading import read_json, read_lines
from sasr.runs.state import exam_state

Record = Mapping[str, Any]


def exam_document(directory: Path) -> Document:
    """Raises `InputError` for a file that cannot be read."""
    content = read_json(directory / EXAM_FILE)
    settings, path = content["settings"], directory / COMPLETIONS_FILE
    done = content.get("figures") is not None
    figures = content["figures"] if done else _figures(list(read_lines(path)), settings)
    sections = []
    if figures is not None:
        name, value, interval = examined.score(figures)
        curves = {"": figures}
        sections = [
            section("Accuracy", "", [_intervals(figures), examined.pass_at_k(curves), examined.difficulty(curves)]),
            section(
                "The same questions in other forms",
                "A model that has learned to solve the task solves them too.",
                _robustness(figures.get("robustness") or {}),
            ),
            section("Every figure", "", [_table(figures)]),
            section("What it wrote", "", [_browser(path, settings, figures)]),
        ]
    facts = [{"title": "Model", "value": Path(str(settings["model"])).name, "note": str(settings["model"])}]
    if figures is not None:
        note = f"{name}; 95% interval {between(interval)}" if interval else name
        asked = f"{figures['samples']} sampled and 1 greedy completion each"
        facts.insert(0, {"title": "Accuracy", "value": f"{value:.3f}", "note": note})
        facts.append({"title": "Rows", "value": f"{figures['rows']:,}", "note": asked})
        if figures.get("seconds"):
            tokens = f"{figures['generated_tokens']:,} tokens generated"
            facts.append({"title": "Time", "value": format_duration(figures["seconds"]), "note": tokens})
    sections.append(section("Settings", "", [_settings(settings, content.get("versions") or {})]))
    state = exam_state(directory, done, figures["rows"] if figures else 0)
    title = f"{Path(str(settings['model'])).name} on {settings['task']}"
    return document("exam", title, directory, state, facts, sections)


def _figures(records: Sequence[Record], settings: Record) -> dict[str, Any] | None:
    """Those of an exam that is not done, as far as its records tell; its rows come before their other forms."""
    plain = [dict(record) for record in records if "perturbation" not in record]
    if not plain:
        return None
    from sasr.exam.exam import summarise  # imports torch, which no other report needs

    result = summarise(plain, settings["n"], ks=settings.get("k") or ())
    return {
        **result.to_dict(),
        "gain": measures.gain(result.pass_at),
        "text": measures.text_diversity(plain),
        "lengths": measures.lengths(plain),
        "robustness": measures.robustness(records),
        **dict.fromkeys(("entropy", "kl", "nll")),
    }


def _intervals(figures: Record) -> Figure:
    rows = [_row("greedy", figures["greedy_accuracy"], figures["greedy_interval"], OTHERS[0])]
    intervals = figures["pass_at_intervals"]
    rows += [_row(f"pass@{k}", value, intervals[k], INK) for k, value in figures["pass_at"].items()]
    caption = f"{figures['rows']} rows; bars are 95% bootstrap intervals over them."
    return _dots("Accuracy", caption, "share right", rows)


def _robustness(groups: Mapping[str, Record]) -> list[Figure | None]:
    if not groups:
        return []
    levels, differences = [], []
    caption = "pass@1 of the changed rows (how many there are), and of the same rows unchanged."
    for kind, group in groups.items():
        levels.append(_row(f"{kind} ({group['rows']})", group["pass_at_1"], group["interval"], INK))
        levels.append(_row("as they were", group["original_pass_at_1"], None, MUTED))
        differences.append(_row(kind, group["difference"], group["difference_interval"], INK, "{:+.3f}"))
    return [
        _dots("Accuracy on the changed rows", caption, "pass@1", levels),
        {
            **_dots(
                "What the change costs",
                "Changed minus unchanged, row by row, with 95% bootstrap intervals.",
                "difference of pass@1",
                differences,
            ),
            "zero": True,
        },
    ]


def _dots(title: str, caption: str, label: str, rows: Sequence[Record]) -> Figure:
    axis = {"label": label}
    return {"kind": "intervals", "title": title, "caption": caption, "x": axis, "rows": list(rows)}


def _row(name: str, value: float, interval: Any, colour: str, form: str = "{:.3f}") -> dict[str, Any]:
    low, high = interval or (None, None)
    text = form.format(value) + (f" [{form.format(low)}, {form.format(high)}]" if interval else "")
    return {"name": name, "value": value, "low": low, "high": high, "colour": colour, "text": text}


def _table(figures: Record) -> Figure | None:
    head, *rows = figure_rows(figures)
    caption = "What was not measured, or cannot be for this task, is left out."
    return table("All measures", caption, list(head), [list(row) for row in rows], wide=True)


def _browser(path: Path, settings: Record, figures: Record) -> Figure | None:
    rows = figures["rows"]
    size = path.stat().st_size if path.is_file() else 0
    everything = rows + sum(group["rows"] for group in (figures.get("robustness") or {}).values())
    forms = 1 + len(figures.get("robustness") or {})
    length = size / max(1, everything) / (1 + settings["n"])
    chosen, asked = set(completions.choose(rows, forms, length)), []
    for row, record in enumerate(read_lines(path)):
        original = record.get("original", row)
        if original in chosen:
            kind = record.get("perturbation")
            question = completions.question(original, record, f"changed: {kind}" if kind else "")
            question["tries"] = completions.tries(record, 0, str(settings["task"]))
            asked.append((original, question))
    asked.sort(key=lambda pair: pair[0])  # each question with its other forms behind it
    caption = "The greedy completion, a right and a wrong sample."
    shown = completions.browser([question for _, question in asked], ["exam"], rows, caption)
    if shown is not None and forms > 1:
        shown["caption"] = f"{caption} {len(chosen)} of {rows} questions, each with its other forms."
    return shown


def _settings(settings: Record, versions: Record) -> Figure | None:
    caption = "exam.json: the same settings give the same exam."
    return settings_table(caption, {**settings, **versions})
