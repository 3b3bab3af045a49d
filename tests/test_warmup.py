"""A warm-up that ends by itself: the rule on curves that can be told by hand, and in the real trainer."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from sasr import InputError
from sasr.warmup import EVERY, FRACTION, Warmup, slope, window_of
from test_resume import assert_same, outcome


def run(losses, longest=200, **settings) -> Warmup:
    warmup = Warmup(longest, "plateau", **settings)
    for step, loss in enumerate(losses):
        if step >= warmup.bound:
            break
        warmup.observe(step, loss)
    return warmup


def knee(at: int, count: int = 400) -> list[float]:
    """Falls by 3% a step up to a knee, by 0.1% from there on."""
    return [math.exp(-0.03 * min(i, at) - 0.001 * max(i - at, 0)) for i in range(count)]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_slope_is_the_least_squares_slope(values):
    expected = np.polyfit(range(len(values)), values, 1)[0]
    assert slope(values) == pytest.approx(expected, abs=1e-8, rel=1e-6)


def test_slope_by_hand():
    assert slope([1.0, 3.0, 5.0]) == 2.0
    assert slope([0.0, 0.0, 3.0]) == 1.5


def test_a_number_of_steps_is_just_that():
    warmup = Warmup(7)
    assert (warmup.steps, warmup.bound, warmup.reason) == (7, 7, "")
    assert [warmup.ends_at(step) for step in (0, 6, 7, 8)] == [False, False, True, False]
    assert [warmup.annealing(step) for step in (6, 7)] == [False, True]
    warmup.observe(3, 0.1)
    assert warmup == Warmup(7)
    assert not Warmup(0).ends_at(0)


@pytest.mark.parametrize("at", [60, 90, 120])
def test_it_ends_within_a_window_after_the_knee(at):
    """The slope of the window falls to a quarter when about three quarters of the window lie behind the knee."""
    warmup = run(knee(at))
    assert at < warmup.steps <= at + window_of(200) + EVERY
    assert warmup.steps % EVERY == 0 and "of its steepest slope" in warmup.reason


def test_a_loss_that_falls_steadily_uses_all_that_is_allowed():
    warmup = run([math.exp(-0.02 * i) for i in range(300)])
    assert warmup.steps == 200 and "still improved" in warmup.reason


def test_a_loss_that_never_improves_uses_all_that_is_allowed():
    assert run([1.0 + 0.001 * i for i in range(300)]).steps == 200
    assert run([2.0] * 300).steps == 200


def test_two_windows_are_the_least():
    """However soon SFT has done what it can: what is compared with has to be measured too."""
    assert run(knee(10)).steps == agree_run([0.4] * 10 + [0.0] * 300).steps == 2 * window_of(200)


@given(st.integers(40, 150), st.floats(1e-3, 1e3))
def test_the_end_does_not_depend_on_the_size_of_the_loss(at, factor):
    losses = knee(at)
    assert run(losses).steps == run([factor * loss for loss in losses]).steps


def test_the_window_scales_with_the_longest_warmup():
    assert [window_of(longest) for longest in (40, 80, 400, 4000)] == [10, 10, 50, 500]
    long = [loss for loss in knee(60) for _ in range(10)]  # the same curve, ten times as slow
    assert run(long, longest=2000).steps == pytest.approx(10 * run(knee(60)).steps, rel=0.05)


def test_shortest_and_anneal():
    assert run(knee(60), shortest=150).steps == 150
    plain, annealed = run(knee(60)), run(knee(60), anneal=0.5)
    assert annealed.plateau == plain.steps
    assert annealed.steps == plain.steps + round(0.5 * plain.steps)
    assert annealed.annealing(annealed.plateau) and not annealed.annealing(annealed.plateau - 1)
    assert "then" in annealed.reason
    assert run(knee(150), anneal=1.0).steps == 200  # never longer than allowed


def test_losses_that_are_no_numbers_are_ignored():
    broken = [math.nan if i % 7 == 3 else math.inf if i % 11 == 5 else loss for i, loss in enumerate(knee(60))]
    assert run(broken).steps is not None and run(broken).steps <= 100


@given(st.integers(1, 199), st.integers(40, 150))
def test_state_round_trip(cut, at):
    losses = knee(at)
    first = run(losses[:cut], anneal=0.2)
    second = Warmup(1, "steps")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(cut, 400):
        if second.steps is not None and step >= second.steps:
            break
        second.observe(step, losses[step])
    assert second.steps == run(losses, anneal=0.2).steps


def agree_run(values, longest=200, **settings) -> Warmup:
    warmup = Warmup(longest, "agreement", **settings)
    for step, value in enumerate(values):
        if step >= warmup.bound:
            break
        warmup.observe(step, 1.0, value)
    return warmup


def test_it_ends_when_the_gradients_no_longer_agree():
    noise = [0.1 * (-1) ** i for i in range(300)]
    fades = [0.4 + n if i < 80 else n for i, n in enumerate(noise)]
    warmup = agree_run(fades)
    # The mean of the window falls to a quarter when three quarters of it lie behind the change.
    assert warmup.steps == 80 + EVERY * round(0.75 * window_of(200) / EVERY + 0.5)
    assert re.search(r"the gradients agree at \d+% of their most", warmup.reason)


def test_gradients_that_agree_to_the_end_or_never_use_all_that_is_allowed():
    assert agree_run([0.3] * 300).steps == 200
    assert "still agreed" in agree_run([0.3] * 300).reason
    assert agree_run([-0.1] * 300).steps == 200
    # The first step has none, and a broken one is left out.
    assert agree_run([None, math.nan, *[0.3] * 60, *[0.0] * 300]).steps < 100


SETTINGS = {
    "sft_warmup_steps": "auto",
    "max_steps": 120,
    "lr_scheduler_type": "constant",
    "sft_learning_rate": 2e-2,
    "sft_hybrid_learning_rate": 1e-3,
    "per_device_sft_batch_size": 8,
}


@pytest.mark.parametrize("schedule", ["sasr", "static"])
def test_the_trainer_ends_it_and_goes_on(tmp_path, schedule):
    trained = toy.trainer(tmp_path, schedule=schedule, warmup_anneal=0.25, **SETTINGS)
    trained.train()
    warmup = trained.warmup
    assert trained.args.sft_warmup_steps == 60, "half of the run is the most"
    assert 20 <= warmup.plateau < warmup.steps < 60, warmup.reason
    log = toy.history(trained, "sasr/sft_weight", "learning_rate", "sasr/sft_grad_norm", "sasr/warmup_grad_norm")
    kinds, rates, norms, means = (list(column) for column in zip(*log, strict=True))
    assert kinds[: warmup.steps] == [1.0] * warmup.steps and 0.0 in kinds[warmup.steps :]
    assert rates[: warmup.plateau] == [2e-2] * warmup.plateau
    assert rates[warmup.plateau : warmup.steps] == [1e-3] * (warmup.steps - warmup.plateau)
    own = norms[: warmup.steps]
    assert means[-1] == pytest.approx(sum(own[len(own) // 2 :]) / (len(own) - len(own) // 2), rel=1e-6)
    if schedule == "static":
        assert set(kinds[warmup.steps :]) == {0.0}


def test_the_decision_is_that_of_the_rule_on_the_logged_losses(tmp_path):
    trained = toy.trainer(tmp_path, schedule="sft", **SETTINGS)
    trained.train()
    (losses,) = zip(*toy.history(trained, "sasr/sft_loss"), strict=True)
    assert trained.warmup.steps == run(losses, longest=60).steps


def test_smallest_slope_that_ends_it():
    assert FRACTION == 0.25  # documented


def test_it_resumes_bit_for_bit(tmp_path):
    """From before the plateau, from the anneal and from after it; the reference is copied when the warm-up ends."""
    lm = toy.model(directory=tmp_path / "lm")
    settings = {**SETTINGS, "warmup_anneal": 0.25, "beta": 0.1, "max_steps": 80, "save_strategy": "steps"}
    whole = toy.trainer(tmp_path / "whole", lm=lm, save_steps=1, **settings)
    whole.train()
    warmup = whole.warmup
    assert warmup.plateau < warmup.steps < 40
    expected = outcome(tmp_path / "whole", 80)
    for step in (warmup.plateau - 3, warmup.plateau + 1, warmup.steps, warmup.steps + 5):
        part = tmp_path / f"part-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", part / f"checkpoint-{step}")
        if step > warmup.steps:
            shutil.copytree(tmp_path / "whole" / "reference_model", part / "reference_model")
        again = toy.model(directory=tmp_path / "lm")
        toy.trainer(part, lm=again, save_steps=80, **settings).train(resume_from_checkpoint=True)
        assert_same(outcome(part, 80), expected, f"resumed at {step}")


def test_the_command_says_where_it_ended_and_takes_the_exam_there(tmp_path):
    flags = {
        "sft_warmup_steps": "auto", "max_steps": 70, "train_rows": 60, "per_device_sft_batch_size": 4, "exam_rows": 2,
        "exam_samples": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8,
        "warmup_min_steps": 24, "save_steps": 100,
    }  # fmt: skip
    command = [sys.executable, "-m", "sasr", "train", "--output_dir", str(tmp_path / "run")]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (steps,) = map(int, re.findall(r"warm-up ended at step (\d+): ", done.stdout))
    assert 24 <= steps <= 35
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "warm-up"] == list(range(1, steps + 1))
    assert json.loads((tmp_path / "run" / "exam.json").read_text())["warmup"]["step"] == steps
    assert (tmp_path / "run" / f"checkpoint-{steps}").is_dir()
    assert "sft_warmup_steps: auto" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_steps": -1, "num_train_epochs": 3}, "auto allows half of max_steps"),
        ({"max_seconds": 10.0}, "auto allows half of max_steps"),
        ({"max_steps": 40}, "too few to see its end"),
        ({"lr_scheduler_type": "linear"}, "how many steps come after the warm-up"),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}, "how many steps come after the warm-up"),
        ({"warmup_until": "plateu"}, "unknown warmup_until"),
        ({"sft_warmup_steps": 4, "warmup_anneal": 0.5}, "warmup_anneal is for a warm-up that ends by itself"),
        ({"sft_warmup_steps": 4, "warmup_min_steps": 2}, "warmup_min_steps is for a warm-up that ends by itself"),
        ({"warmup_min_steps": 70}, "more than the longest warm-up"),
        ({"warmup_anneal": -0.1}, "warmup_anneal is -0.1"),
        ({"warmup_from": "elsewhere"}, "warm-up of a chosen length.*leave warmup_from out"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, changes, named):
    if changes.get("warmup_until"):
        changes = {"sft_warmup_steps": 50, **changes}
    with pytest.raises(InputError, match=named):
        toy.settings(tmp_path, **{**SETTINGS, **changes})
