"""Starts Python commands from a process that has already imported what they need.

Importing torch, transformers, datasets and trl takes longer than what most of the tests' commands then do. After
`install()`, `subprocess.Popen`, here and in the commands themselves, forks `python -m sasr ...` and a few others
(`_command`) from one such process, which has trained nothing and has no thread. The command then is what it would be: a
process of its own, with its arguments, environment, directory, session and files, which can be killed, and has a status
of its own. Only the seed of Python's hashes is shared. What differs in more than these (a limit on it, other variables
that are read while importing) is started as ever, and so is the installed `sasr`, for tests of a start from nothing.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("sasr.run", "sasr.trainer", "sasr.compare.command", "sasr.exam.command", "peft", "torch.distributed.run")
MODULES = ("sasr", "torch.distributed.run")
# What `sasr` sets before it imports anything, unless it is set.
DEFAULTS = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
# Variables that are read while importing, or before.
_EARLY = ("HF_", "TRANSFORMERS_", "DATASETS_", "OMP_", "MKL_", "LD_", "LC_", "LANG", "PYTHON", "CUDA_", "TRACKIO_")
_LATE = ("PYTHONPATH", "PYTHONWARNINGS")  # see `_become`
_ORDINARY = ("stdin", "stdout", "stderr", "cwd", "env", "text", "encoding", "errors", "pass_fds")
_POPEN = subprocess.Popen


class _Command(NamedTuple):
    """`module` or `script` with `arguments`; `unbuffered` is python's -u, `safe` its -P."""

    module: str | None
    script: str | None
    arguments: list[str]
    unbuffered: bool
    safe: bool = False


def _command(args: Any) -> _Command | None:
    """What can be forked: `sasr`, torchrun's module and scripts of tests, by this interpreter, and its `accelerate`."""
    if not isinstance(args, Sequence) or isinstance(args, str | bytes):
        return None
    words = [os.fspath(word) for word in args]
    if words[:1] == [str(Path(sys.executable).with_name("accelerate"))]:
        return _Command("accelerate.commands.accelerate_cli", None, words[1:], False)
    if words[:1] != [sys.executable]:
        return None
    unbuffered, safe = (words[1:2] == [flag] for flag in ("-u", "-P"))
    rest = words[2 if unbuffered or safe else 1 :]
    if rest[:1] == ["-m"] and rest[1:2] and rest[1] in MODULES:
        return _Command(rest[1], None, rest[2:], unbuffered, safe)
    if unbuffered and rest[:1] and rest[0].endswith(".py"):  # by torchrun
        return _Command(None, rest[0], rest[1:], True)
    return None


def _early(environment: dict[str, str]) -> dict[str, str]:
    known = DEFAULTS | environment
    return {name: known[name] for name in known if name.startswith(_EARLY) and name not in _LATE}


class Popen(_POPEN):
    """`subprocess.Popen` that forks the zygote where it can."""

    _status: socket.socket | None = None
    _forked: _Command | None = None

    def __init__(self, args: Any, bufsize: int = -1, **how: Any):
        session = how.pop("start_new_session", False)
        plain = how.keys() <= set(_ORDINARY) and _early(dict(how.get("env") or os.environ)) == _zygote.early
        self._forked = _command(args) if plain else None
        super().__init__(args, bufsize, start_new_session=session, **how)

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest) -> None:  # type: ignore[override]
        if self._forked is None:
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
        ends, session = rest[3:9], rest[-2]
        files = {number: number if file == -1 else file for number, file in enumerate((ends[0], ends[3], ends[5]))}
        files |= {number: number for number in pass_fds}
        told = {
            "command": self._forked,
            "cwd": os.path.abspath(os.fspath(cwd or ".")),
            "environment": dict(os.environ if env is None else env),
            "session": session,
            "files": list(files),
        }
        try:
            self._status = _zygote.fork(told, list(files.values()))
            self.pid = int.from_bytes(_exactly(self._status, 4), "big")
            self._child_created = True
        finally:
            self._close_pipe_fds(*ends)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        status = int.from_bytes(_exactly(self._status, 4), "big")
        self._status.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: Any = None, **_: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(_deadstate)
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class _Zygote:
    """The process to fork, seen from those that have it forked. It ends with the process that started it."""

    def __init__(self) -> None:
        self._environment = DEFAULTS | dict(os.environ)
        self.early = _early(self._environment)
        self._address: str | None = None
        self._lock = threading.Lock()

    def fork(self, told: dict[str, Any], files: list[int]) -> socket.socket:
        """A connection that first has the pid and then, when it has ended, the status, 4 bytes each."""
        with self._lock:
            if self._address is None:
                self._start()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        message = json.dumps(told).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        connection.sendmsg([len(message).to_bytes(4, "big")], rights)
        connection.sendall(message)
        return connection

    def _start(self) -> None:
        address = os.path.join(tempfile.mkdtemp(prefix="sasr-zygote-"), "socket")
        command, pipes = [sys.executable, __file__, address], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = _POPEN(command, env=self._environment, **pipes)
        assert process.stdout.read(5) == b"ready", "the zygote did not start"
        self._process = process
        self._address = address
        atexit.register(self._end, os.getpid())

    def _end(self, owner: int) -> None:
        if os.getpid() != owner:
            return
        self._process.stdin.close()  # which ends it, and so does the death of this process
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:  # another process has its stdin open
            self._process.kill()
            self._process.wait()


