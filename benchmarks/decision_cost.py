"""What SASR adds to a step: the decision, the norm with the other signals, and the two probes every 10 steps.

Each part is timed inside runs of schedule sasr, as a share of all their steps: differences between whole steps are lost
in the noise of a machine. Run: python benchmarks/decision_cost.py [--model NAME] [--json FILE]
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import Any

from turns import COMMON, now, parse, save, show, take_turns

import sasr.norm_probe
import sasr.trainer
from sasr import SASRConfig, SASRTrainer, get_task
from sasr.reference import Reference

WARMUP, EVERY = 4, 10
VARIANTS: dict[str, dict[str, Any]] = {
    "no probe": {},
    "repeatable norm": {"sft_norm": "repeatable", "separate_optimizer_states": True},
    "divergence probe": {"divergence_weight": 0.5, "divergence_every": EVERY},
    "SFT norm probe": {"sft_norm_every": EVERY, "gamma": 1000.0},  # SFT steps would make it needless
}


class Timed(SASRTrainer):
    """Notes what its parts take: (step, part) -> seconds of wall-clock and of CPU time."""

    def __init__(self, *args: Any, **options: Any):
        self.parts: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        super().__init__(*args, **options)

    @contextmanager
    def part(self, name: str):
        started = now()
        yield
        total = self.parts[self.state.global_step, name]
        for i, (a, b) in enumerate(zip(started, now(), strict=True)):
            total[i] += b - a

    def _decide(self):
        with self.part("decision"):
            return super()._decide()


def timed(name: str, module: Any, attribute: str, trainer_of: Any) -> None:
    inner = getattr(module, attribute)

    def outer(*args: Any) -> Any:
        with trainer_of(args[0]).part(name):
            return inner(*args)

    setattr(module, attribute, outer)


def main() -> None:
    options, setting = parse(__doc__ or "", steps=30, skipped=WARMUP + 1)
    task = get_task(setting.task)
    timed("norm and signals", sasr.trainer, "finish_step", lambda trainer: trainer)
    timed("SFT norm probe", sasr.norm_probe, "before_step", lambda trainer: trainer)
    timed("divergence probe", Reference, "before_step", lambda reference: reference.trainer)
    sizes = {"per_device_sft_batch_size": setting.demonstrations, "sft_learning_rate": COMMON["learning_rate"]}

    def config(changes: dict[str, Any]) -> SASRConfig:
        return SASRConfig(schedule="sasr", sft_warmup_steps=WARMUP, **sizes, **setting.grpo_values(), **changes)

    def made(args: SASRConfig) -> Timed:
        model, tokenizer = setting.policy()
        more = {"train_dataset": setting.dataset(), "processing_class": tokenizer}
        return Timed(model=model, reward_funcs=task.reward_funcs(), args=args, **more)

    steps, trainers = take_turns(
        {name: (lambda changes=changes: config(changes)) for name, changes in VARIANTS.items()},
        dict.fromkeys(VARIANTS, made), setting.skipped,
    )  # fmt: skip
    rows, found = [], {}
    for variant, trainer in trainers.items():
        whole = [sum(step.wall for step in steps[variant]), sum(step.cpu for step in steps[variant])]
        shares: dict[str, list[float]] = {}
        for part in ("decision", "norm and signals", "divergence probe", "SFT norm probe"):
            taken = [times for (step, name), times in trainer.parts.items() if name == part and step > setting.skipped]
            shares[part] = [sum(clock) / total for clock, total in zip(zip(*taken, strict=True), whole, strict=True)]
        shares["all"] = [sum(clock) for clock in zip(*shares.values(), strict=True)]
        found[variant] = shares
        mean = whole[0] / len(steps[variant])
        rows += [
            [f"{variant}: {part}", f"{wall:.2%}", f"{cpu:.2%}", f"{1e3 * wall * mean:.2f} ms"]
            for part, (wall, cpu) in shares.items()
        ]
    show(
        f"schedule sasr, {setting.name}, probes every {EVERY} steps: shares of all steps after the warm-up",
        ("run: part", "of wall time", "of CPU time", "per step"),
        rows,
        f"steps that are SFT: {trainers['no probe'].counts['sft_steps'] - WARMUP} of {setting.steps - WARMUP}",
        "the divergence probe's first answers, generated once when the warm-up ends, are not part of it",
    )
    save(options, {"shares": found})


if __name__ == "__main__":
    main()
