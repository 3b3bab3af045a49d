"""One run at a time in a directory, from the moment that it is chosen."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import yaml

import sasr.cli
import sasr.run
from refusals import SMALL
from sasr import locks

pytestmark = pytest.mark.usefixtures("clean")
UNNAMED = [*SMALL[2:], "--max_steps", "2"]


def seed_of(directory: str) -> int:
    return yaml.safe_load((Path(directory) / "config.yaml").read_text())["seed"]


def test_a_second_run_leaves_alone_one_that_is_loading(monkeypatch, capsys):
    """Both would have found the directory free: neither has trained yet."""
    load, loaded = sasr.run.load_model, []

    def loading(*args, seed, **kwargs):
        loaded.append(seed)
        if seed == 1:
            assert sasr.cli.main(["train", *UNNAMED, "--output_dir", "runs/stories-1", "--seed", "2"]) == 2
            assert sasr.cli.main(["train", *UNNAMED, "--seed", "3"]) == 0
            capsys.readouterr()
            assert sasr.cli.main(["runs"]) == 0
            assert "skipped runs/stories-1: a run is beginning there" in capsys.readouterr().err
        return load(*args, seed=seed, **kwargs)

    monkeypatch.setattr(sasr.run, "load_model", loading)
    assert sasr.cli.main(["train", *UNNAMED, "--seed", "1"]) == 0
    assert loaded == [1, 3]
    assert (seed_of("runs/stories-1"), seed_of("runs/stories-2")) == (1, 3)
    assert locks.outcome(Path("runs/stories-1")) == "finished"


def test_the_refusal_says_who_is_there(error):
    Path("run").mkdir()
    with locks.hold(Path("run"), "test"):
        assert "output_dir run is in use by another sasr train: wait for its end" in error(*SMALL)
    assert os.listdir("run") == [".lock"]  # of the one who was there


def test_names_are_taken_one_by_one(monkeypatch):
    """Four runs started at once, none of which has written anything yet."""
    found, made = [], [[] for _ in range(4)]
    together = threading.Barrier(4)

    def choose(number):
        together.wait()
        found.append(str(sasr.cli._new_directory([], made[number])))

    threads = [threading.Thread(target=choose, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"runs/stories-{number}" for number in (1, 2, 3, 4)]


def test_a_file_in_the_place_of_runs_is_told(error):
    Path("runs").write_text("")
    assert "cannot be written" in error(*UNNAMED)


def test_a_refused_resumption_leaves_the_outcome(error):
    """How the run ended is not known any more once the file of the lock is emptied, and nor is that it is a copy."""
    for outcome in ("stopped", None):
        run = Path(f"run-{outcome}")
        run.mkdir()
        (run / "config.yaml").write_text("seed: 1\n")
        if outcome:
            (run / ".lock").write_text(outcome)
        assert "no model" in error(*UNNAMED, "--output_dir", str(run), "--resume_from_checkpoint")
        assert locks.outcome(run) == outcome


def test_a_lock_whose_file_is_taken_away_is_taken_anew(tmp_path):
    """A second run waits while a first one is refused, and then has the directory, and nobody else."""
    first, second = locks.hold(tmp_path, "test"), []
    thread = threading.Thread(target=lambda: second.append(locks.hold(tmp_path, "test")))
    thread.start()
    time.sleep(0.1)
    (tmp_path / ".lock").unlink()
    first.close()
    thread.join()
    assert locks.is_held(tmp_path)
    second[0].close()
    assert not locks.is_held(tmp_path)
