"""The figures of a report for papers, drawn by matplotlib from the same descriptions as the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sasr.errors import InputError
from sasr.report.document import Document
from sasr.report.text import visible

# The page's colours on white.
_COLOURS = {
    "sft": "#1a6bb0",
    "grpo": "#c04d06",
    "both": "#7648a8",
    "ink": "#1b1e23",
    "muted": "#626b77",
    "c1": "#007a68",
    "c2": "#a8326f",
    "c3": "#7a6100",
    "c4": "#4a56b8",
    "c5": "#8a4b2f",
}
_STYLE: Any = {
    "svg.hashsalt": "sasr",  # the same file each time
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "text.parse_math": False,  # names of methods may hold dollars
}


def draw(directory: str | Path) -> dict[str, Any]:
    """The figures of a run, an exam or a comparison as `matplotlib.figure.Figure`, by title, in the order of its page.

    Raises `InputError` if matplotlib is missing, or a file of the directory cannot be used.
    """
    from sasr.report import REPORT_FILE, describe

    return {f["title"]: _draw(f) for f in _descriptions(describe(Path(directory), Path(directory) / REPORT_FILE))}


def write_figures(document: Document, folder: Path) -> int:
    """Write each figure as SVG and PNG, numbered in the order of the page. Returns how many there are.

    Raises `InputError` if matplotlib is missing or the folder cannot be written.
    """
    found = _descriptions(document)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, description in enumerate(found, start=1):
            name = re.sub(r"[^a-z0-9]+", "-", description["title"].lower()).strip("-")[:60]
            _draw(description, folder / f"{index:02d}-{name}")
    except OSError as error:
        raise InputError(f"figures cannot be written to {folder}: {error.strerror or error}") from None
    return len(found)


def _descriptions(document: Document) -> list[Any]:
    kinds = ("lines", "intervals", "parts")
    return [figure for part in document["sections"] for figure in part["figures"] if figure["kind"] in kinds]


def _draw(description: Mapping[str, Any], file: Path | None = None) -> Any:
    """One figure; written to `file` too, as SVG and PNG, if there is one."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib: pip install 'sasr[figures]'") from None
    from matplotlib.figure import Figure

    height = 1 + 0.2 * len(description["rows"]) if description["kind"] == "intervals" else 2.4
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(6.5 if description.get("wide") else 4.2, height), layout="constrained")
        axes = drawn.add_subplot()
        axes.set_title(visible(description["title"]))
        {"lines": _lines, "intervals": _intervals, "parts": _parts}[description["kind"]](axes, description)
        if file is not None:
            drawn.savefig(file.with_name(file.name + ".svg"), metadata={"Date": None})
            drawn.savefig(file.with_name(file.name + ".png"), dpi=300)
    return drawn


def _lines(axes: Any, figure: Mapping[str, Any]) -> None:
    for series in figure["series"]:
        colour, style, xs, ys = _COLOURS[series["colour"]], series["style"], series["x"], series["y"]
        label = visible(series["name"]) if series["label"] else None
        dots = style in ("dots", "points")
        if "low" in series and dots:
            for x, low, high in zip(xs, series["low"], series["high"], strict=True):
                axes.plot([x, x], [low, high], color=colour, lw=1, alpha=0.6)
        elif "low" in series:
            axes.fill_between(xs, series["low"], series["high"], color=colour, alpha=0.15, lw=0)
        if style == "points":
            axes.plot(xs, ys, "o", color=colour, ms=4)
        elif style != "band":
            dashes, marker = "--" if style == "dashed" else "-", "o" if dots else ""
            faint = style == "faint"
            width, alpha = (0.6, 0.3) if faint else (1.2, 1.0)
            axes.plot(xs, ys, dashes, marker=marker, ms=3, color=colour, lw=width, alpha=alpha, label=label)
    if figure.get("region"):
        axes.axvspan(figure["region"][0], figure["region"][1], color="0.95", lw=0, zorder=0)
    if figure.get("strip"):
        _strip(axes, figure["strip"])
    points = [series for series in figure["series"] if series["style"] == "points"]
    if points:
        axes.margins(x=0.12)
        _names(axes, points)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False)
    x, y = figure["x"], figure["y"]
    axes.set(xlabel=x["label"], ylabel=y["label"])
    if x.get("marks"):
        axes.set_xticks([value for value, _ in x["marks"]], [visible(str(text)) for _, text in x["marks"]])
    if y.get("cut"):
        axes.set_ylim(y["min"], y["max"])
    elif y["min"] is not None:
        axes.set_ylim(bottom=y["min"])


def _strip(axes: Any, columns: Sequence[Sequence[float]]) -> None:
    edges = [first - 0.5 for first, *_ in columns] + [columns[-1][1] + 0.5]
    bottom = [1.05] * len(edges)
    for colour, of in (("grpo", lambda c: 1 - c[2] - c[3]), ("both", lambda c: c[3]), ("sft", lambda c: c[2])):
        shares = [of(column) for column in columns]
        top = [low + 0.12 * share for low, share in zip(bottom, [*shares, shares[-1]], strict=True)]
        axes.fill_between(edges, bottom, top, step="post", color=_COLOURS[colour], lw=0)
        bottom = top
    axes.set_yticks([0, 0.5, 1])


def _names(axes: Any, points: Sequence[Mapping[str, Any]]) -> None:
    """Each name beside its point, in the first place around it that is free."""
    scale = 72 / axes.figure.dpi
    axes.figure.draw_without_rendering()  # the places of points are known once it is laid out
    places = [axes.transData.transform((series["x"][0], series["y"][0])) * scale for series in points]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    for series, (x, y) in zip(points, places, strict=True):
        name = visible(series["name"])
        width = 4.6 * len(name)
        for dx, dy in (
            (5, -3),
            (-5 - width, -3),
            (5, 4),
            (-5 - width, 4),
            (5, -10),
            (-5 - width, -10),
            (5, 12),
            (5, -18),
        ):
            box = (x + dx, y + dy, x + dx + width, y + dy + 7)
            if all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken):
                break
        taken.append(box)
        at = (series["x"][0], series["y"][0])
        axes.annotate(name, at, (dx, dy), textcoords="offset points", color=_COLOURS[series["colour"]])


def _intervals(axes: Any, figure: Mapping[str, Any]) -> None:
    rows = list(reversed(figure["rows"]))
    for i, row in enumerate(rows):
        colour = _COLOURS[row["colour"]]
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [i, i], color=colour, lw=1.5)
        axes.plot(row.get("points") or [], [i] * len(row.get("points") or []), ".", color=colour, alpha=0.3, ms=4)
        axes.plot(row["value"], i, "o", color=colour, ms=4)
    axes.set_yticks(range(len(rows)), [visible(row["name"]) for row in rows])
    axes.set_xlabel(figure["x"]["label"])
    if figure.get("zero"):
        axes.axvline(0, color="0.5", lw=0.8, zorder=0)


def _parts(axes: Any, figure: Mapping[str, Any]) -> None:
    parts = list(reversed(figure["parts"]))
    axes.barh(range(len(parts)), [part["value"] for part in parts], color=[_COLOURS[part["colour"]] for part in parts])
    axes.set_yticks(range(len(parts)), [f"{part['name']} ({part['text']})" for part in parts])
    axes.set_xlabel("seconds")
