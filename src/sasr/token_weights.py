"""Weights of single tokens in the SFT loss: one function per method, and a table of names.

A function takes the log-probabilities of the demonstrations' tokens under the policy, shape (batch, length), and
returns weights of the same shape, without gradient. The loss stays divided by the number of tokens, not by their sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def phi(logps: torch.Tensor) -> torch.Tensor:
    """CHORD-phi (arXiv 2508.11408): p (1 - p). Learns from tokens that the policy is unsure about, and leaves alone
    those it would write anyway and those it would never write. At most 1/4."""
    p = logps.detach().exp()
    return p * (1 - p)


TOKEN_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "uniform": torch.ones_like,
    "phi": phi,
}
