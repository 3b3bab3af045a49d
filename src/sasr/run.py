"""One run of `sasr train`, from settings to a trained model: check, load, examine, train, examine."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from . import (
    checkpoints,
    host_memory,
    locks,
    out_of_memory,
    quantised,
    safeguards,
    setting_checks,
    shared_warmup,
    template_date,
    trained_on,
)
from .adapters import INITIAL_MODEL, is_adapter
from .budget import depends_on_length
from .callbacks import Exams, RunCallback, StopRequest, exam_table, is_finished
from .config import SASRConfig
from .demonstrations import empty_thought_notes
from .errors import InputError
from .exam.request import LIMITS
from .live import LiveView
from .metrics import METRICS_FILE
from .model_files import expand
from .models import TINY_MODELS, check_model, load_model, load_tokenizer
from .parsing import Settings
from .plugins import describe
from .recording import progress_callbacks
from .redaction import is_secret, redacted_command, without_hub_tokens
from .report import REPORT_FILE, report_quietly
from .rollout_engine import check_rollout_engine
from .rows import RowReader, check_lengths, check_positions, collect_rows, difficulty_notes, overlap_notes
from .run_directory import (
    check_free,
    check_unfinished,
    claim,
    clear,
    failures_told,
    how_to_go_on,
    keep_settings,
    reserved,
)
from .runs.state import CONFIG_HEAD
from .tasks import get_task
from .tasks.base import Row, Task
from .tasks.loading import for_model
from .terminal import is_main
from .tracking import Trackers


def train(settings: Settings, checkpoint: Path | None, again: bool = False) -> int:
    """Run to the end or to a stop request. Returns the exit status: 0, or 128 + the signal that stopped it.

    Args:
        settings ([`Settings`]): What to run.
        checkpoint (`Path`, *optional*): Where to go on from.
        again (`bool`): The directory holds a run that ended before its first checkpoint; begin it again, at that of
            another run if it went on from there.

    Raises:
        [`InputError`]: Whatever the user has to mend; before the model is loaded where that is possible.
        [`RunFailed`]: The run cannot go on. What was saved is safe.
    """
    with ExitStack() as until_the_end:
        return _train(settings, checkpoint, again, until_the_end)


def _train(settings: Settings, checkpoint: Path | None, again: bool, until_the_end: ExitStack) -> int:
    args, directory = settings.training, Path(settings.training.output_dir)
    view = LiveView() if is_main() else None
    say = view.message if view is not None else (lambda text: None)

    # Everything that can be wrong, cheapest first, before the model.
    setting_checks.check_devices(args)
    task = get_task(settings.task.task, settings.task.task_options)
    check_reward_weights(task, settings)
    name = check_without_model(settings, resumed=checkpoint is not None)
    quantization = quantised.config_of(vars(settings.model), quantised.compute_dtype(args.bf16, args.fp16))
    if checkpoint is not None:
        template_date.take_over(settings, checkpoint)
        facts = {"world_size": args.world_size, "depends_on_length": depends_on_length(args, args.build_schedule())}
        facts |= quantised.facts(quantization)
        checkpoints.check_same_run(checkpoint, checkpoints.fingerprint(args.to_dict(), **facts))
    donor = shared_warmup.find(args) if checkpoint is None and args.warmup_from is not None else None
    if donor is not None:
        template_date.take_over(settings, donor)
        shared_warmup.check_settings(donor, args)
    lock = None
    # One that goes on elsewhere begins there as a new one does.
    elsewhere = checkpoint is not None and not checkpoints.lies_in(checkpoint, directory)
    if is_main():
        fresh = not again and (checkpoint is None or elsewhere)
        if again:
            check_unfinished(directory)
        if fresh:
            check_free(directory)  # also before, so that nothing is made where nothing can be
        lock = until_the_end.enter_context(reserved(directory))
        if fresh:
            check_free(directory)
    if is_main():
        setting_checks.check_hub(args)
    check_rollout_engine(args, say, is_main())
    before = donor or checkpoint
    earlier = before.parent if before is not None else directory if again else None
    reader = RowReader(task, settings.task.bad_rows, earlier)
    train_rows, demonstration_rows, exam_rows = collect_rows(task, settings.task, args, reader)
    notes = [*reader.notes(), *difficulty_notes(train_rows, demonstration_rows, args)]
    notes += overlap_notes(exam_rows, train_rows, demonstration_rows)
    studied = trained_on.digests([*train_rows, *(row for row in demonstration_rows if row.get("completion"))])
    options = tokenizer_options(name, task, settings)
    tokenizer = load_tokenizer(name, **options)
    if checkpoint is None and donor is None:
        notes += template_date.fix(settings, tokenizer)
    train_rows, demonstration_rows, exam_rows = (
        for_model(rows, name, tokenizer.chat_template is not None)
        for rows in (train_rows, demonstration_rows, exam_rows)
    )
    template = args.chat_template_kwargs or {}
    if args.kinds_of_steps(args.build_schedule())[0]:
        notes += empty_thought_notes(demonstration_rows or train_rows, tokenizer, **template)
    longest = check_lengths([*train_rows, *demonstration_rows, *exam_rows], tokenizer, args)

    if again:
        say(f"{directory} has no checkpoint yet: beginning again{f' at {checkpoint}' if elsewhere else ''}")
    if (checkpoint is None or elsewhere) and is_main():
        clear(directory)
    purpose = " for validation" if settings.task.exam_split == "validation" else ""
    for note in [*notes, *args.precision_notes, *safeguards.notes(args, settings.task.exam_split)]:
        say(note)
    say(f"{len(train_rows)} training rows, {len(exam_rows)} held out{purpose}; run directory {directory}")
    with out_of_memory.of_model(name, args.device, settings.model):
        model, tokenizer = load_model(
            name,
            dtype=settings.model.dtype,
            attn_implementation=settings.model.attn_implementation,
            seed=args.seed,
            quantization=quantization,
            device=args.device,
            **options,
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # of the Hub; its base is frozen, and it is too
        raise InputError(f"model {name!r}: only a LoRA adapter, merge it into its base model first")
    for note in check_positions(longest, model.config, args.max_completion_length):
        say(note)
    with failures_told(directory), out_of_memory.of_model(name, args.device, settings.model, model):
        if checkpoint is None and is_main():
            claim(directory)
            keep_settings(directory, config_text(settings), checkpoint)
        trainer = build_trainer(settings, model, tokenizer, task, train_rows, demonstration_rows, directory)
    if checkpoint is not None:
        # With what only the loaded model tells; the trainer would do so after config.yaml has been written anew.
        checkpoints.check_same_run(checkpoint, trainer.fingerprint())
    if donor is not None:
        shared_warmup.check(donor, trainer)
    long = sum(len(d.completion_ids) > args.max_completion_length for d in trainer.demonstrations)
    if long:
        say(
            f"note: {long} of {len(trainer.demonstrations)} demonstrations are longer than max_completion_length "
            f"({args.max_completion_length}): SFT teaches answers that rollouts and exams cut off"
        )
    if args.beta:
        which = {"initial": "the model before the warm-up", "warmup": "the policy at the end of the warm-up"}
        say(f"reference model of beta: {which[trainer.reference.kind]}")
    if is_main():
        claim(directory)
    at_work = locks.at_work(directory, "sasr train", lock) if is_main() else nullcontext(str)
    try:
        with at_work as tell, StopRequest(say) as stop, failures_told(directory):
            if is_main():
                keep_settings(directory, config_text(settings), checkpoint)
                reader.keep_verdicts(directory)
                trained_on.keep(directory, studied)
            if is_main() and before is not None and (donor is not None or elsewhere):
                shared_warmup.copy_metrics(before, directory)
            if donor is not None:
                say(f"the warm-up is that of {donor}")
            trackers = Trackers(trainer, config_values(settings))
            exams = Exams(task, exam_rows, settings.task, directory, view, stop, trackers)
            trackers.follow(RunCallback(trainer, exams, stop, directory, view))
            try:
                with host_memory.bounded(trainer.accelerator.device):
                    finished = _train_to_the_end(trainer, exams, trackers, checkpoint, view, say)
            except Exception as error:
                if not out_of_memory.is_out_of_memory(error):
                    raise
                raise out_of_memory.told(error, trainer, "steps_per_generation" in settings.given) from error
            tell("finished" if finished else "stopped")
    finally:
        # also of a run that failed, which it may explain
        if is_main() and (directory / METRICS_FILE).is_file():
            report_quietly(directory, say)
    if not finished:
        say(how_to_go_on(directory, trainer.state.global_step))
        return 128 + (stop.signal or signal.SIGINT)
    for line in exam_table(exams.results, view.width) if view is not None else []:
        say(line)
    counts = trainer.counts
    say(
        f"done: {counts['sft_steps']} SFT and {counts['grpo_steps']} GRPO steps, {counts['rollout_tokens']} rollout "
        f"tokens; all of it is in {directory}, to look at in {directory / REPORT_FILE}"
    )
    return 0


def _train_to_the_end(trainer, exams: Exams, trackers: Trackers, checkpoint: Path | None, view, say) -> bool:
    """Returns whether it was reached: a stop request ends a run before."""
    try:
        exams.take("initial", trainer)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if exams.failure is not None:
            raise exams.failure
        finished = is_finished(trainer)
        if trainer.budget_spent:
            say(trainer.budget.reason())
        if finished:
            if trainer.finished_in is None:
                exams.take("final", trainer)  # where no step was left to do
            trackers.end()
            with checkpoints.writing("the model", Path(trainer.args.output_dir)):
                trainer.save_model(trainer.args.output_dir)
    except KeyboardInterrupt:
        finished = False
    finally:
        if view is not None:
            view.stop()
    return finished


def tokenizer_options(name: str, task: Task, settings: Settings) -> dict[str, Any]:
    """What [`sasr.models.load_tokenizer`] needs besides the name. Raises `InputError` for a model that cannot read the
    task."""
    texts = task.vocabulary_texts()
    if name in TINY_MODELS and not texts:
        raise InputError(f"model {name} learns from scratch the words of task stories, not of {task.name}: use another")
    return {
        "revision": settings.model.model_revision,
        "trust_remote_code": settings.training.trust_remote_code,
        "tokenizer_texts": texts,
    }


def check_without_model(settings: Settings, resumed: bool = False) -> str:
    """Raise `InputError` for settings that a run from the command line cannot have, as far as its data, its model and
    other machines need not be asked. Returns the name of the model."""
    args, name = settings.training, settings.model.model_name_or_path
    quantised.check_training(settings.model, args)
    if name is None:
        raise InputError("no model: set model_name_or_path to a hub name, a directory, a GGUF file or tiny-llama")
    check_model(name)
    if is_adapter(expand(name)):
        raise InputError(f"model {name!r}: only a LoRA adapter, merge it into its base model first")
    if args.save_only_model and args.save_strategy != "no":
        raise InputError(
            "save_only_model: a run cannot go on from such checkpoints; leave it out, or set save_strategy no"
        )
    if args.sync_ref_model and settings.model.use_peft:
        raise InputError(
            "sync_ref_model moves the reference model, which with use_peft is the base, and stays: set one to false"
        )
    if args.on_collapse == "rollback" and not (settings.task.exam_every and settings.task.exam_rows):
        raise InputError("on_collapse rollback goes back to the best exam: set exam_every, and exam_rows, to 1 or more")
    others = ", ".join(key for key in args.model_init_kwargs or {} if key != "token")
    if others and not resumed:  # earlier versions took it
        raise InputError(
            f"model_init_kwargs: {others} would not be for the policy: set dtype, attn_implementation or model_revision"
        )
    return name


def check_reward_weights(task: Task, settings: Settings) -> None:
    """Raise `InputError` if there are more or fewer weights than rewards. The default ones are those of the built-in
    tasks: a task with other rewards gets none, so that all count 1."""
    try:
        rewards, weights = task.reward_funcs(), settings.training.reward_weights
    except Exception as error:
        raise InputError(f"task {task.name}: its reward_funcs() failed: {describe(error)}; correct it") from error
    # A text is to TRL the name of a reward model.
    if not isinstance(rewards, list) or not rewards or not all(callable(r) or isinstance(r, str) for r in rewards):
        raise InputError(f"task {task.name}: its reward_funcs() must return a list of functions, not {rewards!r:.80}")
    if weights is None or len(weights) == len(rewards):
        return
    if "reward_weights" not in settings.given:
        settings.training.reward_weights = None
        return
    names = ", ".join(getattr(reward, "__name__", type(reward).__name__) for reward in rewards)
    raise InputError(f"reward_weights has {len(weights)} numbers, but task {task.name} has {len(rewards)} ({names})")


def build_trainer(settings: Settings, model, tokenizer, task, rows, demonstration_rows, directory: Path):
    """The trainer of a run, silent: the live view shows what happens."""
    from trl import get_peft_config

    from .trainer import SASRTrainer

    args = settings.training
    path = getattr(model.config, "_name_or_path", "")
    if not Path(path).is_dir() and (str(path).endswith(".gguf") or not path or path.startswith("tiny-")):
        # TRL loads the reference model, and a user the starting point, by path: models made here get one.
        start = directory / INITIAL_MODEL
        if is_main() and not start.is_dir():
            with checkpoints.writing("the initial model", directory):
                model.save_pretrained(start)
                tokenizer.save_pretrained(start)
        args.distributed_state.wait_for_everyone()  # the others read what this one writes
        model.config._name_or_path = path = str(start)
    if Path(path).is_dir():
        # An adapter names it as its base, and vLLM looks there.
        model.name_or_path = str(Path(path).resolve())
    peft_config = get_peft_config(settings.model)
    revision, given = settings.model.model_revision, args.model_init_kwargs
    if revision not in (None, "main"):
        if peft_config is not None:
            peft_config.revision = revision
        elif args.beta and not Path(path).is_dir():
            # By these TRL loads the reference model, and a reward model that is given by its name.
            if any(isinstance(function, str) for function in task.reward_funcs()):
                raise InputError("model_revision with beta and a reward model by name: download the model first")
            args.model_init_kwargs = {**(given or {}), "revision": revision}
    try:
        trainer = SASRTrainer(
            model=model,
            reward_funcs=task.reward_funcs(),
            args=args,
            train_dataset=_dataset(rows),
            demonstration_dataset=_dataset(demonstration_rows) if demonstration_rows else None,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
    except (ValueError, ImportError) as error:
        # Settings that only TRL, PEFT or an engine can judge, with the model at hand; packages that they need.
        raise InputError(str(error)) from error
    finally:
        # A resumed run is compared by them before there is a trainer.
        args.model_init_kwargs = given
    for callback in progress_callbacks(trainer):
        trainer.remove_callback(callback)
    return trainer


def _dataset(rows: list[Row]) -> Dataset:
    columns = sorted({key for row in rows for key in row})
    return Dataset.from_list([{key: row.get(key) for key in columns} for row in rows])


def config_values(settings: Settings) -> dict[str, Any]:
    """All that was given or that is sasr's own, as plain values, but for tokens of the Hub."""
    values = dict(settings.given)
    for key, value in values.items():  # a mapping that was given as JSON is read as one by all who read the file
        if isinstance(value, str) and isinstance(getattr(settings.training, key, None), dict):
            values[key] = getattr(settings.training, key)
    for group in (settings.task, settings.model, settings.training):
        own = SASRConfig.__annotations__ if group is settings.training else group.__dataclass_fields__
        for key in own:
            values.setdefault(key, getattr(group, key))
    for key in LIMITS:  # for sasr exam; the defaults are not ours
        values.setdefault(key, getattr(settings.training, key))
    values["seed"] = settings.training.seed
    if settings.environment:
        values["env"] = {name: value for name, value in settings.environment.items() if not is_secret(name)}
    # match_run has become sft_share: the other run may be gone by the time this one goes on.
    for key in ("output_dir", "resume_from_checkpoint", "match_run"):
        values.pop(key, None)
    for key in ("data", "demonstrations", "exam_data", "model_name_or_path", "warmup_from"):
        path, colon, part = str(values.get(key) or "").partition(":")  # a folder may have configurations
        if colon and Path(path).is_dir():
            values[key] = f"{Path(path).resolve()}:{part}"
        elif values.get(key) and Path(str(values[key])).exists():
            values[key] = str(Path(str(values[key])).resolve())
    return {k: _plain(v) for k, v in without_hub_tokens(values).items() if v is not None}


def config_text(settings: Settings) -> str:
    """`config.yaml`, so that `sasr train --config` runs it again."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("sasr", "trl", "transformers", "torch"))
    # An argument may have lines of its own, as JSON does: they are to stay a comment.
    command = "\n#   ".join(shlex.join(redacted_command(sys.argv[1:])).splitlines())
    header = f"{CONFIG_HEAD}{command}\n# {versions}\n# Run it again: sasr train --config THIS_FILE\n"
    return header + yaml.safe_dump(config_values(settings), sort_keys=True, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
