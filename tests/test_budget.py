"""A run that ends on a budget of seconds or rollout tokens instead of a number of steps."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

import sasr.cli
import toy
from sasr import InputError, SASRConfig, checkpoints
from sasr.callbacks import RunCallback, StepCallback
from sasr.live import LiveView
from sasr.schedules import Cosine
from test_distributed import run_script
from test_resume import assert_same, outcome
from whole_runs import LAST, command, finish, metrics, resume_command, start

CONSTANT = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 100}


def state_of(directory, step):
    return json.loads((directory / f"checkpoint-{step}" / checkpoints.STATE_FILE).read_text())


class Clock:
    """Stands in for `time`: each step takes one second, whatever happens between steps a hundred."""

    def __init__(self, trained):
        self.now, self.trainer = 0.0, trained
        step = trained.training_step

        def timed(*args, **kwargs):
            self.now += 1.0
            return step(*args, **kwargs)

        def between(*args, draw=trained.get_batch_samples, **kwargs):
            self.now += 100.0
            return draw(*args, **kwargs)

        trained.training_step, trained.get_batch_samples = timed, between

    def monotonic(self):
        return self.now


def timed(monkeypatch, trained):
    monkeypatch.setattr(sasr.budget, "time", Clock(trained))
    return trained


def test_rollout_tokens_end_the_run_after_the_step_that_reaches_them(tmp_path):
    whole = toy.trainer(tmp_path / "whole", max_steps=12, **CONSTANT)
    whole.train()
    tokens = [int(value) for (value,) in toy.history(whole, "sasr/rollout_tokens")]
    step = next(i for i, value in enumerate(tokens, 1) if value > tokens[4])
    for limit, expected in ((tokens[step - 1], step), (tokens[step - 1] - 1, step), (tokens[step - 2] + 1, step)):
        run = toy.trainer(tmp_path / str(limit), max_steps=12, max_rollout_tokens=limit, **CONSTANT)
        run.train()
        assert (run.state.global_step, run.budget_spent) == (expected, True)
        assert toy.history(run, "loss", "grad_norm") == toy.history(whole, "loss", "grad_norm")[:expected]
        assert state_of(tmp_path / str(limit), step)["budget"]["spent"] is True
    assert not whole.budget_spent


def test_seconds_are_those_inside_steps(tmp_path, monkeypatch):
    run = timed(monkeypatch, toy.trainer(tmp_path, max_seconds=5.0, **CONSTANT))
    run.train()
    assert run.state.global_step == 5 and run.budget_spent and run.budget.seconds == 5.0
    assert run.budget.reason() == "max_seconds (5.0) reached at step 5"


def test_an_exam_costs_nothing(tmp_path, monkeypatch):
    run = timed(monkeypatch, toy.trainer(tmp_path, max_seconds=6.0, **CONSTANT))
    taken = []

    def take(label, trainer):
        taken.append((label, trainer.state.global_step))
        sasr.budget.time.now += 1000.0

    trackers = SimpleNamespace(begin=lambda: None)
    exams = SimpleNamespace(take=take, task=SimpleNamespace(name="sums"), trackers=trackers)
    exams.drop_after = lambda step, main: None
    run.add_callback(RunCallback(run, exams, SimpleNamespace(signal=None), tmp_path, None))
    run.train()
    named = [found for found in taken if found[0]]
    assert named == [("initial", 0), ("warmup", 4), ("final", 6)] and {step for _, step in taken} == set(range(7))
    assert run.state.global_step == 6 and run.budget.seconds == 6.0, "at the beginning and at the end of a step"


@pytest.mark.parametrize(("budget", "limit"), [("max_seconds", 8), ("max_rollout_tokens", 100)])
def test_the_view_follows_the_budget(tmp_path, monkeypatch, budget, limit):
    """Its bar stood at 0% to the end, and days were left."""
    run = timed(monkeypatch, toy.trainer(tmp_path, max_steps=10**6, **{budget: limit, "schedule": "grpo"}, **CONSTANT))
    view, shares = LiveView(Console(file=io.StringIO(), force_terminal=False)), []
    take_in = view.step
    view.step = lambda line: (take_in(line), shares.append(view._share()))
    run.add_callback(StepCallback(run, view))
    run.train()
    assert shares[-1] == 1 and shares == sorted(shares) and shares[5] > 0.1, "no SFT after step 4"
    assert budget == "max_rollout_tokens" or shares == [step / 8 for step in range(1, 9)]


def test_max_steps_is_the_upper_bound(tmp_path, monkeypatch):
    run = timed(monkeypatch, toy.trainer(tmp_path, max_steps=6, max_seconds=6.5, max_rollout_tokens=10**9, **CONSTANT))
    run.train()
    assert run.state.global_step == 6 and not run.budget_spent


def test_a_resumed_run_goes_on_counting(tmp_path, monkeypatch):
    settings = {**CONSTANT, "save_steps": 3, "max_seconds": 7.0}
    whole = timed(monkeypatch, toy.trainer(tmp_path, **settings))
    whole.train()
    assert state_of(tmp_path, 3)["budget"] == {"seconds": 3.0, "warmup_seconds": 3.0, "unlogged": 0.0, "spent": False}
    expected = outcome(tmp_path, 7)
    resumed = timed(monkeypatch, toy.trainer(tmp_path, **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 7
    assert_same(outcome(tmp_path, 7), expected)


@pytest.mark.parametrize(("every", "expected"), [(1, {s: 1.0 for s in range(1, 13)}), (5, {5: 5.0, 10: 5.0, 12: 2.0})])
def test_lines_of_the_metrics_hold_all_seconds(tmp_path, monkeypatch, every, expected):
    """Also those of steps without a line, of steps before a checkpoint that fell between two lines, and of the last."""

    def train(directory, **more):
        settings = {**CONSTANT, "save_steps": 7, "max_steps": 12, "logging_steps": every}
        run = timed(monkeypatch, toy.trainer(tmp_path / directory, **settings))
        view = LiveView(Console(file=io.StringIO(), force_terminal=False))
        run.add_callback(StepCallback(run, view, directory=tmp_path / directory))
        run.train(**more)
        lines = metrics(tmp_path / directory)
        assert all(line["step_seconds"] == 1 for line in lines)
        return {line["step"]: line["seconds"] for line in lines}

    assert train("whole") == expected
    assert train("whole", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7")) == expected


def test_the_file_has_the_steps_that_checkpoints_leave_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sasr.callbacks, "_LOGS_KEPT", 3)
    run = toy.trainer(tmp_path, max_steps=6)
    view = LiveView(Console(file=io.StringIO(), force_terminal=False))
    run.add_callback(StepCallback(run, view, directory=tmp_path))
    run.train()
    assert toy.history(run, "step") == [(4,), (5,), (6,)], "the last ones are kept"
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("schedule", [{"schedule": "cosine"}, {"schedule": "sasr", "gamma_schedule": "cosine"}])
def test_a_cosine_over_the_seconds_is_the_one_over_the_steps(tmp_path, monkeypatch, schedule):
    steps = toy.trainer(tmp_path / "steps", max_steps=10, **{**CONSTANT, **schedule})
    steps.train()
    settings = {**CONSTANT, **schedule, "save_steps": 6, "max_steps": 1000, "max_seconds": 10.0}
    seconds = timed(monkeypatch, toy.trainer(tmp_path / "seconds", **settings))  # a step takes one
    seconds.train()
    expected = toy.history(steps, "sasr/p_sft", "loss")
    assert toy.history(seconds, "sasr/p_sft", "loss") == expected and len(expected) == 10
    resumed = timed(monkeypatch, toy.trainer(tmp_path / "seconds", **settings))
    resumed.train(resume_from_checkpoint=str(tmp_path / "seconds" / "checkpoint-6"))
    assert toy.history(resumed, "sasr/p_sft", "loss") == expected


def test_a_spent_budget_trains_no_further_unless_it_is_raised(tmp_path, monkeypatch):
    timed(monkeypatch, toy.trainer(tmp_path, max_seconds=5.0, **CONSTANT)).train()
    again = timed(monkeypatch, toy.trainer(tmp_path, max_seconds=5.0, **CONSTANT))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5 and again.budget_spent and again.budget.seconds == 5.0
    with pytest.raises(InputError, match=r"max_seconds: 5.0 then, 4.0 now"):
        toy.trainer(tmp_path, max_seconds=4.0, **CONSTANT).train(resume_from_checkpoint=True)
    more = timed(monkeypatch, toy.trainer(tmp_path, max_seconds=8.0, **CONSTANT))
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 8 and more.budget_spent
    rest = timed(monkeypatch, toy.trainer(tmp_path, **CONSTANT))
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 12 and not rest.budget_spent
    whole = toy.trainer(tmp_path / "whole", **CONSTANT)
    whole.train()
    assert_same(outcome(tmp_path, 12)["weights"], outcome(tmp_path / "whole", 12)["weights"])


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine"},
        {"schedule": "sasr", "gamma_schedule": "cosine"},
        {"schedule": "docs/results/rule-study/rules.py:SasrCosine"},
        {"schedule": "sasr", "gamma_schedule": "constant", "curriculum": "easy_to_hard"},
        {"schedule": "random", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.5},
    ],
)
def test_a_run_that_is_spread_over_its_length_cannot_be_made_longer(tmp_path, settings):
    settings = {**CONSTANT, "save_steps": 3, **settings}
    toy.trainer(tmp_path, max_steps=6, **settings).train()
    with pytest.raises(InputError, match="max_steps: 6 then, 10 now"):
        toy.trainer(tmp_path, max_steps=10, **settings).train(resume_from_checkpoint=True)


def test_save_steps_may_change_on_resume(tmp_path):
    toy.trainer(tmp_path, max_steps=6, **{**CONSTANT, "save_steps": 3}).train()
    toy.trainer(tmp_path, max_steps=10, **{**CONSTANT, "save_steps": 2}).train(resume_from_checkpoint=True)
    assert {p.name for p in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (3, 6, 8, 10)}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_seconds": 0}, "max_seconds is 0: it must be a number above 0"),
        ({"max_rollout_tokens": -3}, "max_rollout_tokens is -3"),
        ({"max_seconds": float("nan")}, "max_seconds is nan"),
        ({"max_seconds": 9, "lr_scheduler_type": "cosine"}, "max_seconds .* lr_scheduler_type cosine .* constant"),
        ({"max_rollout_tokens": 9, "lr_scheduler_type": "linear"}, "max_rollout_tokens .* lr_scheduler_type linear"),
        ({"max_rollout_tokens": 9, "schedule": "cosine"}, "Cosine goes from SFT to GRPO .* another budget"),
        ({"max_rollout_tokens": 9, "gamma_schedule": "cosine"}, "Sasr goes from SFT .* gamma_schedule constant"),
        (
            {"max_seconds": 9, "schedule": "docs/results/rule-study/rules.py:SasrCosine"},
            "max_seconds .* schedule SasrCosine is spread over all of them",
        ),
        (
            {"max_seconds": 9, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1},
            "warmup_steps 0.1 is a share",
        ),
    ],
)
def test_refused(tmp_path, changes, match):
    with pytest.raises(InputError, match=match):
        SASRConfig(
            output_dir=str(tmp_path), sft_warmup_steps=4, max_steps=12, use_cpu=True, report_to="none",
            **{"lr_scheduler_type": "constant", **changes},
        )  # fmt: skip


def test_a_schedule_of_your_own_that_needs_to_know_how_far_the_run_is(tmp_path):
    with pytest.raises(InputError, match="Cosine goes from SFT to GRPO"):
        toy.trainer(tmp_path, max_rollout_tokens=9, more={"schedule": Cosine()}, **CONSTANT)


def test_the_clock_of_the_first_process_decides(tmp_path):
    run_script(
        tmp_path,
        """
