"""The date that a chat template writes into prompts, fixed when a run begins.

Llama 3's writes the present one, unless it is given `date_string`. A run that goes on another day, one that begins with
another's warm-up, and the exams afterwards are to read the same prompts.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from transformers import PreTrainedTokenizerBase

from . import checkpoints
from .parsing import Settings
from .run_directory import CONFIG_FILE

if TYPE_CHECKING:
    from .config import SASRConfig

_VARIABLE = "date_string"


def fix(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Put today's date among the variables of a template that would write it. Returns a note where it cannot be
    fixed."""
    template = str(tokenizer.chat_template)
    if "strftime_now" not in template:
        return []
    if _VARIABLE not in template:
        return ["note: the chat template writes the present date: on another day this run has other prompts"]
    if _VARIABLE not in (settings.training.chat_template_kwargs or {}):
        _set(settings, date.today().strftime("%d %b %Y"))
    return []


def take_over(settings: Settings, donor: Path) -> None:
    """Take the date of the run whose warm-up this one begins with."""
    theirs = checkpoints.read_state(donor)["fingerprint"].get("chat_template_kwargs") or {}
    if _VARIABLE in theirs and _VARIABLE not in (settings.training.chat_template_kwargs or {}):
        _set(settings, theirs[_VARIABLE])


def _set(settings: Settings, value: str) -> None:
    args: SASRConfig = settings.training
    args.chat_template_kwargs = {**(args.chat_template_kwargs or {}), _VARIABLE: value}
    settings.given["chat_template_kwargs"] = args.chat_template_kwargs


def date_of(run: Path) -> dict[str, str]:
    """The variable by which a run's template was given a date, from `config.yaml`; nothing where it was not."""
    try:
        config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
        return {_VARIABLE: str(config["chat_template_kwargs"][_VARIABLE])}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}
