"""Long counts that show how far they are, and short ones that show nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sasr.counting import counted


class Clock:
    """A second passes each time that it is read."""

    now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_what_takes_long_is_counted_on_standard_error(capsys):
    assert list(counted(range(100), 100, "questions made", clock=Clock())) == list(range(100))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and lines[-1].startswith("100/100 questions made")
    assert all("left" in line for line in lines[:-1]) and 2 <= len(lines) < 10


def test_what_is_done_at_once_shows_nothing(capsys):
    assert list(counted(range(100), 100, "questions made", clock=lambda: 1.0)) == list(range(100))
    assert capsys.readouterr() == ("", "")


def test_the_bar_ends_with_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=70, legacy_windows=False)

    def items():
        yield from range(10)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(counted(items(), 20, "questions made", console, Clock()))
    shown = console.file.getvalue()
    assert "10/20 questions made" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_of_several_processes_the_first_one_shows_it(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert len(list(counted(range(100), 100, "questions made", clock=Clock()))) == 100
    assert capsys.readouterr() == ("", "")
