"""LoRA adapters in PEFT's format, such as the directory of a LoRA run: finding the base model, and merging into it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sasr.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
INITIAL_MODEL = "initial_model"  # where a run keeps a starting point that has no path of its own


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Args:
        directory (`Path`): Where its files are.
        base (`str`): Path or hub name of the model that it belongs to.
        revision (`str`, *optional*): Of the base, if that is on the Hub.
    """

    directory: Path
    base: str
    revision: str | None


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, or what an adapter is put on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no whole model."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a directory. Raises `InputError` unless it is LoRA, in safetensors, and has a base model."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{CONFIG} cannot be read as JSON ({error})") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise InputError(f"an adapter of type {kind}, of which only LORA is supported")
    if not (directory / WEIGHTS).is_file():
        raise InputError(f"an adapter without weights ({WEIGHTS}): save it again, as safetensors")
    # Before what the adapter itself names, which may be where the run was once.
    start = (directory.parent if directory.name.startswith("checkpoint-") else directory) / INITIAL_MODEL
    if start.is_dir():
        return Adapter(directory, str(start), None)
    base = config.get("base_model_name_or_path")
    if not base:
        raise InputError(f"an adapter that names no base model: add base_model_name_or_path to its {CONFIG}")
    return Adapter(directory, str(base), config.get("revision"))


def merge(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """The base model with the adapter in its weights."""
    return attach(model, adapter).merge_and_unload()


def attach(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """The base model with the adapter beside its weights. Raises `ValueError` if they do not fit."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    tuned = PeftModel.from_pretrained(model, str(adapter.directory))
    with safe_open(adapter.directory / WEIGHTS, framework="np") as file:
        saved = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118 - not a dict
    # PEFT only warns, and leaves what is missing at zero.
    differing = saved ^ {key for key in get_peft_model_state_dict(tuned, save_embedding_layers=False) if "lora_" in key}
    if differing:
        raise ValueError(f"{len(differing)} weights do not fit the base model {adapter.base}, such as {min(differing)}")
    return tuned
