"""Flags before they are parsed, and those of the commands other than `sasr train`. Without torch: `sasr runs` and
`sasr report` start at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import yaml

from .errors import InputError
from .model_files import expand


class Flags(argparse.ArgumentParser):
    """A parser of the flags of one command, whose errors are `InputError`s.

    Args:
        prog (`str`): The command, such as `sasr runs`.
        names_help (`bool`, *optional*, defaults to `False`): Whether errors end in how to see the command's help.
        **options: Of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, *, names_help: bool = False, **options: Any):
        super().__init__(prog, add_help=False, allow_abbrev=False, **options)
        self._more = f" (see {prog} --help)" if names_help else ""

    def error(self, message: str) -> NoReturn:
        raise InputError(message + self._more)


def with_underscores(word: str) -> str:
    """A flag as settings are spelled, whichever way it was: `--max-steps` is `--max_steps`. Other words stay."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag, the last one as for argparse; `None` without it."""
    found = None
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            found = argv[i + 1]
        elif argument.startswith(flag + "="):
            found = argument.partition("=")[2]
    return found


def without_resume(argv: Sequence[str]) -> tuple[list[str], bool, str | None]:
    """The arguments without `--resume_from_checkpoint [PATH]`; whether it is among them; and the checkpoint that it
    names, `None` where it names none or says `true`."""
    flag = "--resume_from_checkpoint"
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith(flag + "=") else [word])]
    if flag not in argv:
        return argv, False, None
    at = argv.index(flag)
    value = argv[at + 1] if at + 1 < len(argv) and not argv[at + 1].startswith("--") else None
    rest = argv[:at] + argv[at + (1 if value is None else 2) :]
    return rest, True, None if value is None or value.lower() == "true" else value


def set_environment(argv: Sequence[str]) -> None:
    """Set what the `env` section of the config file says, or that of the run that goes on: libraries read variables
    such as `HF_HUB_OFFLINE` or `OMP_NUM_THREADS` when they are imported. What is wrong with the file is told later."""
    rest, resumes, checkpoint = without_resume(argv)
    config, directory = value_of(rest, "--config"), value_of(rest, "--output_dir")
    files = []
    if resumes:
        files += [expand(directory) / name for name in ("config.yaml", "comparison.yaml")] if directory else []
        files += [expand(checkpoint).parent / "config.yaml"] if checkpoint else []
    files += [expand(config)] if config else []  # last: it overrides what the run has
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        environment = content.get("env") if isinstance(content, dict) else None
        for name, value in (environment if isinstance(environment, dict) else {}).items():
            with suppress(InputError):
                set_variable(name, value, str(file))


def set_variable(name: Any, value: Any, source: str) -> None:
    """Set one variable of an `env` section. Raises `InputError` for what is none."""
    if not isinstance(value, (str, int, float)):
        raise InputError(f"{source}: env: {name} is {value!r}, but it must be text")
    try:
        os.environ[str(name)] = str(value)
    except (ValueError, OSError) as error:  # such as a name with `=`
        raise InputError(f"{source}: env: {str(name)!r} cannot be set ({error})") from None
