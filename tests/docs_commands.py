"""The commands of README and docs/, checked with the real parsers and the settings checks of the commands themselves,
without a training. A place (see `make_place`) holds the files and runs that they name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import report_data
import sasr.cli
import toy
from sasr.check.command import _read
from sasr.checkpoints import STATE_FILE
from sasr.compare import check, command
from sasr.compare.reading import read
from sasr.exam.command import _check_model
from sasr.exam.questions import demonstrations, exam_rows
from sasr.exam.request import read_request
from sasr.models import check_model
from sasr.parsing import Parser, parse
from sasr.report import REPORT_FILE, describe
from sasr.rollout_engine import SERVER_COMMAND
from sasr.rows import RowReader, all_rows, collect_rows
from sasr.run import check_reward_weights
from sasr.tasks import get_task
from test_tasks_datasets import GSM8K, KK

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MATH = {"problem": "p", "solution": r"1 + 1 = 2 so \boxed{2}", "level": "Level 2", "type": "Algebra"}
OWN = {"prompt": "1+1=", "completion": "2", "answer": "2", "difficulty": 1}
FILES = {"rows": OWN, "train": GSM8K, "test": GSM8K, "math": MATH, "3ppl_train": KK, "3ppl_test": KK}


@dataclass(frozen=True)
class Command:
    """One command of a page, as a shell would split it, without what stands for more settings (`...`), `N` being 1."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def commands() -> Iterator[Command]:
    """Every line of the ```bash blocks, and what stands `in line` and begins with one of these programs."""
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        text = path.read_text()
        lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        programs = (
            r"(?:sasr (?:train|check|exam|compare|runs|report)|make|pip install|torchrun|accelerate launch|python) "
        )
        inline = re.findall(rf"(?<!`)`({programs}[^`]+)`", prose)
        for line in [*lines, *(" ".join(text.split()) for text in inline)]:
            for part in line.split(" && "):
                words = ["1" if word == "N" else word for word in shlex.split(part, comments=True) if word != "..."]
                if words:
                    yield Command(page, tuple(words))


def make_place() -> None:
    """What the commands name, in the working directory: data, runs, an exam, a comparison. Made without a training:
    `test_docs.py` and the tests of each command run some for real."""
    for name, record in FILES.items():
        asked = [key for key in ("prompt", "question", "problem", "quiz") if key in record]
        more = [{**record, key: f"{record[key]} {i}"} for i in range(30) for key in asked]
        _write_lines(f"{name}.jsonl", [record, *more])
    _write_lines("words.jsonl", [{"word": f"{i}{i}1"} for i in range(40)])
    for name in ("docs", "benchmarks", "Makefile"):
        Path(name).symlink_to(ROOT / name)
    toy.model(directory=Path("models/SmolLM2-135M-Instruct"))
    settings = {"schedule": "sasr", "train_rows": 60, "exam_rows": 6, "sft_warmup_steps": 3, "max_steps": 8}
    for name, task in (("stories-1", {}), ("short", {}), ("gsm8k-1", {"task": "gsm8k", "data": "train.jsonl"})):
        run = report_data.run(Path("runs") / name, steps=8, exams=2, **(settings | task))
        for place in (run, run / "initial_model", run / "checkpoint-650"):
            shutil.copytree("models/SmolLM2-135M-Instruct", place, dirs_exist_ok=True)
        (run / "checkpoint-650" / STATE_FILE).write_text("{}")
    Path("exams/stories-1-1").mkdir(parents=True)
    exam = {"settings": {"model": "runs/stories-1", "task": "stories", "n": 2}, "versions": {}, "figures": None}
    Path("exams/stories-1-1/exam.json").write_text(json.dumps(exam))
    Path("runs/compare-stories-1").mkdir()
    shutil.copy(ROOT / "docs" / "results" / "compare-stories" / "results.json", "runs/compare-stories-1")
    Path("DIR").mkdir()
    recipe = {"task": "stories", "max_steps": 4, "sft_warmup_steps": 2, "model_name_or_path": "tiny-llama"}
    methods = {"config": None, "methods": ["sft"], "seeds": None, "budget": None, "baseline": None}
    Path("DIR/comparison.yaml").write_text(check.comparison_text(read(recipe, "test", {}, methods)))
    Path("my_task.py").write_text(blocks(ROOT / "docs" / "tasks.md", "python")[0])
    Path("my_rule.py").write_text(blocks(ROOT / "docs" / "schedules.md", "python")[0])
    for name in ("config.yaml", "comparison.yaml"):
        shutil.copy("runs/stories-1/config.yaml" if name == "config.yaml" else "DIR/comparison.yaml", name)


def _write_lines(path: str, records: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(one) + "\n" for one in records))


