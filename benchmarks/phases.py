"""Where the time of a step goes, as multiples of its floor: what FLOPs and bytes would take at this machine's rates.

The rates are measured: a large matrix product in the training's precision, and a large copy. FLOPs are those of
docs/metrics.md; bytes are the weights once per pass (twice in the backward pass), in generation the weights and the
keys and values once per token, in the optimizer its states. A floor counts no activations, no padding and no launches.
Run: python benchmarks/phases.py [--model NAME] [--json FILE]
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback
from turns import COMMON, CUDA, now, parse, save, show, without_printing

from sasr import SASRConfig, SASRTrainer, get_task

PHASES = ("generation", "forward", "backward", "optimizer", "rest")
DTYPE = torch.bfloat16 if CUDA else torch.float32


def clock() -> float:
    """Seconds. On a CPU those that the process had it, so that other work on the machine does not count; with several
    threads they count several times, in the rates too."""
    return now()[0 if CUDA else 1]


class Phased(SASRTrainer):
    """Times its phases, step by step."""

    def __init__(self, *args: Any, **options: Any):
        self.times: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        super().__init__(*args, **options)
        backward = self.accelerator.backward

        def timed_backward(*given: Any, **more: Any) -> None:
            with self.phase("backward"):
                backward(*given, **more)

        self.accelerator.backward = timed_backward

    @contextmanager
    def phase(self, name: str):
        started = clock()
        yield
        self.times[self.state.global_step][name] += clock() - started

    def create_optimizer(self, *args: Any):
        optimizer = super().create_optimizer(*args)
        step = optimizer.step

        def timed_step(*given: Any, **more: Any) -> Any:
            with self.phase("optimizer"):
                return step(*given, **more)

        optimizer.step = timed_step
        return optimizer

    def _generate_single_turn(self, *args: Any, **options: Any):
        with self.phase("generation"):
            prompts, (completions, logps) = args[0], super()._generate_single_turn(*args, **options)
        self.lengths = [[len(ids) for ids in prompts], [len(ids) for ids in completions]]
        return completions, logps

    def compute_loss(self, *args: Any, **options: Any):
        with self.phase("forward"):
            return super().compute_loss(*args, **options)


class Marks(TrainerCallback):
    """From step to step, with what comes before a step in the step."""

    def __init__(self):
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(clock())


def rates() -> tuple[float, float]:
    """FLOP/s of a matrix product, bytes/s of a copy (read and written), the best of several."""
    device, size = ("cuda", 8192) if CUDA else ("cpu", 1024)
    a, b = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    source = torch.zeros((2**30 if CUDA else 2**26) // 4, device=device)
    target = torch.empty_like(source)

    def best(act: Any) -> float:
        taken = []
        for _ in range(10):
            started = clock()
            act()
            taken.append(clock() - started)
        return min(taken)

    return 2 * size**3 / best(lambda: a @ b), 2 * source.nbytes / best(lambda: target.copy_(source))


def floors(trainer: Phased, schedule: str, tokens: float, speed: tuple[float, float]) -> dict[str, float]:
    """Seconds that each phase takes at least."""
    work, item = trainer.work, DTYPE.itemsize
    weights = work.weights * item
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    cost = {
        "forward": (2 * work.weights * tokens, weights),
        "backward": (4 * work.weights * tokens, 2 * weights),
        "optimizer": (0.0, 7 * 4 * parameters),  # weight, gradient and two moments read, all but the gradient written
    }
    if schedule == "grpo":
        config = trainer.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kept = 2 * config.num_hidden_layers * heads * width * item  # keys and values of a token
        prompts, completions = trainer.lengths
        read = sum(kept * (p * c + c * (c - 1) / 2) for p, c in zip(prompts, completions, strict=True))
        once = sum(prompts) / trainer.num_generations + sum(completions)  # prompts are read once per group
        cost["generation"] = (2 * work.weights * once, max(completions) * weights + read)
    return {name: max(flops / speed[0], moved / speed[1]) for name, (flops, moved) in cost.items()}


def main() -> None:
    options, setting = parse(__doc__ or "", steps=20)
    task, speed = get_task(setting.task), rates()
    sizes = {"per_device_sft_batch_size": setting.demonstrations, "sft_learning_rate": COMMON["learning_rate"]}
    rows, found = [], {}
    for schedule in ("grpo", "sft"):
        model, tokenizer = setting.policy()
        args = SASRConfig(schedule=schedule, **sizes, **setting.grpo_values())
        more = {"train_dataset": setting.dataset(), "processing_class": tokenizer}
        trainer = Phased(model=model, reward_funcs=task.reward_funcs(), args=args, **more)
        marks = Marks()
        without_printing(trainer).add_callback(marks)
        trainer.train()
        kept = range(setting.skipped, setting.steps)
        taken = {name: median(trainer.times[i][name] for i in kept) for name in PHASES[:-1]}
        wholes = {i: marks.times[i] - marks.times[i - 1] for i in kept}
        taken["rest"] = median(wholes[i] - sum(trainer.times[i].values()) for i in kept)
        whole = median(wholes.values())
        tokens = median(e["sasr/tokens"] for e in trainer.state.log_history[setting.skipped : setting.steps])
        least = floors(trainer, schedule, tokens, speed)
        for name in PHASES:
            if taken[name]:
                floor = least.get(name)
                of = [f"{1e3 * floor:.1f} ms", f"{taken[name] / floor:.1f}"] if floor else ["", ""]
                rows.append([f"{schedule}: {name}", f"{1e3 * taken[name]:.1f} ms", f"{taken[name] / whole:.1%}", *of])
        floor = sum(least.values())
        rows.append(
            [f"{schedule}: step", f"{1e3 * whole:.1f} ms", "100%", f"{1e3 * floor:.1f} ms", f"{whole / floor:.1f}"]
        )
        found[schedule] = {"seconds": {**taken, "step": whole}, "floors": least, "tokens": tokens}
        rows.append([f"{schedule}: tokens per second", f"{tokens / whole:.0f}", "", "", ""])
    show(
        f"phases of a step, {setting.name}, medians of {setting.steps - setting.skipped} steps",
        ("phase", "time", "share", "floor", "time / floor"), rows,
        f"rates: {speed[0] / 1e9:.0f} GFLOP/s in {str(DTYPE).removeprefix('torch.')}, copy {speed[1] / 1e9:.1f} GB/s",
    )  # fmt: skip
    save(options, {"phases": found, "flops_per_second": speed[0], "bytes_per_second": speed[1]})


if __name__ == "__main__":
    main()
