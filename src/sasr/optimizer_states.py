"""SFT and GRPO with their own Adam moments on one set of weights."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from .checkpoints import load_tensors

FILE = "optimizer_{}.pt"


class OptimizerStates:
    """Swaps the state of one torch optimizer between kinds of steps.

    The two losses have gradients of different scale and noise; with shared moments each kind of step is scaled by the
    other's second moment. A kind starts with empty moments at its first step.

    Args:
        optimizer ([`torch.optim.Optimizer`]): The optimizer itself, not accelerate's wrapper.
    """

    KINDS = ("sft", "grpo")

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.active = self.KINDS[0]
        self._states: dict[str, Any] = {kind: defaultdict(dict) for kind in self.KINDS}
        self._states[self.active] = optimizer.state

    def use(self, kind: str) -> None:
        """Make the state of this kind of step (`"sft"` or `"grpo"`) the optimizer's."""
        self._states[self.active] = self.optimizer.state
        self.optimizer.state = self._states[kind]
        self.active = kind

    def of(self, kind: str) -> Any:
        """The state of this kind of step, active or not."""
        return self.optimizer.state if kind == self.active else self._states[kind]

    def clear(self) -> None:
        """Begin both with empty moments."""
        for kind in self.KINDS:
            self._states[kind] = defaultdict(dict)
        self.optimizer.state = self._states[self.active]

    def save(self, directory: Path) -> None:
        """Write the state that is not active; the trainer's own `optimizer.pt` holds the other."""
        active = self.active
        other = next(kind for kind in self.KINDS if kind != active)
        self.use(other)
        torch.save(self.optimizer.state_dict()["state"], directory / FILE.format(other))
        self.use(active)

    def load(self, directory: Path, active: str) -> None:
        """Restore both, after the trainer has loaded `optimizer.pt` into the optimizer."""
        self._states = {kind: defaultdict(dict) for kind in self.KINDS}
        self._states[active], self.active = self.optimizer.state, active
        other = next(kind for kind in self.KINDS if kind != active)
        state = load_tensors(directory / FILE.format(other))
        groups = self.optimizer.state_dict()["param_groups"]
        self.use(other)
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.use(active)
