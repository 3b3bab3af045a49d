"""Which settings do not go with which engine, known once accelerate has made one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import InputError
from .rollouts import NO_HINTS
from .schedules.r3 import R3
from .schedules.uft import Uft

if TYPE_CHECKING:
    from .trainer import SASRTrainer


def check(trainer: SASRTrainer) -> None:
    """Raise `InputError` for the first setting that the trainer's engine, or its model, cannot do."""
    args, sharded = trainer.args, trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if not any(parameter.requires_grad for parameter in trainer.model.parameters()):
        # As transformers leaves a base with its adapter.
        raise InputError("no weight of the model is trained (requires_grad): merge its adapter first, or unfreeze it")
    if args.sft_norm_every and sharded:
        raise InputError("sft_norm_every needs gradients that can be thrown away, not DeepSpeed or FSDP")
    if args.sft_norm_every and args.fp16:
        # The loss scaler unscales gradients once between two steps of the optimizer.
        raise InputError("sft_norm_every does not work with fp16: use bf16, or fp32")
    if args.fp16 and args.precision_notes and _trains_narrow(trainer.model):
        # In Python alone: the command line knows it before.
        raise InputError(
            "fp16, taken since this GPU only emulates bf16, trains no weights of 16 bits: load the model in float32, "
            "or set bf16 to true or to false"
        )
    if args.separate_optimizer_states and sharded:
        raise InputError("separate_optimizer_states needs a plain torch optimizer, not DeepSpeed or FSDP")
    if args.on_collapse == "rollback" and sharded:
        raise InputError("on_collapse rollback needs weights in one piece, not DeepSpeed or FSDP: use warn or sft")
    if sharded and getattr(trainer.model, "is_loaded_in_4bit", False):
        raise InputError("load_in_4bit needs weights in one piece, not DeepSpeed or FSDP: use DDP, or plain LoRA")
    if trainer.is_fsdp_enabled and "FULL" not in str(trainer.accelerator.state.fsdp_plugin.state_dict_type):
        # transformers then saves checkpoints, and no model at the end, without a word
        raise InputError("FSDP with sharded state dicts saves no model: set fsdp_state_dict_type to FULL_STATE_DICT")
    whole = not hasattr(trainer.model, "peft_config")
    if whole and trainer.is_deepspeed_enabled and _leaves_weights_in_parts(trainer.accelerator):
        raise InputError(
            "DeepSpeed ZeRO-3 that does not gather its weights saves no model: set zero3_save_16bit_model: true in "
            "accelerate's file, or stage3_gather_16bit_weights_on_model_save in DeepSpeed's"
        )
    mixed = "bf16" if args.bf16 else "fp16" if args.fp16 else None
    if args.use_transformers_continuous_batching and mixed and trainer.model.dtype.itemsize > 2:
        # TRL casts the trained weights themselves for a generation, and never back.
        raise InputError(
            f"use_transformers_continuous_batching casts the weights to {mixed} for good, and small updates vanish: "
            f"leave it out, or set {mixed} to false"
        )
    if trainer.aux_loss_enabled and args.kinds_of_steps(trainer.schedule)[0]:
        raise InputError(
            f"router_aux_loss_coef ({trainer.router_aux_loss_coef}) would balance the model's experts in GRPO's loss "
            "alone: with SFT steps set it to 0"
        )
    if trainer.rollout_func is not None and isinstance(trainer.schedule, Uft | R3):
        raise InputError(NO_HINTS)
    if args.flat_groups != "keep" and (trainer._is_vlm or trainer.aux_loss_enabled):
        raise InputError(f"flat_groups {args.flat_groups} is for dense text models: set it to keep")


def _leaves_weights_in_parts(accelerator: Any) -> bool:
    zero = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
    return zero.get("stage") == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True


def _trains_narrow(model: Any) -> bool:
    return any(p.requires_grad and p.element_size() == 2 for p in model.parameters())
