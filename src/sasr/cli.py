"""The command line: `sasr train`, `check`, `compare`, `exam`, `runs`, `report`. Thin: it finds the settings, runs,
and makes errors one line."""

from __future__ import annotations

import atexit
import errno
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .disconnect import lasting_output
from .errors import InputError, RunFailed
from .flags import set_environment, value_of, with_underscores, without_resume

_USAGE = """\
usage: sasr train [--config RECIPE] [--SETTING VALUE ...]
       sasr train --help | --help_all
       sasr check --help
       sasr compare --help
       sasr exam --help
       sasr runs [DIR ...]
       sasr report DIR
       sasr --version

SFT warm-up, then SFT or GRPO at every step, decided from the training state (SASR, arXiv 2505.13026).

  sasr train                        a tiny model learns a built-in task, from scratch, on a CPU
  sasr train --config gsm8k         a recipe that comes with sasr, or your own YAML file
  sasr train --task jsonl --data rows.jsonl --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --sft_warmup_steps 50
  sasr check --config gsm8k         what is in the data, and what is wrong with it, before a training
  sasr compare                      methods x seeds at an equal budget, with a table of what the difference is worth
  sasr exam --model runs/stories-1  accuracy, pass@k, diversity and more of a run, a checkpoint or any other model
  sasr runs                         what there is in runs/ and exams/, how far each got, and how to go on
  sasr report runs/stories-1        all that a run, an exam or a comparison shows, on one page
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command. Returns the exit status: 0; 1 if a run failed or `sasr check` found problems;
    2 after wrong input; 129, 130 or 143 if it was stopped (a closed terminal, Ctrl-C, SIGTERM)."""
    with lasting_output():
        status = _status(sys.argv[1:] if argv is None else argv)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _leave(status)
    return status


def _status(argv: list[str]) -> int:
    try:
        return _dispatch(argv)
    except (InputError, RunFailed) as error:
        from .report.text import visible

        word, status = ("error", 2) if isinstance(error, InputError) else ("failed", 1)
        # What a message quotes from data or a model's files could move the cursor, or clear the screen.
        print(f"sasr: {word}: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return status
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP):
            raise
        print(f"sasr: error: {str(error.filename)[:200]}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sasr: stopped; what is on disk can be resumed with --resume_from_checkpoint", file=sys.stderr)
        return 130


def _leave(status: int) -> NoReturn:
    """End one of several processes without taking Python apart: gloo's threads may still hold tensors, and abort the
    process when they let go of them then (github.com/pytorch/pytorch/pull/179291)."""
    atexit._run_exitfuncs()  # trackers finish their uploads there
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _dispatch(argv: list[str]) -> int:
    if argv in (["--version"], ["-V"]):
        from . import __version__

        print(f"sasr {__version__}")
        return 0
    argv = [with_underscores(word) for word in argv]
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    commands = {"train": _train, "check": _check, "compare": _compare, "exam": _exam, "runs": _runs, "report": _report}
    if argv[0] not in commands:
        names = ", ".join(commands)
        raise InputError(f"unknown command {argv[0]!r}: the commands are {names} (see sasr --help)")
    if importlib.util.find_spec("fcntl") is None:  # directories are locked with it
        raise InputError("sasr needs Linux or macOS (here Python has no fcntl): on Windows run it in WSL")
    set_environment(argv)
    return commands[argv[0]](argv[1:])


def _check(argv: list[str]) -> int:
    from .check.command import USAGE, check

    return _run_or_help(check, USAGE, argv)


def _compare(argv: list[str]) -> int:
    from .compare.command import USAGE, compare

    return _run_or_help(compare, USAGE, argv)


def _exam(argv: list[str]) -> int:
    from .exam.command import USAGE, exam

    return _run_or_help(exam, USAGE, argv)


def _runs(argv: list[str]) -> int:
    from .runs.command import USAGE, runs

    return _run_or_help(runs, USAGE, argv, quiet=False)


def _report(argv: list[str]) -> int:
    from .report.command import USAGE, report

    return _run_or_help(report, USAGE, argv, quiet=False)  # nothing to quieten, which takes seconds


def _run_or_help(command: Callable[[list[str]], int], usage: str, argv: list[str], quiet: bool = True) -> int:
    if "-h" in argv or "--help" in argv:
        print(usage)
        return 0
    if quiet:
        _quiet()
    return command(argv)


