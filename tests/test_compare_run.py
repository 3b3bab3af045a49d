"""A whole comparison with the real command, again when all is done, interrupted, and with a run that fails."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

import sasr.cli
from sasr.compare.runner import lock
from sasr.compare.view import CompareView, Progress, Row
from sasr.errors import InputError
from sasr.metrics import read_metrics
from whole_runs import INSTALLED

LIMIT = 240  # seconds: a hanging run fails
STEPS, WARMUP = 12, 3
RECIPE = {
    "task": "stories",
    "model_name_or_path": "tiny-llama",
    "train_rows": 100,
    "exam_rows": 4,
    "exam_samples": 2,
    "exam_every": 5,
    "sft_warmup_steps": WARMUP,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "per_device_sft_batch_size": 4,
    "max_completion_length": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "beta": 0.05,  # so few steps earn no reward: this gives the rollouts a gradient
    "save_steps": 2,
    "save_total_limit": 2,
    "report_to": "none",
    "compare": {
        "budget": f"steps={STEPS}",
        "seeds": "1-2",
        "methods": {
            "static": {"tune": {"switch_step": [4, 9]}},
            "sasr": {},
            "random": {"match_run": "sasr", "seeds": 1},
        },
    },
}


def compare(recipe: Path, out: Path, *more: str) -> int:
    return sasr.cli.main(["compare", "--config", str(recipe), "--output_dir", str(out), *more])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """The uninterrupted comparison."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert compare(recipe, out, "--jobs", "2") == 0, (out / "table.md").read_text()
    return out


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "second" not in k and k != "command"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def steps_of(out: Path, run: str) -> list[dict]:
    return [without_times({**line, "step_time": 0}) for line in read_metrics(out / run / "metrics.jsonl")]


def test_every_run_is_there_and_as_it_was_told(whole):
    found = results(whole)
    runs = {run["directory"]: run for run in found["runs"]}
    assert len(runs) == 3 + 2 + 5 and {run["status"] for run in runs.values()} == {"finished"}
    for path, run in runs.items():
        config = yaml.safe_load((whole / path / "config.yaml").read_text())
        assert config["seed"] == run["seed"] and (whole / "logs" / f"{path}.log").is_file()
        if run["stage"] == "warmup":
            assert run["steps"] == WARMUP and not (whole / path / "exam.json").exists()
            continue
        assert run["steps"] == STEPS and run["rollout_tokens"] > 0 and run["seconds"] > 0
        assert run["exam"]["split"] == ("validation" if run["stage"] == "tuning" else "test")
        exams = json.loads((whole / path / "exam.json").read_text())
        assert list(exams) == ["step-5", "step-10", "final"] and run["exam"]["step"] == exams["final"]["step"] == STEPS
        assert steps_of(whole, path)[:WARMUP] == steps_of(whole, run["warmup"]), "one warm-up for all"
        if run["method"] == "static" and run["stage"] == "final":
            switch = found["chosen"]["static"]["switch_step"]
            assert [line["kind"] for line in steps_of(whole, path)].count("sft") == switch
        if run["method"] == "random":
            assert config["sft_share"] == runs[run["match_run"]]["sft_share"]
    digests = {(run["stage"], run["seed"]): run["problems"]["digest"] for run in runs.values() if "problems" in run}
    assert len(set(digests.values())) == 3, "the same questions for each seed of a stage, and others for another"


def test_table_says_what_the_runs_say(whole):
    found = results(whole)
    assert [row["method"] for row in found["methods"]] == ["static", "sasr", "random"]
    for row in found["methods"]:
        runs = [run for run in found["runs"] if run["method"] == row["method"] and run["stage"] == "final"]
        count = 1 if row["method"] == "random" else 2
        assert row["seeds"] == [1, 2][:count] and not row["missing_seeds"]
        expected = sum(run["exam"]["pass_at"]["1"] for run in runs) / count
        assert row["metrics"]["pass@1"]["mean"] == pytest.approx(expected)
        assert row["metrics"]["greedy"]["mean"] == pytest.approx(
            sum(r["exam"]["greedy_accuracy"] for r in runs) / count
        )
        assert row["per_run"]["rollout_tokens"] == sum(run["rollout_tokens"] for run in runs) / count
    tuning = [run for run in found["runs"] if run["stage"] == "tuning"]
    assert found["methods"][0]["tuning_cost"]["rollout_tokens"] == sum(run["rollout_tokens"] for run in tuning)
    text = (whole / "table.md").read_text()
    assert "steps=12" in text and "| baseline |" in text and "switch_step" in text and "2 runs, 24 steps" in text


