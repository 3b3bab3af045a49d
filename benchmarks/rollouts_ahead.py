"""What `rollouts_ahead` saves: runs with it over runs without, at several shares of SFT.

Whole runs one after another, in turn and in an order that is reversed every time: steps that took turns would leave the
worker the time of the other trainer's. Both have the same seed, so the same steps are SFT. It needs two cores.
Run: python benchmarks/rollouts_ahead.py [--shares 0.3,0.5,0.8] [--pairs 5] [--limit 4] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from transformers import TrainerCallback
from turns import SPREAD, Spread, parse, save, show, without_printing

from sasr import SASRConfig, SASRTrainer, get_task


class Timed(SASRTrainer):
    """Notes what its own generations take, by step, and the CPU time at which a step begins."""

    def __init__(self, *args: Any, **options: Any):
        self.generating: dict[int, float] = {}
        self.begun = 0.0
        super().__init__(*args, **options)

    def get_batch_samples(self, *args: Any, **options: Any):
        self.begun = time.process_time()
        return super().get_batch_samples(*args, **options)

    def _generate_single_turn(self, *args: Any, **options: Any):
        started = time.perf_counter()
        found = super()._generate_single_turn(*args, **options)
        self.generating[self.state.global_step] = time.perf_counter() - started
        return found


class Steps(TrainerCallback):
    """What each step took, and of what kind it was."""

    def __init__(self, trainer: Timed):
        self.trainer, self.lines = trainer, []
        trainer.add_callback(self)

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        cpu = time.process_time() - trainer.begun
        self.lines.append({"kind": trainer.plan.kind, "wall": trainer.budget.step_seconds, "cpu": cpu})


def run(setting: Any, share: float, limit: int) -> list[dict[str, Any]]:
    """Train; one line for each step."""
    args = SASRConfig(
        schedule="random", sft_share=share, rollouts_ahead=limit, per_device_sft_batch_size=setting.demonstrations,
        **setting.grpo_values(),
    )  # fmt: skip
    model, tokenizer = setting.policy()
    rewards, more = get_task(setting.task).reward_funcs(), {"train_dataset": setting.dataset()}
    trainer = Timed(model=model, reward_funcs=rewards, args=args, processing_class=tokenizer, **more)
    without_printing(trainer)
    steps = Steps(trainer)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    for i, (line, entry) in enumerate(zip(steps.lines, logs, strict=True)):
        line["age"] = entry.get("sasr/rollout_age")
        line["own"] = trainer.generating.get(i, 0.0)
        line["ahead"] = entry.get("sasr/rollout_seconds", 0.0)
        line["hidden"] = max(0.0, line["ahead"] - entry.get("sasr/rollout_wait_seconds", 0.0))
        line["ratio"] = entry.get("sasr/importance_ratio")
        line["clipped"] = entry.get("clip_ratio/region_mean")
    return steps.lines


def counted(lines: list[dict[str, Any]], skipped: int) -> int:
    """The first step that counts: the worker has started, and its first rollouts have been trained on."""
    first = next((i for i, line in enumerate(lines) if line["age"]), None)
    if first is None:
        raise SystemExit("no rollouts were made ahead: give more --steps")
    return max(first + 1, skipped)


def total(lines: list[dict[str, Any]], key: str, kind: str = "") -> float:
    return sum(line[key] for line in lines if kind in ("", line["kind"]))


def mean(values: list[float]) -> float:
    return statistics.mean(values) if values else float("nan")


def main() -> None:
    options, setting = parse(__doc__ or "", ("--shares", "0.3,0.5,0.8"), ("--pairs", 5), ("--limit", 4), steps=40)
    if options.quick:
        options.shares, options.pairs, setting.steps = "0.5", 2, 12
    ratios, hidden, found = [], [], {}
    for share in options.shares.split(","):
        runs: dict[int, list[list[dict[str, Any]]]] = {0: [], options.limit: []}
        for pair in range(options.pairs):
            for limit in sorted(runs, reverse=bool(pair % 2)):
                runs[limit].append(run(setting, float(share), limit))
        start = counted(runs[options.limit][0], setting.skipped)
        pairs = [(off[start:], on[start:]) for off, on in zip(*runs.values(), strict=True)]
        first = pairs[0][1]
        studied = sum(line["kind"] == "sft" for line in first)
        for clock in ("wall", "cpu"):
            per_step = [statistics.median(total(one[i], clock) for one in pairs) / len(first) for i in (0, 1)]
            spread = Spread.of([total(on, clock) / total(off, clock) for off, on in pairs])
            ratios.append(
                [f"{share}, {studied} of {len(first)}", clock, *(f"{s:.3f}" for s in per_step), *spread.cells()]
            )
        shares = [
            statistics.median(total(on, "hidden") / total(on, "wall", "sft") for _, on in pairs),
            statistics.median(total(on, "hidden") / (total(on, "own") + total(on, "ahead")) for _, on in pairs),
            *(
                statistics.median(total(on, "wall", kind) / total(off, "wall", kind) for off, on in pairs)
                for kind in ("sft", "grpo")
            ),
            *(mean([line[key] for line in first if line[key] is not None]) for key in ("age", "ratio", "clipped")),
        ]
        hidden.append([share, *(f"{value:.3f}" for value in shares)])
        found[share] = {"first counted step": start, "off": runs[0], "on": runs[options.limit]}
    show(
        f"schedule random, {setting.name}: all steps, rollouts_ahead {options.limit} over 0",
        ("SFT steps", "clock", "s/step, 0", f"s/step, {options.limit}", *SPREAD),
        ratios,
        "cpu: of the training process; with a core to spare and no waiting the wall clock would say the same",
    )
    show(
        "what is hidden, medians over the runs",
        ("share of SFT", "SFT time", "generation", "SFT step", "GRPO step", "age", "ratio", "clipped"),
        hidden,
        "SFT time: seconds of generation that went by while training went on, over the seconds of SFT steps",
        "generation: the same over the seconds of all generations that were trained on",
        "SFT step, GRPO step: over those of the run without; below 1 is faster",
        "age in steps, importance ratio and share of tokens clipped: means over GRPO steps, of the first run",
    )
    save(options, {"runs": found})


if __name__ == "__main__":
    main()
