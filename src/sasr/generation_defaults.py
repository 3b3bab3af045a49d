"""What a model's generation config says, and what of it may count here: nothing that shapes or hinders sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import GenerationConfig

from .errors import InputError


@contextmanager
def blank(model: torch.nn.Module) -> Iterator[None]:
    """Within this context `generate` goes by the config that it is given. It fills what that leaves open from the
    model's: penalties and cut-offs, by which rollouts would be drawn from another distribution than the one whose
    log-probabilities are trained, or `use_cache: false`, which Trainer writes into every model and which would read a
    cache that is given twice."""
    # All holders, because PEFT copies the outer model's config to the inner one when generating.
    holders = [(module, vars(module)["generation_config"]) for module in model.modules() if _has_config(module)]
    try:
        for module, _ in holders:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, config in holders:
            module.generation_config = config


def make_savable(config: GenerationConfig) -> None:
    """Let a config be saved that is at odds with itself, such as a temperature without sampling, as models of 2023 have
    it: transformers refuses to save one that was changed since, which training does. Raises `InputError` where sampling
    is not all that is missing."""
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
        try:
            config.validate(strict=True)
        except ValueError as error:
            raise InputError(
                f"the model's generation_config.json is at odds with itself, and could not be saved again: correct it "
                f"({' '.join(str(error).split())[:300]})"
            ) from None


def _has_config(module: torch.nn.Module) -> bool:
    return isinstance(vars(module).get("generation_config"), GenerationConfig)
