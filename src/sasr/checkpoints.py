"""Checkpoints that are whole or not there, and the check that one belongs to the run that resumes from it.

A checkpoint is written to `.unfinished/checkpoint-N` and renamed to `checkpoint-N` when its last byte is on disk, so a
kill at any moment leaves either the new one or the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import xxhash
from safetensors import SafetensorError

from .errors import InputError, RunFailed
from .metrics import sync_metrics
from .redaction import comparable
from .schedules import SCHEDULES

STATE_FILE = "sasr_state.json"
TENSORS_FILE = "sasr_tensors_{}.pt"  # one for each rank
MANIFEST = "sasr_files.json"
STAGING = ".unfinished"
_UNREADABLE = "{} is damaged, or holds code, which is not run: resume from an earlier checkpoint"

# Settings that may change between a checkpoint and its resumption: they say where to write, what to show, where a vLLM
# server is and what is computed twice to save memory. Every other one decides what is computed.
_FREE = {
    "output_dir", "run_name", "report_to", "project", "disable_tqdm", "resume_from_checkpoint", "overwrite_output_dir",
    "num_completions_to_print", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "match_run", "ddp_timeout", "torch_empty_cache_steps", "skip_memory_metrics", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "include_for_metrics", "prediction_loss_only",
    "max_skipped_steps", "per_device_eval_batch_size", "warmup_from",
    "bf16_full_eval", "fp16_full_eval", "label_smoothing_factor", "enable_jit_checkpoint",  # since refused
    "reward_failures", "reward_timeout", "ddp_find_unused_parameters", "vllm_group_port",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode",
}  # fmt: skip
_FREE_PREFIXES = (
    "log", "save_", "hub_", "push_to_hub", "eval_", "do_", "trackio", "dataloader_", "debug", "vllm_server_",
)  # fmt: skip

# How the rows of a step are divided into parts that are in memory at a time.
_DIVISION = (
    "per_device_train_batch_size", "per_device_sft_batch_size", "gradient_accumulation_steps", "steps_per_generation",
)  # fmt: skip

# What decides nothing up to the end of the SFT warm-up, nor the state that is saved there: the schedule of the steps
# after it, their number, learning rates, rollouts, rewards and GRPO's loss. (Another temperature than 1 moves the SFT
# loss by rounding alone.)
AFTER_WARMUP = {
    "on_collapse", "sft_questions", "failed_threshold", "failed_decay", "flat_groups", "curriculum", "rollouts_ahead",
    "share_of",
    "schedule", "rule", "depends_on_length", *(name for _, names in SCHEDULES.values() for name in names),
    "max_steps", "num_train_epochs", "max_seconds", "max_rollout_tokens",
    "learning_rate", "sft_hybrid_learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "beta", "reference_model", "divergence_every", "divergence_probe", "use_bias_correction_kl",
    "per_device_train_batch_size", "num_generations", "num_generations_eval", "num_iterations", "steps_per_generation",
    "generation_batch_size", "shuffle_dataset", "max_prompt_length", "max_completion_length", "temperature", "top_p",
    "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation", "max_tool_calling_iterations",
    "use_vllm", "use_transformers_paged", "use_transformers_continuous_batching",
    "transformers_continuous_batching_config",
    "reward_weights", "scale_rewards", "multi_objective_aggregation", "loss_type", "delta", "epsilon", "epsilon_high",
    "importance_sampling_level", "mask_truncated_completions", "off_policy_mask_threshold", "top_entropy_quantile",
    "use_adaptive_entropy",
}  # fmt: skip
_AFTER_WARMUP_PREFIXES = ("vllm_", "sapo_", "vespo_", "entropy_")


def fingerprint(settings: Mapping[str, Any], **extra: Any) -> dict[str, Any]:
    """What must be the same for a resumed run to continue the old one: the settings that matter, and facts such as the
    world size and a digest of the data. JSON-safe."""
    kept = {k: v for k, v in settings.items() if k not in _FREE and not k.startswith(_FREE_PREFIXES)}
    return json.loads(json.dumps({**kept, **extra}, sort_keys=True, default=str))


def model_facts(model) -> dict[str, Any]:
    """A model's size and dtype, every setting of its PEFT adapters that decides what is computed, such as `lora_alpha`,
    and how the model below them is quantised."""
    from .quantised import facts  # torch, which `sasr runs` does without

    # DeepSpeed's stage 3 leaves an empty tensor with a note of what it was.
    count = sum(getattr(p, "ds_numel", None) or p.numel() for p in model.parameters())
    found: dict[str, Any] = {"parameters": count, "dtype": str(model.dtype)}
    found |= facts(getattr(model.config, "quantization_config", None))
    for name, config in getattr(model, "peft_config", {}).items():
        prefix = "" if name == "default" else f"{name}."
        for key, value in config.to_dict().items():
            if key not in ("base_model_name_or_path", "inference_mode", "auto_mapping"):
                # a set has another order in each process
                found[f"adapter {prefix}{key}"] = sorted(value) if isinstance(value, set | frozenset) else value
    return found


def digest_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """A digest of rows' contents and order."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(json.dumps(row, sort_keys=True, default=str).encode())
    return sha.hexdigest()[:16]


