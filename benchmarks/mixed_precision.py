"""Rollouts in mixed precision: weights cast once a generation, as SASRTrainer does, against once a token.

The two take turns on the same prompts from the same random state, and must draw the same tokens.
Run: python benchmarks/mixed_precision.py [--model NAME] [--json FILE]
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict

import torch
from turns import SPREAD, Step, now, parse, ratios, save, show, without_printing

from sasr import SASRConfig, SASRTrainer, get_task

ONCE, EACH = "once a generation", "once a token"


def main() -> None:
    options, setting = parse(__doc__ or "", steps=10, skipped=1)
    model, tokenizer = setting.policy()
    values = {**setting.grpo_values(bf16=True), "max_steps": 1, "sft_warmup_steps": 1}
    trainer = SASRTrainer(
        model=model,
        reward_funcs=get_task(setting.task).reward_funcs(),
        args=SASRConfig(per_device_sft_batch_size=setting.demonstrations, **values),
        train_dataset=setting.dataset(),
        processing_class=tokenizer,
    )
    without_printing(trainer).train()  # the model is not in mixed precision before
    prompts = [row["prompt"] for row in setting.rows[: setting.rollouts // setting.group] for _ in range(setting.group)]
    prompt_ids, *_ = trainer._tokenize_prompts(prompts)
    contexts = {ONCE: trainer.accelerator.autocast, EACH: nullcontext}
    steps: dict[str, list[Step]] = {name: [] for name in contexts}
    for round_ in range(setting.steps):
        drawn = []
        for name in list(contexts)[:: 1 if round_ % 2 else -1]:
            trainer.accelerator.autocast = contexts[name]
            torch.manual_seed(round_)
            started = now()
            drawn.append(trainer._generate_single_turn(prompt_ids, None, {}, setting.group)[0])
            if round_ >= setting.skipped:
                steps[name].append(Step(*(b - a for a, b in zip(started, now(), strict=True))))
        if drawn[0] != drawn[1]:
            raise SystemExit("the two drew different tokens: they did not do the same work")
    found = ratios(steps, ONCE, EACH)
    show(
        f"generation, {setting.name}, {len(prompts)} rollouts of at most {setting.length} tokens: weights cast",
        ("ratio", *SPREAD),
        [[f"{ONCE} / {EACH}, {clock} time", *spread.cells()] for clock, spread in found.items()],
        f"{EACH}: {sorted(step.wall for step in steps[EACH])[len(steps[EACH]) // 2]:.2f} s a generation (median)",
    )
    save(options, {"ratios": {clock: asdict(spread) for clock, spread in found.items()}})


if __name__ == "__main__":
    main()