import sasr.budget
class Clock:
    now = 0.0
    def monotonic(self):
        self.now += 0.5 if rank == 0 else 100.0  # read twice a step
        return self.now
sasr.budget.time = Clock()
trained = toy.trainer(out / "run", max_seconds=3.0, lr_scheduler_type="constant", save_strategy="steps")
trained.train()
(out / f"{rank}.json").write_text(json.dumps([trained.state.global_step, trained.budget_spent]))
""",
    )
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [[6, True], [6, True]]


def test_command_line_run_that_ends_on_its_budget_is_finished(tmp_path):
    run = tmp_path / "run"
    printed = finish(start(command(run, "--max_rollout_tokens", "600", "--lr_scheduler_type", "constant")))
    (reason,) = [line for line in printed.splitlines() if line.startswith("max_rollout_tokens (600) reached at step")]
    step = int(reason.split()[-1])
    assert 4 < step < LAST and "done: " in printed and "stopped" not in printed
    tokens = [line["rollout_tokens"] for line in metrics(run)]
    assert len(tokens) == step and tokens[-2] < 600 <= tokens[-1]
    assert json.loads((run / "exam.json").read_text())["final"]["step"] == step
    before = (run / "metrics.jsonl").read_text()
    (run / "model.safetensors").unlink()
    again = finish(start(resume_command(run)))
    assert "done: " in again and (run / "metrics.jsonl").read_text() == before
    assert (run / "model.safetensors").is_file()
