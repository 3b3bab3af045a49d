"""Starting a run from the end of another run's SFT warm-up (`warmup_from`): runs that differ only in what comes after
share one.

The state taken over is that of the other run's `checkpoint-W`; what follows is what an uninterrupted run with the new
settings would do. Only where the passes over the data differ in length (another number of rollouts per step) and a pass
ends within the warm-up does the random state differ from that run's, and so the sampled rollouts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer import TRAINER_STATE_NAME

from . import checkpoints
from .errors import InputError
from .metrics import METRICS_FILE, MetricsFile, read_metrics
from .model_files import expand
from .schedules import Sasr, Schedule

if TYPE_CHECKING:
    from .config import SASRConfig
    from .resumable import ResumableGRPOTrainer

# What decides the answers of the divergence probe, apart from the model and the rows.
_PROBE_SETTINGS = (
    "divergence_probe", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "generation_kwargs", "cache_implementation", "use_vllm",
)  # fmt: skip


def find(args: SASRConfig) -> Path:
    """The checkpoint at the end of the warm-up that `warmup_from` names: a run's directory, or the checkpoint itself.
    Raises `InputError` if it is not there, or of another step."""
    path, steps = expand(str(args.warmup_from)), args.sft_warmup_steps
    if not path.is_dir():
        raise InputError(f"warmup_from: there is no directory {path}")
    checkpoint = path / f"checkpoint-{steps}"
    if not checkpoint.is_dir():
        if not (path / checkpoints.STATE_FILE).is_file():
            found = ", ".join(sorted(p.name for p in path.glob("checkpoint-*"))) or "no checkpoint at all"
            raise InputError(
                f"warmup_from: {path} has no checkpoint-{steps}, the end of a warm-up of sft_warmup_steps (it has "
                f"{found}): use a run that kept it, or set sft_warmup_steps to the length of its warm-up"
            )
        checkpoint = path
    checkpoints.read_state(checkpoint)
    checkpoints.check_whole(checkpoint)
    step = _step_in(checkpoint)
    if step != steps:
        raise InputError(
            f"warmup_from: {checkpoint} is at step {step}, but sft_warmup_steps is {steps}: use the checkpoint of that "
            "step"
        )
    return checkpoint


def _step_in(checkpoint: Path) -> int:
    """The step that it was written after, whatever it is called."""
    try:
        return json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["global_step"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{checkpoint / TRAINER_STATE_NAME} cannot be read ({error}): use another run") from None


def check_settings(donor: Path, args: SASRConfig) -> None:
    """Raise `InputError` if the settings alone show that this run would have another warm-up than the donor's."""
    checkpoints.check_same_warmup(donor, checkpoints.fingerprint(args.to_dict(), world_size=args.world_size))
    _check_probe(donor, args, args.build_schedule())


def check(donor: Path, trainer: ResumableGRPOTrainer) -> None:
    """Raise `InputError` if this run, its data and its model included, would have another warm-up than the donor's."""
    checkpoints.check_same_warmup(donor, trainer.fingerprint())
    _check_probe(donor, trainer.args, trainer.schedule)


def _check_probe(donor: Path, args: SASRConfig, schedule: Schedule) -> None:
    if not _needs_probe(args, schedule):
        return
    file = donor / checkpoints.TENSORS_FILE.format(args.process_index)
    probe = checkpoints.load_tensors(file).get("probe")
    then, now = checkpoints.read_state(donor)["fingerprint"], checkpoints.fingerprint(args.to_dict())
    if probe is None or any(then.get(name) != now[name] for name in _PROBE_SETTINGS):
        raise InputError(
            f"{donor} has no answers of the model before the warm-up to measure the divergence against: set "
            "reference_model to warmup, or leave warmup_from out"
        )


def _needs_probe(args: SASRConfig, schedule: Schedule) -> bool:
    measured = isinstance(schedule, Sasr) and schedule.divergence_weight > 0
    return measured and not args.beta and args.reference_model == "initial"


def as_new_run(trainer: ResumableGRPOTrainer, state: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Take out of the donor's saved state what belongs to its own hybrid phase."""
    state["signals"]["divergence"] = None  # in the warm-up it is not measured, or 0
    if not _needs_probe(trainer.args, trainer.schedule):
        tensors["probe"] = None


def restore_rates(trainer: ResumableGRPOTrainer, rates: list[float]) -> None:
    """Undo that the donor's optimizer and scheduler brought its learning rate with them."""
    trainer.lr_scheduler.base_lrs = rates
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["initial_lr"] = rate


def copy_metrics(checkpoint: Path, directory: Path) -> None:
    """Put the metrics of another run up to its checkpoint, if it has any, into the run's own file."""
    source, steps = checkpoint.parent / METRICS_FILE, _step_in(checkpoint)
    if not source.is_file():
        return
    metrics = MetricsFile(directory / METRICS_FILE)
    for line in read_metrics(source):
        if (line.get("step") or 0) <= steps:
            metrics.append(line)
