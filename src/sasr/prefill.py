"""Prompts are read once per group: the rollouts of one prompt share what the model computes for it.

`generate` reads each row of its batch, and a group of G rollouts is G equal rows. Here the different prompts go through
the model once, their keys and values are copied to the rollouts, and `generate` goes on from there. vLLM does the same
by its prefix cache. The rollouts are those of stock TRL up to the rounding of the first token's logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .adapters import base_of

if TYPE_CHECKING:
    from .rollouts import ObservedGRPOTrainer

# Others hold more than keys and values per row (recurrent states), or have a size of their own.
_COPIED = (DynamicLayer, DynamicSlidingWindowLayer)


def applies(trainer: ObservedGRPOTrainer, multimodal: bool) -> bool:
    """Whether rollouts are made by `generate`, of text, by a model that each process holds whole."""
    if trainer.use_vllm or trainer.use_transformers_continuous_batching or multimodal or trainer._is_vlm:
        return False
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    config = trainer.generation_config
    beams = (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1  # more rows than prompts
    return not sharded and not beams and config.cache_implementation is None and config.use_cache is not False


@contextmanager
def shared(model: Any, prompt_ids: Sequence[Sequence[int]]) -> Iterator[None]:
    """Within this context `model.generate`, called with these prompts in this order, reads equal ones once."""
    numbers: dict[tuple[int, ...], int] = {}
    index = [numbers.setdefault(tuple(ids), len(numbers)) for ids in prompt_ids]
    if len(numbers) == len(index):
        yield
        return
    generate = model.generate

    def generate_from_shared(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        cache = prompt_cache(model, input_ids, attention_mask, index)
        if cache is not None:
            options["past_key_values"] = cache
        return generate(input_ids=input_ids, attention_mask=attention_mask, **options)

    model.generate = generate_from_shared
    try:
        yield
    finally:
        del model.generate  # the class's own is found again


def prompt_cache(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, index: Sequence[int]
) -> DynamicCache | None:
    """Keys and values of all prompt tokens but the last, with which `generate` begins.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Not sharded.
        input_ids (`torch.Tensor` of shape (rollouts, length)): Padded on the left.
        attention_mask (`torch.Tensor` of shape (rollouts, length)): 0 on padding.
        index (`Sequence[int]`): The number of each row's prompt, counted from 0 in the order of first appearance.

    Returns:
        A cache for all rows, or `None` where the prompts are too short or the model's cache cannot be copied by rows.
    """
    if input_ids.size(1) < 2:
        return None
    first = [index.index(number) for number in range(max(index) + 1)]
    ids, mask = input_ids[first, :-1], attention_mask[first, :-1]
    known = _parameters(model)
    options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "logits_to_keep": 1}
    options = {name: value for name, value in options.items() if name in known}
    cache = getattr(model(input_ids=ids, attention_mask=mask, use_cache=True, **options), "past_key_values", None)
    if not isinstance(cache, DynamicCache) or any(type(layer) not in _COPIED for layer in cache.layers):
        return None
    for layer in cache.layers:
        if layer.keys is not None:  # of a model that is split over devices each layer's are on its own
            layer.batch_select_indices(torch.tensor(index, device=layer.keys.device))
    return cache


def _parameters(model: Any) -> Any:
    return inspect.signature(base_of(model).forward).parameters  # PEFT's takes whatever its base does
