"""The states of all random numbers that a run can draw: Python's, numpy's, torch's on the CPU and on its devices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

State = tuple[Any, ...]


def of_device(device: torch.device) -> torch.Tensor | None:
    """The state of an accelerator's generator; `None` for the CPU, whose own is in every [`State`]."""
    return None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def set_on_device(device: torch.device, state: torch.Tensor | None) -> None:
    """Take over what `of_device` gave."""
    if state is not None:
        torch.get_device_module(device).set_rng_state(state, device)


def state(*devices: torch.device) -> State:
    """Of everything, and of these devices."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), [of_device(device) for device in devices]


def restore(before: State, *devices: torch.device) -> None:
    """Take over what `state` gave for the same devices."""
    python, numpy, cpu, own = before
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    for device, one in zip(devices, own, strict=True):
        set_on_device(device, one)


def seed(number: int, *devices: torch.device) -> None:
    """Seed everything, and these devices. torch.manual_seed would seed all that there are."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
    for device in devices:
        if device.type != "cpu":
            module = torch.get_device_module(device)
            with module.device(device) if hasattr(module, "device") else nullcontext():  # of Apple's there is one
                module.manual_seed(number)


@contextmanager
def kept(*devices: torch.device) -> Iterator[None]:
    """What is drawn inside, from these devices too, leaves no trace."""
    before = state(*devices)
    try:
        yield
    finally:
        restore(before, *devices)
