"""A simulated accelerator, for machines without one: `make test-device` puts models and data on the device `sim`. Its
memory is the host's and its operations are the CPU's, so numbers are right, but it does not mix with the CPU: a tensor
that was left there is the same error as on a GPU, and its random numbers come from a generator of its own.

Mixed precision is that of CUDA. It says nothing about speed, memory, kernels or several devices.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
import types
from pathlib import Path

import torch
import transformers.training_args
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_suffix(".cpp")
BUILT = (
    SOURCE.parent.parent / ".device" / f"simulated_native-{torch.__version__}{sysconfig.get_config_var('EXT_SUFFIX')}"
)


def compiled() -> Path:
    """The extension, compiled unless that is done already."""
    if not BUILT.exists() or BUILT.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILT.parent.mkdir(exist_ok=True)
        folders = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
        libraries = cpp_extension.library_paths()
        half = BUILT.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", "-std=c++20", "-O1", str(SOURCE), "-o", str(half)]
        command += [f"-isystem{folder}" for folder in folders] + [f"-L{folder}" for folder in libraries]
        command += [f"-l{name}" for name in ("c10", "torch_cpu", "torch", "torch_python")]
        subprocess.run(command, check=True)
        half.replace(BUILT)
    return BUILT


def load() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("simulated_native", compiled())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = load()


class OnDevice:
    """`torch.sim.device(index)`: there is one."""

    def __init__(self, index: object):
        self.index = index

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


# What torch, accelerate and transformers ask a device's module.
FUNCTIONS = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_is_in_bad_fork": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    "manual_seed": native.manual_seed,
    "manual_seed_all": native.manual_seed,
    "get_rng_state": lambda device=0: native.get_state(),
    "set_rng_state": lambda state, device=0: native.set_state(state),
    "device": OnDevice,
}


def install() -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "sim:0"
    os.environ["SASR_TEST_DEVICE"] = "1"  # for toy.py
    torch.utils.rename_privateuse1_backend("sim")
    module = types.ModuleType("torch.sim")
    vars(module).update(FUNCTIONS)
    torch._register_device_module("sim", module)
    native.register()
    torch.utils.generate_methods_for_privateuse1_backend()
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True


install()
