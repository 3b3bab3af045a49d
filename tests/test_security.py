"""What SECURITY.md says: nothing of a model, a checkpoint, a row or a completion is run, and where code could be."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import torch
from rich.console import Console

import sasr.cli
import toy
from refusals import JSONL, ROW, SMALL, checked
from sasr.exam.view import ExamView

pytestmark = pytest.mark.usefixtures("clean")
ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

# ---- the sources ----

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "tempfile.mktemp", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all",
    "builtins.eval", "builtins.exec",
}  # fmt: skip
SAFE_LOADERS = {"yaml", "SafeLoader", "CSafeLoader", "getattr"}
UNSAFE_WORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}


def name_of(node: ast.expr) -> str:
    """`torch.load` of `torch.load(...)`."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_safe_yaml(call: ast.Call) -> bool:
    loaders = [*call.args[1:], *(word.value for word in call.keywords if word.arg == "Loader")]
    words = {part.id for loader in loaders for part in ast.walk(loader) if isinstance(part, ast.Name)}
    words |= {part.attr for loader in loaders for part in ast.walk(loader) if isinstance(part, ast.Attribute)}
    return bool(words & {"SafeLoader", "CSafeLoader"}) and words <= SAFE_LOADERS


def unsafe(source: str) -> Iterator[str]:
    """What in a source can run code that comes from data, as text with the line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in UNSAFE_MODULES:
                    yield f"{node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {alias.name for alias in node.names}
            # A name of an exception loads nothing.
            if module.partition(".")[0] in UNSAFE_MODULES and names != {"UnpicklingError"}:
                yield f"{node.lineno}: from {module}"
            for name in names:
                if f"{module}.{name}" in {*UNSAFE_CALLS, "torch.load", "yaml.load"}:
                    yield f"{node.lineno}: from {module} import {name}"
        elif isinstance(node, ast.Call):
            called, words = name_of(node.func), {word.arg: word.value for word in node.keywords}
            if called in UNSAFE_CALLS:
                yield f"{node.lineno}: {called}"
            if called == "torch.load" and not is_true(words.get("weights_only")):
                yield f"{node.lineno}: torch.load without weights_only=True"
            if called == "yaml.load" and not is_safe_yaml(node):
                yield f"{node.lineno}: yaml.load"
            for word in UNSAFE_WORDS:
                if is_true(words.get(word)):
                    yield f"{node.lineno}: {word}=True"


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", True), ("import os, dill.settings", True), ("from pickle import loads", True),
        ("from pickle import UnpicklingError", False), ("eval(x)", True), ("exec(x)", True), ("model.eval()", False),
        ("torch.load(f)", True), ("torch.load(f, weights_only=False)", True), ("torch.load(f, weights_only=w)", True),
        ("torch.load(f, weights_only=True)", False), ("from torch import load", True), ("yaml.load(t)", True),
        ("yaml.load(t, yaml.Loader)", True), ("yaml.load(t, Loader=yaml.FullLoader)", True),
        ("yaml.load(t, getattr(yaml, 'CSafeLoader', yaml.SafeLoader))", False), ("yaml.safe_load(t)", False),
        ("yaml.unsafe_load(t)", True), ("os.system(c)", True), ("subprocess.run(c, shell=True)", True),
        ("subprocess.run([c])", False), ("load(n, trust_remote_code=True)", True),
        ("np.load(f, allow_pickle=True)", True), ("re.compile(p)", False),
        ("compile(p, '', 'exec')", True), ("from os import system", True),
    ],
)  # fmt: skip
def test_what_counts_as_unsafe(source, found):
    assert bool(list(unsafe(source))) == found


def test_the_sources_run_nothing_that_comes_from_data():
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): list(unsafe(path.read_text())) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_code_of_the_users_own_is_imported_in_one_place():
    """Where a name from the command line or a recipe becomes code; the others import parts of sasr when first used."""
    importing = {
        str(path.relative_to(ROOT / "src" / "sasr"))
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and name_of(node.func).endswith((".import_module", ".exec_module"))
    }
    assert importing == {"plugins.py", "__init__.py", "exam/__init__.py"}


def test_the_page_makes_no_markup_of_text():
    scripts = [path.read_text() for path in (ROOT / "src/sasr/report/page").glob("*.js")]
    assert len(scripts) == 2 and "textContent" in "".join(scripts)
    for word in (r"innerHTML", r"outerHTML", r"insertAdjacentHTML", r"document\.write", r"\beval\(", r"new Function"):
        assert not any(re.search(word, script) for script in scripts), word


# ---- models and checkpoints ----


class Bomb:
    """Unpickled, it makes the directory `ran` here."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def error_of(capsys, *command: str) -> str:
    """The one line with which a command refuses; that it says before what it does at first is none of it."""
    capsys.readouterr()
    status = sasr.cli.main(list(command))
    assert not Path("ran").exists(), "code from a file was run"
    return checked(status, "", capsys.readouterr().err)


