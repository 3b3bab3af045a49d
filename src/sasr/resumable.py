"""`GRPOTrainer` whose runs resume bit for bit, and whose checkpoints are whole or not there.

Stock TRL 1.16 saves neither its rollout buffer nor the position in it, and restarts its sampler: a resumed run differs
from the uninterrupted one. transformers writes a checkpoint in place and deletes old ones before it is complete.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, rotate_checkpoints
from trl import GRPOTrainer

from . import checkpoints, host_memory, randomness, shared_warmup, trl_surface  # noqa: F401 - importing trl_surface checks the version of TRL
from .errors import Diverged, InputError
from .timed_saves import TimedSaves, drop_timed


class ResumableGRPOTrainer(GRPOTrainer):
    """Adds to a checkpoint the rollout buffer of each rank, the metrics that are not logged yet, and whatever state a
    subclass has ([`run_state`], [`load_run_state`]); refuses a checkpoint of another run ([`fingerprint`]). With
    `args.warmup_from` it starts from the end of another run's warm-up.

    Attributes:
        budget_spent (`bool`): The run ended, or may not go on, because a budget of its settings is spent.
        best_checkpoint (`Callable`): Gives the checkpoint of the best exam so far and its pass@1, or `None`; whoever
            takes exams sets it.
        finished_in (`Path` or `None`): The last checkpoint of a run that had ended before and has its weights in parts:
            they are not loaded, and [`save_model`] copies them.
        around_training (`Callable`): Gives what each `train()` happens within, told whether that goes on from a
            checkpoint in `output_dir`; whoever records it sets it.
    """

    budget_spent = False
    finished_in: Path | None = None
    best_checkpoint: Callable[[], tuple[Path, float] | None] = staticmethod(lambda: None)
    around_training: Callable[[bool], AbstractContextManager[Any]] = staticmethod(lambda goes_on: nullcontext())
    _shares_warmup = False  # the state under way was loaded from another run's warm-up
    _staging: str | None = None
    _timed_saves = TimedSaves(0)
    _timed = False  # the checkpoint that is written now is one by the clock
    _resumed: dict[str, Any] | None = None
    _device_random: Mapping[str, torch.Tensor | None] = {}

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that resumes from it. JSON-safe."""
        return checkpoints.fingerprint(self.args.to_dict(), world_size=self.args.world_size)

    def run_state(self, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """State that a subclass adds: (the same on all ranks, JSON-safe; tensors of this rank)."""
        return {}, {}

    def load_run_state(self, directory: Path, state: dict[str, Any], tensors: dict[str, Any]) -> None:
        """Take over what `run_state` gave; nothing here."""

    def is_over(self, state: dict[str, Any]) -> bool:
        """Whether a run with this saved state has ended before its last step."""
        return False

    def generates_at(self, step: int) -> bool:
        """Whether micro-batch number `step` of GRPO begins with new rollouts."""
        return step % (self.args.steps_per_generation * self.num_iterations) == 0

    def train(self, resume_from_checkpoint=None, **kwargs):
        goes_on = resume_from_checkpoint is True or (
            bool(resume_from_checkpoint) and checkpoints.lies_in(resume_from_checkpoint, self.args.output_dir)
        )
        with self.around_training(goes_on):
            return self._train(resume_from_checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise InputError(f"no checkpoint to resume from in {self.args.output_dir}")
        if self.state.global_step and not resume_from_checkpoint:
            raise InputError(
                f"this trainer has trained {self.state.global_step} steps, and has the signals of that run: go on with "
                "train(resume_from_checkpoint=True), or make a new SASRTrainer"
            )
        self._shares_warmup = not resume_from_checkpoint and self.args.warmup_from is not None
        if resume_from_checkpoint:
            resume_from_checkpoint = str(resume_from_checkpoint)
            checkpoints.check_same_run(Path(resume_from_checkpoint), self.fingerprint())
        elif self._shares_warmup:
            resume_from_checkpoint = str(shared_warmup.find(self.args))
            shared_warmup.check(Path(resume_from_checkpoint), self)
        if resume_from_checkpoint and self._is_finished(resume_from_checkpoint):
            return TrainOutput(self.state.global_step, 0.0, {})
        resumable = self.args.save_strategy != "no" and not self.args.save_only_model
        minutes = self.args.save_minutes if resumable else 0
        self._timed_saves = TimedSaves(minutes, self.args.world_size)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        except Diverged:
            raise
        except Exception:
            host_memory.release()
            with suppress(Exception):  # of a disk that is full or a device that is gone; the checkpoint before is safe
                self.after_failure()
            raise

    def after_failure(self) -> None:
        """Called when training ends in an error: the last chance to save something. Nothing here."""

    def _is_finished(self, checkpoint: str) -> bool:
        """Take over the checkpoint of a run's last step, which transformers would train for one step more."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        if self.args.max_steps > 0:
            state.max_steps = self.args.max_steps
        # With num_train_epochs, where another run ended says nothing about this one, which transformers ends in time.
        last = math.inf if self._shares_warmup and self.args.max_steps <= 0 else state.max_steps
        if state.global_step < last and not self.is_over(checkpoints.read_state(Path(checkpoint))):
            return False
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            self.finished_in = Path(checkpoint)  # the engine, which divides them, starts with the first step
        else:
            self._load_from_checkpoint(checkpoint)
        self.state = state
        self._load_state(Path(checkpoint), finished=True)
        return True

    def save_model(self, output_dir=None, _internal_call=False):
        if self.finished_in is None:
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            checkpoints.copy_model(self.finished_in, Path(output_dir or self.args.output_dir))

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        # After all callbacks: whether one of them wants a checkpoint, which then is no timed one, is known.
        self._timed = not self.control.should_save and self._timed_saves.due(self.state.global_step)
        self.control.should_save = self.control.should_save or self._timed
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._timed = False

    def _get_output_dir(self, trial):
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        run_dir = Path(super()._get_output_dir(trial))
        staging = run_dir / checkpoints.STAGING
        name, begun = f"checkpoint-{self.state.global_step}", self._timed_saves.clock()
        with checkpoints.writing(name, run_dir):
            self._staging = str(staging)
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    checkpoints.publish(staging / name, run_dir / name)
                    checkpoints.date_last(run_dir / name)
                if self.state.best_model_checkpoint == str(staging / name):
                    self.state.best_model_checkpoint = str(run_dir / name)
            except BaseException:
                shutil.rmtree(staging / name, ignore_errors=True)  # it may be what fills the disk
                raise
            finally:
                self._staging = None
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(run_dir / name))
        if self.args.should_save:
            drop_timed(run_dir, run_dir / name)
            # What may be gone back to stays, however many follow.
            best = self.best_checkpoint() if self.args.on_collapse == "rollback" else None
            limit, kept = self.args.save_total_limit, self.state.best_model_checkpoint if best is None else str(best[0])
            rotate_checkpoints(str(run_dir), limit, kept, use_mtime=True)
        self.accelerator.wait_for_everyone()
        self._timed_saves.saved(self.state.global_step, begun)

    def _push_from_checkpoint(self, checkpoint_folder):
        # It is read while the run goes on: from where it stays, not from where it is staged.
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        directory = Path(output_dir)
        if self.state.best_model_checkpoint == str(directory):  # not where it is staged; trainer_state.json comes next
            self.state.best_model_checkpoint = str(directory.parent.parent / directory.name)
        state, tensors = self.run_state(directory)
        # At the start of a generation the buffer is used up.
        tensors["rollouts"] = None if self.generates_at(self._step) else self._buffered_inputs
        tensors["tr_loss"] = self._tr_loss
        # transformers keeps that of CUDA, and not of every other kind.
        device = self.accelerator.device
        tensors["device_random"] = {device.type: randomness.of_device(device)}
        torch.save(tensors, directory / checkpoints.TENSORS_FILE.format(self.args.process_index))
        if self.args.should_save:
            state |= {
                "timed": self._timed,
                "rollout_step": self._step,
                # With logging_steps > 1 a checkpoint may fall between two logs: what was gathered belongs to it.
                "metrics": {k: v for k, v in self._metrics["train"].items() if v},
                "last_logged": self._globalstep_last_logged,
                "total_loss": self._total_loss_scalar,
                "fingerprint": self.fingerprint(),
            }
            (directory / checkpoints.STATE_FILE).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint):
        rates, entropy_coef = list(self.lr_scheduler.base_lrs), getattr(self, "entropy_coef", None)
        with checkpoints.refusing_code(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if self._shares_warmup:
            shared_warmup.restore_rates(self, rates)
            self.entropy_coef = entropy_coef  # no rollout has moved it yet
        if checkpoint is not None:
            self._load_state(Path(checkpoint), finished=False)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with checkpoints.refusing_code(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint):
        with checkpoints.refusing_code(checkpoint):
            super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            device = self.accelerator.device
            randomness.set_on_device(device, self._device_random.get(device.type))

    def _load_state(self, directory: Path, finished: bool) -> None:
        # transformers would go on saving and logging as often as the run that wrote the checkpoint did
        self.state.compute_steps(self.args, self.state.max_steps)
        state = checkpoints.read_state(directory)
        file = directory / checkpoints.TENSORS_FILE.format(self.args.process_index)
        tensors = checkpoints.load_tensors(file)
        if self._shares_warmup:
            shared_warmup.as_new_run(self, state, tensors)
        # Of micro-batches, which may be smaller and more now than when this was written.
        parts_then = state["fingerprint"]["steps_per_generation"]
        self._step = state["rollout_step"] * self.args.steps_per_generation // parts_then
        self._device_random = tensors.get("device_random", {})  # which earlier checkpoints lack
        self._buffered_inputs = self.on_device(tensors["rollouts"])
        self._resumed = None if finished else {**state, "tr_loss": tensors["tr_loss"]}
        self.load_run_state(directory, state, tensors)

    def on_device(self, tensors: Any) -> Any:
        """Moved to the device as they are: with DeepSpeed transformers' own way would round log-probabilities and
        advantages to the weights' dtype."""
        return send_to_device(tensors, self.args.device)

    def restore_running_loss(self) -> None:
        """To be called before the first step: transformers resets these after the checkpoint is loaded."""
        if self._resumed is not None:
            self._tr_loss += self._resumed["tr_loss"].to(self._tr_loss.device)
            self._globalstep_last_logged = self._resumed["last_logged"]
            self._total_loss_scalar = self._resumed["total_loss"]
            self._initial_global_step = 0  # train_loss is the mean over the steps since then
            self._metrics["train"].clear()  # of a step that an earlier train() of this object did not finish
            self._metrics["train"].update(self._resumed["metrics"])
            self._resumed = None