def _train(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        from .train_help import train_help

        print(train_help(_USAGE))
        return 0
    _quiet()
    from .parsing import Parser, parse
    from .run import train
    from .run_directory import remove_empty

    if "--help_all" in argv:
        print(Parser().format_help())
        return 0
    argv, checkpoint, defaults, again = _resume(argv)
    made: list[Path] = []
    if value_of(argv, "--output_dir") is None:
        argv = [*argv, "--output_dir", str(_new_directory(argv, made))]
    try:
        return train(parse(argv, defaults), checkpoint, again)
    finally:
        remove_empty(made)  # of a run that was refused


def _resume(argv: list[str]) -> tuple[list[str], Path | None, dict | None, bool]:
    """Resolve `--resume_from_checkpoint [PATH]`: what is left of the arguments; the checkpoint; the settings of its run
    as defaults; and whether the run of `--output_dir` has none yet, and has to begin again."""
    from .checkpoints import later_note, lies_in, newest_whole
    from .model_files import expand
    from .parsing import read_recipe
    from .run_directory import CONFIG_FILE, origin_of
    from .terminal import is_main

    flag = "--resume_from_checkpoint"
    rest, resumes, value = without_resume(argv)
    if not resumes:
        return rest, None, None, False
    say: Callable[[str], None] = print if is_main() else lambda text: None
    given, again = value_of(rest, "--output_dir"), False
    where = expand(given) if given else None  # as transformers does
    origin = None if where is None else origin_of(where)
    if value is not None and origin == expand(value).resolve():
        value = None  # the command that began the run there, once more
    if value is None:
        if where is None:
            raise InputError(f"{flag}: name the run with --output_dir, or give a checkpoint")
        checkpoint = newest_whole(where, say)
        if checkpoint is None and not (where / CONFIG_FILE).is_file():
            if not _may_begin(rest, where):
                raise InputError(f"no checkpoint to resume from in {given}: leave {flag} out to begin a run")
            say(f"{given} holds no run yet: beginning one")
            return rest, None, None, False
        if checkpoint is None:
            checkpoint, again = origin, True
            if origin is not None and not origin.is_dir():
                raise InputError(
                    f"{given} has no checkpoint of its own yet, and {origin}, where it began, is gone: put it back, or "
                    "begin another run in another output_dir"
                )
    else:
        checkpoint = expand(value)
        if not checkpoint.is_dir():
            raise InputError(f"{flag}: there is no checkpoint {value}")
        if (checkpoint / CONFIG_FILE).is_file():
            raise InputError(f"{flag}: {value} is a run, not a checkpoint: give --output_dir {value} {flag}")
        in_place = where is None or lies_in(checkpoint, where)
        if in_place and is_main() and (note := later_note(checkpoint)):
            print(note)
    directories = ([where] if where is not None else []) + ([checkpoint.parent] if checkpoint is not None else [])
    if given is None:
        rest = [*rest, "--output_dir", str(directories[0])]
    configs = [d / CONFIG_FILE for d in directories if (d / CONFIG_FILE).is_file()]
    defaults = read_recipe(str(configs[0])) if configs else None
    return rest, checkpoint, defaults, again


def _may_begin(flags: list[str], directory: Path) -> bool:
    """Whether a command that asks to go on begins a run where there is none, as the first start of a job script does,
    or the one after a kill that came before the run had written anything: it has settings, and the directory nothing
    but what that left. Where no directory is, which may be a slip, the settings say what to train."""
    from .run_directory import is_free
    from .terminal import is_main

    names = {word.partition("=")[0] for word in flags if word.startswith("--")} - {"--output_dir"}
    if is_main() and not directory.exists():  # to the others it may be there already
        names &= {"--config", "--task", "--data", "--model_name_or_path"}
    elif is_main() and not (directory.is_dir() and is_free(directory)):
        return False
    return bool(names)


def _new_directory(argv: list[str], made: list[Path]) -> Path:
    """`runs/NAME-N`, the first that is free, unless the recipe names one. It is made here, and added to `made` together
    with `runs` (see [`make_numbered`])."""
    from .parsing import read_recipe
    from .run_directory import make_numbered

    recipe = value_of(argv, "--config")
    if recipe is not None and (named := read_recipe(recipe).get("output_dir")):
        return Path(str(named))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes need to agree on a directory: give --output_dir")
    name = Path(recipe).stem if recipe else value_of(argv, "--task") or "stories"
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).lstrip(".-") or "run"  # never a hidden one
    directory, new = make_numbered("runs", name)
    made += new
    return directory


def _quiet() -> None:
    """The libraries' banners and progress bars would break the live view; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    import datasets
    import transformers

    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("trl", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
