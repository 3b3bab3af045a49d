"""What a report consists of: sections of figures, described once and drawn by the page and by matplotlib alike.

A figure is a JSON-safe dict with `kind`, `title` and `caption`:

- `lines`: `series` over `x` and `y` axes, also of single points; `strip` shows kinds of steps above it
- `intervals`: a value with its interval for each of `rows`
- `parts`: what a whole consists of
- `table`: `head` and `rows` of texts
- `completions`: a browser of completions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sasr.redaction import HIDDEN, is_secret, redacted
from sasr.report.series import smooth, thin

if TYPE_CHECKING:
    from sasr.runs.state import State

Figure = dict[str, Any]
Document = dict[str, Any]
# Names of colours; each drawing has its own values for them. SFT and GRPO have theirs everywhere.
SFT, GRPO, BOTH, INK, MUTED = "sft", "grpo", "both", "ink", "muted"
OTHERS = ("c1", "c2", "c3", "c4", "c5")


def number(value: Any) -> float | None:
    """The value if it is a number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def axis(label: str, low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    """An axis: what it shows, with the unit, and its ends where they do not follow from the data. `marks` are the only
    ticks, as pairs of a place and its text."""
    return {"label": label, "min": low, "max": high, **more}


def series(
    name: str,
    colour: str,
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    style: str = "line",
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    label: bool = True,
) -> dict[str, Any]:
    """One series. `style` is `line`, `dashed`, `faint`, `band`, `dots` (joined) or `points` (not); `low` and `high`
    are a band around a line and whiskers of dots and points. Without `label` it is named in the read-out alone."""
    if low is None or high is None:
        xs, ys = thin(xs, ys)
        return {"name": name, "colour": colour, "style": style, "x": xs, "y": ys, "label": label}
    return {"name": name, "colour": colour, "style": style, "x": xs, "y": ys, "low": low, "high": high, "label": label}


def course(name: str, colour: str, xs: Sequence[float], ys: Sequence[float]) -> list[dict[str, Any]]:
    """A noisy series as its running mean in front of its values."""
    window = len(ys) // 25
    if window < 4:
        return [series(name, colour, xs, ys)]
    return [
        series("each step", colour, xs, ys, style="faint", label=False),
        series(name, colour, xs, smooth(ys, window)),
    ]


def lines(title: str, caption: str, x: Mapping, y: Mapping, groups: Sequence[Mapping], **more: Any) -> Figure | None:
    """A figure of the series that have points; `None` if none has."""
    kept = [group for group in groups if group["x"]]
    if not kept:
        return None
    return {"kind": "lines", "title": title, "caption": caption, "x": x, "y": y, "series": kept, **more}


def table(title: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> Figure | None:
    """A table; a cell is a text, or a dict of `text`, a `note` below it and an `href`."""
    if not rows:
        return None
    return {"kind": "table", "title": title, "caption": caption, "head": head, "rows": rows, **more}


def settings_table(caption: str, values: Mapping[str, Any]) -> Figure | None:
    """Names and values, folded away. Secrets stay out of it: a report is made to be passed on."""
    rows = []
    for name, value in values.items():
        value = HIDDEN if is_secret(name) else redacted(value)
        rows.append([name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)])
    return table("Settings", caption, ["setting", "value"], rows, folded=True, texts=True, wide=True)


def document(
    kind: str,
    title: str,
    directory: Path,
    state: State,
    facts: Sequence[Mapping[str, str]],
    sections: Sequence[Document | None],
) -> Document:
    """The report of a directory: facts (`title`, `value`, `note`), and below them the sections that there are."""
    return {
        "kind": kind,
        "title": title,
        "subtitle": directory.resolve().name,
        "state": {"tone": state.tone, "text": state.text},
        "facts": facts,
        "sections": [part for part in sections if part is not None],
    }


def section(title: str, lead: str, figures: Sequence[Figure | None]) -> Document | None:
    """The figures there are, under a heading; `None` if there are none."""
    kept = [figure for figure in figures if figure is not None]
    return {"title": title, "lead": lead, "figures": kept} if kept else None


def between(interval: Sequence[float]) -> str:
    """An interval in words that stay on one line."""
    return f"{interval[0]:.3f}\u00a0to\u00a0{interval[1]:.3f}"


def rate(value: float | None, interval: Sequence[float] | None = None) -> dict[str, str]:
    """A share as a cell of a table."""
    if value is None:
        return {"text": "–"}
    return {"text": f"{value:.3f}", "note": between(interval) if interval else ""}