def check_same_run(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Raise `InputError` if the checkpoint was written by a run with another fingerprint. Keys that `now` lacks are
    not compared, so that the settings can be checked before the data and the model are loaded. A run may be made
    longer, unless it `depends_on_length` ([`budget.depends_on_length`]), and the batch of a step divided otherwise."""
    state = read_state(checkpoint)
    check_whole(checkpoint)
    then = state["fingerprint"]
    free = _DIVISION if _same_batch(then, now, state["rollout_step"]) else ()
    shown = _differences(then, {key: now[key] for key in now if key not in free and not _extends(key, then, now)})
    if shown:
        raise InputError(f"{checkpoint} belongs to another run ({shown}): use the settings it was made with")


def check_same_warmup(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Raise `InputError` if a run with this fingerprint would have another SFT warm-up than the one that the checkpoint
    is the end of. Keys that `now` lacks are not compared, as above."""
    decisive = {k: v for k, v in now.items() if k not in AFTER_WARMUP and not k.startswith(_AFTER_WARMUP_PREFIXES)}
    shown = _differences(read_state(checkpoint)["fingerprint"], decisive)
    if shown:
        raise InputError(
            f"{checkpoint} has another warm-up ({shown}): use the settings it was made with, or leave warmup_from out"
        )


def _as_given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without secrets, which older checkpoints have in their settings, and without what TRL adds to those of Liger: a
    run has it from its trainer on, and one that goes on is compared before."""
    found = comparable(settings)
    if isinstance(liger := found.get("liger_kernel_config"), Mapping):
        kept = {name: value for name, value in liger.items() if value or name != "fused_linear_cross_entropy"}
        found["liger_kernel_config"] = kept or None
    return found


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    then, now = _as_given(then), _as_given(now)
    differing = [key for key in now if key in then and then[key] != now[key]]
    shown = "; ".join(f"{key}: {_short(then[key])} then, {_short(now[key])} now" for key in differing[:3])
    return shown + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")


def _extends(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key not in then or then[key] == now[key] or now.get("depends_on_length"):
        return False
    if key in ("max_seconds", "max_rollout_tokens"):
        return now[key] is None or (then[key] is not None and now[key] > then[key])
    # With a constant learning rate nothing before the old end depends on where the end is, unless it first rises over a
    # share of the steps.
    shape, rise = str(now.get("lr_scheduler_type", "")), now.get("warmup_steps") or 0
    constant = shape == "constant" or (shape == "constant_with_warmup" and not 0 < rise < 1)
    return key == "max_steps" and constant and now[key] > then[key]


def _same_batch(then: Mapping[str, Any], now: Mapping[str, Any], rollout_step: int) -> bool:
    """Whether each step learns from as many rows as then, however many at a time, and what it learns does not depend on
    that. Rollouts that are half used cannot be divided anew."""
    if any(key not in facts for key in _DIVISION for facts in (then, now)):
        return False
    rollouts, demonstrations, parts, generated = _DIVISION

    def rows(facts: Mapping[str, Any]) -> list[int | None]:
        factors = (rollouts, parts), (demonstrations, parts), (rollouts, generated)
        return [None if facts[rows] is None else facts[rows] * facts[times] for rows, times in factors]

    half_used = rollout_step % (then[generated] * then.get("num_iterations", 1))
    return rows(then) == rows(now) and not loss_depends_on_division(now) and not half_used


def loss_depends_on_division(settings: Mapping[str, Any]) -> bool:
    """Whether what GRPO learns from the rows of a step depends on how many are in memory at a time: TRL takes a mean
    over the tokens of each part (the entropy bonus too), or the most uncertain of its tokens."""
    entropy = settings.get("entropy_coef") or settings.get("use_adaptive_entropy")
    return settings.get("loss_type") == "bnpo" or settings.get("top_entropy_quantile", 1) != 1 or bool(entropy)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's own state in a checkpoint. Raises `InputError` if there is none that can be read."""
    path = Path(checkpoint) / STATE_FILE
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{checkpoint} is not a checkpoint of sasr: it has no {STATE_FILE}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): resume from an earlier checkpoint") from None


