"""What `sasr train --help` prints, at once: TRL and transformers, on which the settings stand, take seconds to import.
So those of `SASRConfig` are read from its source, and a test compares all of it with what the parser knows."""

from __future__ import annotations

import ast
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .task_config import RECIPES, TaskConfig

Settings = dict[str, tuple[Any, str]]  # (default, help) by name

# Settings of TRL and transformers that most runs touch, with their defaults; the others are in --help_all.
COMMON: dict[str, Settings] = {
    "Model": {
        "model_name_or_path": (None, "Hub name, directory, GGUF file, or tiny-llama / tiny-qwen2 (from scratch)."),
        "dtype": ("float32", "Of the weights; keep float32 unless memory forbids: small updates vanish in bfloat16."),
        "use_peft": (False, "Train LoRA adapters; see also --lora_r, --lora_alpha, --lora_target_modules."),
    },
    "Run": {
        "output_dir": (None, "Where everything goes. Default: runs/NAME-N."),
        "max_steps": (-1, "Optimizer steps, the warm-up included."),
        "seed": (42, "Decides weights, data order, rollouts and the draws of the schedule."),
        "save_steps": (500, "Checkpoint every so many steps."),
        "save_total_limit": (None, "Keep only so many checkpoints."),
        "resume_from_checkpoint": (None, "Go on: from the last checkpoint of --output_dir RUN, or from a given one."),
        "report_to": ("none", "Trackers: tensorboard, wandb, trackio, none."),
    },
    "GRPO and batches": {
        "learning_rate": (1e-06, "Of GRPO steps."),
        "lr_scheduler_type": ("linear", "Shape of the learning rates after the warm-up: linear, cosine, constant, ..."),
        "per_device_train_batch_size": (8, "Rollouts per device and micro-batch."),
        "gradient_accumulation_steps": (1, "Micro-batches per optimizer step, of both kinds."),
        "num_generations": (8, "Rollouts per prompt (group size)."),
        "max_completion_length": (512, "Longest rollout, in tokens."),
        "temperature": (1.0, "Of the rollouts and of sampled exams."),
        "beta": (0.0, "Weight of GRPO's KL term; 0 loads no reference model."),
        "steps_per_generation": (None, "Micro-batches of rollouts generated at a time. Default: one optimizer step's."),
        "num_iterations": (1, "How often each rollout is trained on."),
        "reward_weights": (None, "Of correctness and format; the built-in tasks take 1.0 0.1."),
        "max_grad_norm": (1.0, "Clip gradients at this global norm; 0 measures without clipping."),
        "per_device_eval_batch_size": (8, "Completions generated at a time in an exam."),
    },
}


def groups() -> dict[str, Settings]:
    """All settings that are shown, by the group's title: ours first."""
    return {"Task": _of_tasks(), "SFT and the schedule": _of_training(), **COMMON}


def _of_tasks() -> Settings:
    found: Settings = {}
    for field in fields(TaskConfig):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found[field.name] = default, field.metadata["help"]
    return found


def _of_training() -> Settings:
    tree = ast.parse(Path(__file__).with_name("config.py").read_text(encoding="utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SASRConfig")
    found: Settings = {}
    for node in config.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        assert isinstance(node.target, ast.Name)
        given = {word.arg: word.value for word in node.value.keywords}
        if node.value.args:  # setting(default, help)
            default, text = (ast.literal_eval(value) for value in node.value.args)
        else:  # field(default_factory=lambda: [...], metadata={"help": ...})
            factory = given["default_factory"]
            assert isinstance(factory, ast.Lambda)
            default, text = ast.literal_eval(factory.body), ast.literal_eval(given["metadata"])["help"]
        found[node.target.id] = default, text
    return found


def train_help(usage: str) -> str:
    """The usage, the settings in groups with what they default to, and the recipes."""
    console = Console(width=min(Console().width, 120), highlight=False)
    with console.capture() as capture:
        console.print(usage, markup=False, soft_wrap=True)
        for title, settings in groups().items():
            table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
            table.add_column(no_wrap=True)
            table.add_column()
            for name, (default, text) in settings.items():
                several = " ".join(map(str, default)) if isinstance(default, list) else default
                shown = "" if default in (None, "", []) else f" [{several}]"
                table.add_row(f"  --{name}", f"{text}{shown}".replace("[", r"\["))
            console.print(table)
            console.print()
        recipes = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        console.print(
            f"Recipes: {recipes}. Without --config the recipe named like the task, or own where there is none, "
            "fills in what is not given; the defaults above are for what it leaves out."
        )
        console.print("All settings of TRL's GRPOConfig and ModelConfig work too: sasr train --help_all")
    return capture.get().rstrip()
