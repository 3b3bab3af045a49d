"""Peak memory of a run by SASRTrainer and by its peers, TRL's GRPOTrainer and SFTTrainer, each in a process of its own.

On a CPU the peak of the process, of which the interpreter and the libraries are a part; on a GPU what torch allocated.
Run: python benchmarks/memory.py [--model NAME] [--json FILE]
With --runs adapters: SASRTrainer with all weights, with LoRA and with QLoRA (bitsandbytes, and a model's directory).
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from turns import COMMON, CUDA, SPREAD, Setting, Spread, parse, save, show

RUNS = ("SASRTrainer, schedule sasr", "SASRTrainer, schedule grpo", "SASRTrainer, schedule sft", "TRL GRPOTrainer",
        "TRL SFTTrainer")  # fmt: skip
ADAPTERS = ("SASRTrainer, schedule sasr", "SASRTrainer, LoRA", "SASRTrainer, QLoRA")


def train(name: str, setting: Setting) -> None:
    """One run, whose last line is the peak in bytes and what was in use before the trainer was made."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from sasr import SASRConfig, SASRTrainer, get_task
    from sasr.quantised import config_of

    quantization, more = None, {}
    if name == ADAPTERS[2]:
        quantization = config_of({"load_in_4bit": True, "use_bnb_nested_quant": True}, torch.float32)
    if name in ADAPTERS[1:]:
        more["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    model, tokenizer = setting.policy(quantization)
    rows, rewards = setting.dataset(), get_task(setting.task).reward_funcs()
    values = setting.grpo_values()
    loading, before = peak(), forget_peak()
    trainer: Any
    if name.startswith("SASR"):
        schedule = "sasr" if name in ADAPTERS else name.rpartition(" ")[2]
        own = {"per_device_sft_batch_size": setting.demonstrations, "sft_learning_rate": COMMON["learning_rate"]}
        # One step of SFT, then GRPO: a few steps must have both.
        warmup = {"sft_warmup_steps": 1, "gamma": 1000.0} if schedule == "sasr" else {}
        args = SASRConfig(schedule=schedule, **own, **warmup, **values)
        trainer = SASRTrainer(model, rewards, args, rows, processing_class=tokenizer, **more)
    elif "GRPO" in name:
        trainer = GRPOTrainer(model, rewards, GRPOConfig(**values), rows, processing_class=tokenizer)
    else:
        sizes = {"max_steps": setting.steps, "output_dir": values["output_dir"]}
        sft_args = SFTConfig(per_device_train_batch_size=setting.demonstrations, **COMMON, **sizes)
        plain = Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in setting.rows])
        trainer = SFTTrainer(model, sft_args, train_dataset=plain, processing_class=tokenizer)
    trainer.train()
    print(json.dumps([max(peak(), loading), before]))


def forget_peak() -> int:
    """Give back what only the reading of the model took, which may be more than it is, and look for the highest anew.
    Returns the bytes in use now."""
    gc.collect()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)  # of glibc
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Bytes at the highest, so far."""
    if CUDA:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with what the parent used
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    options, setting = parse(__doc__ or "", ("--rounds", 3), ("--only", ""), ("--runs", "all"), steps=6)
    if options.only:
        train(options.only, setting)
        return
    runs = ADAPTERS if options.runs == "adapters" else RUNS
    found: dict[str, list[list[int]]] = {name: [] for name in runs}
    for _ in range(1 if options.quick else options.rounds):
        for name in runs:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for name, peaks in found.items():
        spread = Spread.of([p / 2**20 for p, _ in peaks] * (1 if len(peaks) > 1 else 2))
        above = Spread.of([(p - before) / 2**20 for p, before in peaks] * (1 if len(peaks) > 1 else 2))
        rows.append([name, *spread.cells(".0f")[:2], f"{above.median:.0f}", str(len(peaks))])
    middle = {name: median(p for p, _ in peaks) for name, peaks in found.items()}
    others = runs[1:] if runs is ADAPTERS else [name for name in runs if name.startswith("TRL")]
    larger = max(others, key=lambda name: middle[name])
    show(
        f"peak memory in MiB, {setting.name}", ("run", *SPREAD[:2], "above the model loaded", "runs"), rows,
        f"{runs[0]} / {larger}: {middle[runs[0]] / middle[larger]:.3f}",
    )  # fmt: skip
    save(options, {"peaks": found})


if __name__ == "__main__":
    main()
