"""Base models in 4 bits under adapters in float32: QLoRA (arXiv 2305.14314), by bitsandbytes.

Nothing of it is trained or saved: a checkpoint holds the adapter alone, and the base is quantised again, to the same
bits, wherever it is loaded. What `peft.prepare_model_for_kbit_training` does besides happens anyway: PEFT freezes the
base, `dtype` decides the type of the weights that stay whole (embeddings, norms, LM head; float32 unless asked
otherwise), and transformers turns on gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sasr.errors import InputError
from sasr.model_files import TINY_MODELS, short

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def config_of(settings: Mapping[str, Any], compute: torch.dtype) -> BitsAndBytesConfig | None:
    """How to load a base model.

    Args:
        settings (`Mapping`): Of [`~trl.ModelConfig`]: `load_in_4bit`, `bnb_4bit_quant_type`, `use_bnb_nested_quant`.
        compute (`torch.dtype`): What the weights are unpacked to for each multiplication.

    Returns:
        `BitsAndBytesConfig`, or `None` without `load_in_4bit`.
    """
    if not settings.get("load_in_4bit"):
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.get("bnb_4bit_quant_type") or "nf4",
        bnb_4bit_use_double_quant=bool(settings.get("use_bnb_nested_quant")),
        bnb_4bit_compute_dtype=compute,
    )


def check_quantisable(name: str, device: torch.device) -> None:
    """Say at once whether the model of this name can be loaded in 4 bits on this device. Raises `InputError`."""
    if name in TINY_MODELS or name.lower().endswith(".gguf"):
        kind = "made from scratch" if name in TINY_MODELS else "a GGUF file"
        raise InputError(f"model {name!r} is {kind}, but load_in_4bit needs a directory or a hub name")
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise InputError("load_in_4bit needs bitsandbytes: pip install 'sasr[qlora]', or leave load_in_4bit out")
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        dequantize_4bit(*quantize_4bit(torch.ones(64, device=device), quant_type="nf4"))
    except Exception as error:  # a library for another kind of machine fails in its own way
        raise InputError(
            f"load_in_4bit: the bitsandbytes that is installed has no 4-bit kernels for this machine's {device.type} "
            f"({short(error)}): install a build that has, or leave load_in_4bit out"
        ) from error


def check_training(model: Any, args: Any) -> None:
    """Raise `InputError` for settings with which a base in few bits cannot be trained.

    Args:
        model ([`~trl.ModelConfig`]): How the model is loaded.
        args ([`SASRConfig`]): How it is trained.
    """
    if model.load_in_8bit:
        raise InputError("load_in_8bit is not supported: use load_in_4bit, which takes half the memory")
    if not model.load_in_4bit:
        return
    if not model.use_peft:
        raise InputError("load_in_4bit: weights in 4 bits cannot be trained, adapters on them can: set use_peft too")
    if model.bnb_4bit_quant_storage is not None:
        raise InputError("bnb_4bit_quant_storage is for FSDP, under which load_in_4bit is not supported: leave it out")
    if args.use_vllm:
        raise InputError("load_in_4bit with use_vllm: vLLM takes the adapter merged, which 4 bits round: leave one out")
    check_quantisable(model.model_name_or_path or "", args.device)


def accelerator_or_cpu() -> torch.device:
    """Where `sasr exam` puts a model."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def compute_dtype(bf16: bool | None, fp16: bool | None = False) -> torch.dtype:
    """The type in which a run multiplies: that of its mixed precision."""
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else torch.float32


def keep_layout(model: PreTrainedModel) -> None:
    """Stops bitsandbytes from packing the weights for inference on CPUs with AVX512-BF16.

    It would do so in the first forward pass in evaluation mode, such as an exam, for good: with scales rounded to
    bfloat16, and by a kernel without a backward pass, so that the training after it would lack gradients.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def adapters_in_float32(model: torch.nn.Module) -> None:
    """Takes back that TRL casts adapters on a quantised base to bfloat16, in which small updates vanish: a step of 1e-5
    is less than half the distance between two numbers of the size of LoRA's initial weights."""
    if getattr(model, "is_loaded_in_4bit", False):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def facts(config: Any) -> dict[str, str]:
    """What a `quantization_config` decides of the values of the weights; nothing of `None`."""
    if config is None:
        return {}
    nested = ", nested" if getattr(config, "bnb_4bit_use_double_quant", False) else ""
    kind = f"4 bit {config.bnb_4bit_quant_type}" if getattr(config, "load_in_4bit", False) else type(config).__name__
    return {"quantization": kind + nested}
