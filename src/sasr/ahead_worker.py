"""The process that makes rollouts ahead of their GRPO step, for [`sasr.ahead`]: a copy of the policy, one thread.

It takes one job at a time: prompts and a seed, to be answered with the weights that lie in the shared memory by then.
The memory is its parent's to write, between two jobs. It ends with its parent, also with one that was killed.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from safetensors.torch import save
from transformers import GenerationConfig
from trl.trainer.utils import add_fused_lm_head, pad

from . import fused_head, generation_defaults, prefill
from .adapters import base_of
from .demonstrations import Ids
from .disconnect import STOPS
from .exam.generation import generate

STOP = b"stop"  # the job under way is not wanted any more; no answer to one that is done
STOPPED = "stopped"


@dataclass(frozen=True)
class Sampling:
    """How rollouts are sampled, as the trainer samples its own.

    Args:
        generation ([`~transformers.GenerationConfig`]): With the end tokens as a list.
        temperature (`float`): That of the log-probabilities, the generation's.
        fp32_head (`bool`): `cast_lm_head_to_fp32`.
        batch_size (`int`): Rollouts of one forward pass for their log-probabilities.
        shared_prompts (`bool`): Read equal prompts once ([`prefill.applies`]).
    """

    generation: GenerationConfig
    temperature: float
    fp32_head: bool
    batch_size: int
    shared_prompts: bool


def tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once, in an order that a copy of the model has too."""
    return [*model.parameters(), *dict.fromkeys(model.buffers())]


def views(memory: dict[torch.dtype, torch.Tensor], like: Iterable[tuple[torch.dtype, Sequence[int]]]):
    """One tensor of each type and shape after the other, out of one piece of memory for each type."""
    taken = dict.fromkeys(memory, 0)
    for dtype, shape in like:
        start, taken[dtype] = taken[dtype], taken[dtype] + math.prod(shape)
        yield memory[dtype][start : taken[dtype]].view(tuple(shape))


def main(
    connection: Connection,
    model: Any,
    memory: dict[torch.dtype, torch.Tensor],
    shapes: list[tuple[int, ...]],
    sampling: Sampling,
) -> None:
    """Answer jobs until the parent is gone.

    Args:
        connection (`Connection`): To the parent. A job is JSON; its answer is a line of text, empty if all went well,
            then safetensors as [`rollouts`] gives them.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy, its tensors empty.
        memory (`dict[torch.dtype, torch.Tensor]`): Shared: what fills them.
        shapes (`list[tuple[int, ...]]`): Theirs.
        sampling ([`Sampling`]): How to sample.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # sent to a whole group they are for the parent, which ends this process
    torch.set_num_threads(1)
    tensors = tensors_of(model)
    like = zip((tensor.dtype for tensor in tensors), shapes, strict=True)
    for tensor, view in zip(tensors, views(memory, like), strict=True):
        tensor.data = view
    model.eval()  # without dropout, so that the log-probabilities are those of the policy that samples
    add_fused_lm_head(base_of(model), temperature=sampling.temperature, cast_lm_head_to_fp32=sampling.fp32_head)
    try:
        while True:
            message = connection.recv_bytes()
            if message == STOP:
                continue
            try:
                problem, answer = "", save(rollouts(model, json.loads(message), sampling, connection))
            except _Stopped:
                problem, answer = STOPPED, b""
            except Exception as error:
                problem, answer = " ".join(f"{type(error).__name__}: {error}".split())[:200], b""
            connection.send_bytes(problem.encode())
            connection.send_bytes(answer)
    except (EOFError, OSError):
        return  # the parent is gone


class _Stopped(Exception):
    pass


@torch.no_grad()
def rollouts(model: Any, job: dict[str, Any], sampling: Sampling, connection: Connection) -> dict[str, torch.Tensor]:
    """Answer the prompts of a job, unless its end is asked for.

    Returns:
        `completion_ids` and `logps` of shape (rollouts, longest completion), padded on the right, `lengths` of shape
        (rollouts,), and `seconds` that it took, a single number.
    """
    started = time.monotonic()
    prompt_ids: list[Ids] = job["prompt_ids"]

    def unwanted(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        # Whatever comes in while a job is under way: its end, or the parent's.
        return torch.full((len(ids),), connection.poll(), dtype=torch.bool)

    torch.manual_seed(job["seed"])
    shared = prefill.shared(model, prompt_ids) if sampling.shared_prompts else nullcontext()
    with generation_defaults.blank(model), shared:
        completion_ids = generate(model, prompt_ids, sampling.generation, stopping_criteria=[unwanted])
    if connection.poll():
        raise _Stopped
    logps = log_probabilities(model, prompt_ids, completion_ids, sampling)
    return {
        "completion_ids": pad([torch.tensor(ids) for ids in completion_ids], padding_value=0),
        "lengths": torch.tensor([len(ids) for ids in completion_ids]),
        "logps": logps,
        "seconds": torch.tensor(time.monotonic() - started, dtype=torch.float64),
    }


def log_probabilities(model: Any, prompt_ids: list[Ids], completion_ids: list[Ids], sampling: Sampling) -> torch.Tensor:
    """Of the completions' tokens, as the trainer computes them: shape (rollouts, longest completion)."""
    sides = ((prompt_ids, "left"), (completion_ids, "right"))
    parts = [
        pad([torch.tensor(part) for part in rows], padding_value=-1, padding_side=side)  # no token
        for rows, side in sides
    ]
    ids, width = torch.cat(parts, dim=1), parts[1].size(1)
    mask = (ids >= 0).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-width] = -100
    ids = ids.masked_fill(mask == 0, sampling.generation.pad_token_id)
    size, found = sampling.batch_size, []
    with fused_head.labelled_only(ids.device):
        for some_ids, some_mask, some_labels in zip(ids.split(size), mask.split(size), labels.split(size), strict=True):
            output = model(input_ids=some_ids, attention_mask=some_mask, labels=some_labels, fused_lm_head=True)
            found.append(output.log_probs[:, -width:])
    return torch.cat(found).float().contiguous()
