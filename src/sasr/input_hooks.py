"""Hooks that transformers leaves behind: with gradient checkpointing, two for every generation."""

from __future__ import annotations

from typing import Any

_NAME = "make_inputs_require_grads"


def keep_one_hook(model: Any) -> None:
    """Remove all but the newest of the hooks that make a model's embeddings require gradients.

    TRL switches gradient checkpointing off for a generation and on again. Switching it on adds such a hook, switching
    it off removes none, and each is called for every token from then on.
    """
    hooks = model.get_input_embeddings()._forward_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook, "__name__", "") == _NAME][:-1]:
        del hooks[key]