def run_check(words: tuple[str, ...]) -> None:
    """Raise for a command that would be refused: `InputError`, `AssertionError`, or argparse's `SystemExit`."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    checks = {"make": _make, "pip": _pip, "python": _python, "vllm": _vllm}
    checks |= {"torchrun": _torchrun, "accelerate": _accelerate}
    if program == "sasr":
        _sasr(rest)
    else:
        assert program in checks, f"no check for {program}: add one, or the command to NOT_CHECKED with a reason"
        checks[program](rest)


def _vllm(words: list[str]) -> None:
    asked_for = shlex.split(SERVER_COMMAND)[2:]
    assert words == [words[1] if word == "MODEL" else word for word in asked_for]


def _sasr(words: list[str]) -> None:
    name, *argv = words
    kinds = {"train": _train, "check": _check, "exam": _exam, "compare": _compare, "runs": _runs, "report": _report}
    assert name in kinds or words == ["--version"], f"no command {name}"
    if name in kinds and not {"-h", "--help", "--help_all"} & set(argv):
        kinds[name](argv)


def _train(argv: list[str]) -> None:
    argv, _, defaults, _ = sasr.cli._resume(argv)
    settings = parse(["--output_dir", "unused", *argv], defaults)
    task = get_task(settings.task.task, settings.task.task_options)
    check_reward_weights(task, settings)
    if settings.model.model_name_or_path is not None:
        check_model(settings.model.model_name_or_path)
    if (settings.task.data or task.generates) and _is_local(settings.task.data):
        collect_rows(task, settings.task, settings.training)


def _check(argv: list[str]) -> None:
    settings, _ = _read(argv)
    task = get_task(settings.task.task, settings.task.task_options)
    if settings.model.model_name_or_path is not None:
        check_model(settings.model.model_name_or_path)
    if (settings.task.data or task.generates) and _is_local(settings.task.data):
        all_rows(RowReader(task), settings.task, settings.training.seed)


def _is_local(data: str | None) -> bool:
    return data is None or ".jsonl" in data  # a file that is missing is an error, a name on the Hub is not looked up


def _exam(argv: list[str]) -> None:
    request = read_request(argv)
    task = get_task(request.task, request.task_options)
    for name in (request.model, request.initial_model):
        if name is not None:
            _check_model(name)
    if request.data is not None or request.run is not None or task.generates:
        exam_rows(task, request)
    for kind in request.perturb:
        assert kind == "all" or kind in task.perturbations(), kind
    if request.nll_task is not None:
        demonstrations(request)


def _compare(argv: list[str]) -> None:
    options, rest = command._options(argv)
    flags = command._settings(rest)
    recipe, source, _ = command._recipe(options, flags)
    comparison = read(check.plain(recipe), source, check.plain(flags), vars(options))
    command._jobs(options.jobs, comparison.budget)
    check.check_runs(comparison)


def _runs(argv: list[str]) -> None:
    # A reader's own directories are not here.
    assert sasr.cli.main(["runs", *("runs" if word.startswith("/") else word for word in argv)]) == 0


def _report(argv: list[str]) -> None:
    assert sasr.cli.main(["report", *argv]) == 0
    directory = Path(argv[0])
    assert describe(directory, directory / REPORT_FILE)


def _make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        name, given, value = word.partition("=")
        assert (name in ("ARGS", "PYTHON")) if given else name in targets, f"make has no {word}"
        if name == "ARGS" and words[0] == "demo":
            _train(shlex.split(value))


def _pip(words: list[str]) -> None:
    assert words[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"(?:sasr|\.)\[([\w,]+)\]", " ".join(words)):
        assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"there is no extra {extra}"


def _python(words: list[str]) -> None:
    if words[:2] == ["-m", "sasr"]:
        _sasr(words[2:])
    else:
        assert (ROOT / words[0]).is_file(), f"there is no script {words[0]}"


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    _launched(get_args_parser().parse_args(words))


def _accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    _launched(launch_command_parser().parse_args(words[1:]))


def _launched(launch) -> None:
    assert launch.module and launch.training_script == "sasr", "start it with -m sasr"
    assert any(word.startswith("--output_dir") for word in launch.training_script_args), "several processes need one"
    _sasr(launch.training_script_args)


def known_flags() -> set[str]:
    """Every flag of sasr, and those of other programs that the pages speak of."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    parsers = (Parser(), get_args_parser(), launch_command_parser())
    found = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    usages = [sasr.cli._USAGE, command.USAGE]
    from sasr.check.command import USAGE as check_usage
    from sasr.exam.command import USAGE as exam_usage
    from sasr.report.command import USAGE as report_usage
    from sasr.runs.command import USAGE as runs_usage

    for text in [*usages, check_usage, exam_usage, report_usage, runs_usage]:
        found |= set(re.findall(r"--\w+", text))
    return found
