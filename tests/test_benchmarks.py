"""The benchmarks measure what they say: trainers that take turns do what each does alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import toy

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import turns

    return turns


def test_trainers_that_take_turns_do_what_they_do_alone(tmp_path, turns):
    kinds = {"sasr": {"gamma": 1.0}, "grpo": {"schedule": "grpo", "sft_warmup_steps": 0, "max_steps": 8}}
    keys = ("loss", "grad_norm", "sasr/rollout_tokens")
    alone = {}
    for name, changes in kinds.items():
        trainer = toy.trainer(tmp_path / name, **changes)
        trainer.train()
        alone[name] = toy.history(trainer, *keys)
    made = {name: (lambda changes=changes: changes) for name, changes in kinds.items()}
    build = {name: (lambda changes, name=name: toy.trainer(tmp_path / f"{name}-2", **changes)) for name in kinds}
    steps, trainers = turns.take_turns(made, build, skipped=2)
    assert {name: toy.history(trainer, *keys) for name, trainer in trainers.items()} == alone
    assert {name: len(found) for name, found in steps.items()} == {"sasr": 9, "grpo": 5}
    assert all(step.wall > 0 for found in steps.values() for step in found)


def test_a_failing_trainer_ends_the_benchmark(tmp_path, turns):
    def fails(*args, **kwargs):
        raise RuntimeError("out of chalk")

    build = {"first": lambda _: toy.trainer(tmp_path), "second": lambda _: toy.trainer(tmp_path, rewards=fails)}
    with pytest.raises(SystemExit, match=r"(?s)second: .*out of chalk"):
        turns.take_turns(dict.fromkeys(build, lambda: None), build, skipped=0)


def test_spread_by_hand(turns):
    spread = turns.Spread.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (spread.median, spread.quartiles, spread.count) == (3.0, (2.0, 4.0), 5)
    assert 1.0 <= spread.interval[0] <= 3.0 <= spread.interval[1] <= 100.0


def test_sft_benchmark_gives_both_the_same_rows(tmp_path, turns, monkeypatch):
    import sft_step

    monkeypatch.setattr(sys, "argv", ["sft_step.py", "--quick", "--accumulation", "2", "--json", str(tmp_path / "out")])
    sft_step.main()
    found = json.loads((tmp_path / "out").read_text())
    assert found["loss_difference"] < 1e-5
    assert {len(steps) for steps in found["steps"].values()} == {2}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_benchmark_can_be_started(turns, name):
    """With its imports, which nothing else uses."""
    assert callable(getattr(__import__(name), "main", None)) or name == "turns"