_zygote = _Zygote()


def install() -> None:
    """Have commands forked from now on, where that can be done."""
    if sys.platform == "linux":
        subprocess.Popen = Popen  # type: ignore[misc]


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise RuntimeError("the zygote is gone")
        found += part
    return found


def serve(address: str) -> _Command | None:
    """The zygote: a fork for each request. Returns in the forks, with what they are to run."""
    _zygote._address = address
    install()  # the forks' own commands are forked too: now, since torch.distributed takes Popen when it is imported
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    assert len(set(threads) - {"jemalloc_bg_thd"}) == 1, threads  # others would be missing in the forks
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready")
    while True:
        if 0 in select.select([0, listener], [], [])[0]:
            shutil.rmtree(os.path.dirname(address), ignore_errors=True)  # the tests' temporary files may be gone
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _fork(connection)
        connection.close()


def _fork(connection: socket.socket) -> _Command | None:
    """Forks the command, and tells its pid and its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    files = array.array("i")
    size, rights, *_ = connection.recvmsg(4, socket.CMSG_LEN(16 * files.itemsize))
    for _, _, data in rights:
        files.frombytes(data[: len(data) - len(data) % files.itemsize])
    told = json.loads(_exactly(connection, int.from_bytes(size, "big")))
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _become(told, list(files))
    for file in (0, 1, 2, *files):
        os.close(file)
    connection.sendall(pid.to_bytes(4, "big"))
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(OSError):  # who asked for it is gone
        connection.sendall(status.to_bytes(4, "big"))
    os._exit(0)


def _become(told: dict[str, Any], files: list[int]) -> _Command:
    """Make this process the command: its files, session, signals, directory and environment."""
    if told["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started by nohup
    highest = max(files + told["files"]) + 1
    held = [fcntl.fcntl(file, fcntl.F_DUPFD, highest) for file in files]
    for file in files:
        os.close(file)
    for number, file in zip(told["files"], held, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.chdir(told["cwd"])
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(told["environment"])
    tempfile.tempdir = None  # found anew, from these variables
    command = _Command(*told["command"])
    first = told["cwd"] if command.module else str(Path(command.script).resolve().parent)
    path = os.environ.get("PYTHONPATH", "")
    added = [os.path.abspath(part) for part in path.split(os.pathsep) if part and path != before.get("PYTHONPATH")]
    sys.path[:0] = [*([] if command.safe else [first]), *added]
    if os.environ.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
    sys.argv = [command.script or "-m", *command.arguments]
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=command.unbuffered)
    sys.stderr.reconfigure(write_through=command.unbuffered)
    return command


if __name__ == "__main__":
    import zygote  # this file as a module, which the forks keep

    del sys.path[0]  # the directory of this file, which no command has
    _found = zygote.serve(sys.argv[1])
    if _found is not None and _found.module is not None:
        runpy.run_module(_found.module, run_name="__main__", alter_sys=True)
    elif _found is not None:
        runpy.run_path(_found.script, run_name="__main__")
