"""The directory of a run: whether it can be used, what is in it, and what is safe there when the run fails."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from . import checkpoints, locks
from .adapters import INITIAL_MODEL
from .errors import Diverged, InputError, RunFailed, disk_failures_told
from .exam.store import EXAM_FILE
from .metrics import METRICS_FILE
from .report import REPORT_FILE
from .report.reading import read_json
from .runs.state import CONFIG_HEAD, SAVED_MODEL, resume_command
from .trained_on import TRAINED_ON_FILE, WRONG_FILE

CONFIG_FILE = "config.yaml"
ORIGIN_FILE = "origin.json"  # of a run that went on from a checkpoint of another one: which
EXAMS = "exams"
_BEFORE_THE_FIRST_STEP = {CONFIG_FILE, ORIGIN_FILE, INITIAL_MODEL, TRAINED_ON_FILE, WRONG_FILE, locks.LOCK_FILE}


def check_free(directory: Path) -> None:
    """Raise `InputError` if the output directory cannot be made or has contents, other than what a run leaves that
    ended before its first step. Makes nothing, so that a refused run leaves nothing behind."""
    try:
        if not is_free(directory):
            again = " or go on with --resume_from_checkpoint" if (directory / CONFIG_FILE).is_file() else ""
            raise InputError(f"output_dir {directory} is not empty: choose another{again}")
        above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    except OSError as error:
        raise InputError(f"output_dir {directory} cannot be written: {error.strerror or error}") from None
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"output_dir {directory} cannot be written: {above} is a file, or without permission")


def is_free(directory: Path) -> bool:
    """Whether nothing is there, or only what a run leaves that ended before its first step."""
    return not directory.is_dir() or not any(directory.iterdir()) or _never_trained(directory)


def check_unfinished(directory: Path) -> None:
    """Raise `InputError` if a run without checkpoints, to be begun again, has been trained to its end: they were
    removed, or it kept none. Its model would be replaced."""
    model = next((name for name in SAVED_MODEL if (directory / name).is_file()), None)
    if model is not None and locks.outcome(directory) in ("finished", None):  # None: copied without its lock
        raise InputError(
            f"output_dir {directory} has the {model} of a finished run and no checkpoint to go on from: choose another"
        )


def _never_trained(directory: Path) -> bool:
    """Whether all that is there is what a run of ours left that ended before its first step."""
    config, found = directory / CONFIG_FILE, {path.name for path in directory.iterdir()}
    # One that goes on from another run writes its settings when the model is loaded.
    if found - {INITIAL_MODEL, ORIGIN_FILE} == {locks.LOCK_FILE}:
        return True
    if found - _BEFORE_THE_FIRST_STEP or not config.is_file():
        return False
    with open(config, encoding="utf-8", errors="replace") as file:
        return file.read(len(CONFIG_HEAD)) == CONFIG_HEAD


def claim(directory: Path) -> None:
    """Make the output directory. Raises `InputError` if it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"output_dir {directory} cannot be written: {error.strerror or error}") from None


def make_numbered(folder: str, name: str) -> tuple[Path, list[Path]]:
    """`FOLDER/NAME-N`, the first that is free. It is made here, so that of several that are started at once each has
    its own; one that cannot be made is refused with the reason where it is used, as any other. Returns what was made,
    too."""
    above = Path(folder)
    for number in count(1):
        directory, new = above / f"{name}-{number}", not above.exists()
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if above.is_dir():
                continue
        except OSError:
            pass
        else:
            return directory, [directory, above] if new else [directory]
        return directory, []
    raise AssertionError("numbers do not end")


@contextmanager
def reserved(directory: Path) -> Iterator[IO[str]]:
    """Make the output directory and hold its lock before anything is written there: a second run that is started while
    this one loads its model would write its settings over these. What was made is taken away again where a run is
    refused before it begins. Yields the lock, for [`sasr.locks.at_work`]. Raises `InputError` if another run has it."""
    made = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    path = directory / locks.LOCK_FILE
    try:
        claim(directory)
        begun_before = path.exists()
        with locks.hold(directory, "sasr train") as file:
            try:
                yield file
            finally:
                # Not used: an empty file would say of what was copied here without one that it was killed.
                if not file.closed and not begun_before:
                    with suppress(OSError):  # the reason of the refusal is what is to be told
                        path.unlink()
    finally:
        remove_empty(made)


