"""Whole runs of the real command: what they write, and that a kill, Ctrl-C, SIGTERM or a hangup costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import sasr.cli
from sasr import locks
from sasr.metrics import read_totals, sft_share
from sasr.runs import entries
from whole_runs import (
    INSTALLED,
    LAST,
    LIMIT,
    assert_same_run,
    command,
    finish,
    metrics,
    resume_command,
    start,
    without_times,
)


def listed(directory: Path) -> dict:
    """What `sasr runs` says of it."""
    (entry,) = entries.find(directory, pytest.fail)
    return entry


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The uninterrupted run, and what it printed. The installed command makes it, started from nothing."""
    directory = tmp_path_factory.mktemp("cli") / "whole"
    out = finish(start([INSTALLED, *command(directory)[3:]]))
    (directory.parent / "printed").write_text(out)
    return directory


def test_metrics_follow_the_rule(whole):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, LAST + 1))
    assert [line["phase"] for line in lines] == ["warm-up"] * 4 + ["hybrid"] * (LAST - 4)
    assert {line["kind"] for line in lines[4:]} == {"sft", "grpo"}
    assert any(line["grad_norm"] > 0 for line in lines if line["kind"] == "grpo"), "the rollouts must matter"
    for before, line in zip([None, *lines], lines, strict=False):
        for key in ("loss", "grad_norm", "learning_rate", "u", "p_sft", "sft_grad_norm", "step_seconds"):
            assert isinstance(line[key], float), key
        assert line["sft_steps"] + line["grpo_steps"] == line["step"]
        assert ("sft_loss" in line) == (line["kind"] == "sft")
        if line["phase"] == "hybrid":
            last, scale = before["sft_grad_norm"], lines[3]["warmup_grad_norm"]
            assert line["p_sft"] == pytest.approx(last / (last + 0.8 * scale), rel=1e-9)
            assert line["kind"] == ("sft" if line["u"] < line["p_sft"] else "grpo")
    norms = [line["grad_norm"] for line in lines[:4]]
    assert lines[3]["warmup_grad_norm"] == pytest.approx((norms[2] + norms[3]) / 2)


def test_it_is_listed_as_finished(whole):
    entry, exams = listed(whole), json.loads((whole / "exam.json").read_text())
    assert (entry["state"], entry["steps"], entry["max_steps"], entry["go_on"]) == ("finished", LAST, LAST, None)
    assert (entry["task"], entry["model"], entry["method"]) == ("stories", "tiny-llama", "sasr")
    assert entry["last"]["label"] == "final" and entry["last"]["value"] == exams["final"]["pass_at"]["1"]
    assert read_totals(whole / "metrics.jsonl")[0] == metrics(whole)[-1]
    assert entry["sft_share"] == pytest.approx(sft_share(metrics(whole)))
    seconds = sum(line["step_seconds"] for line in metrics(whole)) + sum(exam["seconds"] for exam in exams.values())
    assert entry["seconds"] == pytest.approx(seconds)


def test_one_run_at_a_time(whole):
    with locks.hold(whole, "test"):
        process = start(resume_command(whole))
        process.communicate(timeout=LIMIT)
    assert process.returncode == 2


def test_exam_figures_are_those_of_the_kept_completions(whole):
    exams = json.loads((whole / "exam.json").read_text())
    assert [(label, exam["step"]) for label, exam in exams.items()] == [("initial", 0), ("warmup", 4), ("final", LAST)]
    for label, exam in exams.items():
        records = [json.loads(line) for line in (whole / "exams" / f"{label}.jsonl").read_text().splitlines()]
        assert len(records) == exam["rows"] == 8
        samples = [sample for record in records for sample in record["samples"]]
        assert len(samples) == 16
        assert exam["greedy_accuracy"] == sum(record["greedy"]["correct"] for record in records) / 8
        assert exam["pass_at"]["1"] == pytest.approx(sum(sample["correct"] for sample in samples) / 16)
        everything = samples + [record["greedy"] for record in records]
        assert exam["truncation_rate"] == pytest.approx(sum(c["truncated"] for c in everything) / 24)


def test_output_without_a_terminal_is_plain_lines(whole):
    printed = (whole.parent / "printed").read_text()
    assert "\x1b" not in printed and "\r" not in printed
    last = next(line for line in printed.splitlines() if line.startswith(f"step {LAST}/{LAST}"))
    assert "p_sft" in last and ("steps/s" in last or "s/step" in last)  # as fast as the machine is
    assert "at the end" in printed


