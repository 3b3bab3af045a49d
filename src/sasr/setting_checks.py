"""What the values of settings may be, each by itself and against the others: one clear line before anything slow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import whoami
from transformers import get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import is_liger_kernel_available

from . import agreement, budget, curriculum, reward_guard, spread, step_costs, warmup
from .errors import InputError, require, unknown
from .model_files import short
from .schedules import SCHEDULES, settings_of_other_schedules

if TYPE_CHECKING:
    from .config import SASRConfig


_OVER_ALL_TOKENS = ("dapo", "cispo", "vespo")  # TRL's losses that are divided by the tokens of all micro-batches


def check_values(args: SASRConfig) -> None:
    if args.schedule not in SCHEDULES and ":" not in args.schedule:
        raise unknown("schedule", args.schedule, SCHEDULES, "module:Class for your own")
    for name in ("gamma", "divergence_target", "learning_rate", "temperature", "luffy_shaping"):
        require(name, getattr(args, name), lambda v: v > 0, "a number above 0")
    for name in ("sft_learning_rate", "sft_hybrid_learning_rate", *budget.SETTINGS):
        if getattr(args, name) is not None:
            require(name, getattr(args, name), lambda v: v > 0, "a number above 0")
    for name in ("divergence_every", "divergence_probe", "hint_steps"):
        require(name, getattr(args, name), lambda v: v >= 1, "1 or more")
    for name in ("sft_share", "mu_peak", "mu_valley", "mu", "failed_decay"):
        require(name, getattr(args, name), lambda v: 0 <= v <= 1, "between 0 and 1")
    require("mu_decay_steps", args.mu_decay_steps, lambda v: v >= 1, "1 or more")
    for name in ("hint_weight", "sft_norm_every", "reward_timeout", "useful_passes", "save_minutes"):
        require(name, getattr(args, name), lambda v: v >= 0, "0 or more")
    _check_of_trl(args)
    most = args.num_generations - 1
    require("hpt_gate", args.hpt_gate, lambda v: 0 <= v <= most, f"between 0 and num_generations - 1 ({most})")
    require("divergence_weight", args.divergence_weight, lambda v: 0 <= v <= 1, "between 0 and 1")
    if args.reward_failures not in reward_guard.CHOICES:
        raise unknown("reward_failures", args.reward_failures, reward_guard.CHOICES)
    require("sft_norm_ema", args.sft_norm_ema, lambda v: 0 <= v < 1, "at least 0 and below 1")
    require("sft_warmup_steps", args.sft_warmup_steps, lambda v: v >= 0, "0 or more")
    require("max_steps", args.max_steps, lambda v: v == -1 or v > 0, "above 0, or -1 for num_train_epochs")
    require("failed_threshold", args.failed_threshold, lambda v: 0 <= v < 1, "at least 0 and below 1")
    for name, known in (
        ("warmup_norm", ("mean", "first", "last")),
        ("gamma_schedule", ("constant", "cosine")),
        ("sft_norm", agreement.NORMS),
        ("sft_questions", ("all", "failed")),
        ("flat_groups", spread.CHOICES),
        ("curriculum", curriculum.MODES),
        ("share_of", (step_costs.AUTO, *step_costs.UNITS)),
    ):
        if getattr(args, name) not in known:
            raise unknown(name, getattr(args, name), known)
    if args.reference_model not in (None, "initial", "warmup"):
        raise unknown("reference_model", args.reference_model, ("initial", "warmup"))
    if args.max_steps > 0 and args.sft_warmup_steps > args.max_steps:
        raise InputError(
            f"sft_warmup_steps ({args.sft_warmup_steps}) is longer than the run (max_steps {args.max_steps})"
        )
    if args.schedule == "static" and not args.sft_warmup_steps and not args.switch_step:
        raise InputError("schedule static needs sft_warmup_steps or switch_step above 0 (for GRPO alone: grpo)")
    if args.schedule in ("luffy", "srft") and args.multi_objective_aggregation != "sum_then_normalize":
        raise InputError(
            f"schedule {args.schedule} compares demonstrations with rollouts by the sum of their rewards: set "
            "multi_objective_aggregation to sum_then_normalize"
        )
    if args.schedule == "luffy" and args.loss_type not in _OVER_ALL_TOKENS:
        raise InputError(
            f"schedule luffy takes one mean over the tokens of rollouts and demonstrations, loss_type {args.loss_type} "
            f"does not: set loss_type to one of {', '.join(_OVER_ALL_TOKENS)}"
        )
    _check_foreign_settings(args)
    warmup.check_settings(args)
    args.take_share_of_match()
    if args.warmup_from is not None and args.sft_warmup_steps < 1:
        raise InputError("warmup_from needs the length of that run's warm-up: set sft_warmup_steps to 1 or more")
    _check_of_transformers(args)


def _check_of_trl(args: SASRConfig) -> None:
    """What TRL, transformers and torch would refuse when they first use it: after the warm-up, with no way back, since
    a checkpoint belongs to its settings."""
    for name in args._VALID_DICT_FIELDS:
        if not name.endswith("_kwargs"):
            continue  # others may name a file
        if not isinstance(getattr(args, name), dict | None):
            raise InputError(f"{name} is {getattr(args, name)!r}, but it must be JSON, as in '{{\"name\": true}}'")
    sizes = ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"]
    for name in [*sizes, "steps_per_generation", "num_iterations", "max_completion_length"]:
        require(name, getattr(args, name), lambda v: v >= 1, "1 or more")
    if args.max_prompt_length is not None:
        require("max_prompt_length", args.max_prompt_length, lambda v: v >= 1, "1 or more")
    require("seed", args.seed, lambda v: 0 <= v < 2**32, "between 0 and 2^32 - 1")
    require("beta", args.beta, lambda v: v >= 0, "0 or more")
    require("top_p", args.top_p, lambda v: 0 < v <= 1, "above 0 and at most 1")
    require("top_k", args.top_k, lambda v: v >= 0, "0 or more")
    if args.min_p is not None:
        require("min_p", args.min_p, lambda v: 0 <= v <= 1, "between 0 and 1")
    require("repetition_penalty", args.repetition_penalty, lambda v: v > 0, "a number above 0")
    require("logging_steps", args.logging_steps, lambda v: v > 0, "above 0")
    for name in ("adam_beta1", "adam_beta2"):
        require(name, getattr(args, name), lambda v: 0 <= v < 1, "at least 0 and below 1")
    for weight in args.reward_weights or ():
        require("reward_weights", weight, lambda v: True, "finite numbers")
    for name, known in (
        ("loss_type", ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo")),
        ("scale_rewards", ("group", "batch", "none")),
        ("importance_sampling_level", ("token", "sequence")),
        ("multi_objective_aggregation", ("sum_then_normalize", "normalize_then_sum")),
    ):
        if getattr(args, name) not in known:
            raise unknown(name, getattr(args, name), known)


def _check_of_transformers(args: SASRConfig) -> None:
    """What transformers takes from everyone, and does nothing here, or harm."""
    if args.load_best_model_at_end:
        raise InputError("load_best_model_at_end is not supported: compare checkpoints by exam instead")
    if args.enable_jit_checkpoint:
        # The step's rows, signals and random numbers have moved by then, its weights have not.
        raise InputError(
            "enable_jit_checkpoint saves in the middle of a step, and no run goes on from there as it was: set it to "
            "false; sasr train saves at SIGTERM by itself, and in Python save_minutes bounds what is lost"
        )
    if args.label_smoothing_factor != 0:
        raise InputError(
            f"label_smoothing_factor {args.label_smoothing_factor} acts on neither the SFT loss nor GRPO's: set it to 0"
        )
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(args, name):  # transformers then waits for train() with moving the model
            raise InputError(
                f"{name} leaves the model on the CPU until training begins, for the exam before it too: set it to false"
            )


def check_scheduler(args: SASRConfig) -> None:
    # Tried out here on a parameter of no use: transformers would complain only after the model is loaded.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name, options = _value(args.lr_scheduler_type), args.lr_scheduler_kwargs or {}
    try:
        scheduler = get_scheduler(name, optimizer, 1, 2, scheduler_specific_kwargs=dict(options))
    except (ValueError, TypeError) as error:
        raise InputError(f"lr_scheduler_type {name} with lr_scheduler_kwargs {options}: {error}") from None
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise InputError(f"lr_scheduler_type {name} depends on its history: use another")


def check_optimizer(args: SASRConfig) -> None:
    name = str(_value(args.optim))
    if "lomo" in name or name.endswith("layerwise"):
        # SASR's rule would read a norm of 0, clipping and skipping steps would do nothing.
        raise InputError(
            f"optim {name} moves the weights in the backward pass, before the gradient norm is known: set it to another"
        )
    if name.startswith("schedule_free") and args.separate_optimizer_states:
        raise InputError(
            f"optim {name} keeps weights in its state, and separate_optimizer_states would swap them too: set "
            "separate_optimizer_states to false, or optim to another"
        )
    # transformers looks for packages and reads optim_args only when the optimizer is made.
    from transformers import Trainer

    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        raise InputError(f"optim {_value(args.optim)}: {short(error)}, or set optim to another") from None
    except (ValueError, TypeError) as error:
        if "model" not in str(error):  # some cannot be tried without one
            options = f" with optim_args {args.optim_args}" if args.optim_args else ""
            raise InputError(f"optim {_value(args.optim)}{options}: {short(error)}") from None


def check_report_to(args: SASRConfig) -> None:
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise unknown("report_to", name, ("none", *INTEGRATION_TO_CALLBACK))
        # flyte is missing from the list of those at hand
        if name != "flyte" and name not in get_available_reporting_integrations():
            raise InputError(f"report_to {name}: its package is not installed; install it or set report_to to none")


def check_liger(args: SASRConfig) -> None:
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise InputError("use_liger_kernel: the package liger-kernel is not installed; install it or leave it out")


def check_hub(args: SASRConfig) -> None:
    """Raise `InputError` unless one who may push to the Hub is logged in, which asks the Hub."""
    if args.push_to_hub:
        try:
            whoami(token=args.hub_token)
        except Exception as error:  # no token, a wrong one, no network: each has classes of its own
            raise InputError(
                f"push_to_hub: {short(error)}; log in (hf auth login), give --hub_token, or leave it out"
            ) from None


def check_processes(args: SASRConfig) -> None:
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 == args.world_size:  # as accelerate leaves it without an accelerator
        raise InputError(
            f"{started} processes were started, but found no accelerator, and each would train by itself: add "
            "--use_cpu true to train on CPUs together"
        )


def check_devices(args: SASRConfig) -> None:
    """Raise `InputError` where one process sees several GPUs. Not for trainers made in Python, whose model may be split
    over them."""
    # transformers would copy the model to each (`nn.DataParallel`), which TRL refuses once it is loaded.
    if args.n_gpu > 1:
        raise InputError(
            f"{args.n_gpu} GPUs are visible to one process: show it one (CUDA_VISIBLE_DEVICES=0 sasr train ...), or "
            f"start one for each (torchrun --nproc_per_node {args.n_gpu} -m sasr train --output_dir DIR ...)"
        )


def check_batches(args: SASRConfig) -> None:
    if args.per_device_sft_batch_size is not None:
        require("per_device_sft_batch_size", args.per_device_sft_batch_size, lambda v: v >= 1, "1 or more")
    per_generation, per_step = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    if max(per_generation, per_step) % min(per_generation, per_step):
        raise InputError(
            f"steps_per_generation x num_iterations ({per_generation}) and gradient_accumulation_steps "
            f"({per_step}) must divide one another, so that a GRPO step uses whole slices of rollouts"
        )


def _value(choice: Any) -> str:
    return getattr(choice, "value", choice)


def _check_foreign_settings(args: SASRConfig) -> None:
    """A setting of another schedule would be ignored in silence."""
    for name, owner in settings_of_other_schedules(args.schedule).items():
        without = [type(args).__dataclass_fields__[name].default]
        if name == "share_of":
            without.append("steps")  # which runs of earlier versions have in their settings, whatever their schedule
        if getattr(args, name) not in without:
            raise InputError(f"{name} is a setting of schedule {owner}, not of {args.schedule}: remove it")
