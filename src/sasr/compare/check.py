"""Everything that can be wrong with the runs of a comparison, found before the first of them is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from trl import ModelConfig

from sasr.checkpoints import comparable, digest_rows, fingerprint
from sasr.config import SASRConfig
from sasr.errors import InputError
from sasr.exam.store import digest_of_model
from sasr.model_files import local_path
from sasr.parsing import Parser, Settings, check_values, parse, read_recipe
from sasr.rollout_engine import check_device, check_installed
from sasr.rows import RowReader, collect_rows, overlap_notes
from sasr.run import check_reward_weights, check_without_model
from sasr.run_directory import CONFIG_FILE, check_free
from sasr.task_config import TaskConfig
from sasr.tasks import get_task
from sasr.tasks.base import Task

from .measures import has_begun
from .plan import PLACES, Comparison, Method, Run, differences, with_additions

COMPARISON_FILE = "comparison.yaml"
ROWS_FILE = "rows.json"


class Rows(NamedTuple):
    """What the runs of a method read with this seed, and with what task: digests of the exam's rows, and of all of
    them, and what is to be said of them."""

    method: str
    seed: int
    task: Task
    exam: str
    every: str
    notes: list[str]


def check_runs(comparison: Comparison, jobs: int = 1) -> tuple[dict[str, str], list[str]]:
    """Raise `InputError` for the first method, point of a grid or lack of data with which a run would be refused, when
    there are so many at a time. Returns digests of the rows, by what they are read with, and notes about them."""
    if comparison.settings.get("exam_rows") == 0:
        raise InputError("exam_rows is 0: a comparison needs an exam")
    parser = Parser()
    check_values({k: v for k, v in comparison.settings.items() if k != "env"}, parser, "the settings of all methods")
    for method in comparison.methods:
        check_values(method.settings, parser, f"method {method.name}")
    asked: dict[str, Rows] = {}
    for method, run in comparison.samples_of_settings():
        tried = ", ".join(f"{name} {value}" for name, value in run.point.items())
        where = f"method {method.name}" + (f" with {tried}" if tried else "")
        check_values(run.point, parser, where)
        try:
            _check_run(comparison, method, run, asked, jobs)
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix('config.yaml: ')}") from None
    first_of: dict[int, Rows] = {}  # rows that a task generates differ by seed
    for other in asked.values():
        first = first_of.setdefault(other.seed, other)
        if other.exam != first.exam:
            raise InputError(
                f"methods {first.method} and {other.method} are examined on different rows: give both the same data"
            )
    notes = dict.fromkeys(note for rows in asked.values() for note in rows.notes)
    return {digest_rows([{"read": alike, "seed": rows.seed}]): rows.every for alike, rows in asked.items()}, list(notes)


def _check_run(comparison: Comparison, method: Method, run: Run, asked: dict[str, Rows], jobs: int) -> None:
    settings = parse(["--output_dir", "unused"], defaults=dict(run.settings))
    args = settings.training
    kinds = args.kinds_of_steps(args.build_schedule())
    if comparison.budget.kind == "rollout_tokens" and not kinds[1]:
        raise InputError("it generates no rollouts, so a budget of rollout tokens never ends: choose another budget")
    if args.on_collapse == "rollback":
        raise InputError(
            "on_collapse rollback chooses a checkpoint by exams, and those of the final runs ask the test rows, which "
            "decide the table: give --on_collapse warn or sft"
        )
    if args.logging_steps != 1 or args.logging_strategy != "steps":
        raise InputError("a comparison counts the steps of each kind in the metrics: give --logging_steps 1")
    if jobs > 1 and args.use_vllm and args.vllm_mode == "server":
        raise InputError("vllm_mode server: a server has the weights of one run at a time: give --jobs 1")
    if args.push_to_hub:
        raise InputError("push_to_hub: all runs would be pushed to one place: leave it out, and push the one you keep")
    check_without_model(settings)
    if args.use_vllm:
        check_installed()
        check_device(args)
    # Reading rows takes time: once for all that read the same, and keep as many demonstrations from SFT.
    kept = (args.held_out_demonstrations,) if args.held_out_demonstrations else ()
    alike = repr((settings.task, kinds, *kept))
    if alike not in asked:
        task = get_task(settings.task.task, settings.task.task_options)
        asked[alike] = Rows(method.name, args.seed, task, *_check_rows(task, settings, args))
    check_reward_weights(asked[alike].task, settings)


def _check_rows(task: Task, settings: Settings, args: SASRConfig) -> tuple[str, str, list[str]]:
    """Digests of what the exam asks, and of all rows; notes about them."""
    reader = RowReader(task, settings.task.bad_rows)
    *studied, held_out = collect_rows(task, settings.task, args, reader)
    if not held_out:
        raise InputError("there are no rows to examine: give exam_data, or rows with answers")
    every = digest_rows([*(row for rows in studied for row in rows), *held_out])
    return digest_rows(held_out), every, [*reader.notes(), *overlap_notes(held_out, *studied)]


def check_directory(directory: Path, comparison: Comparison) -> None:
    """Raise `InputError` if the directory holds something else, or another comparison than this one or a part of it.
    Makes nothing."""
    path = directory / COMPARISON_FILE
    if not path.is_file():
        check_free(directory)
        return
    try:
        then = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{path} cannot be read: choose another output_dir, or remove that one") from None
    now = yaml.safe_load(comparison_text(comparison))
    found = list(differences(with_additions(then, now), now))
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        shown = "; ".join(found[:3])
        raise InputError(f"{directory} holds another comparison ({shown}{more}): choose another output_dir")


def check_earlier_runs(directory: Path, comparison: Comparison) -> None:
    """Raise `InputError` if runs of a method that have begun were made with other settings than those to come, which no
    comparison of `comparison.yaml` shows: it was changed by hand, or a default is another since."""
    for method, run in comparison.samples_of_settings():
        begun = next((p for p in comparison.final_paths(method).values() if has_begun(directory / p)), None)
        config = None if begun is None else directory / begun / CONFIG_FILE
        if config is None or not config.is_file():
            continue
        recipe = read_recipe(str(config))
        # What a run has of its own: a tuned value may be another one's. And what is not known of it: nothing is written
        # of a setting that is None, nor was by versions that did not have it.
        own = {"seed", "warmup_from", "sft_share", *run.point}
        defaults = {**vars(TaskConfig()), **vars(ModelConfig())}
        own |= {name for name, value in defaults.items() if value is not None and name not in recipe}
        then, now = _facts(recipe, own), _facts(run.settings, own)
        for name in ("task", *PLACES):
            if _may_be_one(then.get(name), now.get(name)):
                now[name] = then[name]
        shown = "; ".join(differences(then, now))
        if shown:
            raise InputError(
                f"{directory}: runs of method {method.name} were made with other settings ({shown[:200]}): set them as "
                f"they were, in its {COMPARISON_FILE} if need be, or choose another output_dir"
            )


def _facts(values: Mapping[str, Any], own: set[str]) -> dict[str, Any]:
    """What these settings come to, but for secrets, those of `own` and the date of a chat template."""
    settings = parse(["--output_dir", "unused"], defaults=dict(values))
    every = {**vars(settings.task), **vars(settings.model), **settings.training.to_dict()}
    facts = {k: v for k, v in comparable(fingerprint(every)).items() if k not in own}
    kwargs = {k: v for k, v in (facts.pop("chat_template_kwargs", None) or {}).items() if k != "date_string"}
    return json.loads(json.dumps({**facts, "chat_template_kwargs": kwargs}, default=str))


def _may_be_one(then: Any, now: Any) -> bool:
    """Whether two paths may mean one thing though they differ: `config.yaml` has those of then absolute, and with their
    folder it has been moved, so that nothing is left there, or copied."""
    (path, _, part), (other, _, its) = (str(value or "").partition(":") for value in (then, now))
    old, new = local_path(path), local_path(other)
    if old is None or new is None or part != its:  # a configuration, or a class in a file
        return False
    return not old.exists() or digest_of_model(str(old)) == digest_of_model(str(new))


def with_earlier_rows(directory: Path, digests: dict[str, str]) -> str:
    """What to keep in `rows.json`: what the runs read, with what earlier ones did. Raises `InputError` if those read
    something else by the same name: with other data the runs that are added could not be compared with them."""
    try:
        known = json.loads((directory / ROWS_FILE).read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    if any(known.get(name, digest) != digest for name, digest in digests.items()):
        raise InputError(
            f"the data have changed since the first runs of {directory}: put the old ones back, or choose another "
            "output_dir"
        )
    return json.dumps(known | digests, indent=1)


def comparison_text(comparison: Comparison) -> str:
    """`comparison.yaml`: a recipe that makes the same comparison again."""
    return yaml.safe_dump(comparison.to_recipe(), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """As YAML and JSON can hold it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    value = getattr(value, "value", value)  # enumerations
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