def remove_empty(directories: list[Path]) -> None:
    """Take away those in which nothing is, the inner ones first."""
    for path in directories:
        with suppress(OSError):
            path.rmdir()


def clear(directory: Path) -> None:
    """Remove what a run left that ended before its first checkpoint, all but its settings."""
    for name in (INITIAL_MODEL, EXAMS, checkpoints.STAGING):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in (METRICS_FILE, EXAM_FILE, REPORT_FILE, TRAINED_ON_FILE, WRONG_FILE):
        (directory / name).unlink(missing_ok=True)


def keep_settings(directory: Path, text: str, checkpoint: Path | None) -> None:
    """Write `config.yaml`, and before it what [`origin_of`] reads.

    Args:
        directory (`Path`): Of the run.
        text (`str`): What is to be in `config.yaml`.
        checkpoint (`Path` or `None`): Where the run goes on from, be it its own or one of another run.
    """
    if checkpoint is None:
        (directory / ORIGIN_FILE).unlink(missing_ok=True)
    elif not checkpoints.lies_in(checkpoint, directory):
        content = json.dumps({"checkpoint": str(checkpoint.resolve())})
        checkpoints.write_atomically(directory / ORIGIN_FILE, content + "\n")
    checkpoints.write_atomically(directory / CONFIG_FILE, text)


def origin_of(directory: Path) -> Path | None:
    """The checkpoint of another run that the run there went on from, where it begins again until it has one of its own;
    `None` for a run that began by itself, or has no settings yet."""
    if not (directory / CONFIG_FILE).is_file():
        return None
    found = read_json(directory / ORIGIN_FILE).get("checkpoint")
    return None if found is None else Path(str(found))


def how_to_go_on(directory: Path, step: int) -> str:
    """What to tell who has stopped a run at this step."""
    checkpoint, again = checkpoints.last_checkpoint(directory), resume_command("train", directory)
    if checkpoint is None:
        return f"stopped before the first checkpoint; begin again with: {again}"
    saved = "saved in" if checkpoint.name == f"checkpoint-{step}" else "the last checkpoint is"
    return f"stopped at step {step}, {saved} {checkpoint.name}; go on with: {again}"


@contextmanager
def failures_told(directory: Path) -> Iterator[None]:
    """Turns what a disk or a vLLM server does to a run at work into a [`RunFailed`]: what is safe, and how to go on."""
    with disk_failures_told(lambda: _what_is_safe(directory)):
        try:
            yield
        except (Diverged, InputError):
            raise
        except RunFailed as error:
            raise RunFailed(f"{error}; {_what_is_safe(directory, error.flags)}") from error
        except Exception as error:
            told = _by_server(error)
            if told is not None:
                raise RunFailed(f"{told}; {_what_is_safe(directory)}") from error
            if hasattr(error, "add_note"):  # not in Python 3.10; it ends the traceback
                error.add_note(f"sasr: {_what_is_safe(directory)}")
            raise


def _by_server(error: Exception) -> str | None:
    """What a server that a run needs has done, in words."""
    # TRL's words, in a bare Exception, for what a server refuses
    if str(error).startswith("Request failed: "):
        return f"the vLLM server refuses. {error}"
    if not type(error).__module__.startswith("requests."):
        return None
    url = getattr(getattr(error, "request", None), "url", None) or "a server"
    return f"{url} does not answer ({type(error).__name__})"


def _what_is_safe(directory: Path, flags: str = "") -> str:
    checkpoint, again = checkpoints.last_checkpoint(directory), f"{resume_command('train', directory)} {flags}".rstrip()
    when = "" if flags else "when this is mended, "
    if checkpoint is None and not (directory / CONFIG_FILE).is_file():
        return "nothing has been done yet: start it again when this is mended"
    if checkpoint is None:
        return f"there is no checkpoint yet; {when}begin again with: {again}"
    return f"{checkpoint.name} is safe; {when}go on with: {again}"
