"""Output that nobody reads any more, and a terminal that is closed."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from sasr.callbacks import StopRequest
from sasr.disconnect import is_hangup, lasting_output, stop_signals
from whole_runs import start


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_without_a_reader_is_dropped(monkeypatch, name):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, name, stream)
    with lasting_output():
        print("read", file=getattr(sys, name), flush=True)
        assert os.read(reader, 100) == b"read\n"
        os.close(reader)
        print("not read", file=getattr(sys, name), flush=True)
        print("nor this, which is never flushed", file=getattr(sys, name))
    assert getattr(sys, name) is stream
    stream.close()  # nothing is left in it that would fail now


class Full(io.StringIO):
    """A file on a disk that is full for a while."""

    full = True

    def write(self, text):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_log_on_a_full_disk_goes_on_when_there_is_room(monkeypatch):
    log = Full()
    monkeypatch.setattr(sys, "stdout", log)
    with lasting_output():
        print("lost")
        log.full = False
        print("written")
    assert log.getvalue().strip() == "written"


def test_what_is_no_failure_of_the_output_is_raised(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with lasting_output(), pytest.raises(UnicodeEncodeError):
        print("é")


def test_who_sets_an_output_of_his_own_keeps_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as without a console
    mine = io.StringIO()
    with lasting_output():
        monkeypatch.setattr(sys, "stdout", mine)
    assert sys.stdout is mine and sys.stderr is None


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert is_hangup(signal.SIGHUP) and not is_hangup(signal.SIGTERM)


def test_a_sigterm_that_is_passed_on_asks_for_no_more():
    """Who ends all processes of a job reaches a run, and the comparison or launcher that tells it too."""
    now, said = [0.0], []
    stop = StopRequest(said.append, clock=lambda: now[0])
    for now[0] in (50.0, 50.3, 51.9):
        stop._receive(signal.SIGTERM, None)
    assert stop.signal == signal.SIGTERM and len(said) == 1
    now[0] = 52.1
    with pytest.raises(KeyboardInterrupt):
        stop._receive(signal.SIGTERM, None)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_is_at_once(first):
    stop = StopRequest(lambda text: None, clock=lambda: 50.0)
    stop._receive(first, None)
    stop._receive(signal.SIGHUP, None)
    with pytest.raises(KeyboardInterrupt):
        stop._receive(signal.SIGINT, None)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_a_command_into_head_says_nothing(tmp_path, arguments):
    """Python writes a traceback, or `Exception ignored`, where the reader is gone before it writes."""
    process = start([sys.executable, "-m", "sasr", *arguments], cwd=tmp_path)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 0)
    process.stderr.close()


def test_workers_leave_the_signals_of_a_group_to_their_parent():
    from sasr.tasks.math import MathTask

    task = MathTask()
    assert task.check(r"\boxed{3+2}", {"answer": "5"}).correct
    worker: subprocess.Popen = task.verifier._process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        worker.send_signal(number)
        assert task.check(r"\boxed{4+1}", {"answer": "5"}).correct
    assert task.verifier._process is worker
    task.verifier.close()
