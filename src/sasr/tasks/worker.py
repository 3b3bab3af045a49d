"""Judges that may hang or crash, in a process of their own, which can be killed.

Symbolic mathematics can hang in code that no Python exception interrupts, and SIGALRM works on the main thread only. So
the parent, a `Worker`, sends each question over a pipe and kills the process when the reply is late.
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
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from sasr.disconnect import STOPS

# Imports take seconds on a cold disk; they are no part of the time that a question is given.
_START_LIMIT = 120.0
# Expressions like 9^{9^{9}} otherwise fill the machine's memory before the time is up.
_MEMORY_LIMIT = 4 * 2**30
# The order of sets decides what some generators make; each thread of OpenBLAS would claim memory.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}


class _WorkerLost(Exception):
    pass


class _WorkerLate(Exception):
    pass


class Worker:
    """A worker process: started when first needed, killed and replaced when it hangs or dies, stopped at exit. Any
    thread may use it. After a fork, the child starts a worker of its own.

    Args:
        module (`str`): The module whose `main()` runs there, a call of [`serve`].
        timeout (`float`): Seconds that one question may take.
        arguments (`str`, *optional*): `sys.argv[2]` there.
    """

    def __init__(self, module: str, timeout: float, arguments: str = ""):
        self.module = module
        self.timeout = timeout
        self.arguments = arguments
        self._forget()
        _workers.add(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._stopper: weakref.finalize | None = None
        self._received = b""

    def __reduce__(self) -> tuple[Any, ...]:
        # Locks and processes cannot be pickled or copied; a copy starts a worker of its own.
        return type(self), (self.module, self.timeout, self.arguments)

    def ask(self, question: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """The reply, or `{"error": "timeout"}` or `{"error": "crash: ..."}`."""
        limit = self.timeout if timeout is None else timeout
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                reply = self._send({**question, "limit": limit}, limit)
            except _WorkerLate:
                self._stop()
                return {"error": "timeout"}
            except (_WorkerLost, OSError, ValueError) as error:
                self._stop()
                return {"error": "crash: " + " ".join(str(error).split())}
            except BaseException:
                # An interrupt between question and reply: a later question must not get this one's reply.
                self._stop()
                raise
        return {"error": f"crash: {reply['error']}"} if "error" in reply else reply

    def close(self) -> None:
        """Stop the worker. A later question starts another."""
        with self._lock:
            self._stop()

    def _command(self) -> list[str]:
        # The parent's import path, so that both find the same packages.
        code = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {self.module} import main; main()"
        return [sys.executable, "-P", "-c", code, json.dumps(sys.path), self.arguments]

    def _start(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(self._command(), env={**os.environ, **_ENVIRONMENT}, bufsize=0, **pipes)
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

    def _send(self, question: dict[str, Any], limit: float) -> dict[str, Any]:
        # The worker reads whenever it is not at work on a question, so writing cannot block.
        line = json.dumps(question).encode() + b"\n"
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(line)
        except BrokenPipeError:
            raise _WorkerLost(self._death()) from None
        return self._receive(limit)

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


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


def _abandon_all() -> None:
    for worker in list(_workers):
        worker._abandon()


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


def _limit_memory(limit: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def serve(
    prepare: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]], memory: int | None = _MEMORY_LIMIT
) -> None:
    """The worker: one JSON line in, one JSON line out, until the input ends. `prepare` imports what is needed and
    returns the function that answers questions. `memory` limits the address space, in bytes."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group they are for the parent, which ends this process
    # Libraries that print must not write into the protocol.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    if memory is not None:
        _limit_memory(memory)
    try:
        answer = prepare()
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        if hasattr(signal, "setitimer"):
            # If the parent is gone and can kill nobody: the default action of SIGALRM ends even a hanging process.
            signal.setitimer(signal.ITIMER_REAL, 2 * question["limit"] + 5)
        try:
            reply(answer(question))
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"[:200]})
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
