"""Who is at work in a directory. The system drops a lock with the process that holds it, however that ends: unlike
times and process ids, this cannot be wrong after a hard kill."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import InputError

LOCK_FILE = ".lock"
_PATIENCE_SECONDS = 1.0


def hold(directory: Path, by: str) -> IO[str]:
    """An open file that only one process and its children can hold, until it is closed.

    Args:
        directory (`Path`): What is to be locked.
        by (`str`): What the other holder is, for the message.

    Raises:
        InputError: Another one holds it.
    """
    path, until = directory / LOCK_FILE, time.monotonic() + _PATIENCE_SECONDS
    while True:
        directory.mkdir(parents=True, exist_ok=True)  # a run that is refused takes away what it has made
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() < until:  # it may be `is_held`, which is done in no time
                time.sleep(0.02)
                continue
            raise InputError(f"output_dir {directory} is in use by another {by}: wait for its end") from None
        except OSError:
            pass  # a file system without locks: better to work than to be seen working
        # A refused run takes its file away: to hold that one would keep nobody out.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)) or time.monotonic() > until:
                return file
        file.close()


def is_held(directory: Path) -> bool:
    """Whether a process is at work there now."""
    try:
        with open(directory / LOCK_FILE, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def at_work(directory: Path, by: str, held: IO[str] | None = None) -> Iterator[Callable[[str], None]]:
    """Hold the lock, and leave in its file how the work ended: what was told, `failed: WHY` after an exception, nothing
    after a hard kill. Yields what to tell it with. Takes over the lock that is `held`, if any, and lets go of it."""
    told = ""

    def tell(outcome: str) -> None:
        nonlocal told
        told = outcome

    with held or hold(directory, by) as file:
        file.truncate(0)
        try:
            yield tell
        except Exception as error:
            told = f"failed: {' '.join(str(error).split()) or type(error).__name__}"[:1000]
            raise
        except BaseException:
            told = "stopped"
            raise
        finally:
            with suppress(OSError):  # a full disk may be what is told
                file.write(told)
                file.flush()


def outcome(directory: Path) -> str | None:
    """What the last work left; empty if it was killed, `None` if none was ever seen."""
    try:
        return (directory / LOCK_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
