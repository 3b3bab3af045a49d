"""What the process of a run is started with, what is cleared away before, and what its log says when it fails."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from sasr.errors import InputError
from sasr.redaction import hub_tokens
from sasr.run_directory import check_unfinished
from sasr.template_date import date_of

from .measures import Measures
from .plan import PLACES, Run, Values

_SAID = ("sasr: error: ", "sasr: failed: ")


def recipe_of(
    run: Run, directory: Path, measured: Mapping[str, Measures], others: Iterable[Run], on_device: bool
) -> Values:
    """The settings of a run that begins.

    Args:
        run ([`Run`]): The run.
        directory (`Path`): Of the comparison.
        measured (`Mapping`): Figures of the finished runs, by path.
        others (`Iterable[Run]`): All runs: where a template writes a date, theirs counts for this one too.
        on_device (`bool`): It is given a device of its own, which the recipe's `env` is not to change.
    """
    recipe = dict(run.settings)
    if run.warmup is not None:
        recipe["warmup_from"] = str((directory / run.warmup).resolve())
    if run.match is not None:
        share = measured[run.match]["sft_share"]
        if share is None:
            raise InputError(f"{run.match} has no step after the warm-up whose share of SFT {run.path} could take")
        recipe["sft_share"] = share
    if on_device and recipe.get("env"):
        recipe["env"] = {name: value for name, value in recipe["env"].items() if name != "CUDA_VISIBLE_DEVICES"}
    kwargs = recipe.get("chat_template_kwargs") or {}
    if isinstance(kwargs, dict):
        dated = next(filter(None, (date_of(directory / other.path) for other in others)), {})
        recipe |= {"chat_template_kwargs": {**dated, **kwargs}} if dated else {}
    return recipe


def recipe_to_go_on(run: Run) -> Values:
    """What a run that goes on is told besides its `config.yaml`: the tokens, which that leaves out, and where its data
    and its model are. There they are absolute paths, and the comparison may have been moved together with them."""
    recipe = hub_tokens(run.settings)
    for name in PLACES:
        value = str(run.settings.get(name) or "")
        if value and (Path(value).exists() or Path(value.partition(":")[0]).is_dir()):  # with a configuration
            recipe[name] = value
    return recipe


def clear(directory: Path, run: Run) -> None:
    """Remove what a run left that ended before its first checkpoint. Raises `InputError` for what is not that."""
    where = directory / run.path
    if where.is_symlink() or not where.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{where} is not inside {directory}: remove the link")
    if where.exists():
        if run.stage != "warmup":
            check_unfinished(where)
        shutil.rmtree(where)


def why(log: Path, start: int, code: int) -> str:
    """The line of the log, from `start` on, that says most of a failure, or how the process ended."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    ours = [line.removeprefix(said) for line in lines for said in _SAID if line.startswith(said)]
    if ours:
        return ours[-1][:300]
    if code < 0:
        return f"ended by signal {-code}" + (", perhaps for lack of memory" if code == -signal.SIGKILL else "")
    return (lines[-1] if lines else f"exit status {code}")[:300]