def check_whole(checkpoint: Path) -> None:
    """Raise `InputError` if a file of the checkpoint is gone, cut short or not as it was written: transformers would go
    on without it, or with it."""
    path = Path(checkpoint) / MANIFEST
    try:
        written = json.loads(path.read_text()).items()
    except FileNotFoundError:
        return  # of an earlier version
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}): resume from an earlier checkpoint") from None
    for name, facts in written:
        file = Path(checkpoint) / name
        # earlier versions wrote the size alone
        size, digest = facts if isinstance(facts, list) else (facts, None)
        if not file.is_file():
            problem = "missing"
        elif file.stat().st_size != size:
            problem = "cut short" if file.stat().st_size < size else "longer than it was"
        elif digest is not None and _digest(file) != digest:
            problem = "damaged (its checksum is another)"
        else:
            continue
        raise InputError(f"{file} is {problem}: copy it again or resume from an earlier checkpoint")


def _digest(file: Path) -> str:
    stat = file.stat()
    return _digest_of(str(file.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)  # a run asks several times about its checkpoint, which may have 100 GB
def _digest_of(file: str, size: int, changed: int) -> str:
    """xxh3: against accidents, and faster than disks are."""
    state = xxhash.xxh3_128()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def all_checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, the newest first. What has befallen their files since is not looked at."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if (p / STATE_FILE).is_file() and p.name[11:].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def lies_in(checkpoint: str | Path, directory: str | Path) -> bool:
    """Whether the run with this checkpoint is the one in the directory, and not another one."""
    return Path(checkpoint).resolve().parent == Path(directory).resolve()


def step_of(checkpoint: Path) -> int:
    """The step that its name tells."""
    return int(checkpoint.name.rpartition("-")[2])


def load_tensors(file: Path) -> dict[str, Any]:
    """The tensors and plain values in a file of a checkpoint, on the CPU. A pickle can hold code: it is not run. Raises
    `InputError` for such a file, and for one that is damaged."""
    import torch  # which `sasr runs` does without

    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # damaged files fail in whatever way they happen to
        raise InputError(_UNREADABLE.format(file)) from error


@contextmanager
def refusing_code(checkpoint: Path) -> Iterator[None]:
    """Like [`load_tensors`] for what transformers loads inside, which refuses code with a traceback."""
    try:
        yield
    except UnpicklingError as error:
        raise InputError(_UNREADABLE.format(f"a file in {checkpoint}")) from error


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest of [`all_checkpoints`], `None` if there is none."""
    return next(iter(all_checkpoints(output_dir)), None)


def newest_whole(output_dir: str | Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as it was written, `None` if the run has none at all. Says which ones it passes
    over. Raises `InputError` if it passes over all."""
    problem = ""
    for checkpoint in all_checkpoints(output_dir):
        try:
            read_state(checkpoint)
            check_whole(checkpoint)
        except InputError as error:
            problem = str(error)
            say(f"{checkpoint.name} is passed over: {problem.rpartition(': ')[0]}")
        else:
            return checkpoint
    if problem:
        raise InputError(f"no checkpoint of {output_dir} is whole; {problem}")
    return None


def later_note(checkpoint: Path) -> str | None:
    """A line to print where a run that goes on from here has whole checkpoints of later steps: what follows comes to
    lie between them, and the next resumption would jump to them."""
    newest = None
    if not checkpoint.name.rpartition("checkpoint-")[2].isdecimal():
        return None
    with suppress(InputError):  # all are damaged, this one too, which is told elsewhere
        newest = newest_whole(checkpoint.resolve().parent, lambda text: None)
    if newest is None or step_of(newest) <= step_of(checkpoint):
        return None
    return (
        f"note: {newest.name} of a later step stays, and the next --resume_from_checkpoint without a name takes it: "
        "remove it, or take another way from here with an --output_dir of its own"
    )


# What a checkpoint has besides the model; the directories are an engine's.
_NOT_OF_THE_MODEL = (
    "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "sasr_", "latest", "zero_to_fp32",
    "pytorch_model",
)  # fmt: skip


def copy_model(checkpoint: Path, directory: Path) -> None:
    """Copy the files that make up the model. Raises `InputError` where there are no weights in one piece."""
    files = [f for f in sorted(checkpoint.iterdir()) if f.is_file() and not f.name.startswith(_NOT_OF_THE_MODEL)]
    if not any(file.suffix == ".safetensors" for file in files):
        raise InputError(f"{checkpoint} has no model.safetensors: gather its weights, or go on with more max_steps")
    for file in files:
        shutil.copy2(file, directory / file.name)


def date_last(checkpoint: Path) -> None:
    """Make it the newest by its date, by which transformers decides which of a run's to keep, also after the clock was
    set back."""
    others = [path.stat().st_mtime for path in checkpoint.parent.glob("checkpoint-*") if path != checkpoint]
    now = max([time.time(), *(when + 1 for when in others)])
    os.utime(checkpoint, (now, now))


def publish(staged: Path, final: Path) -> None:
    """Flush a staged checkpoint to disk, and before it the metrics of the run whose steps it ends, and put it in its
    place, replacing one of the same name."""
    sync_metrics(final.parent)
    files = [p for p in staged.rglob("*") if p.is_file()]
    (staged / MANIFEST).write_text(
        json.dumps({str(p.relative_to(staged)): [p.stat().st_size, _digest(p)] for p in files}, indent=0)
    )
    for path in [p for p in staged.rglob("*") if p.is_file()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    old = staged.parent / f"{final.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(staged, final)
    shutil.rmtree(staged.parent, ignore_errors=True)


@contextmanager
def writing(what: str, where: Path) -> Iterator[None]:
    """Turns the ways in which the libraries tell that a disk is full, or not to be written, into a [`RunFailed`]."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, OSError):
            text = error.strerror or text
        elif not isinstance(error, SafetensorError) and not any(part in text for part in _TORCH_WRITES):
            raise
        free = shutil.disk_usage(where).free
        raise RunFailed(f"{what} cannot be written to {where} ({free / 1e6:,.0f} MB free): {text[:200]}") from error


# torch.save raises a RuntimeError that names its writer.
_TORCH_WRITES = ("PytorchStreamWriter", "inline_container")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader, or a kill, sees the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