def rows() -> list[str]:
    Path("rows.jsonl").write_text(ROW * 4)
    return ["--task", "jsonl", "--data", "rows.jsonl"]


def test_the_bomb_is_one():
    torch.save(Bomb(), "bomb.pt")
    torch.load("bomb.pt", weights_only=False)
    assert Path("ran").is_dir()


def test_a_model_of_pickled_weights_is_refused(capsys):
    toy.model(0, Path("lm"))
    Path("lm/model.safetensors").unlink()
    torch.save(Bomb(), "lm/pytorch_model.bin")
    for command in (["train", *SMALL, "--model_name_or_path", "lm"], ["exam", "--output_dir", "out", "--model", "lm"]):
        assert "only .bin weights, which are not read; convert them" in error_of(capsys, *command, *rows())


def test_code_that_comes_with_a_model_is_not_run(capsys):
    toy.model(0, Path("lm"))
    config = json.loads(Path("lm/config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    Path("lm/config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    Path("lm/own.py").write_text("import os\nos.mkdir('ran')\n")
    for command in (["train", *SMALL, "--model_name_or_path", "lm"], ["exam", "--output_dir", "out", "--model", "lm"]):
        assert "model 'lm'" in error_of(capsys, *command, *rows())


def test_a_chat_template_sees_no_python():
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(jinja2.exceptions.SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False)


@pytest.mark.parametrize("name", ["sasr_tensors_0.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run(finished_run, capsys, name):
    run = Path(shutil.copytree(finished_run, "run"))
    shutil.rmtree(run / "checkpoint-4")
    torch.save(Bomb(), run / "checkpoint-2" / name)
    (run / "checkpoint-2" / "sasr_files.json").unlink()  # else the file's size gives it away
    message = error_of(capsys, "train", "--output_dir", "run", "--resume_from_checkpoint")
    assert "run/checkpoint-2" in message and "holds code, which is not run" in message


def test_tensors_of_a_checkpoint_that_are_damaged(finished_run, capsys):
    run = Path(shutil.copytree(finished_run, "run"))
    tensors = run / "checkpoint-4" / "sasr_tensors_0.pt"
    tensors.write_bytes(b"1" * tensors.stat().st_size)
    message = error_of(capsys, "train", "--resume_from_checkpoint", "run/checkpoint-4")
    assert "sasr_tensors_0.pt is damaged" in message and "earlier checkpoint" in message


def test_the_task_of_a_run_is_no_code_that_is_run_unasked(capsys):
    """The one file beside a model that can name code."""
    toy.model(0, Path("lm"))
    own = f"{Path('own.py').absolute()}:Own"
    Path("lm/config.yaml").write_text(f"task: {own}\nschedule: sasr\n")
    Path("own.py").write_text("import os\nos.mkdir('ran')\nfrom sasr.tasks import JsonlTask as Own\n")
    command = ["exam", "--model", "lm", "--data", "rows.jsonl", "--n", "1", "--max_new_tokens", "2"]
    message = error_of(capsys, *command, "--output_dir", "a")
    assert message.endswith(f"its run's task {own} is code; to run it, name it: --task {own}")
    assert sasr.cli.main([*command, *rows(), "--output_dir", "b"]) == 0
    assert not Path("ran").exists()
    assert sasr.cli.main([*command, "--task", own, "--output_dir", "c"]) == 0
    assert Path("ran").is_dir()


# ---- data ----


def test_a_row_cannot_move_the_cursor(capsys):
    Path("rows.jsonl").write_text(json.dumps({"\x1b[2J\x9b1A\u202e": "x"}))
    message = error_of(capsys, "train", *SMALL, *JSONL, "--data", "rows.jsonl")
    assert message.isprintable() and r"\u001b[2J\u009b1A\u202e" in message


@pytest.mark.parametrize("terminal", [True, False])
def test_a_difficulty_cannot_either(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, no_color=True, width=70, legacy_windows=False)
    ExamView(console).table([["measure", "value"], ["difficulty \x1b[2J\x9b1A\u202e", "0.5"]])
    shown = console.file.getvalue()
    assert "difficulty [2J1A" in shown
    assert not [signs for signs in ("\x1b[2J", "\x9b", "\u202e") if signs in shown]


# ---- what is said ----


def test_what_security_md_names_is_there():
    """That its links lead somewhere is in test_docs.py."""
    named = re.findall(r"\[[\w/.]+: ([\w.]+)\]\(([^)]+)\)", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    for name, link in named:
        defined = rf"^ *(def|class) {name.rpartition('.')[2]}\b"
        assert re.search(defined, (ROOT / link).read_text(), re.MULTILINE), f"{link} has no {name}"
