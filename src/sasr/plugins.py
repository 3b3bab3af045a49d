"""Objects of the user's own, named `module:object`: tasks and schedules."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .errors import InputError, unknown


def call(function: Callable[..., Any], options: Mapping[str, Any], what: str) -> Any:
    """`function(**options)`. Raises `InputError` for an option that it does not take, naming those that it does."""
    if options:
        parameters = inspect.signature(function).parameters.values()
        known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for name in options:
            if not known and not parameters:
                raise InputError(f"{what} has no options: leave {name} out")
            if name not in known and not any(p.kind is p.VAR_KEYWORD for p in parameters):
                raise unknown(f"option of {what}", name, known)
    return function(**options)


def load(
    spec: str, what: str, fits: Callable[[Any], bool], wanted: str, options: Mapping[str, Any] | None = None
) -> Any:
    """The object that `module:object` stands for.

    Args:
        spec (`str`): The module is importable (the current directory is on the path) or a file, as in
            `my/tasks.py:MyTask`. The object is what is wanted, or a class or function that returns it when called
            with `options`.
        what (`str`): What is loaded, for messages.
        fits (`Callable`): Whether an object is what is wanted.
        wanted (`str`): What is wanted, for messages.
        options (`Mapping`, *optional*): Keyword arguments to call it with.

    Raises:
        [`InputError`]: It cannot be imported, made, or is something else.
    """
    module_name, _, object_name = spec.rpartition(":")
    if not module_name or not object_name:
        raise InputError(
            f"{what} '{spec}': give both parts of module:object, for example my_{what}s.py:My{what.title()}"
        )
    found: Any = _import(module_name, f"{what} '{spec}'")
    for part in object_name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{what} '{spec}': {module_name} has no '{object_name}'; check the name after the colon")
        found = getattr(found, part)
    made = found
    if callable(found) and (isinstance(found, type) or not fits(found)):
        try:
            made = call(found, options or {}, f"{what} '{spec}'")
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{what} '{spec}': calling {object_name}() failed: {describe(error)}; correct it"
            ) from error
    elif options:
        raise InputError(f"{what} '{spec}' is made already and takes no options: leave them out, or name its class")
    if not fits(made):
        shown = " ".join(repr(made).split())[:80]
        raise InputError(
            f"{what} '{spec}': must be a {wanted} (subclass, instance or function that returns one), not {shown}"
        )
    return made


def _import(name: str, whose: str) -> ModuleType:
    # Last, so that a folder named like an installed package does not hide it.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = os.path.abspath(os.path.expanduser(name))
        if not os.path.isfile(path):
            raise InputError(f"{whose}: no such file {name}; check the path (from {os.getcwd()})")
        loader_spec = importlib.util.spec_from_file_location(f"_sasr_user_{abs(hash(path))}", path)
        assert loader_spec is not None and loader_spec.loader is not None
        module = importlib.util.module_from_spec(loader_spec)
        # Registered first: dataclasses and pickle look a class's module up by name.
        sys.modules[loader_spec.name] = module
        loader_spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a script may end itself
        raise InputError(f"{whose}: cannot import {name}: {describe(error)}; correct it") from error


def describe(error: BaseException) -> str:
    """The error and the line of the user's code that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "" if not last or last[0].filename.startswith("<") else f" ({last[0].filename}:{last[0].lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
