"""TRL's fused LM head, on a CPU too only where there is something to score.

It projects the hidden states of labelled positions alone where Triton is at hand; elsewhere it projects prompts and
padding as well and throws the results away, which spares accelerators that compile for fixed shapes a recompilation. A
CPU compiles nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from trl.trainer import utils


@contextmanager
def labelled_only(device: torch.device) -> Iterator[None]:
    """Within this context the fused head leaves out positions whose label is -100. Log-probabilities and gradients are
    the same."""
    if device.type != "cpu":
        yield
        return
    known = utils._use_triton
    utils._use_triton = lambda device: True  # asked by the head for this choice alone; the kernels ask their own
    try:
        yield
    finally:
        utils._use_triton = known
