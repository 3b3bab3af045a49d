"""Rollouts made ahead (`rollouts_ahead`): while SFT steps run, a process of its own generates for the next GRPO step.

    SFT step t      nothing is being made: the next questions and the present weights go to the worker
    SFT steps       the worker generates; if a GRPO step would find the rollouts too old, they are begun anew
    GRPO step s     waits for the worker, and trains on rollouts of the weights after t steps; s - t <= rollouts_ahead

The worker gives the log-probabilities under the weights that sampled, so that TRL's clipped importance ratio is that of
the present policy to the generating one. A GRPO step that no SFT step goes before generates for itself, on-policy.

What is begun when depends on the steps alone, never on how fast the worker is, and its seed on the run's and the step:
the same run twice is the same run. A checkpoint has the rollouts that wait, so a resumed run is too.
"""

from __future__ import annotations

import atexit
import copy
import json
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.multiprocessing

from . import ahead_worker, prefill
from .ahead_worker import STOP, STOPPED, Sampling, tensors_of, views
from .demonstrations import Ids
from .disconnect import STOPS
from .errors import InputError, RunFailed, require

if TYPE_CHECKING:
    from .config import SASRConfig
    from .trainer import SASRTrainer

FILE = "rollouts_ahead.tensors"  # not .safetensors: vLLM loads every such file of a checkpoint as weights
_MEMORY_FILES = Path("/dev/shm")
_DOES_NOT = {
    "sft": "makes no rollouts",
    "grpo": "has none",
    "static": "has none between two GRPO steps",
    "chord_mu": "has both losses in each step",
    "chord_phi": "has both losses in each step",
}


def check_settings(args: SASRConfig) -> None:
    """Raise `InputError` for settings with which nothing can be made ahead."""
    require("rollouts_ahead", args.rollouts_ahead, lambda v: v >= 0 and v == int(v), "a number of steps, 0 or more")
    if not args.rollouts_ahead:
        return
    if args.schedule in _DOES_NOT:
        raise InputError(
            f"rollouts_ahead generates during SFT steps, and schedule {args.schedule} {_DOES_NOT[args.schedule]}: set "
            "it to 0"
        )
    per_generation, per_step = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    for problem, remedy in (
        (args.use_vllm, "use_vllm"),
        (args.use_transformers_continuous_batching, "use_transformers_continuous_batching"),
        (args.world_size > 1, "several processes"),
        (torch.accelerator.is_available() and not args.use_cpu, "an accelerator (use_cpu: true keeps off it)"),
        (args.bf16 or args.fp16, "mixed precision (bf16, fp16)"),
        (args.trust_remote_code, "trust_remote_code"),
        (args.curriculum not in ("auto", "none"), "a curriculum, whose questions are chosen when they are asked"),
        (args.flat_groups == "resample", "flat_groups resample, which asks further questions in the step"),
        (
            per_generation != per_step,
            f"rollouts used in several steps: steps_per_generation x num_iterations ({per_generation}) must be "
            f"gradient_accumulation_steps ({per_step})",
        ),
    ):
        if problem:
            raise InputError(f"rollouts_ahead does not go with {remedy}; change that, or set rollouts_ahead to 0")


