"""`sasr runs` on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from sasr.errors import InputError, did_you_mean
from sasr.flags import Flags
from sasr.live import format_duration
from sasr.model_files import expand
from sasr.report.text import visible
from sasr.runs.entries import Entry, find
from sasr.terminal import TerminalView

USAGE = """\
usage: sasr runs [DIR ...] [--json]

What there is in these directories, newest first: runs, exams and comparisons, how far each got, its best and last exam,
and how to go on. Without DIR: runs/ and exams/ here. A comparison as DIR shows its runs.

  running     a process is at work on it now        stopped   by Ctrl-C or SIGTERM; it was saved
  killed      ended without saving, or power cut    failed    by an error, which is shown
  sft         share of SFT among the steps after the warm-up
  time        of steps and exams

  --json      everything, for scripts"""

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "yellow", "killed": "yellow"}
_GAP = "  "


def runs(argv: list[str]) -> int:
    """Returns the exit status, 0. Raises `InputError`."""
    parser = Flags("sasr runs", names_help=True)
    parser.add_argument("directories", nargs="*")
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args(argv)
    if rest:
        raise InputError(f"unknown argument {rest[0]}{did_you_mean(rest[0], ['--json'])}")
    roots = [expand(name) for name in options.directories] or [p for p in map(Path, ("runs", "exams")) if p.is_dir()]
    if not roots:
        raise InputError("there is no runs/ or exams/ here: name a directory, sasr runs DIR")
    for root in roots:
        if not root.is_dir():
            raise InputError(f"there is no directory {root}: name one that holds runs")
    skipped: list[str] = []
    seen: set[str] = set()
    entries = [entry for root in roots for entry in find(root, skipped.append, seen) if entry]
    entries.sort(key=lambda entry: entry["changed"], reverse=True)
    if options.json:
        print(json.dumps(entries, indent=2))
    else:
        _Table().show(entries, " or ".join(str(root) for root in roots))
    for reason in skipped:
        print(f"note: skipped {_line(reason)}", file=sys.stderr)
    return 0


def _line(text: object) -> str:
    return " ".join(visible(str(text), 300).split())


def _done(entry: Entry) -> str:
    if entry["kind"] == "run":
        return f"{entry['steps']}/{entry['max_steps'] or '?'}"
    return f"{entry['rows']} rows" if entry["kind"] == "exam" else f"{entry['runs_done']}/{entry['runs']} runs"


def _score(score: Entry | None) -> str:
    if score is None:
        return ""
    greedy = "" if score["figure"] == "pass@1" else " greedy"
    if score["label"] == "exam":
        return f"{score['value']:.3f}{greedy}"
    at = "" if score.get("step") is None or score["label"].startswith("step-") else f" @{score['step']}"
    return f"{score['value']:.3f} {score['label']}{at}{greedy}"


def _share(entry: Entry) -> str:
    return "" if entry.get("sft_share") is None else f"{entry['sft_share']:.0%}"


def _model(entry: Entry) -> str:
    name = entry["model"] or ""
    return Path(name).name if name.startswith("/") else name


# Title, text, and in which order columns give way where the terminal is too narrow; 0 stays.
_COLUMNS: list[tuple[str, Callable[[Entry], str], int]] = [
    ("name", lambda entry: entry["directory"], 0),
    ("task", lambda entry: entry["task"] or "", 3),
    ("model", _model, 1),
    ("method", lambda entry: entry["method"] or ("exam" if entry["kind"] == "exam" else ""), 6),
    ("state", lambda entry: entry["state"], 0),
    ("done", _done, 0),
    ("best", lambda entry: _score(entry["best"]), 7),
    ("last", lambda entry: _score(entry.get("last")), 4),
    ("sft", _share, 5),
    ("time", lambda entry: format_duration(entry["seconds"]) if entry["seconds"] else "", 2),
]


class _Table(TerminalView):
    def show(self, entries: Sequence[Entry], where: str) -> None:
        if not entries:
            self.message(f"no run, exam or comparison in {where}")
            return
        columns = _COLUMNS
        rows = [[_line(text(entry)) for _, text, _ in columns] for entry in entries]
        widths = [max(len(title), *(len(row[i]) for row in rows)) for i, (title, _, _) in enumerate(columns)]
        kept = list(range(len(columns)))
        while (over := self._over(widths, kept)) > 0 and any(columns[i][2] for i in kept):
            kept.remove(min((i for i in kept if columns[i][2]), key=lambda i: columns[i][2]))
        if over > 0:
            widths[0] = max(8, widths[0] - over)  # of a long name the end tells which it is
        self._row([title for title, _, _ in columns], widths, kept, "dim")
        for entry, row in zip(entries, rows, strict=True):
            self._row(row, widths, kept, _STYLES.get(entry["state"], ""))
        for entry in entries:
            if entry["state"] not in ("running", "finished"):
                go_on = f"; go on with: {entry['go_on']}" if entry["go_on"] else ""
                self.message(f"{entry['directory']} {_line(entry['state_text'])}{go_on}")

    def _over(self, widths: Sequence[int], kept: Sequence[int]) -> int:
        """How many characters too wide a terminal would find these columns."""
        if not self._rich:
            return 0
        return sum(widths[i] for i in kept) + len(_GAP) * (len(kept) - 1) - self._console.width

    def _row(self, cells: Sequence[str], widths: Sequence[int], kept: Sequence[int], style: str) -> None:
        line = Text()
        for place in kept:
            cell, width = cells[place], widths[place]
            text = cell if len(cell) <= width else "…" + cell[1 - width :]
            coloured = style if style == "dim" or _COLUMNS[place][0] == "state" else ""
            line.append(text.ljust(width) + _GAP, style=coloured)
        line.rstrip()
        if self._rich:
            self._console.print(line, no_wrap=True, overflow="crop")
        else:
            self._print(line.plain)
