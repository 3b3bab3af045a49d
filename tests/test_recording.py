"""`sasr.record`: a trainer made in Python leaves a run's directory, and holds it while it trains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import TrainerCallback

import toy
from sasr import InputError, locks, record
from sasr.exam.request import read_request
from sasr.metrics import METRICS_FILE, read_metrics
from sasr.runs import entries
from sasr.task_config import TaskConfig
from sasr.tasks.base import Task, Verdict

ROWS = [{"prompt": prompt, "answer": "3"} for prompt in ("1+2=", "2+1=")]
SMALL = {"max_steps": 3, "sft_warmup_steps": 2, "save_strategy": "steps", "save_steps": 1}


class Sums(Task):
    name = "sums"

    def to_row(self, record):
        return record

    def check(self, completion, row):
        return Verdict(False, False)

    def well_formed(self, completion):
        return True


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step, deed):
        self.step, self.deed = step, deed

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.deed()


def recorded(directory: Path, rows=(), **changes):
    trainer = toy.trainer(directory, **{**SMALL, **changes})
    results = record(trainer, Sums(), rows, TaskConfig(exam_at=["initial"], exam_every=2, exam_samples=1))
    return trainer, results


def state(directory: Path) -> tuple[str, str, bool]:
    (entry,) = entries.find(directory, pytest.fail)
    return entry["state"], entry["state_text"], entry["go_on"] is not None


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_used_directory_is_for_going_on_only(tmp_path):
    """The second run was shown with the exams of the first, and none of its own."""
    trainer, results = recorded(tmp_path, ROWS)
    trainer.train()
    assert list(results) == ["initial", "step-2"]
    before = contents(tmp_path)
    other, _ = recorded(tmp_path, ROWS, seed=4)
    with pytest.raises(InputError, match=r"holds another run: train\(resume_from_checkpoint=True\), or choose another"):
        other.train()
    assert contents(tmp_path) == before
    assert not locks.is_held(tmp_path)
    again, results = recorded(tmp_path, ROWS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3 and list(results) == ["initial", "step-2"]


def test_going_on_from_another_run_is_for_a_directory_of_its_own(tmp_path):
    """The settings, the metrics and at last the checkpoints of the run that was there went."""
    first, kept, new = tmp_path / "first", tmp_path / "kept", tmp_path / "new"
    for directory, changes in ((first, {}), (kept, {"seed": 4})):
        recorded(directory, ROWS, **changes)[0].train()
    before = contents(kept)
    other, _ = recorded(kept, ROWS)
    with pytest.raises(InputError, match=r"output_dir .*kept holds another run"):
        other.train(resume_from_checkpoint=str(first / "checkpoint-2"))
    assert contents(kept) == before and not locks.is_held(kept)
    trainer, _ = recorded(new, ROWS)
    trainer.train(resume_from_checkpoint=str(first / "checkpoint-2"))
    assert trainer.state.global_step == 3 and state(new)[0] == "finished"


def test_an_exam_is_not_on_disk_before_the_metrics_that_led_to_it(tmp_path, monkeypatch):
    """After a power cut the metrics of a finished run ended before its last exam."""
    done, sync, replace = [], os.fsync, os.replace

    def synced(file):
        path = tmp_path / METRICS_FILE
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            done.append(len(read_metrics(path)))
        sync(file)

    def replaced(source, target):
        if Path(target).name == "exam.json":
            done.append("exam")
        replace(source, target)

    trainer, results = recorded(tmp_path, ROWS, save_strategy="no")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    trainer.train()
    assert list(results) == ["initial", "step-2"]
    assert done == [0, "exam", 2, 2, "exam"], "between them is the checkpoint at the end of the warm-up"


def test_the_settings_are_those_of_the_run_that_trains(tmp_path):
    trainer, _ = recorded(tmp_path)
    trainer.train()
    before = (tmp_path / "config.yaml").read_text()
    other, _ = recorded(tmp_path, seed=4)
    with pytest.raises(InputError, match="belongs to another run"):
        other.train(resume_from_checkpoint=True)
    assert (tmp_path / "config.yaml").read_text() == before
    assert state(tmp_path)[0] == "finished"


def test_an_exam_of_the_model_has_the_limits_of_the_run(tmp_path):
    """sasr exam cut off at 256 tokens what the script's own exams had let go on to 2048."""
    limits = {"max_completion_length": 6, "temperature": 0.7, "per_device_eval_batch_size": 3}
    trainer, _ = recorded(tmp_path, **limits, chat_template_kwargs={"enable_thinking": False})
    trainer.train()
    request = read_request(["--model", str(tmp_path)])
    assert (request.max_new_tokens, request.temperature, request.batch_size) == (6, 0.7, 3)
    assert request.run["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("changes", [{}, {"max_steps": -1, "num_train_epochs": 0.5}], ids=["steps", "epochs"])
def test_states(tmp_path, changes):
    trainer, _ = recorded(tmp_path, **changes)
    seen = []
    trainer.add_callback(At(2, lambda: seen.append(state(tmp_path))))
    trainer.train()
    of = " of 3" if not changes else ""
    assert seen == [("running", f"running, step 1{of}", False)]
    assert state(tmp_path) == ("finished", "finished", False)
    (tmp_path / locks.LOCK_FILE).unlink()  # a copy, or of a version that had no lock here
    if not changes:
        assert state(tmp_path) == ("finished", "finished", False)


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (ValueError("no such thing"), ("failed", "failed at step 1 of 3: no such thing", False)),
        (KeyboardInterrupt(), ("stopped", "stopped at step 1 of 3", False)),
    ],
    ids=["exception", "Ctrl-C"],
)
def test_what_ends_a_run_lets_go_of_it_and_of_the_screen(tmp_path, monkeypatch, error, left):
    def fails():
        raise error

    trainer, _ = recorded(tmp_path)
    trainer.add_callback(At(2, fails))
    view = next(callback.view for callback in trainer.callback_handler.callbacks if hasattr(callback, "view"))
    stopped = []
    monkeypatch.setattr(view, "stop", lambda: stopped.append(True))
    with pytest.raises(type(error)):
        trainer.train()
    assert stopped and state(tmp_path) == left
    again, _ = recorded(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert state(tmp_path) == ("finished", "finished", False)


def test_an_exam_that_fails_after_a_step_is_no_end_without_a_word(tmp_path):
    trainer, _ = recorded(tmp_path, ROWS, sft_warmup_steps=1)
    exams = next(callback.exams for callback in trainer.callback_handler.callbacks if hasattr(callback, "exams"))

    def take(moment, trainer, take=exams.take):
        if trainer.state.global_step == 2:
            raise ValueError("no such thing")
        take(moment, trainer)

    exams.take = take
    with pytest.raises(ValueError, match="no such thing"):
        trainer.train()
    assert state(tmp_path) == ("failed", "failed at step 2 of 3: no such thing", False)


def test_one_run_at_a_time(tmp_path):
    trainer, _ = recorded(tmp_path)
    with locks.hold(tmp_path, "test"), pytest.raises(InputError, match="in use by another"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK_FILE]


def test_a_run_that_ended_before_its_first_step_may_begin_again(tmp_path):
    """In a notebook: nothing but the exam of the model as it still is has been done."""
    trainer, results = recorded(tmp_path, ROWS)
    fails = At(0, lambda: None)
    fails.on_step_begin = lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt)
    trainer.add_callback(fails)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert list(results) == ["initial"]
    trainer.remove_callback(fails)
    trainer.train()
    assert list(results) == ["initial", "step-2"] and state(tmp_path)[0] == "finished"
