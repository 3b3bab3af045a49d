"""A GRPO step of `SASRTrainer` (schedule grpo) over one of stock TRL's `GRPOTrainer`: same rows, weights and settings.

Both draw the same rollouts, so that the losses must agree, and each pair of steps did the same work.
Run: python benchmarks/grpo_step.py [--model NAME] [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from trl import GRPOConfig, GRPOTrainer
from turns import SPREAD, largest_difference, parse, ratios, save, show, take_turns

from sasr import SASRConfig, SASRTrainer, get_task

OURS, PEER, SKIPPING = "SASRTrainer", "TRL GRPOTrainer", "SASRTrainer, flat_groups skip"


def main() -> None:
    options, setting = parse(__doc__ or "")
    task = get_task(setting.task)

    def made(kind: Any, args: Any) -> Any:
        model, tokenizer = setting.policy()
        more = {"train_dataset": setting.dataset(), "processing_class": tokenizer}
        return kind(model=model, reward_funcs=task.reward_funcs(), args=args, **more)

    steps, trainers = take_turns(
        {
            OURS: lambda: SASRConfig(schedule="grpo", **setting.grpo_values()),
            PEER: lambda: GRPOConfig(**setting.grpo_values()),
            SKIPPING: lambda: SASRConfig(schedule="grpo", flat_groups="skip", **setting.grpo_values()),
        },
        {
            OURS: lambda args: made(SASRTrainer, args),
            PEER: lambda args: made(GRPOTrainer, args),
            SKIPPING: lambda args: made(SASRTrainer, args),
        },
        setting.skipped,
    )
    rows, found = [], {}
    for name in (OURS, SKIPPING):
        found[name] = ratios(steps, name, PEER)
        rows += [[f"{name} / {PEER}, {clock} time", *spread.cells()] for clock, spread in found[name].items()]
    differences = {name: largest_difference(trainers[name], trainers[PEER]) for name in (OURS, SKIPPING)}
    seconds = sorted(step.wall for step in steps[PEER])[len(steps[PEER]) // 2]
    show(
        f"GRPO step, {setting.name}, {setting.rollouts} rollouts of at most {setting.length} tokens",
        ("ratio", *SPREAD),
        rows,
        f"a step of {PEER}: {seconds:.3f} s (median)",
        *(f"largest difference of the losses, {name}: {x:.1e} of the largest" for name, x in differences.items()),
    )
    save(options, {
        "ratios": {name: {clock: asdict(s) for clock, s in each.items()} for name, each in found.items()},
        "loss_difference": differences,
        "steps": {name: [asdict(step) for step in each] for name, each in steps.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
