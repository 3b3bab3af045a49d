"""What several test files share."""

from __future__ import annotations

import json
import multiprocessing.util
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import zygote

zygote.install()

# The same examples each time: a change is judged by what it changed. Times are those of shared machines.
settings.register_profile("sasr", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sasr")

pytest.register_assert_rewrite("recorded_steps", "refusals", "small_exam", "vllm_runs")


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory):
    """Where libraries and commands put temporary files, which some of them leave: they go with those of the tests."""
    multiprocessing.util.get_temp_dir()  # not in there: it is removed when this process ends, which is later
    directory = tmp_path_factory.mktemp("t", numbered=False)  # short: sockets are made in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(directory))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture
def environment(monkeypatch):
    """One process, not one of several; and what the command line sets in the environment does not outlive the test."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in zygote.DEFAULTS.items():
        monkeypatch.setenv(name, os.environ.get(name, value))


@pytest.fixture
def clean(environment, tmp_path, monkeypatch):
    """An empty directory to work in, and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def error(monkeypatch, capsys):
    """`error(*flags)`: the message with which `sasr train` refuses them, after checking its form."""
    import sasr.cli
    import sasr.run
    from refusals import checked

    def refused(*flags: str) -> str:
        def loaded(*args, **kwargs):
            raise AssertionError("the model was loaded before the error was found")

        capsys.readouterr()  # the progress bars with which a fixture saved a model
        with monkeypatch.context() as patch:
            patch.setattr(sasr.run, "load_model", loaded)
            status = sasr.cli.main(["train", *flags])
        out, err = capsys.readouterr()
        return checked(status, out, err)

    return refused


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A short run with checkpoints at steps 2 and 4, made as `run` in the current directory."""
    import sasr.cli
    from refusals import SMALL

    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory.parent)
        assert sasr.cli.main(["train", *SMALL, "--output_dir", "run"]) == 0
    return directory


@pytest.fixture(scope="session")
def exam_place(tmp_path_factory) -> Path:
    """A directory with two models and a file of rows."""
    import toy
    from small_exam import ROWS

    where = tmp_path_factory.mktemp("exam")
    toy.model(0, where / "lm")
    toy.model(1, where / "start")
    rows = [{**row, "difficulty": i % 2} for i, row in enumerate(toy.rows(ROWS))]
    for i, row in enumerate(rows):
        row["answer"] = "0123456789"[i % 10]  # one digit, so that a random model hits some
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


@pytest.fixture
def in_exam_place(exam_place, environment, monkeypatch):
    """To work in it."""
    monkeypatch.chdir(exam_place)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def whole_exam(exam_place) -> Path:
    """An exam without a stop, in this process."""
    import sasr.cli
    from small_exam import EXAM, MORE

    before = Path.cwd()
    os.chdir(exam_place)
    try:
        assert sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", "whole"]) == 0
    finally:
        os.chdir(before)
    return exam_place / "whole"
