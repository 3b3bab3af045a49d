"""The terminal view of `sasr check`: a bar while demonstrations are judged, then a table and a line per finding."""

from __future__ import annotations

from sasr.check.facts import Lengths
from sasr.check.report import Report
from sasr.exam.view import ExamView
from sasr.report.text import visible

_MOST_LEVELS = 12  # lines of the table that difficulties may take


class CheckView(ExamView):
    """Shows how far the demonstrations are judged, and tables."""

    unit = "demonstrations judged"


def show(report: Report) -> None:
    """Measure, and print what was found."""
    with CheckView() as view:
        if report.to_judge:
            view.start(report.to_judge, 0)
        report.measure(view.update)
        view.stop()
        view.table(table(report))
        for name, counts in report.counts.items():
            view.message(visible(f"columns of {name}: {', '.join(counts['columns'])}", 300))
        if report.tokenizer is None:
            view.message("tokens were not counted: name a model, --model NAME")
        for kind, lines in (("note", report.notes), ("problem", report.problems)):
            for line in lines:
                view.message(f"{kind}: {' '.join(visible(line, 600).split())}")
        if not report.problems:
            view.message("no problems found")


def table(report: Report) -> list[list[str]]:
    """The figures as rows of text, one column for each split, the first row the heading."""
    names = list(report.splits)
    rows = [["", *names]]

    def add(title: str, cells: list[str]) -> None:
        if any(cells):
            rows.append([title, *cells])

    counts = [report.counts[name] for name in names]
    add("rows", [str(count["rows"]) for count in counts])
    for key, title in (("demonstrations", "with demonstration"), ("answers", "with answer")):
        add(title, [_share(count[key], count["rows"]) for count in counts])
    levels = list(dict.fromkeys(level for count in counts for level in count["difficulty"]))
    for level in levels[:_MOST_LEVELS]:
        add(f"  difficulty {visible(level, 20)}", [str(count["difficulty"].get(level, "")) for count in counts])
    if len(levels) > _MOST_LEVELS:
        add(f"  {len(levels) - _MOST_LEVELS} further difficulties", [
            str(sum(count["difficulty"].get(level, 0) for level in levels[_MOST_LEVELS:])) for count in counts
        ])  # fmt: skip
    for key, title, limit in (
        ("prompts", "tokens of a prompt", "max_prompt_length"),
        ("demonstrations", "tokens of a demonstration", "max_completion_length"),
    ):
        found = [report.lengths.get(name, {}).get(key) for name in names]
        add(f"{title}: min / median / 95% / max", [_lengths(lengths) for lengths in found])
        limits = [lengths.limit for lengths in found if lengths is not None and lengths.limit is not None]
        if limits:
            add(f"  over {limit} ({limits[0]})", ["" if f is None else str(len(f.over)) for f in found])
    judged = [report.judged[name] for name in names]
    right = [found.count - len(found.wrong) - len(found.failed) for found in judged]
    add("demonstrations that the verifier accepts", [
        _share(count, found.count) if found.count else "" for count, found in zip(right, judged, strict=True)
    ])  # fmt: skip
    for key, title in (
        ("wrong", "rejects"),
        ("failed", "could not judge"),
        ("malformed", "accepts in another format"),
        ("untrue", "accepts, with a step that does not hold"),
    ):
        found_any = any(getattr(found, key) for found in judged)
        add(f"  {title}", [str(len(getattr(found, key))) if found.count and found_any else "" for found in judged])
    add("repeated prompts", [str(report.repeats[name]["exactly"]) for name in names])
    add("  in other case or spacing too", [str(report.repeats[name]["normalised"]) for name in names])
    return rows


def _share(part: int, whole: int) -> str:
    if not whole:
        return "0"
    # 99.96% must not look like all.
    share = int(1000 * part / whole) / 10
    return f"{part} ({share:g}%)"


def _lengths(found: Lengths | None) -> str:
    return "" if found is None else f"{found.minimum} / {found.median:g} / {found.p95:g} / {found.maximum}"
