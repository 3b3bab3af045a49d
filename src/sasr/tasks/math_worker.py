"""Compares mathematical expressions with math-verify in a process of its own, which can be killed.

math-verify (SymPy) can hang in code that no Python exception interrupts, and its own time-out, SIGALRM, works on the
main thread only. So the parent, `MathVerifier`, sends each pair to a worker over a pipe and kills the worker when the
answer is late. The worker is this same file run as a script: it imports math-verify and nothing of this package.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any

# Importing SymPy takes seconds on a cold disk; it is no part of the time that a comparison is given.
_START_LIMIT = 120.0
# Expressions like 9^{9^{9}} otherwise fill the machine's memory before the time is up.
_MEMORY_LIMIT = 4 * 2**30


class _WorkerLost(Exception):
    pass


class _WorkerLate(Exception):
    pass


class MathVerifier:
    """A math-verify worker process: started when first needed, killed and replaced when it hangs or dies, stopped at
    exit. Any thread may use it. After a fork, the child starts a worker of its own.

    Args:
        timeout (`float`): Seconds that one comparison may take.
    """

    def __init__(self, timeout: float = 5.0):
        self.timeout = timeout
        self._forget()
        _verifiers.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._stopper: weakref.finalize | None = None
        self._received = b""

    def __reduce__(self) -> tuple[Any, ...]:
        # Locks and processes cannot be pickled or copied; a copy starts a worker of its own.
        return type(self), (self.timeout,)

    def verify(self, expected: str, written: str) -> tuple[bool, str | None]:
        """Whether two LaTeX expressions are equal, and why that could not be decided (`None`: it could; `"timeout"`;
        `"crash: ..."`)."""
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                reply = self._ask({"expected": expected, "written": written, "limit": self.timeout})
            except _WorkerLate:
                self._stop()
                return False, "timeout"
            except (_WorkerLost, OSError, ValueError) as error:
                self._stop()
                return False, "crash: " + " ".join(str(error).split())
            except BaseException:
                # An interrupt between question and reply: a later question must not get this one's reply.
                self._stop()
                raise
        if "error" in reply:
            return False, f"crash: {reply['error']}"
        return bool(reply["correct"]), None

    def verify_all(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[bool, str | None]]:
        """`verify` for each distinct pair (expected, written); completions of one group often share an answer."""
        return {pair: self.verify(*pair) for pair in dict.fromkeys(pairs)}

    def close(self) -> None:
        """Stop the worker. A later `verify` starts another."""
        with self._lock:
            self._stop()

    def _command(self) -> list[str]:
        # Isolated (-I), because a script's own folder would come first on the import path, and this one holds a
        # `math.py`. The parent's import path goes along, so that both find the same math-verify.
        return [sys.executable, "-I", os.path.abspath(__file__), json.dumps(sys.path)]

    def _start(self) -> None:
        process = subprocess.Popen(
            self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._process, self._received = process, b""
        self._stopper = weakref.finalize(self, _kill, process, os.getpid())
        try:
            greeting = self._receive(_START_LIMIT)
        except _WorkerLate:
            raise _WorkerLost(f"the worker did not start within {_START_LIMIT:.0f} s") from None
        if "error" in greeting:
            raise _WorkerLost(f"the worker did not start: {greeting['error']}")

    def _stop(self) -> None:
        if self._stopper is not None:
            self._stopper()
        self._process = self._stopper = None

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        # One short line at a time fits a pipe's buffer, so writing cannot block.
        line = json.dumps(question).encode() + b"\n"
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise _WorkerLost(self._death()) from None
        return self._receive(self.timeout)

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._received:
            # Waiting for the pipe with a deadline, not for its end: a process forked meanwhile may hold it open.
            if not wait([pipe], max(0.0, deadline - time.monotonic())):
                raise _WorkerLate
            chunk = os.read(pipe, 65536)
            if not chunk:
                raise _WorkerLost(self._death())
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _death(self) -> str:
        assert self._process is not None
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the worker closed its output"
        return f"the worker died of signal {-status}" if status < 0 else f"the worker exited with status {status}"

    def _abandon(self) -> None:
        process, stopper = self._process, self._stopper
        # The lock may have been held by a thread that does not exist in this process.
        self._forget()
        if stopper is not None:
            stopper.detach()
        if process is not None:
            # Not our child: close our ends of its pipes, and have Popen neither wait for it nor warn.
            process.returncode = 0
            _close(process)


_verifiers: weakref.WeakSet[MathVerifier] = weakref.WeakSet()


def _abandon_all() -> None:
    for verifier in list(_verifiers):
        verifier._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _close(process: subprocess.Popen) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _kill(process: subprocess.Popen, owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()
        _close(process)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))


def main() -> None:
    """The worker: one JSON line in, one JSON line out, until the input ends."""
    sys.path[:] = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops this process itself
    # Libraries that print must not write into the protocol.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    _limit_memory()
    try:
        from math_verify import parse, verify
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error} (is math-verify installed?)"})
        return
    reply({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        if hasattr(signal, "setitimer"):
            # If the parent is gone and can kill nobody: the default action of SIGALRM ends even a hanging process.
            signal.setitimer(signal.ITIMER_REAL, 2 * question["limit"] + 5)
        try:
            expected, written = (
                parse(f"\\boxed{{{question[key]}}}", parsing_timeout=None) for key in ("expected", "written")
            )
            reply({"correct": bool(verify(expected, written, timeout_seconds=None))})
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"[:200]})
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
