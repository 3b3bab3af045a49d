"""How far the SFT gradient agrees with those before it: which part of its norm is a direction, and which is noise.

A batch's gradient is the gradient of the loss plus noise that does not fall when the loss stops falling, so its norm
hardly shows the end of what SFT can do. Two independent batches have only the former in common. Adam keeps the mean of
the gradients before as its first moment, so the cosine with it costs three sums over the parameters, and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .errors import InputError

if TYPE_CHECKING:
    from .config import SASRConfig
    from .trainer import SASRTrainer

# Of the repeatable part one batch says little, and the noise around none is as often negative. A pull of 0 would last
# for ever: only a further SFT step measures it again.
LEAST = 0.05
NORMS = ("batch", "repeatable")
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


def is_measured(args: SASRConfig) -> bool:
    """Whether these settings need the agreement of SFT steps."""
    return args.sft_norm == "repeatable" or args.warmup_until == "agreement"


def is_possible(args: SASRConfig) -> bool:
    """Whether SFT has an Adam's first moment of its own."""
    return args.separate_optimizer_states and _optimizer(args) in _OPTIMIZERS


def check_settings(args: SASRConfig) -> None:
    """Raise `InputError` where there is no first moment of SFT's own."""
    if not is_measured(args):
        return
    what = "sft_norm repeatable" if args.sft_norm == "repeatable" else "warmup_until agreement"
    if not args.separate_optimizer_states:
        raise InputError(f"{what} reads the mean of SFT's own gradients: set separate_optimizer_states to true")
    if not is_possible(args):
        raise InputError(
            f"{what} reads Adam's first moment, which optim {_optimizer(args)} does not keep: use {_OPTIMIZERS[0]}"
        )


def _optimizer(args: SASRConfig) -> str:
    return str(getattr(args.optim, "value", args.optim))


def of_gradient(trainer: SASRTrainer) -> float | None:
    """Cosine, in [-1, 1], of the SFT gradient in the parameters' `grad` with the mean of the SFT gradients before, by
    which Adam weighs them. `None` at the first SFT step, and where it is no finite number."""
    assert trainer.optimizer_states is not None
    moments = trainer.optimizer_states.of("sft")
    pairs = [(p.grad, moments[p]["exp_avg"]) for p in trainer.model.parameters() if p.grad is not None and p in moments]
    if not pairs:
        return None
    gradients, means = zip(*pairs, strict=True)
    squares = _dot(gradients, gradients) * _dot(means, means)
    cosine = float(_dot(gradients, means) / squares.sqrt().clamp_min(torch.finfo(torch.float32).tiny))
    return cosine if math.isfinite(cosine) else None


def observe(trainer: SASRTrainer, step: int, norm: float | None) -> float | None:
    """Have the tracker take the norm of the SFT gradient in the parameters' `grad`, that of the step with this index.
    Returns its agreement with those before, if the settings ask for it."""
    agrees = of_gradient(trainer) if is_measured(trainer.args) else None
    if trainer.args.sft_norm == "repeatable":
        norm = None if norm is None or agrees is None else norm * agrees
    trainer.tracker.observe_sft_norm(step, norm)
    return agrees


def _dot(xs: Sequence[torch.Tensor], ys: Sequence[torch.Tensor]) -> torch.Tensor:
    device = xs[0].device  # a model may be split over several
    return torch.stack([(x * y).sum(dtype=torch.float32).to(device) for x, y in zip(xs, ys, strict=True)]).sum()