@dataclass
class Pending:
    """The rollouts of the next GRPO step.

    Args:
        asked (`list[int]`): Rows of the training dataset, one for each group.
        step (`int`): Optimizer steps that the generating weights had taken; below 0 if they have been given up since.
        made (`dict[str, torch.Tensor]` or `None`): As [`ahead_worker.rollouts`] gives them; `None` while it is at them.
    """

    asked: list[int]
    step: int
    made: dict[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Made:
    """Rollouts that take the place of new ones.

    Args:
        completion_ids (`list[list[int]]`): One for each prompt, in order.
        logps (`torch.Tensor` of shape (rollouts, longest completion)): Log-probabilities of their tokens under the
            weights that sampled them, at the generation's temperature.
    """

    completion_ids: list[Ids]
    logps: torch.Tensor

    def logps_of_width(self, width: int) -> torch.Tensor:
        """Padded with zeros to as many columns as the trainer's completions have."""
        return torch.nn.functional.pad(self.logps, (0, width - self.logps.size(1)))


class RolloutsAhead:
    """Has the rollouts of a trainer made ahead, if its settings want that.

    Args:
        trainer ([`SASRTrainer`]): The trainer it belongs to, with its engine made.

    Attributes:
        pending ([`Pending`] or `None`): What is being made, or waits to be trained on: the state.
    """

    def __init__(self, trainer: SASRTrainer):
        self.trainer, self.limit = trainer, int(trainer.args.rollouts_ahead)
        self.pending: Pending | None = None
        self._worker: Worker | None = None
        self._waited = 0.0  # seconds, for what is pending
        if not self.limit:
            return
        for problem, what in (
            (trainer._is_vlm, "models that see"),
            (trainer.tools or trainer.environment_factories, "tools and environments"),
            (trainer.rollout_func is not None, "rollout_func"),
        ):
            if problem:
                raise InputError(f"rollouts_ahead does not go with {what}: set it to 0")
        _start_server()

    def before_step(self) -> None:
        """Called with the plan of a step: if it is SFT, see to it that rollouts are made which the next step could
        train on. Not in the warm-up, whose end other runs may start from."""
        trainer, step = self.trainer, self.trainer.state.global_step
        if self.limit and self._worker is None:
            self._worker = Worker(trainer)  # in the first step: what is wrong is said at once
        if not self.limit or trainer.plan.grpo_weight or step < trainer.warmup.bound:
            return
        if self.pending is None:
            self._begin(trainer.take_questions(self._groups))
        elif step + 1 - self.pending.step > self.limit:
            self._begin(self.pending.asked)

    def take(self) -> tuple[list[int], Made | None]:
        """The questions of a GRPO step, and the rollouts if they are not to be generated now."""
        trainer, pending = self.trainer, self.pending
        if not self.limit or pending is None:
            self._log(0)
            return trainer.take_questions(self._groups), None
        age = trainer.state.global_step - pending.step
        if age > self.limit:  # of weights that have been given up
            self.pending = None
            self._log(0)
            return pending.asked, None
        made = self._finish(pending)
        self.pending = None
        self._log(age, float(made["seconds"]))
        rows = zip(made["completion_ids"].tolist(), made["lengths"].tolist(), strict=True)
        return pending.asked, Made([ids[:length] for ids, length in rows], made["logps"])

    def outdate(self) -> None:
        """The weights have been replaced: what is being made is not to be trained on."""
        if self.pending is not None:
            self.pending.step = -self.limit - 1

    def close(self) -> None:
        """End the worker. What it was at is lost."""
        if self._worker is not None:
            self._worker.close()
        self._worker = self.pending = None

    def save(self, directory: Path) -> dict[str, Any] | None:
        """Wait for what is being made and write it to a checkpoint. Returns what is JSON of it."""
        if self.pending is None:
            return None
        safetensors.torch.save_file(self._finish(self.pending), directory / FILE)
        return {"asked": self.pending.asked, "step": self.pending.step}

    def load(self, directory: Path, state: dict[str, Any] | None) -> None:
        """Take over what `save` wrote."""
        self.pending = None
        if state is not None:
            self.pending = Pending(**state, made=safetensors.torch.load_file(directory / FILE))

    @property
    def _groups(self) -> int:
        return self.trainer.args.generation_batch_size // self.trainer.num_generations

    def _log(self, age: int, seconds: float | None = None) -> None:
        if self.limit:
            metrics = self.trainer._metrics["train"]
            metrics["sasr/rollout_age"].append(float(age))
            if seconds is not None:
                metrics["sasr/rollout_seconds"].append(seconds)
                metrics["sasr/rollout_wait_seconds"].append(self._waited)
            self._waited = 0.0

    def _begin(self, asked: list[int]) -> None:
        trainer, step = self.trainer, self.trainer.state.global_step
        assert self._worker is not None
        prompts = [row["prompt"] for row in trainer._prompts_of(asked)]
        seed = random.Random(f"{trainer.args.seed}:ahead:{step}").getrandbits(63)
        with self._waiting():
            self._worker.begin(trainer._tokenize_prompts(prompts)[0], seed)
        self.pending = Pending(asked, step)

    def _finish(self, pending: Pending) -> dict[str, torch.Tensor]:
        if pending.made is None:
            assert self._worker is not None
            with self._waiting():
                pending.made = self._worker.result()
        return pending.made

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started


class Worker:
    """The other process, as its parent sees it. It has one job at a time.

    Args:
        trainer ([`SASRTrainer`]): Whose policy it copies, and whose way to sample.

    Raises:
        [`RunFailed`]: Here and from all methods but `close`: it cannot be started, has failed or is gone.
    """

    def __init__(self, trainer: SASRTrainer):
        self._trainer, args = trainer, trainer.args
        policy = trainer.accelerator.unwrap_model(trainer.model)
        sampling = Sampling(
            generation=trainer.generation_config,
            temperature=trainer.temperature,
            fp32_head=args.cast_lm_head_to_fp32,
            batch_size=args.per_device_train_batch_size,
            shared_prompts=prefill.applies(trainer, multimodal=False),
        )
        tensors = tensors_of(policy)
        like = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
        memory = _shared_memory(tensors)
        self._weights = list(zip(tensors, views(memory, like), strict=True))
        self._copy_weights(all_of_them=True)
        context = torch.multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        given = (theirs, _empty_copy(policy, tensors), memory, [shape for _, shape in like], sampling)
        self._process: Any = context.Process(target=ahead_worker.main, args=given, daemon=True)
        self._busy = False
        try:
            self._process.start()
        except Exception as error:  # whatever a model has in it that cannot be sent
            raise RunFailed(f"rollouts_ahead: the model cannot be given to another process ({error})") from error
        theirs.close()  # so that its death can be seen
        self._end = partial(_kill, self._process, self._connection)
        # A daemon is sent SIGTERM at exit, and waited for; this one ignores it. What is registered last is done first.
        atexit.register(self._end)

    def begin(self, prompt_ids: list[Ids], seed: int) -> None:
        """Have these prompts answered with the present weights, and give up what it is at."""
        if self._busy:
            self._send(STOP)
            self._receive()
        self._copy_weights()
        self._send(json.dumps({"prompt_ids": prompt_ids, "seed": seed}).encode())
        self._busy = True

    def result(self) -> dict[str, torch.Tensor]:
        """Wait for the answer."""
        self._busy = False
        return safetensors.torch.load(self._receive())

    def close(self) -> None:
        """End the process, whatever it is at."""
        atexit.unregister(self._end)
        self._end()

    @property
    def _step(self) -> int:
        return self._trainer.state.global_step + 1

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            raise self._death() from None

    def _receive(self) -> bytes:
        try:
            problem, answer = self._connection.recv_bytes().decode(), self._connection.recv_bytes()
        except (EOFError, OSError):
            raise self._death() from None
        if problem not in ("", STOPPED):
            raise RunFailed(f"step {self._step}: rollouts could not be made ahead: {problem}")
        return answer

    def _death(self) -> RunFailed:
        self._process.join(1.0)
        code = self._process.exitcode
        how = "closed its connection" if code is None else f"died of signal {-code}" if code < 0 else f"exited ({code})"
        return RunFailed(f"step {self._step}: the process that makes rollouts ahead {how}")

    def _copy_weights(self, all_of_them: bool = False) -> None:
        with torch.no_grad():
            for tensor, shared in self._weights:
                if all_of_them or tensor.requires_grad:
                    shared.copy_(tensor)


def _start_server() -> None:
    """Start what forks the worker later; it imports torch meanwhile, and has no thread or lock of this process."""
    multiprocessing.forkserver.set_forkserver_preload([ahead_worker.__name__])
    multiprocessing.resource_tracker.ensure_running()  # which unblocks the two signals
    # Ctrl-C reaches all processes of a terminal, SIGTERM may reach those of a job: they are for this one alone, from
    # the worker's first moment on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(process: Any, connection: Connection) -> None:
    process.kill()
    process.join()
    connection.close()


def _shared_memory(tensors: Sequence[torch.Tensor]) -> dict[torch.dtype, torch.Tensor]:
    """Memory for so many numbers of each type: few large pieces, since each is an open file of both processes."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    needed = sum(count * dtype.itemsize for dtype, count in counts.items())
    if _MEMORY_FILES.is_dir() and (free := shutil.disk_usage(_MEMORY_FILES).free) < needed:
        # A container often has 64 MB; to write beyond them would kill this process.
        raise RunFailed(
            f"rollouts_ahead needs {needed / 1e6:,.0f} MB of shared memory, {_MEMORY_FILES} has {free / 1e6:,.0f}: "
            "give the container more (--shm-size), or set rollouts_ahead to 0"
        )
    return {dtype: torch.empty(count, dtype=dtype).share_memory_() for dtype, count in counts.items()}


def _empty_copy(model: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """A copy of the model without its numbers, and without what accelerate, TRL and PEFT have put around its functions,
    which cannot be sent."""
    memo: dict[int, Any] = {}
    for tensor in tensors:
        empty = tensor.detach().new_empty(0)
        memo[id(tensor)] = torch.nn.Parameter(empty, False) if isinstance(tensor, torch.nn.Parameter) else empty
    forwards = [(module, vars(module).pop("forward")) for module in model.modules() if "forward" in vars(module)]
    try:
        bare = copy.deepcopy(model, memo)
    finally:
        for module, forward in forwards:
            module.forward = forward
    for module in bare.modules():
        module._forward_hooks.clear()
    return bare
