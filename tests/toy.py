"""A real but very small setting for tests of the trainer: two-digit sums, a 30k-parameter Llama, real TRL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sasr import SASRConfig, SASRTrainer

# Set by simulated_device.py, or by hand where there is a GPU: train on the accelerator, in float32.
ON_DEVICE = "SASR_TEST_DEVICE" in os.environ

CHARACTERS = list("0123456789+=")


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def model(seed: int = 0, directory: Path | None = None, **changes: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = LlamaForCausalLM(config)
    if directory is not None:
        lm.save_pretrained(directory)
        tokenizer().save_pretrained(directory)
        lm = LlamaForCausalLM.from_pretrained(directory)
    return lm


def rows(count: int = 24) -> Dataset:
    """`difficulty` is the number of digits of the sum."""
    pairs = [((7 * i) % 10, (3 * i + i // 10) % 10) for i in range(count)]
    sums = [{"prompt": f"{a}+{b}=", "completion": f"{a + b:02d}", "difficulty": 1 + (a + b) // 10} for a, b in pairs]
    return Dataset.from_list([{**row, "answer": row["completion"]} for row in sums])


def reward(completions, answer, **_: Any) -> list[float]:
    """Share of the answer's characters that are right: dense, so that groups differ from the first step on."""
    return [sum(x == y for x, y in zip(c, a, strict=False)) / len(a) for c, a in zip(completions, answer, strict=True)]


def settings(output_dir: Path, **changes: Any) -> SASRConfig:
    values: dict[str, Any] = {
        "schedule": "sasr",
        "sft_warmup_steps": 4,
        "max_steps": 12,
        "learning_rate": 1e-3,
        "sft_learning_rate": 3e-3,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not ON_DEVICE,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 3,
    }
    values |= changes
    if values["schedule"] == "sasr":  # the paper's, with which few steps have some of both kinds
        values.setdefault("gamma_schedule", "constant")
        values.setdefault("useful_passes", 0.0)
    return SASRConfig(output_dir=str(output_dir), **values)


def trainer(
    output_dir: Path,
    *,
    lm: Any = None,
    data: Dataset | None = None,
    rewards: Any = reward,
    more: Any = None,
    **changes: Any,
):
    return SASRTrainer(
        model=lm or model(),
        reward_funcs=rewards,
        args=settings(output_dir, **changes),
        train_dataset=data if data is not None else rows(),
        processing_class=tokenizer(),
        **(more or {}),
    )


def observed_norms(trained) -> list[tuple[int, float]]:
    """(optimizer steps done, norm) of each SFT gradient norm that the run to come takes, those of probes included."""
    norms: list[tuple[int, float]] = []
    observe = trained.tracker.observe_sft_norm

    def watch(step, norm):
        norms.append((trained.state.global_step, norm))
        observe(step, norm)

    trained.tracker.observe_sft_norm = watch
    return norms


def history(trained, *keys: str) -> list[tuple]:
    """(value of each key) per logged step."""
    return [tuple(entry.get(key) for key in keys) for entry in trained.state.log_history if "grad_norm" in entry]
