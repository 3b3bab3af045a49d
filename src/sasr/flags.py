"""The flags of the commands other than `sasr train`. Without torch: `sasr runs` and `sasr report` start at once."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from .errors import InputError


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
