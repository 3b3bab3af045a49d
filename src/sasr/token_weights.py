"""Weights of single tokens in the SFT loss: one function per method, and a table of names.

A function takes the log-probabilities of the demonstrations' tokens under the policy, shape (batch, length), the
advantage of each demonstration in its group, shape (batch, 1), 1 where there is none, and the plan's parameter. It
returns weights of the first shape, without gradient. The loss stays divided by the number of tokens, not by their sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def uniform(logps: torch.Tensor, advantages: torch.Tensor, parameter: float) -> torch.Tensor:
    """Plain SFT."""
    return torch.ones_like(logps)


def phi(logps: torch.Tensor, advantages: torch.Tensor, parameter: float) -> torch.Tensor:
    """CHORD-phi (arXiv 2508.11408): p (1 - p). Learns from tokens that the policy is unsure about, and leaves alone
    those it would write anyway and those it would never write. At most 1/4."""
    p = logps.detach().exp()
    return p * (1 - p)


def shaped_ratio(logps: torch.Tensor, advantages: torch.Tensor, parameter: float) -> torch.Tensor:
    """LUFFY (arXiv 2504.14945): A c p / (p + c)^2. Its product with the gradient of log p is the gradient of
    A f(p), f(p) = p / (p + c): the shaped importance ratio to demonstrations taken as certain."""
    p = logps.detach().exp()
    return advantages * parameter * p / (p + parameter) ** 2


def sft_and_ratio(logps: torch.Tensor, advantages: torch.Tensor, parameter: float) -> torch.Tensor:
    """SRFT (arXiv 2506.19767): w + A p, the SFT weight and the gradient of the importance ratio p times A."""
    return parameter + advantages * logps.detach().exp()


TOKEN_WEIGHTS: dict[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "uniform": uniform,
    "phi": phi,
    "shaped_ratio": shaped_ratio,
    "sft_and_ratio": sft_and_ratio,
}
