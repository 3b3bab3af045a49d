"""An SFT step of `SASRTrainer` (schedule sft) over one of TRL's `SFTTrainer`: same rows, same order, same weights.

The losses must agree. Run: python benchmarks/sft_step.py [--model NAME] [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from turns import COMMON, SPREAD, largest_difference, parse, ratios, save, show, take_turns

from sasr import SASRConfig, SASRTrainer
from sasr.streams import RowStream

OURS, PEER = "SASRTrainer", "TRL SFTTrainer"


def main() -> None:
    options, setting = parse(__doc__ or "", ("--accumulation", 1), steps=100)
    accumulation = options.accumulation
    batch = {"gradient_accumulation_steps": accumulation}

    def ours(args: Any) -> Trainer:
        model, tokenizer = setting.policy()
        made = SASRTrainer(model=model, args=args, train_dataset=setting.dataset(), processing_class=tokenizer)
        # What it will study, in order: its own demonstrations, for the other.
        order = RowStream(len(made.demonstrations), args.seed + 1)
        count = setting.steps * setting.demonstrations * accumulation
        studied.extend(made.demonstrations[i] for i in order.take(count))
        return made

    def peer(args: Any) -> Trainer:
        model, tokenizer = setting.policy()
        ids = [d.prompt_ids + d.completion_ids for d in studied]
        labels = [[-100] * len(d.prompt_ids) + d.completion_ids for d in studied]
        data = Dataset.from_dict({"input_ids": ids, "labels": labels})
        return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)

    studied: list[Any] = []
    values = setting.grpo_values()
    size = {"per_device_sft_batch_size": setting.demonstrations, "sft_learning_rate": COMMON["learning_rate"]}
    steps, trainers = take_turns(
        {
            OURS: lambda: SASRConfig(schedule="sft", **size, **batch, **values),
            PEER: lambda: SFTConfig(
                per_device_train_batch_size=setting.demonstrations, train_sampling_strategy="sequential", **batch,
                **{**COMMON, "max_steps": setting.steps, "output_dir": values["output_dir"]},
            ),
        },
        {OURS: ours, PEER: peer},
        setting.skipped,
    )  # fmt: skip
    found = ratios(steps, OURS, PEER)
    difference = largest_difference(trainers[OURS], trainers[PEER])
    lengths = [len(d.prompt_ids) + len(d.completion_ids) for d in studied]
    seconds = sorted(step.wall for step in steps[PEER])[len(steps[PEER]) // 2]
    show(
        f"SFT step, {setting.name}, {accumulation} x {setting.demonstrations} demonstrations",
        ("ratio", *SPREAD),
        [[f"{OURS} / {PEER}, {clock} time", *spread.cells()] for clock, spread in found.items()],
        f"a step of {PEER}: {seconds:.3f} s (median); demonstrations of {min(lengths)} to {max(lengths)} tokens",
        f"largest difference of the losses: {difference:.1e} of the largest",
    )
    save(options, {
        "ratios": {clock: asdict(spread) for clock, spread in found.items()},
        "loss_difference": difference,
        "steps": {name: [asdict(step) for step in each] for name, each in steps.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
