"""Settings without their secrets, for what is made to be passed on: reports, what trackers are told, and what a run
leaves in its directory, which `push_to_hub` uploads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "(hidden)"


def is_secret(name: object) -> bool:
    """Whether a setting of this name holds a secret: `hub_token`, `api_key`, `HF_TOKEN`."""
    return str(name).lower().endswith(("token", "key", "secret", "password"))


def redacted(value: Any) -> Any:
    """A value with the secrets in it hidden, at any depth of mappings and lists, and in JSON, which is how flags give
    mappings."""
    if isinstance(value, Mapping):
        return {name: HIDDEN if is_secret(name) else redacted(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(part) for part in value]
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        without = redacted(parsed)
        return value if without == parsed else json.dumps(without)
    return value


def redacted_parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the secrets in their values hidden, but not those that are secrets by their own name."""
    return {name: redacted(value) for name, value in settings.items()}


def without_hub_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those by which a run logs in to the Hub: `hub_token`, and `token` in `model_init_kwargs`. A run
    goes on without them, with the login of who starts it. An option of a task stays whatever its name: the task may not
    start without it, or it is none (`answer_key`), and would silently be another."""
    kept = {name: value for name, value in settings.items() if not is_secret(name)}
    if isinstance(nested := kept.get("model_init_kwargs"), Mapping):
        kept["model_init_kwargs"] = without_hub_tokens(nested)
    return kept


def hub_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that [`without_hub_tokens`] leaves out or changes, whole."""
    return {
        name: value
        for name, value in settings.items()
        if is_secret(name) or (name == "model_init_kwargs" and redacted(value) != value)
    }


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for the comparison of two runs, which may have other tokens of the Hub, or none."""
    nested = settings.get("model_init_kwargs")
    if isinstance(nested, Mapping):
        settings = {**settings, "model_init_kwargs": without_hub_tokens(nested) or None}
    return redacted_parts(settings)


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """A command line with the secrets among its flags hidden."""
    shown: list[str] = []
    hide = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if hide:
            shown.append(HIDDEN)
        elif argument.startswith("--") and equals:
            shown.append(f"{flag}={HIDDEN if is_secret(flag) else redacted(value)}")
        else:
            shown.append(redacted(argument))
        hide = not hide and not equals and argument.startswith("--") and is_secret(argument)
    return shown
