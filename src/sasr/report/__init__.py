"""`report.html`: a run, an exam or a comparison as one page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from sasr.checkpoints import write_atomically
from sasr.errors import InputError
from sasr.report.reading import kind_of
from sasr.report.text import embed

REPORT_FILE = "report.html"
_PAGE = Path(__file__).parent / "page"


def describe(directory: Path, page: Path) -> dict[str, Any]:
    """What the report says, for the page and for figures; `page` is where it will be, for links.

    Raises `InputError` if the directory holds nothing to report, or a file that cannot be used.
    """
    kind = kind_of(directory)
    try:
        if kind == "run":
            from sasr.report.run import run_document

            return run_document(directory)
        if kind == "exam":
            from sasr.report.exam import exam_document

            return exam_document(directory)
        from sasr.report.comparison import comparison_document

        return comparison_document(directory, page)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(f"a file in {directory} is not as sasr writes it ({what}): restore it") from error


def write_report(directory: Path, page: Path | None = None) -> Path:
    """Write the report of a directory. Returns where it is.

    Args:
        directory (`Path`): Of `sasr train`, `sasr exam` or `sasr compare`.
        page (`Path`, *optional*): The file; by default `report.html` in the directory.

    Raises:
        InputError: Nothing to report, a file that cannot be read, or a page that cannot be written.
    """
    page = directory / REPORT_FILE if page is None else page
    document = describe(directory, page)
    from sasr import __version__

    document["made"] = f"sasr {__version__}, {datetime.now():%Y-%m-%d %H:%M}. This file loads nothing from anywhere."
    try:
        write_atomically(page, html(document))
    except OSError as error:
        raise InputError(f"{page} cannot be written: {error.strerror or error}") from None
    return page


def report_quietly(directory: Path, say: Callable[[str], None]) -> None:
    """Write the report at the end of a command, which has succeeded whatever becomes of it."""
    try:
        write_report(directory)
    except Exception as error:
        say(f"no report: {' '.join(str(error).split()) or type(error).__name__}")


def html(document: dict[str, Any]) -> str:
    """The page. Its scripts and styles are allowed by their digests alone."""
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    script = "".join((_PAGE / name).read_text(encoding="utf-8") for name in ("charts.js", "page.js"))
    page = (_PAGE / "page.html").read_text(encoding="utf-8")
    # The report comes last: what it holds must not be taken for a place to fill in.
    for name, text in (("STYLE", style), ("SCRIPT", script), ("REPORT", embed(document))):
        page = page.replace(f"@{name}_HASH@", _digest(text)).replace(f"@{name}@", text)
    return page


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