def test_models_load_in_plain_transformers(whole):
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for path in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(path); tok = AutoTokenizer.from_pretrained(path)\n"
        "    ids = tok('Tom has 3 pens.', return_tensors='pt')\n"
        "    print(len(model.generate(**ids, max_new_tokens=4)[0]) - ids['input_ids'].shape[1])\n"
        "assert 'sasr' not in sys.modules"
    )
    parts = [str(whole / part) for part in ("", f"checkpoint-{LAST}", "checkpoint-3")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *parts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lengths = [int(line) for line in done.stdout.split()]
    assert len(lengths) == len(parts) and all(1 <= length <= 4 for length in lengths)


def test_config_file_runs_it_again(whole, tmp_path):
    again = tmp_path / "again"
    config = str(whole / "config.yaml")
    finish(start([sys.executable, "-m", "sasr", "train", "--config", config, "--output_dir", str(again)]))
    assert_same_run(again, whole)


def wait_until(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def lines_written(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("moment", ["after the warm-up", "between checkpoints", "while a checkpoint is written"])
def test_hard_kill_costs_nothing(whole, tmp_path, moment):
    run = tmp_path / "run"
    process = start(command(run))
    conditions = {
        "after the warm-up": lambda: lines_written(run) >= 5,
        "between checkpoints": lambda: lines_written(run) >= 11,
        "while a checkpoint is written": lambda: (run / ".unfinished" / "checkpoint-9").is_dir(),
    }
    wait_until(process, conditions[moment])
    assert listed(run)["state"] == "running"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert listed(run)["state"] == "killed"
    finish(start(resume_command(run)))
    assert_same_run(run, whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stop_signals_save_and_say_how_to_go_on(whole, tmp_path, number, status):
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started by nohup
    process = start(command(run))
    signal.signal(signal.SIGHUP, before)
    wait_until(process, lambda: lines_written(run) >= 7)
    for _ in range(2 if number == signal.SIGHUP else 1):  # a shell and the kernel both tell of a closed terminal
        os.kill(process.pid, number)
    out = finish(process, status)
    (line,) = [line for line in out.splitlines() if line.startswith("stopped at step")]
    step = int(line.split()[3].rstrip(","))
    assert 7 <= step < LAST and (run / f"checkpoint-{step}").is_dir()
    assert line.endswith(f"sasr train --output_dir {run} --resume_from_checkpoint")
    assert lines_written(run) == step, "the step under way was finished and logged"
    assert f"stopped at step {step} of {LAST}" in (run / "report.html").read_text()
    assert listed(run)["state_text"] == f"stopped at step {step} of {LAST}"
    assert line.endswith(listed(run)["go_on"])
    finish(start(resume_command(run)))
    assert_same_run(run, whole)


def test_stopped_without_a_reader_it_saves_all_the_same(whole, tmp_path):
    """`sasr train | tee log`: Ctrl-C ends tee at once."""
    run = tmp_path / "run"
    process = start(command(run))
    wait_until(process, lambda: lines_written(run) >= 7)
    process.stdout.close()
    process.stderr.close()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(LIMIT) == 130
    assert (run / f"checkpoint-{lines_written(run)}").is_dir() and (run / "report.html").is_file()
    assert listed(run)["state"] == "stopped"
    finish(start(resume_command(run)))
    assert_same_run(run, whole)


def test_stop_during_the_exam_loses_nothing(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    # as if the run had been killed in its last exam: all steps are done, the result is not there
    exams = json.loads((run / "exam.json").read_text())
    del exams["final"]
    (run / "exam.json").write_text(json.dumps(exams))
    finish(start(resume_command(run)))
    assert_same_run(run, whole)


def test_lora_run_and_resume(tmp_path):
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear"]
    finish(start(command(tmp_path / "whole", *lora)))
    part = tmp_path / "part"
    part.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "exam.json", "initial_model", "checkpoint-6"):
        source = tmp_path / "whole" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, part / name)
    exams = json.loads((part / "exam.json").read_text())
    del exams["final"]
    (part / "exam.json").write_text(json.dumps(exams))
    finish(start(resume_command(part)))
    assert (part / "adapter_model.safetensors").is_file()
    assert_same_run(part, tmp_path / "whole")


def test_help_and_version():
    for flags, expected in (
        (["--version"], "sasr 0."),
        ([], "sasr train --config gsm8k"),
        (["train", "--help"], "--sft_warmup_steps"),
        (["train", "--help_all"], "--adam_beta2"),
    ):
        assert expected in finish(start([sys.executable, "-m", "sasr", *flags]))


def test_a_matched_run_goes_on_when_the_other_is_gone(environment, tmp_path, monkeypatch):
    """Its share is that of the other's metrics, and its config.yaml holds the number."""
    monkeypatch.chdir(tmp_path)
    small = {
        "train_rows": 40, "exam_rows": 0, "max_steps": 5, "sft_warmup_steps": 2, "per_device_train_batch_size": 8,
        "per_device_sft_batch_size": 4, "max_completion_length": 16, "save_steps": 3, "num_generations": 4,
    }  # fmt: skip
    argv = ["train", *(text for key, value in small.items() for text in (f"--{key}", str(value)))]
    assert sasr.cli.main([*argv, "--output_dir", "other", "--schedule", "chord_mu", "--mu_decay_steps", "2"]) == 0
    shares = [line["p_sft"] for line in metrics(tmp_path / "other")[2:]]
    assert shares == pytest.approx([0.9, 0.475, 0.05])
    matched = ["--output_dir", "matched", "--schedule", "random", "--match_run", "other"]
    assert sasr.cli.main([*argv, *matched]) == 0
    written = yaml.safe_load((tmp_path / "matched" / "config.yaml").read_text())
    assert written["sft_share"] == pytest.approx(1.425 / 3)
    assert "match_run" not in written
    before = without_times(metrics(tmp_path / "matched"))
    assert [line["p_sft"] for line in before[2:]] == pytest.approx([1.425 / 3] * 3)
    shutil.rmtree(tmp_path / "other")
    shutil.rmtree(tmp_path / "matched" / "checkpoint-5")
    assert sasr.cli.main(["train", "--output_dir", "matched", "--resume_from_checkpoint"]) == 0
    assert without_times(metrics(tmp_path / "matched")) == before
