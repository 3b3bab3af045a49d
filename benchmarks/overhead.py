"""What SASR costs on top of TRL: seconds of a GRPO-only run by `SASRTrainer` over those by stock `GRPOTrainer`.

Both train the same tiny model on the same rows with the same settings, in turn, so that a machine whose speed drifts
slows both. Also prints what an SFT step costs against a GRPO step. Run: python benchmarks/overhead.py [STEPS] [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from sasr import SASRConfig, SASRTrainer, get_task
from sasr.models import load_model

COMMON = {
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 48,
    "learning_rate": 1e-5,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
}


def seconds_per_step(ours: bool, steps: int, **changes) -> float:
    task = get_task("stories")
    model, tokenizer = load_model("tiny-llama", tokenizer_texts=task.vocabulary_texts())
    rows = Dataset.from_list(task.generate(512, 0, "train"))
    settings = {**COMMON, "max_steps": steps, "output_dir": tempfile.mkdtemp(), **changes}
    options = {"reward_funcs": task.reward_funcs(), "train_dataset": rows, "processing_class": tokenizer}
    if ours:
        trainer = SASRTrainer(model=model, args=SASRConfig(**{"schedule": "grpo", **settings}), **options)
    else:
        trainer = GRPOTrainer(model=model, args=GRPOConfig(**settings), **options)
    started = time.perf_counter()
    trainer.train()
    return (time.perf_counter() - started) / steps


def main(steps: int = 10, rounds: int = 3) -> None:
    stock, ours, sft = [], [], []
    for _ in range(rounds):
        stock.append(seconds_per_step(False, steps))
        ours.append(seconds_per_step(True, steps))
        sft.append(seconds_per_step(True, steps, schedule="sft", per_device_sft_batch_size=32))
    overhead = [a / b for a, b in zip(ours, stock, strict=True)]
    cost = [a / b for a, b in zip(sft, ours, strict=True)]
    print(f"stock TRL {statistics.median(stock):.3f} s per GRPO step (median of {rounds} rounds of {steps} steps)")
    print(f"SASRTrainer / stock: {statistics.median(overhead):.3f} (rounds {min(overhead):.3f} - {max(overhead):.3f})")
    print(f"SFT step of 32 / GRPO step of 64: {statistics.median(cost):.3f} ({min(cost):.3f} - {max(cost):.3f})")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