def test_the_same_command_again_does_nothing(whole, recipe, monkeypatch, capsys):
    def started(*args, **kwargs):
        raise AssertionError("a run was started")

    before = results(whole)
    monkeypatch.setattr("sasr.compare.runner.subprocess.Popen", started)
    assert compare(recipe, whole, "--jobs", "2") == 0
    assert results(whole) == before
    assert sasr.cli.main(["compare", "--output_dir", str(whole), "--resume_from_checkpoint"]) == 0
    assert without_times(results(whole)) == without_times(before)
    assert 'href":"runs/sasr/seed-2/report.html' in (whole / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "done: the table is in" in printed and "\x1b" not in printed
    with pytest.raises(AssertionError):
        shutil.rmtree(whole.parent / "copy", ignore_errors=True)
        copy = shutil.copytree(whole, whole.parent / "copy")
        shutil.rmtree(copy / "runs" / "random")
        compare(recipe, copy)


def test_another_comparison_does_not_fit(whole, recipe, capsys):
    assert compare(recipe, whole, "--budget", "steps=13", "--gamma", "2.0") == 2
    message = capsys.readouterr().err
    assert "compare.budget: steps=12 then, steps=13 now" in message and message.count("\n") == 1


def waits_for(process: int, number: int) -> bool:
    """Whether the signal has been sent to a process that is held."""
    status = Path(f"/proc/{process}/status").read_text()
    (pending,) = [line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:")]
    return bool(int(pending, 16) >> (number - 1) & 1)


def test_interrupted_and_continued(whole, recipe, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    run = out / "runs" / "sasr" / "seed-2"
    shutil.rmtree(run)
    # The installed command, whose runs are its own children.
    arguments = [INSTALLED, "compare", "--config", str(recipe), "--output_dir", str(out), "--jobs", "1"]
    process = subprocess.Popen(
        arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + LIMIT
        path = run / "metrics.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") <= WARMUP:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        # Held, so that it does not train to its end before the command has passed the signal on.
        (child,) = psutil.Process(process.pid).children()
        child.suspend()
        with pytest.raises(InputError, match="in use by another"):
            lock(out)
        process.send_signal(signal.SIGTERM)
        while not waits_for(child.pid, signal.SIGTERM):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        child.resume()
        printed, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 143, printed + errors
    assert printed.splitlines()[-1] == f"stopped; go on with: sasr compare --output_dir {out} --resume_from_checkpoint"
    status = {r["directory"]: r["status"] for r in results(out)["runs"]}
    assert status.pop("runs/sasr/seed-2") == "stopped" and set(status.values()) == {"finished"}
    step = len(read_metrics(path))
    assert WARMUP < step < STEPS and (run / f"checkpoint-{step}").is_dir()
    assert "sasr: not finished: seed 2" in (out / "table.md").read_text()
    assert '"text":"stopped, ' in (out / "report.html").read_text()
    assert sasr.cli.main(["compare", "--output_dir", str(out), "--resume_from_checkpoint"]) == 0
    assert without_times(results(out)) == without_times(results(whole))
    assert steps_of(out, "runs/sasr/seed-2") == steps_of(whole, "runs/sasr/seed-2")


def test_seeds_are_added_to_a_comparison_that_is_done(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000_000))
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    for checkpoint in out.glob("runs/*/*/checkpoint-*"):  # not needed any more
        shutil.rmtree(checkpoint)
    before = {path: path.read_bytes() for path in out.glob("*/*/*/*.safetensors")}
    command = ["compare", "--output_dir", str(out), "--resume_from_checkpoint"]
    assert sasr.cli.main([*command, "--seeds", "2-3", "--jobs", "1"]) == 0
    # Two checkpoints and the model, 0.6M parameters; then seed 3 and its warm-up, of the second seed `random` alone.
    told = r"a run leaves (.+) MB, the (\d) to come (.+) MB, and 10.0 MB are free: make room"
    ((one, number, all_),) = re.findall(told, capsys.readouterr().out)
    assert 16 < float(one) < 30 and number == "4" and float(all_) == pytest.approx(4 * float(one), abs=0.3)
    seeds = {method["method"]: method["seeds"] for method in results(out)["methods"]}
    assert seeds == {"static": [1, 2, 3], "sasr": [1, 2, 3], "random": [1, 2, 3]}
    assert len(before) > 4 and all(path.read_bytes() == data for path, data in before.items())
    values = [
        {(run["method"], run["seed"]): run["problems"] for run in results(place)["runs"] if run["stage"] == "final"}
        for place in (whole, out)
    ]
    assert values[0].items() <= values[1].items() and len(values[1]) == 9
    # With fewer it would be another one: nothing that has been run may fall out of the table.
    capsys.readouterr()
    assert sasr.cli.main([*command, "--methods", "static", "sasr"]) == 2
    assert "holds another comparison (compare.methods.random: set then, not now)" in capsys.readouterr().err
    assert sasr.cli.main([*command, "--seeds", "101"]) == 2
    assert "seed 101 is in seeds and in tune_seeds" in capsys.readouterr().err


def test_a_run_that_fails_does_not_stop_the_others(whole, recipe, tmp_path, capsys):
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    run = out / "runs" / "sasr" / "seed-1"
    for file in run.glob("checkpoint-*/optimizer.pt"):  # with one that is whole it would go on from there
        file.unlink()
    (run / "exam.json").unlink()
    assert compare(recipe, out, "--jobs", "1") == 1
    printed = capsys.readouterr().out
    assert "optimizer.pt is missing" in printed and "(see logs/runs/sasr/seed-1.log)" in printed
    assert "some runs failed" in printed and "sasr: not finished: seed 1" in (out / "table.md").read_text()


def test_view_without_and_with_a_terminal():
    from rich.console import Console

    now = [0.0]
    state = Progress(
        [Row("sasr", 1, 3, 1, "gamma 2.0", 0.25), Row("[b]x", 3, 3)], ["sasr, seed 2  step 5/9"], 4, 6, 61.0
    )
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=80, record=True)
        written: list[str] = []
        with CompareView(console, clock=lambda: now[0]) as view:
            if not terminal:
                view.message = written.append  # type: ignore[method-assign]
            view.update(state)
            assert written == []
            now[0] += 61
            view.update(state)
            shown = written if not terminal else [console.export_text() or ""]
            if terminal:
                console.print(view._render())
                shown = [console.export_text()]
        for text in ("4 of 6 runs done, 1 at work, about 1m01s left", "sasr, seed 2  step 5/9"):
            assert text in shown[0]
        if terminal:
            assert "1/3 1 failed" in shown[0] and "gamma 2.0" in shown[0] and "[b]x" in shown[0]
