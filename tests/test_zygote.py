"""A forked command is what a started one is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sasr
import zygote
from whole_runs import INSTALLED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux only")

# What a process sees of itself.
TELLS = """
import json, os, sys
seen = {
    "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path[0], "name": __name__, "input": sys.stdin.read(),
    "variable": os.environ.get("TOLD"), "gone": os.environ.get("HOME"), "terminal": os.isatty(1),
    "leads": os.getsid(0) == os.getpid(), "lent": os.read(int(sys.argv[2]), 9).decode(), "math": "toy" in sys.modules,
    "interrupt": __import__("signal").getsignal(2).__name__, "helper": any(p.endswith("tests") for p in sys.path),
}
print(json.dumps(seen))
print("told", file=sys.stderr)
sys.exit(3)
"""


def told(kind: type, script: Path, session: bool) -> tuple:
    lent, end = os.pipe()
    os.write(end, b"lent")
    os.close(end)
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "OLDPWD")}
    process = kind(
        [sys.executable, "-u", str(script), "a b", str(lent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=script.parent,
        env={**environment, "TOLD": "yes"},
        pass_fds=[lent],
        start_new_session=session,
    )
    assert (getattr(process, "_status", None) is not None) == (kind is zygote.Popen)
    out, errors = process.communicate("given", timeout=120)
    os.close(lent)
    seen = json.loads(out)
    return {**seen, "argv": seen["argv"][:-1]}, errors, process.returncode


@pytest.fixture
def interruptible():
    """A shell has what it runs in the background ignore Ctrl-C, and who is started inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("session", [True, False])
def test_it_has_what_it_was_given(tmp_path, session, interruptible):
    script = tmp_path / "script.py"
    script.write_text(TELLS)
    forked, started = (told(kind, script, session) for kind in (zygote.Popen, zygote._POPEN))
    assert forked == started
    assert forked[1:] == ("told\n", 3) and forked[0]["input"] == "given" and forked[0]["leads"] == session


def test_it_can_be_killed_and_waited_for(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time\nprint('ready')\ntime.sleep(600)\n")
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = zygote.Popen([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) == -number and process.poll() == -number
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
        process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "how"),
    [
        ([sys.executable, "-c", "pass"], {}),
        ([sys.executable, "-m", "json.tool", "--help"], {}),
        ([sys.executable, "-m", "sasr", "--version"], {"env": {**os.environ, "HF_HOME": "elsewhere"}}),
        ([sys.executable, "-m", "sasr", "--version"], {"preexec_fn": os.getpid}),
        ([INSTALLED, "--version"], {}),
    ],
)
def test_others_are_started(arguments, how):
    process = zygote.Popen(arguments, stdout=subprocess.DEVNULL, **how)
    assert process._status is None and process.wait() == 0


def test_a_command_without_the_current_directory():
    found = zygote._command([sys.executable, "-P", "-m", "sasr", "train"])
    assert found == zygote._Command("sasr", None, ["train"], unbuffered=False, safe=True)


def test_what_a_command_starts_is_forked_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import subprocess, sys\n"
        "process = subprocess.Popen([sys.executable, '-m', 'sasr', '--version'])\n"
        "print(process._status is not None, process.wait())\n"
    )
    done = subprocess.run([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["True 0", f"sasr {sasr.__version__}"]
