"""What is told when a step does not fit into memory: with which settings the same run goes on in less of it."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import should_reduce_batch_size

from .checkpoints import loss_depends_on_division
from .errors import RunFailed

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the system, has had no more memory to give."""
    by_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return by_type or (isinstance(error, Exception) and should_reduce_batch_size(error))


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
