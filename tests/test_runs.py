"""What `sasr runs` lists, from directories of every kind and state."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import report_data
import sasr.cli
from sasr import InputError, locks
from sasr.exam.request import read_request
from sasr.metrics import read_metrics, read_totals, sft_share
from sasr.runs import command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def listed(capsys, *argv: str) -> tuple[list[dict], str]:
    assert sasr.cli.main(["runs", *argv, "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def at(path: Path, seconds: int) -> None:
    for file in path.iterdir():
        os.utime(file, (seconds, seconds))


def exam(directory: Path, figures: dict | None) -> Path:
    directory.mkdir(parents=True)
    settings = {"model": "/models/tiny", "task": "stories"}
    content = {"settings": settings, "command": "sasr exam --model /models/tiny", "figures": figures}
    (directory / "exam.json").write_text(json.dumps(content))
    (directory / "completions.jsonl").write_text("{}\n" * 3)
    return directory


def comparison(directory: Path, *status: str) -> Path:
    directory.mkdir(parents=True)
    row = {"method": "sasr", "metrics": {"pass@1": {"mean": 0.25}}, "missing_seeds": []}
    runs = [{"status": text, "seconds": 10} for text in status]
    settings = {"task": "stories", "model_name_or_path": "tiny-llama"}
    (directory / "results.json").write_text(json.dumps({"comparison": settings, "methods": [row], "runs": runs}))
    return directory


def test_every_kind_newest_first(folder, capsys):
    at(report_data.run(folder / "whole"), 1_000)
    at(exam(Path("exams/tiny-1"), None), 3_000)
    at(exam(folder / "tiny-2", report_data.figures(0, 0.5)), 2_000)
    at(comparison(folder / "more" / "both", "finished", "failed: no memory"), 4_000)
    entries, notes = listed(capsys)
    shown = [(entry["directory"], entry["kind"], entry["state"]) for entry in entries]
    assert shown == [
        ("runs/more/both", "comparison", "failed"),
        ("exams/tiny-1", "exam", "stopped"),
        ("runs/tiny-2", "exam", "finished"),
        ("runs/whole", "run", "finished"),
    ]
    assert notes == ""
    both, stopped, done, whole = entries
    assert both["best"] == {"label": "sasr", "figure": "pass@1", "value": 0.25}
    assert both["go_on"] == "sasr compare --output_dir runs/more/both --resume_from_checkpoint"
    assert stopped["go_on"] == "sasr exam --model /models/tiny" and stopped["rows"] == 3
    assert done["best"]["value"] == 0.5 and done["go_on"] is None
    assert whole["best"] == {"label": "final", "step": 40, "figure": "pass@1", "value": 0.6}
    assert (whole["task"], whole["model"], whole["method"]) == ("stories", "tiny-llama", "sasr")
    assert whole["seconds"] == pytest.approx(40 * 0.2 + 3 * 2.5)


def test_states_of_a_run(folder, capsys):
    run = report_data.run(folder / "a b", exams=1, max_steps=50, max_seconds=60)

    def state() -> tuple[str, str, str | None]:
        ((entry,), _) = listed(capsys, str(run))
        return entry["state"], entry["state_text"], entry["go_on"]

    assert state() == ("unfinished", "unfinished, step 40 of 50", None)
    with locks.at_work(run, "test") as tell:
        assert state() == ("running", "running, step 40 of 50", None)
        with pytest.raises(InputError, match="in use by another test: wait"):
            locks.hold(run, "test")
        tell("stopped")
    assert state() == ("stopped", "stopped at step 40 of 50", None)
    (run / "checkpoint-30").mkdir()
    (run / "checkpoint-30" / "sasr_state.json").write_text("{}")
    assert state()[2] == "sasr train --output_dir 'runs/a b' --resume_from_checkpoint"
    with pytest.raises(ValueError), locks.at_work(run, "test"):
        raise ValueError("no\nsuch thing")
    assert state()[:2] == ("failed", "failed at step 40 of 50: no such thing")
    with locks.at_work(run, "test") as tell:
        tell("finished")
    assert state() == ("finished", "budget spent at step 40", None)
    (run / locks.LOCK_FILE).unlink()
    (run / "config.yaml").write_text("max_steps: 40\n")
    assert state() == ("finished", "finished", None), "all steps are done"


def test_a_home_that_no_shell_has_filled_in(folder, capsys, monkeypatch):
    """As in --output_dir=~/run, or in quotes."""
    monkeypatch.setenv("HOME", str(folder.resolve()))
    run = report_data.run(folder / "whole")
    ((entry,), _) = listed(capsys, "~/whole")
    assert entry["directory"] == str(run.resolve())
    assert sasr.cli.main(["report", "~/whole", "--output=~/page.html"]) == 0
    assert (folder / "page.html").is_file() and not Path("~").exists()
    asked = read_request(["--model", "tiny-llama", "--task", "stories", "--output_dir=~/exam"])
    assert asked.output_dir == folder.resolve() / "exam"


def test_a_hard_kill_lets_go_of_the_lock(tmp_path):
    code = (
        "import sys, time, pathlib; from sasr import locks\n"
        "with locks.at_work(pathlib.Path(sys.argv[1]), 'test') as tell:\n"
        "    tell('finished'); print('in', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    assert locks.is_held(tmp_path)
    process.kill()
    process.communicate()
    assert not locks.is_held(tmp_path) and locks.outcome(tmp_path) == ""


def test_what_cannot_be_read_is_skipped_with_a_note(folder, capsys):
    report_data.run(folder / "good")
    (report_data.run(folder / "cut") / "exam.json").write_text('{"final": ')
    (report_data.run(folder / "odd") / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (comparison(folder / "strange") / "results.json").write_text('{"runs": 3, "comparison": []}')
    (folder / "photos" / "2024").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    entries, notes = listed(capsys)
    assert [entry["directory"] for entry in entries] == ["runs/good"]
    told = sorted(notes.splitlines())
    assert len(told) == 4 and all(line.startswith("note: skipped ") for line in told)
    for name in ("cut/exam.json", "odd/config.yaml", "strange", "photos"):
        assert any(f"runs/{name}" in line for line in told), name


def test_links_are_followed_once(folder, capsys):
    """Runs on a larger disk, linked to from here; a link to what is listed anyway, or that leads round in a circle."""
    at(report_data.run(Path("disk/far")), 3_000)
    at(report_data.run(Path("disk/more/near")), 2_000)
    at(report_data.run(folder / "a"), 1_000)
    (folder / "far").symlink_to(Path("disk/far").resolve())
    (folder / "more").symlink_to(Path("disk/more").resolve())
    (folder / "b").symlink_to("a")
    (folder / "circle").mkdir()
    (folder / "circle" / "round").symlink_to(folder.resolve())
    (folder / "gone").symlink_to("nowhere")
    entries, notes = listed(capsys)
    assert [entry["directory"] for entry in entries] == ["runs/far", "runs/more/near", "runs/a"]
    assert notes == ""
    assert listed(capsys, "runs", "disk") == (entries, ""), "each once, however many places lead there"


def test_runs_of_a_comparison_and_nothing_at_all(folder, capsys):
    comparison(folder / "both", "finished")
    report_data.run(folder / "both" / "runs" / "sasr" / "seed-1")
    (folder / "both" / "logs").mkdir()
    assert [entry["directory"] for entry in listed(capsys)[0]] == ["runs/both"]
    entries, notes = listed(capsys, "runs/both")
    assert {entry["directory"] for entry in entries} == {"runs/both", "runs/both/runs/sasr/seed-1"} and notes == ""
    Path("empty").mkdir()
    assert sasr.cli.main(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no run, exam or comparison in empty\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there is no runs/ or exams/ here: name a directory"),
        (["nowhere"], "there is no directory nowhere"),
        (["--jsn"], "unknown argument --jsn (did you mean --json?)"),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, argv, message):
    assert sasr.cli.main(["runs", *argv]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and message in errors


def test_plain_lines_are_aligned(folder, capsys):
    at(report_data.run(folder / "whole"), 1_000)
    stopped = report_data.run(folder / "stopped\x1b[2J", exams=1, task="x" * 30)
    with locks.at_work(stopped, "test") as tell:
        tell("failed: no memory")
    assert sasr.cli.main(["runs"]) == 0
    head, first, second, note = capsys.readouterr().out.splitlines()
    assert "\x1b" not in first + note and "x" * 30 in first
    for title, text in (("state", "finished"), ("done", "40/40"), ("best", "0.600 final @40"), ("time", "16s")):
        assert second[head.index(title) :].startswith(text)
    assert note.endswith("failed at step 40 of 40: no memory")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_fits_the_terminal(folder, capsys, monkeypatch, width):
    report_data.run(folder / "whole", model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct")
    report_data.run(folder / ("long-" * 10 + "name"))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert sasr.cli.main(["runs"]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) == 3 and all(len(line) <= width for line in lines)
    assert all("finished" in line and "40/40" in line for line in lines[1:])
    assert ("Qwen2.5" in lines[1] + lines[2]) == (width == 200)


@pytest.mark.parametrize("schedule", ["hard", "both"])
def test_totals_are_those_of_every_line(tmp_path, schedule):
    path = report_data.run(tmp_path, steps=60) / "metrics.jsonl"
    if schedule == "both":
        path.write_text(path.read_text().replace('"grpo"', '"both"').replace('"phase": "hybrid"', '"phase": "hybrid"'))
    lines = read_metrics(path)
    last, seconds, share = read_totals(path)
    assert last == lines[-1] and seconds == pytest.approx(60 * 0.2)
    assert share == pytest.approx(sft_share(lines))


def test_a_hundred_runs_take_less_than_a_second_of_work(tmp_path):
    for index in range(100):
        report_data.run(tmp_path / f"run-{index}", steps=700)
    code = (
        "import sys, time; from sasr.cli import main; main(['runs', sys.argv[1], '--json'])\n"
        "assert 'torch' not in sys.modules; print(time.process_time(), file=sys.stderr)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    print(f"{done.stderr.strip()} s of processor time, {time.monotonic() - began:.2f} s in all")
    assert len(json.loads(done.stdout)) == 100
    assert float(done.stderr) < 1, "a busy machine may take longer, but not more work"


def test_help(capsys):
    assert sasr.cli.main(["runs", "--help"]) == 0
    assert capsys.readouterr().out.strip() == command.USAGE
