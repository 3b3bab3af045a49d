"""`sasr compare` on the command line: find the comparison, check it, run it, print the table."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sasr.errors import InputError, did_you_mean, disk_failures_told
from sasr.flags import Flags
from sasr.model_files import expand
from sasr.redaction import redacted_command
from sasr.runs.state import only_tuning_failed, resume_command

if TYPE_CHECKING:
    from .plan import Budget

USAGE = """\
usage: sasr compare [--config RECIPE] [--methods NAME ...] [--seeds 1-8] [--budget steps=300] [--baseline NAME]
                    [--jobs N] [--output_dir DIR] [--SETTING VALUE of sasr train ...]
       sasr compare --output_dir DIR --resume_from_checkpoint

Methods x seeds on one task at an equal budget: every run, a table with intervals and a paired test.

  sasr compare                          sft, static, sasr and a rate-matched random on the built-in task
  sasr compare --config compare-switch  a recipe that comes with sasr, or your own YAML file with a compare section
  sasr compare --methods static sasr --seeds 1-8 --budget seconds=60 --task jsonl --data rows.jsonl

  --config RECIPE    settings of sasr train, and under `compare:` methods, seeds, budget, baseline, tune, tune_seeds;
                     without it the recipe of the task
  --methods NAME ... methods of the recipe, or schedules; default: sft static sasr random. A bare random has the share
                     of SFT that sasr had with the same seed, a bare grpo no warm-up
  --seeds SEEDS      such as 1-8, or 1 2 3, of every method; default: those of the recipe, or 1-3
  --budget KIND=N    of each run: steps, seconds (inside steps) or rollout_tokens; default: steps=max_steps
  --baseline NAME    what the others are compared with; default: the recipe's, or static, or else the first
  --jobs N           runs at a time; default: one for each CUDA device, or else for each CPU core (with a budget of
                     seconds, which runs take from each other where they share a machine: one)
  --output_dir DIR   where everything goes; default: runs/compare-NAME-N. The same command with the same directory goes
                     on where it was stopped
