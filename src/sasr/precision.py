"""Mixed precision where the settings name none: what the machine is fit for.

TRL takes bf16. GPUs of before Ampere (T4, V100) have no such arithmetic: torch goes by way of float32, slower than with
none of it, while fp16 is what their tensor cores are made for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .config import SASRConfig

# Settings that do not go with fp16: see `sasr.engine_checks`.
_WITHOUT_FP16 = ("sft_norm_every", "use_transformers_continuous_batching")


def settle_precision(args: SASRConfig, on_cpu: bool) -> list[str]:
    """Fill in `bf16` and `fp16` where neither is asked for. Returns what is to be told of it, and warns of it in
    Python: the command line, which silences warnings, prints it."""
    if args.bf16 is not None or args.fp16:
        return []
    args.bf16, args.fp16 = default(vars(args), on_cpu)
    if on_cpu or args.bf16:
        return []
    given = " and ".join(name for name in _WITHOUT_FP16 if getattr(args, name))
    instead = "fp16 is taken" if args.fp16 else f"float32 is taken (fp16 does not go with {given})"
    note = f"note: this GPU only emulates bf16, so {instead}: set bf16 to true or to false to have it otherwise"
    warnings.warn(note, stacklevel=4)
    return [note]


def default(settings: Mapping[str, Any], on_cpu: bool) -> tuple[bool, bool]:
    """(bf16, fp16) of a run whose settings, or those that are known of it, ask for neither."""
    if on_cpu or not emulates_bf16():
        return not on_cpu, False
    return False, not any(settings.get(name) for name in _WITHOUT_FP16)


def emulates_bf16() -> bool:
    """Whether the accelerator is a CUDA GPU without arithmetic of its own in bfloat16."""
    return torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)


def of_command_line(values: Mapping[str, Any]) -> bool | None:
    """`bf16` by all settings of a run. Weights that are trained in 16 bits have no use for fp16: its loss scaler wants
    their gradients in float32."""
    narrow = not values["use_peft"] and values["dtype"] not in (None, "float32")
    return False if values["bf16"] is None and narrow and emulates_bf16() else values["bf16"]
