"""Rollouts by vLLM, colocated, with real vLLM and real TRL: it is given the weights after SFT steps too."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from vllm_runs import check_weights_at_each_rollout, check_what_sft_taught_is_said, run_script

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

# vLLM's build for CPUs packs the weights of linear layers and drops the originals, so that TRL cannot load new ones:
# here they stay. On accelerators nothing is packed. Compiling would take minutes, and bfloat16, which vLLM makes of
# float32, blur the comparison.
PRELUDE = """
import torch
import vllm.model_executor.layers.utils as layers
def plain(layer, remove_weight):
    layer.cpu_linear = torch.nn.functional.linear
layers.dispatch_cpu_unquantized_gemm = plain
import functools
import trl.generation.vllm_generation as generation
generation.LLM = functools.partial(generation.LLM, enforce_eager=True, dtype="float32")
def trainer(name, lm=None, **changes):
    values = dict(use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.1, vllm_max_model_length=32)
    lm = lm or toy.model(0, out / "lm", head_dim=32)
    return toy.trainer(out / name, lm=lm, **{**values, **changes})
"""


def run_colocated(tmp_path: Path, body: str) -> None:
    run_script(tmp_path, PRELUDE + body)


def test_what_sft_taught_is_in_the_next_rollout(tmp_path):
    check_what_sft_taught_is_said(run_colocated, tmp_path)


def test_weights_are_those_of_the_trainer_at_each_rollout(tmp_path):
    check_weights_at_each_rollout(run_colocated, tmp_path)


def test_rollouts_stop_at_the_templates_end_of_turn(tmp_path):
    run_colocated(
        tmp_path,
        """
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from sasr import SASRTrainer
from test_demonstrations import chat_tokenizer, conversation
tokenizer = chat_tokenizer()
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=1, eos_token_id=tokenizer.eos_token_id)
LlamaForCausalLM(config).save_pretrained(out / "chat")
tokenizer.save_pretrained(out / "chat")
said = []
def reward(completions, completion_ids, **_):
    said.extend(map(list, completion_ids))
    return [float(len(ids)) for ids in completion_ids]
trained = SASRTrainer(
    model=LlamaForCausalLM.from_pretrained(out / "chat"),
    reward_funcs=reward,
    args=toy.settings(out / "run", schedule="static", sft_warmup_steps=30, max_steps=31, sft_learning_rate=1e-2,
                      max_completion_length=12, use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=0.1,
                      vllm_max_model_length=64),
    train_dataset=Dataset.from_list([conversation(f"{i}+1?", str(i + 1)) for i in range(8)]),
    processing_class=tokenizer,
)
trained.train()
end = tokenizer.convert_tokens_to_ids("<|end|>")
assert end != tokenizer.eos_token_id
(out / "said.json").write_text(json.dumps([[ids.index(end) if end in ids else None, len(ids)] for ids in said]))
""",
    )
    said = json.loads((tmp_path / "said.json").read_text())
    assert len(said) == 8 and all(end == length - 1 for end, length in said), said


def test_a_resumed_run_is_the_run_without_a_stop(tmp_path):
    """On a CPU, where vLLM draws from the trainer's own random state."""
    run_colocated(
        tmp_path,
        """
from test_resume import outcome
changes = dict(max_steps=12, schedule="random", sft_share=0.5, sft_warmup_steps=3, save_strategy="steps", save_steps=6)
whole = trainer("whole", **changes)
whole.train()
resumed = trainer("resumed", **changes)
resumed.train(resume_from_checkpoint=str(out / "whole" / "checkpoint-6"))
keys = ("step", "loss", "grad_norm", "reward", "completions/mean_length")
logs = [[[entry.get(key) for key in keys] for entry in t.state.log_history if "grad_norm" in entry]
        for t in (whole, resumed)]
differences = [float((a - b).abs().max()) for a, b in zip(whole.model.parameters(), resumed.model.parameters())]
(out / "seen.json").write_text(json.dumps([logs, max(differences)]))
""",
    )
    (whole, resumed), difference = json.loads((tmp_path / "seen.json").read_text())
    assert whole == resumed and difference == 0


def test_a_run_of_the_command(tmp_path):
    """With a model from scratch, which vLLM finds in the run's directory, exams, a checkpoint and a resumption."""
    run_colocated(
        tmp_path,
        """
import sasr.rollout_engine
from sasr.cli import main
sasr.rollout_engine.check_device = lambda args: None
flags = ["--schedule", "static", "--sft_warmup_steps", "4", "--max_completion_length", "16", "--logging_steps", "1",
         "--per_device_train_batch_size", "8", "--num_generations", "4", "--exam_rows", "4", "--exam_samples", "2",
         "--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_gpu_memory_utilization", "0.1", "--save_steps", "3",
         "--train_rows", "32", "--vllm_max_model_length", "512", "--output_dir", "run"]
assert main(["train", "--task", "stories", "--max_steps", "6", *flags]) == 0
exams = json.loads(Path("run/exam.json").read_text())
assert list(exams) == ["initial", "warmup", "final"]
lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
differences = [line["sampling/sampling_logp_difference/max"] for line in lines if line.get("kind") == "grpo"]
assert len(differences) == 2 and max(differences) < 1e-3, differences
""",
    )
