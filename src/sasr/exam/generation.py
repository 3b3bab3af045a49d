"""Generation for exams that leaves model and random states as they were, on prompts as TRL tokenises them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sasr import generation_defaults, randomness
from sasr.errors import InputError


def eos_ids_of(
    config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, given: Sequence[int] | None = None
) -> list[int]:
    """Tokens that end a completion: those given, or those of generation config and tokenizer, as `GRPOTrainer` does."""
    if given is not None:
        ids = list(given)
    else:
        found = None if config is None else config.eos_token_id
        ids = [] if found is None else [found] if isinstance(found, int) else list(found)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
            ids = [tokenizer.eos_token_id, *ids]
    if not ids:
        raise InputError(
            "neither tokenizer nor generation config has an end-of-sequence token; set one in the tokenizer"
        )
    return ids


def generate(
    model: PreTrainedModel, prompt_ids: Sequence[list[int]], config: GenerationConfig, **options: Any
) -> list[list[int]]:
    """One completion per prompt, each cut after its first end-of-sequence token (which stays). `options` are further
    arguments of `model.generate`."""
    longest = max(len(ids) for ids in prompt_ids)
    input_ids_BP = torch.full((len(prompt_ids), longest), config.pad_token_id)
    mask_BP = torch.zeros_like(input_ids_BP)
    for row, ids in enumerate(prompt_ids):
        input_ids_BP[row, longest - len(ids) :] = torch.tensor(ids)
        mask_BP[row, longest - len(ids) :] = 1
    inputs = {"input_ids": input_ids_BP.to(model.device), "attention_mask": mask_BP.to(model.device)}
    output_BT = model.generate(**inputs, generation_config=config, **options)
    eos_ids = set(config.eos_token_id)
    completions = []
    for ids in output_BT[:, longest:].tolist():
        end = next((position for position, token in enumerate(ids) if token in eos_ids), len(ids) - 1)
        completions.append(ids[: end + 1])
    return completions


@contextmanager
def untouched(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode and generators seeded with `seed` inside; on leaving, also by an exception, everything as before.

    Restored are the states of Python, numpy, the CPU generator and the generators of the model's own accelerators,
    `training` of every module (some may be frozen in evaluation mode), and the generation config.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters()}
    with randomness.kept(*devices), generation_defaults.blank(model):
        try:
            randomness.seed(seed, *devices)
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
