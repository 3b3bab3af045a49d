"""What can be said of a model by its name and its files alone: nothing is loaded and no network is used.

Whatever cannot be a model is an `InputError` of one line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sasr.adapters import INITIAL_MODEL, WEIGHTS, is_adapter, read_adapter
from sasr.errors import InputError

TINY_MODELS = ("tiny-llama", "tiny-qwen2")
"""Names of the models that are made from scratch, with a tokenizer made from the texts they will see."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_T = TypeVar("_T")


def check_model(name: str) -> None:
    """Says at once whether `name` can be a model; nothing is loaded and no network is used.

    Args:
        name (`str`):
            `tiny-llama` or `tiny-qwen2`; a local path if it exists, starts with `.`, `/` or `~`, or ends with
            `.gguf`; otherwise a hub id such as `owner/name`, of which only the form is checked here. A directory may
            hold a LoRA adapter instead of a whole model.

    Raises:
        [`InputError`]: In one line, what is wrong with it.
    """
    if name in TINY_MODELS:
        return
    path = local_path(name)
    if path is None:
        if name.startswith("tiny-") and "/" not in name:
            raise InputError(f"model {name!r}: no such tiny model, take one of {', '.join(TINY_MODELS)}")
        if not _HUB_ID.fullmatch(name):
            raise InputError(f"model {name!r}: neither an existing path nor a hub id like owner/name")
    elif not path.exists():
        raise InputError(f"model {name!r}: no such file or directory")
    elif path.is_dir():
        _check_directory(name, path)
    elif path.suffix.lower() == ".gguf":
        _check_gguf(name, path)
    else:
        raise InputError(f"model {name!r}: a file, but not a .gguf one; give the model's directory")


def local_path(name: str) -> Path | None:
    """Where the model is, if it is a file or a directory; `None` for a hub id or a tiny model."""
    if name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or (name and Path(name).exists()):
        return expand(name)
    return None


def expand(name: str) -> Path:
    """`name` with its `~` replaced. That of an unknown user stays, as in a shell: `Path.expanduser` would raise."""
    return Path(os.path.expanduser(name))


def of_base(name: str, path: Path, load: Callable[..., _T], **options: Any) -> _T:
    """Runs `load` on the base model of an adapter; its errors name both."""
    adapter = read_adapter(path)
    try:
        return load(adapter.base, revision=adapter.revision, **options)
    except InputError as error:
        raise InputError(f"model {name!r} is an adapter, whose base model cannot be used: {error}") from error


def short(error: BaseException, limit: int = 160) -> str:
    """The first sentence or so of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[0].split()).rstrip(".") if lines else ""
    if len(text) > limit:
        text = text[: limit - 3].rstrip() + "..."
    kind = type(error).__name__
    # A bare key or number says nothing without the kind of error.
    return text if len(text.split()) > 2 else f"{kind}: {text}" if text else kind


def _check_directory(name: str, path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        if any(path.glob("*.gguf")):
            raise InputError(f"model {name!r}: a directory of GGUF files, name the .gguf file itself")
        if is_adapter(path):
            _check_adapter(name, path)
            return
        raise InputError(f"model {name!r}: the directory has no config.json, so it is no saved model")
    if not isinstance(_read_json(name, config), dict):
        raise InputError(f"model {name!r}: config.json is not a JSON object")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        index_json = _read_json(name, index)
        weight_map = index_json.get("weight_map") if isinstance(index_json, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"model {name!r}: {index.name} has no weight_map")
        files = sorted(set(map(str, weight_map.values())))
    elif (path / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif any(path.glob("*.bin")):
        raise InputError(f"model {name!r}: only .bin weights, which are not read; convert them to safetensors")
    else:
        raise InputError(f"model {name!r}: the directory has no weights (model.safetensors)")

    for file in files:
        if not (path / file).is_file():
            raise InputError(f"model {name!r}: {file} is missing, download or save the model again")
        _check_weights(name, path / file)


def _check_weights(name: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # Reads the header only, and compares it with the length of the file.
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"model {name!r}: {file.name} is damaged ({short(error)}), get it again") from error


def _check_adapter(name: str, path: Path) -> None:
    try:
        base = read_adapter(path).base
    except InputError as error:
        raise InputError(f"model {name!r}: {error}") from None
    _check_weights(name, path / WEIGHTS)
    if base in TINY_MODELS:
        raise InputError(f"model {name!r}: an adapter of {base}, whose weights are gone: they were in {INITIAL_MODEL}")
    of_base(name, path, lambda base, revision: check_model(base))


def _read_json(name: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: {path.name} cannot be read as JSON ({short(error)})") from error


def _check_gguf(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"model {name!r}: cannot be read ({short(error)})") from error
    if magic != b"GGUF":
        raise InputError(f"model {name!r}: not a GGUF file, it does not start with the bytes GGUF; get it again")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"model {name!r}: GGUF files need the gguf package, pip install 'sasr[gguf]'")
