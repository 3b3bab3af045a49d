"""Exams every so many steps of a run: where they fall, that they change nothing, and what a stop in one costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sasr.cli
from sasr.callbacks import exam_table
from sasr.live import LiveView
from sasr.watch import Watch

pytestmark = pytest.mark.usefixtures("environment")
SETTINGS = {
    "train_rows": 60,
    "exam_rows": 4,
    "exam_samples": 2,
    "max_steps": 12,
    "sft_warmup_steps": 4,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "beta": 0.05,  # so few steps earn no reward: this gives the rollouts a gradient
    "gamma": 0.5,
    "per_device_sft_batch_size": 4,
    "max_completion_length": 16,
    "lr_scheduler_type": "constant",
    "save_steps": 5,
    "per_device_eval_batch_size": 2,  # so that an exam has several batches, between which it can be stopped
    "report_to": "none",
}


def train(directory: Path, *more: str) -> int:
    flags = [text for key, value in SETTINGS.items() for text in (f"--{key}", str(value))]
    return sasr.cli.main(["train", *flags, "--output_dir", str(directory), *more])


def resume(directory: Path, *more: str) -> int:
    return sasr.cli.main(["train", "--output_dir", str(directory), "--resume_from_checkpoint", *more])


def metrics(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    times = ("step_seconds", "seconds", "tokens_per_second")
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def exams(directory: Path) -> dict:
    found = json.loads((directory / "exam.json").read_text())
    for figures in found.values():
        del figures["seconds"]
    return found


def steps_of(directory: Path) -> dict[str, int]:
    return {label: figures["step"] for label, figures in exams(directory).items()}


def assert_same_training(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    weights, others = (load_file(directory / "model.safetensors") for directory in (a, b))
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Exams every two steps, without a stop."""
    directory = tmp_path_factory.mktemp("every") / "run"
    assert train(directory, "--exam_every", "2") == 0
    return directory


def test_exams_fall_where_they_should_and_change_nothing(whole, tmp_path, capsys):
    assert train(tmp_path / "plain") == 0
    assert "step" not in [line.split()[0] for line in exam_table(exams(tmp_path / "plain"))]
    assert_same_training(whole, tmp_path / "plain")
    assert {line["kind"] for line in metrics(whole)[4:]} == {"sft", "grpo"}
    labels = {"initial": 0, "step-2": 2, "warmup": 4, "step-6": 6, "step-8": 8, "step-10": 10, "final": 12}
    assert steps_of(whole) == labels, "the end of the warm-up and the last step are not examined twice"
    assert list(exams(whole)) == list(labels)
    named = exams(whole)
    assert {label: named[label] for label in ("initial", "warmup", "final")} == exams(tmp_path / "plain")
    for label, figures in named.items():
        records = [json.loads(line) for line in (whole / "exams" / f"{label}.jsonl").read_text().splitlines()]
        assert len(records) == figures["rows"] == 4 and figures["split"] == "test"
    assert "exam_every: 2" in (whole / "config.yaml").read_text()


