"""Settings without their secrets, for what is made to be passed on: reports, and what trackers are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"


def is_secret(name: object) -> bool:
    """Whether a setting of this name holds a secret: `hub_token`, `api_key`, `HF_TOKEN`."""
    return str(name).lower().endswith(("token", "key"))


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
