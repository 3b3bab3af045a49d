"""What writes the completions of an exam: an engine. Here the one that is used unless another is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from transformers import GenerationConfig, PreTrainedModel

from sasr.exam.generation import generate

ENGINES = ("transformers", "vllm")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """What shapes completions beside model and prompt. Nothing else does: no top-k, no top-p, no penalties.

    Args:
        max_new_tokens (`int`): Limit of a completion, in tokens.
        temperature (`float`): Of the sampled completions.
        eos_ids (`Sequence[int]`): Tokens that end a completion, and stay at its end.
        pad_id (`int`): For padding, where an engine pads.
        batch_size (`int`): Completions generated at once.
        seed (`int`): Of the sampling.
    """

    max_new_tokens: int
    temperature: float
    eos_ids: Sequence[int]
    pad_id: int
    batch_size: int
    seed: int


class Engine(Protocol):
    """Completes prompts."""

    def complete(
        self, prompt_ids: Sequence[list[int]], samples: int, sampling: Sampling, progress: Progress | None
    ) -> list[list[list[int]]]:
        """Token ids of each prompt's greedy completion and then of `samples` sampled ones.

        `progress` is called now and then with completions generated so far and in all.
        """
        ...


class TransformersEngine:
    """`model.generate`, batch by batch, from the random state that it finds; the seed is the caller's to set.

    Args:
        model (`PreTrainedModel`): In evaluation mode, with a blank generation config (see `untouched`).
        around (`Callable`, *optional*): Makes a context for each batch: autocast, in which a model that is trained in
            mixed precision has its weights cast once a batch, not once a token.
    """

    def __init__(self, model: PreTrainedModel, around: Callable[[], AbstractContextManager] = nullcontext):
        self.model, self.around = model, around

    def complete(
        self, prompt_ids: Sequence[list[int]], samples: int, sampling: Sampling, progress: Progress | None
    ) -> list[list[list[int]]]:
        common = {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": list(sampling.eos_ids),
            "pad_token_id": sampling.pad_id,
            "use_cache": True,
            "disable_compile": True,
        }
        greedy = GenerationConfig(do_sample=False, **common)
        # top_k has a default of 50 in transformers, hence 0 by hand.
        sampled = GenerationConfig(do_sample=True, temperature=sampling.temperature, top_k=0, **common)
        completions: list[list[list[int]]] = [[] for _ in prompt_ids]
        done, total = 0, len(prompt_ids) * (1 + samples)
        # Longest first: little padding, and a batch that does not fit in memory fails at the start.
        order = sorted(range(len(prompt_ids)), key=lambda index: -len(prompt_ids[index]))
        for config, repeats in ((greedy, 1), (sampled, samples)):
            jobs = [index for index in order for _ in range(repeats)]
            for start in range(0, len(jobs), sampling.batch_size):
                batch = jobs[start : start + sampling.batch_size]
                with self.around():
                    made = generate(self.model, [prompt_ids[i] for i in batch], config)
                for index, ids in zip(batch, made, strict=True):
                    completions[index].append(ids)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
        return completions
