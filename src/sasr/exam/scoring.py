"""What a model says of given tokens, one forward pass each: entropy, KL to another model, NLL of demonstrations.

All three are of the models as they are, at temperature 1, and per completion token, the end-of-sequence token included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasr.demonstrations import Demonstration, collate
from sasr.errors import InputError
from sasr.out_of_memory import is_out_of_memory

# Logits held at a time: (completions, length, vocabulary) in float32, a few copies of it.
_MOST_LOGITS = {"cpu": 2**26}
_MOST_LOGITS_ACCELERATOR = 2**28


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `InputError` unless two models can be compared token by token."""
    if tokenizer.get_vocab() != other.get_vocab():
        raise InputError(f"initial_model {name}: its tokenizer has another vocabulary, so there is no KL per token")


@contextmanager
def _memory_told() -> Iterator[None]:
    """Turns too little memory into an [`InputError`]. How many completions are generated at a time does not matter
    here."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "not enough memory to measure entropy, KL or NLL: set dtype to bfloat16, or leave out --entropy, "
            "--initial_model and --nll_task, with another output_dir"
        ) from error


@_memory_told()
def score(
    model: PreTrainedModel, completions: Sequence[Demonstration], pad_id: int, initial: PreTrainedModel | None = None
) -> list[dict[str, float]]:
    """Measures of each completion, in the order given.

    Args:
        model (`PreTrainedModel`): The policy p.
        completions (`Sequence[Demonstration]`): Prompts with their completions, as token ids.
        pad_id (`int`): Any token.
        initial (`PreTrainedModel`, *optional*): The model q to compare with.

    Returns:
        `list[dict]`: Means over the tokens of a completion, in nats: `nll`, -log p of its tokens; `entropy` of p's
        next-token distribution; and with `initial`, `kl`, KL(p || q) of the two next-token distributions, over the
        whole vocabulary at each position and hence without the noise of an estimate from the sampled token alone.

    Raises:
        InputError: The models have output layers of different sizes.
    """
    scores: list[dict[str, float]] = [{} for _ in completions]
    with torch.inference_mode():
        for indices in _batches(completions, model):
            batch = collate([completions[i] for i in indices], pad_id)
            labels_BT = batch["labels"][:, 1:].to(model.device)
            mask_BT = labels_BT != -100
            logps_NV = _log_probabilities(model, batch, mask_BT)
            sums = {
                "nll": -logps_NV.gather(1, labels_BT[mask_BT].unsqueeze(1)).squeeze(1),
                "entropy": torch.special.entr(logps_NV.exp()).sum(1),
            }
            if initial is not None:
                logqs_NV = _log_probabilities(initial, batch, mask_BT).to(logps_NV.device)
                if logqs_NV.shape != logps_NV.shape:
                    raise InputError(
                        f"initial_model has {logqs_NV.shape[1]} output tokens, the examined model {logps_NV.shape[1]}: "
                        "take the one that the training started from"
                    )
                # A token that p rules out (-inf) adds nothing.
                difference_NV = torch.where(logps_NV == -torch.inf, 0.0, logps_NV - logqs_NV)
                sums["kl"] = (logps_NV.exp() * difference_NV).sum(1)
            rows_N = mask_BT.nonzero()[:, 0].cpu()
            counts_B = mask_BT.sum(1).cpu()
            for name, values_N in sums.items():
                means_B = torch.zeros(len(indices), dtype=torch.float64)
                means_B.index_add_(0, rows_N, values_N.cpu().double())
                for index, mean in zip(indices, (means_B / counts_B).tolist(), strict=True):
                    scores[index][name] = mean
    return scores


def mean_per_token(values: Sequence[float], tokens: Sequence[int]) -> float | None:
    """The mean over all tokens, from means of completions and their numbers of tokens."""
    count = sum(tokens)
    return sum(value * n for value, n in zip(values, tokens, strict=True)) / count if count else None


def nll_per_token(model: PreTrainedModel, demonstrations: Sequence[Demonstration], pad_id: int) -> float | None:
    """-log p per completion token, the mean over all tokens of all demonstrations, in nats."""
    scores = score(model, demonstrations, pad_id)
    return mean_per_token([s["nll"] for s in scores], [len(d.completion_ids) for d in demonstrations])


def _log_probabilities(model: PreTrainedModel, batch: dict[str, Any], mask_BT: torch.Tensor) -> torch.Tensor:
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    logits_BTV = model(**inputs, use_cache=False).logits[:, :-1]
    return logits_BTV[mask_BT.to(logits_BTV.device)].float().log_softmax(-1)


def _batches(completions: Sequence[Demonstration], model: PreTrainedModel) -> Iterator[list[int]]:
    """Indices of completions of about the same length, as many as memory allows."""
    most = _MOST_LOGITS.get(model.device.type, _MOST_LOGITS_ACCELERATOR)
    lengths = [len(c.prompt_ids) + len(c.completion_ids) for c in completions]
    vocabulary = model.get_input_embeddings().num_embeddings
    batch: list[int] = []
    for index in sorted(range(len(completions)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] * vocabulary > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