All other flags are settings of sasr train for all methods (sasr train --help)."""


def compare(argv: list[str]) -> int:
    """Returns the exit status: 0; 1 if a run failed; 128 + the signal that stopped it. Raises `InputError`."""
    options, rest = _options(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("sasr compare starts its runs itself: start it without torchrun")
    from sasr.report import report_quietly
    from sasr.tasks import get_task

    from . import check
    from .reading import read
    from .report import sharing_told
    from .runner import Runner, lock
    from .view import CompareView

    flags = _settings(rest)
    recipe, source, name = _recipe(options, flags)
    given = {**recipe, **flags}
    get_task(str(given.get("task") or "stories"), given.get("task_options"))  # what follows makes no sense without
    comparison = read(check.plain(recipe), source, check.plain(flags), vars(options))
    on_cpu = str(comparison.settings.get("use_cpu")).lower() == "true"
    jobs, devices = _jobs(options.jobs, comparison.budget, on_cpu)
    named = options.output_dir or recipe.get("output_dir")
    if not isinstance(named, str | None):
        raise InputError(f"{source}: output_dir is {named!r}, but it must be text")
    place = expand(named) if named else None
    if place is not None:
        check.check_directory(place, comparison)
    digests, told = check.check_runs(comparison, jobs)
    if place is not None:
        check.check_earlier_runs(place, comparison)
    directory = place if place is not None else _new_directory(name)
    rows = check.with_earlier_rows(directory, digests)
    from sasr.checkpoints import write_atomically
    from sasr.run_directory import claim

    claim(directory)
    lock(directory).close()
    with disk_failures_told(lambda: _what_is_safe(directory)):
        write_atomically(directory / check.COMPARISON_FILE, check.comparison_text(comparison))
        write_atomically(directory / check.ROWS_FILE, rows)
        view = CompareView()
        command = shlex.join(["sasr", "compare", *redacted_command(argv)])
        runner = Runner(comparison, directory, jobs, devices, view, command)
        for note in told:
            view.message(note)
        view.message(_opening(runner, directory))
        if comparison.budget.kind == "seconds" and jobs > max(1, len(devices)):
            view.message(f"note: {sharing_told(math.ceil(jobs / max(1, len(devices))))}")
        status = runner.run()
    _close(runner, view, directory, status)
    report_quietly(directory, view.message)
    return status


def _what_is_safe(directory: Path) -> str:
    from .check import COMPARISON_FILE

    if not (directory / COMPARISON_FILE).is_file():
        return "nothing has been trained yet"
    again = resume_command("compare", directory)
    return f"every run is safe up to its last checkpoint; when this is mended, go on with: {again}"


def _options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Flags("sasr compare")
    for name in ("config", "budget", "baseline", "jobs", "output_dir"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", nargs="+")
    parser.add_argument("--resume_from_checkpoint", nargs="?", const="true")
    return parser.parse_known_args(argv)


def _settings(argv: list[str]) -> dict[str, Any]:
    """The settings of `sasr train` among the flags."""
    from sasr.parsing import Parser

    parser = Parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    namespace, rest = parser.parse_known_args(argv)
    if rest:
        flag = rest[0].split("=")[0]
        known = [option for action in parser._actions for option in action.option_strings]
        ours = [f"--{name}" for name in ("config", "methods", "seeds", "budget", "baseline", "jobs", "output_dir")]
        raise InputError(f"unknown argument {flag}{did_you_mean(flag, [*ours, *known])}")
    found = vars(namespace)
    if isinstance(found.get("report_to"), list) and len(found["report_to"]) == 1:
        found["report_to"] = found["report_to"][0]  # as comparisons of earlier versions have it
    return found


def _recipe(options: argparse.Namespace, flags: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """(recipe, its name in messages, its name in the directory's)."""
    from sasr.parsing import RECIPES, base_recipe, read_recipe

    from .check import COMPARISON_FILE
    from .reading import seeds_of

    config = options.config
    if options.resume_from_checkpoint is not None:
        if options.resume_from_checkpoint.lower() != "true":
            raise InputError("--resume_from_checkpoint takes no value here: each run goes on from its last checkpoint")
        if options.output_dir is None or config is not None:
            raise InputError("--resume_from_checkpoint: name the comparison with --output_dir, without --config")
        config = str(expand(options.output_dir) / COMPARISON_FILE)
        if not Path(config).is_file():
            raise InputError(f"there is no comparison to go on with in {options.output_dir}")
    base = base_recipe(flags)
    source = config if config is not None else f"recipe {base}"
    recipe = read_recipe(config if config is not None else str(RECIPES / f"{base}.yaml"))
    if options.resume_from_checkpoint is not None:
        _give_to_new_methods(recipe, seeds_of(options.seeds, "--seeds") if options.seeds else (), source)
        options.seeds = None
    name = config if config is not None else str(flags.get("task", base))
    return recipe, source, Path(name).stem.removeprefix("compare-")


def _give_to_new_methods(recipe: dict[str, Any], more: Sequence[int], source: str) -> None:
    """In a comparison as it was written each method is spelled out. Further seeds come on top of those; a method that
    is added gets the seeds of the baseline, which it is to be paired with, and the grid that all others have."""
    try:
        section = recipe["compare"]
        methods = section["methods"]
        for method in methods.values():
            method["seeds"] = [*method["seeds"], *(seed for seed in more if seed not in method["seeds"])]
        section["seeds"] = list(methods[section["baseline"]]["seeds"])
        grids = [method["tune"] for method in methods.values() if "match_run" not in method]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{source} is not as sasr writes it: name the recipe with --config instead") from None
    if grids[0] and all(grid == grids[0] for grid in grids):
        section["tune"] = grids[0]


def _new_directory(name: str) -> Path:
    from sasr.run_directory import make_numbered

    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return make_numbered("runs", f"compare-{name}")[0]


def _jobs(given: str | None, budget: Budget, on_cpu: bool = False) -> tuple[int, list[str]]:
    """(processes at a time, CUDA devices that they work on)."""
    import torch

    from .runner import cores

    devices = [] if on_cpu else [str(index) for index in range(torch.cuda.device_count())]
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    devices = visible[: len(devices)] if len(visible) >= len(devices) else devices
    if given is None:
        return len(devices) or (1 if budget.kind == "seconds" else cores()), devices
    if not given.strip().isdecimal() or not 1 <= int(given) <= 1024:
        raise InputError(f"--jobs is {given}: it must be a whole number from 1")
    return int(given), devices


def _opening(runner: Any, directory: Path) -> str:
    comparison = runner.comparison
    finals = sum(len(method.seeds) for method in comparison.methods)
    tuning = sum(len(comparison.tuning_runs(method)) for method in comparison.tuned)
    runs = f"{finals} run{'s' * (finals > 1)}" + (f" and {tuning} to tune" if tuning else "")
    names = ", ".join(method.name for method in comparison.methods)
    jobs = f"{runner.jobs} at a time" if runner.jobs > 1 else "one at a time"
    return f"{names}: {runs} at {comparison.budget} each, {jobs}; all of it goes to {directory}"


def _close(runner: Any, view: Any, directory: Path, status: int) -> None:
    from .report import TABLE_FILE, brief, notes
    from .view import columns

    content = runner.content()
    if any(row["seeds"] for row in content["methods"]):
        view.message("")
        for line in [*columns(brief(content)), "", *notes(content)]:
            view.message(line)
    again = resume_command("compare", directory)
    if status == 0:
        view.message(f"done: the table is in {directory / TABLE_FILE}, every figure in {directory / 'results.json'}")
    elif status == 1 and only_tuning_failed(content):
        view.message(f"done, but for runs to tune that failed; the table is in {directory / TABLE_FILE}")
    elif status == 1:
        view.message(f"some runs failed; what is there is in {directory / TABLE_FILE}; try them again with: {again}")
    else:
        view.message(f"stopped; go on with: {again}")
