"""What is told when a step does not fit into memory: with which settings the same run goes on in less of it. And when
a model does not."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from .checkpoints import loss_depends_on_division
from .errors import InputError, RunFailed

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system, has had no more memory to give."""
    by_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return by_type or (isinstance(error, Exception) and should_reduce_batch_size(error))


@contextmanager
def of_model(name: str, device: torch.device, settings: Any, model: Any = None) -> Iterator[None]:
    """Turns too little memory for a model itself into an [`InputError`].

    Args:
        name (`str`): As the user calls it.
        device (`torch.device`): Where it is to be.
        settings ([`~trl.ModelConfig`] or [`~sasr.exam.request.Request`]): `dtype`, `load_in_4bit` and, of one that is
            trained, `use_peft`.
        model ([`~transformers.PreTrainedModel`], *optional*): Once its files are read; its size is told then.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"model {name!r}: not enough memory on {device} for its weights{_size(model)}: {_less(settings)}"
        ) from error


def _size(model: Any) -> str:
    if model is None:
        return ""
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    kind = "4 bits" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")
    return f", {size:.3g} GB in {kind}"


def _less(settings: Any) -> str:
    """With which flags a model takes less, the mildest first."""
    flags = [] if getattr(settings, "use_peft", True) else ["--use_peft true"]
    flags += [] if settings.dtype in ("bfloat16", "float16") else ["--dtype bfloat16"]
    choices = [" ".join(flags)] if flags else []
    if not settings.load_in_4bit:
        choices.append(f"{'with ' if flags else ''}--load_in_4bit true{' too' if flags else ''}")
    return f"use {', '.join([*choices, 'or a smaller model'])}" if choices else "use a smaller model"


def told(error: Exception, trainer: SASRTrainer, given_generation: bool) -> RunFailed:
    """The failure in words, with the flags for going on.

    Args:
        error (`Exception`): What [`is_out_of_memory`] holds for.
        trainer ([`SASRTrainer`]): Whose step failed.
        given_generation (`bool`): The run's settings name `steps_per_generation`, which else follows the division.
    """
    args, trace = trainer.args, traceback.extract_tb(error.__traceback__)
    frames = {frame.name for frame in trace}
    step, device = trainer.state.global_step, trainer.accelerator.device
    if "examine_rows" in frames:
        size = args.per_device_eval_batch_size
        flag = f"--per_device_eval_batch_size {size // 2}" if size > 1 else ""
        return RunFailed(f"exam at step {step}: not enough memory on {device} for {size} completions at a time", flag)
    if any(Path(frame.filename).parent.name == "optim" for frame in trace):
        return RunFailed(
            f"step {step + 1}: not enough memory on {device} for the optimizer's moments: with --use_peft true, or "
            "--separate_optimizer_states false where it is set, another run needs less"
        )
    if "_generate_single_turn" in frames:
        # All rollouts of a generation are made at once, however the step is divided.
        size = args.generation_batch_size // args.world_size
        return RunFailed(
            f"step {step + 1}: not enough memory on {device} for {size} rollouts of up to {args.max_completion_length} "
            "tokens at a time: fewer are another run, which can take over this one's warm-up (--warmup_from)"
        )
    rollouts, demonstrations = args.per_device_train_batch_size, args.per_device_sft_batch_size
    flags = [] if args.gradient_checkpointing else ["--gradient_checkpointing true"]
    if args.use_vllm and args.vllm_mode == "colocate" and not args.vllm_enable_sleep_mode:
        flags.append("--vllm_enable_sleep_mode true")  # it has its share of the memory while others train, too
    whole = args.steps_per_generation * args.num_iterations <= args.gradient_accumulation_steps  # no half used ones
    if rollouts % 2 == 0 and demonstrations % 2 == 0 and whole and not loss_depends_on_division(args.to_dict()):
        flags.append(f"--per_device_train_batch_size {rollouts // 2}")
        flags.append(f"--per_device_sft_batch_size {demonstrations // 2}")
        flags.append(f"--gradient_accumulation_steps {2 * args.gradient_accumulation_steps}")
        if given_generation:
            flags.append(f"--steps_per_generation {2 * args.steps_per_generation}")
    parts = {"sft": f"{demonstrations} demonstrations", "grpo": f"{rollouts} rollouts"}
    rows = parts.get(trainer.plan.kind, " and ".join(parts.values()))
    return RunFailed(f"step {step + 1}: not enough memory on {device} for {rows} at a time", " ".join(flags))