def test_without_the_named_moments_every_such_step_has_its_exam(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("exam_at: []\nexam_every: 4\nmodel_name_or_path: tiny-llama\n")
    assert train(tmp_path / "run", "--config", str(recipe)) == 0
    assert steps_of(tmp_path / "run") == {"step-4": 4, "step-8": 8, "step-12": 12}
    out = capsys.readouterr().out
    assert "exam step-8: greedy" in out and [line.split()[:2] for line in out.splitlines()[-4:-1]] == [
        ["step", "4"], ["step", "8"], ["step", "12"]
    ]  # fmt: skip


@pytest.mark.parametrize("stopped_at", ["step-6", "warmup"])
def test_a_stop_in_an_exam_costs_nothing(whole, tmp_path, monkeypatch, capsys, stopped_at):
    run, step = tmp_path / "run", {"step-6": 6, "warmup": 4}[stopped_at]
    with monkeypatch.context() as patch:
        shown = LiveView.exam

        def interrupted(view, label, done, total):
            if label == stopped_at:
                os.kill(os.getpid(), signal.SIGINT)
            shown(view, label, done, total)

        patch.setattr(LiveView, "exam", interrupted)
        assert train(run, "--exam_every", "2") == 130
    assert stopped_at not in exams(run) and (run / f"checkpoint-{step}").is_dir()
    assert f"stopped at step {step}, saved in checkpoint-{step}" in capsys.readouterr().out
    assert resume(run) == 0
    assert_same_training(run, whole)
    assert exams(run) == exams(whole)


def test_a_run_that_goes_on_from_before_takes_no_exam_again(whole, tmp_path):
    """As after a kill: the metrics of the lost steps are written again, their exams are there."""
    run = tmp_path / "run"
    assert train(run, "--exam_every", "2", "--max_steps", "9") == 0
    for name in ("checkpoint-9", "checkpoint-5"):
        assert (run / name).is_dir()
    told = json.loads((run / "exam.json").read_text())
    assert resume(run, "--max_steps", "12") == 0, "the last step is another one now, and has the final exam"
    assert_same_training(run, whole)
    assert exams(run) == exams(whole)
    again = json.loads((run / "exam.json").read_text())
    assert {label: again[label] for label in told if label != "final"} == {k: told[k] for k in told if k != "final"}


def test_exams_of_steps_that_are_taken_again_are_too(whole, tmp_path):
    """On a GPU, and with a budget of seconds, the same steps do not come to the same weights: figures of those that a
    kill took stayed, and were told of others."""
    run = tmp_path / "run"
    assert train(run, "--exam_every", "2", "--max_steps", "9") == 0
    shutil.rmtree(run / "checkpoint-9")
    told = json.loads((run / "exam.json").read_text())
    assert {exam["step"] for exam in told.values()} == {0, 2, 4, 6, 8, 9}
    told["step-7"] = {**told["step-6"], "step": 7}
    for label in ("step-6", "step-7", "step-8", "final"):  # after checkpoint-5
        told[label] = {**told[label], "greedy_accuracy": 0.9}
        (run / "exams" / f"{label}.jsonl").write_text("{}\n")
    (run / "exam.json").write_text(json.dumps(told))
    assert resume(run, "--max_steps", "12") == 0
    assert_same_training(run, whole)
    assert exams(run) == exams(whole)
    again = json.loads((run / "exam.json").read_text())
    assert all(again[label] == told[label] for label in ("initial", "step-2", "warmup")), "those before are kept"
    files = [{path.name: path.read_bytes() for path in (place / "exams").iterdir()} for place in (run, whole)]
    assert files[0] == files[1]


def test_a_rollback_finds_what_was_examined(tmp_path, monkeypatch, capsys):
    """Those steps are saved for it, although no checkpoint is due there."""
    observe = Watch.observe

    def collapse(self, seen):
        if seen.step == 7:
            self.collapsed_at = 7
        return observe(self, seen)

    monkeypatch.setattr(Watch, "observe", collapse)
    saves = ("--save_steps", "100", "--save_total_limit", "9")
    assert train(tmp_path / "run", "--exam_every", "3", "--on_collapse", "rollback", *saves) == 0
    assert {f"checkpoint-{step}" for step in (3, 6, 9)} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert "warning: step 7: back to the weights of checkpoint-" in capsys.readouterr().out


def test_its_time_is_not_that_of_a_step(tmp_path, monkeypatch):
    """With exams that last half a second, steps and budget have no more than what the exams leave of the time."""
    rows = sasr.callbacks.examine_rows

    def slow(*args, **kwargs):
        time.sleep(0.5)
        return rows(*args, **kwargs)

    monkeypatch.setattr(sasr.callbacks, "examine_rows", slow)
    started = time.monotonic()
    assert train(tmp_path / "run", "--exam_every", "1") == 0
    left = time.monotonic() - started - 13 * 0.5
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((tmp_path / "run" / "checkpoint-12" / "sasr_state.json").read_text())
    assert len(exams(tmp_path / "run")) == 13
    assert sum(line["step_seconds"] for line in lines) < left and state["budget"]["seconds"] < left


def test_the_table_is_in_order_of_step():
    figures = {"greedy_accuracy": 0.5, "pass_at": {"1": 0.25}, "format_rate": 1.0, "truncation_rate": 0.0}
    results = {label: {"step": step, **figures} for label, step in (("final", 120), ("step-100", 100), ("initial", 0))}
    table = exam_table(results)
    wide = {label: {**result, "pass_at": dict.fromkeys("1248", 0.25)} for label, result in results.items()}
    for width, shown in ((100, ["1", "2", "4", "8"]), (70, ["1", "2", "8"]), (61, ["1", "8"]), (60, ["1"])):
        head, *rows = exam_table(wide, width)
        assert re.findall(r"pass@(\d)", head) == shown and all(len(line) <= width for line in (head, *rows))
    assert [line[:15].strip() for line in table] == ["exam", "before", "step 100", "at the end"]
    assert len({len(line) for line in table}) == 1
    mixed = wide | {"final": {**wide["final"], "pass_at": {"1": 0.5, "2": 0.75}}}  # exam_samples was lowered in between
    head, *_, last = exam_table(mixed)
    assert re.findall(r"pass@(\d)", head) == ["1", "2", "4", "8"] and len(last) == len(head)
    assert last.split()[3:] == ["0.500", "0.500", "0.750", "1.000", "0.000"]
