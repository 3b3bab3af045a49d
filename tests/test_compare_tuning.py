"""Tuning where some of its runs fail: what is chosen then, what is told, and what a later start makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import sasr
import zygote
from sasr.checkpoints import STATE_FILE
from sasr.compare import command, report, runner
from sasr.compare.plan import Comparison
from sasr.compare.reading import read
from sasr.compare.runner import Runner
from sasr.compare.view import CompareView
from sasr.errors import InputError
from sasr.locks import LOCK_FILE
from sasr.runs.state import comparison_state

STEPS, WARMUP = 10, 4
LOW, MIDDLE, HIGH = ("learning_rate=0.0001", "learning_rate=0.001", "learning_rate=1e-1")
Outcome = Callable[[str], str | int]


def comparison(**settings) -> Comparison:
    section = {
        "methods": {"sasr": {"tune": {"learning_rate": [1e-4, 1e-3, "1e-1"]}}, "random": {"match_run": "sasr"}},
        "seeds": "1-2",
        "tune_seeds": "8-9",
    }
    recipe = {"task": "stories", "sft_warmup_steps": 0, "max_steps": STEPS, **settings, "compare": section}
    return read(recipe, "r.yaml", {}, {})


def write_run(where: Path, steps: int, correct: int | None) -> None:
    """What a run leaves that came so far; with an exam if there are correct samples, of four."""
    (where / "exams").mkdir(parents=True)
    lines = [
        {"step": s, "phase": "hybrid", "kind": "grpo", "p_sft": 0.0, "step_seconds": 1.0, "sft_tokens": 0,
         "rollout_tokens": 3 * s, "sft_steps": 0, "grpo_steps": s}
        for s in range(1, steps + 1)
    ]  # fmt: skip
    (where / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if correct is not None:
        samples = [{"correct": i < correct} for i in range(4)]
        record = {"prompt": "p", "answer": "a", "greedy": {"correct": False}, "samples": samples}
        (where / "exams" / "final.jsonl").write_text(json.dumps(record) + "\n")
        exam = {"samples": 4, "rows": 1, "step": steps, "seconds": 1.0}
        (where / "exam.json").write_text(json.dumps({"final": exam}))


class Started(SimpleNamespace):
    """The tests' runs: they are done as soon as they are started, by what `outcome` says of their directory."""

    def __init__(self, root: Path, outcome: Outcome):
        super().__init__(root=root, outcome=outcome, paths=[], given=[])

    def __call__(self, command: list[str], stdout, **kwargs):
        where = Path(command[command.index("--output_dir") + 1])
        path = where.relative_to(self.root).as_posix()
        self.paths.append(path)
        self.given.append(kwargs | {"command": command, "held": [os.fstat(file).st_ino for file in kwargs["pass_fds"]]})
        outcome = self.outcome(path)
        code: int | None = 0
        if path.startswith("warmups") and isinstance(outcome, int):
            write_run(where, WARMUP, None)
            (where / f"checkpoint-{WARMUP}").mkdir()
            (where / f"checkpoint-{WARMUP}" / STATE_FILE).touch()
        elif isinstance(outcome, int):
            write_run(where, STEPS, outcome)
        elif outcome == "stop":  # Ctrl-C for all of them: it ends when it is told to
            code = None
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            code = 143 if outcome == "ended" else 1
            if outcome == "diverges":
                write_run(where, 3, None)
            stdout.write(f"sasr: failed: it {outcome}\n".encode())
        process = SimpleNamespace(pid=1, returncode=code, wait=lambda: code, kill=lambda: None)
        process.poll = lambda: process.returncode
        process.send_signal = lambda number: setattr(process, "returncode", 128 + number)
        return process


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """`compared(outcome)`: a start of the comparison, as (status, results, paths of the runs started, messages).
    `compared.given`: what their processes were started with."""
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0)
    directory = tmp_path / "out"
    directory.mkdir()

    def start(outcome: Outcome, jobs: int = 1, devices: tuple[str, ...] = (), **settings):
        popen, messages = Started(directory, outcome), []
        monkeypatch.setattr(runner.subprocess, "Popen", popen)
        view = CompareView()
        view.message = messages.append
        status = Runner(comparison(**settings), directory, jobs, devices, view, "sasr compare").run()
        start.given = popen.given
        return status, json.loads((directory / report.RESULTS_FILE).read_text()), popen.paths, messages

    start.directory = directory
    return start


def scores(path: str) -> int:
    return 3 if HIGH in path else 2 if MIDDLE in path else 1


def but(**outcomes: str | int) -> Outcome:
    """As `scores`, but for the paths that have one of these in them; `high_9` is seed 9 of the highest rate."""
    names = {"high_8": f"{HIGH}/seed-8", "high_9": f"{HIGH}/seed-9", "low": LOW, "middle": MIDDLE, "tuning": "tuning/"}
    given = {names.get(name, name): outcome for name, outcome in outcomes.items()}
    return lambda path: next((outcome for name, outcome in given.items() if name in path), scores(path))


FINALS = [f"runs/{method}/seed-{seed}" for seed in (1, 2) for method in ("sasr", "random")]
LEFT_OUT = "sasr: left out of the choice, since runs to tune it failed: learning_rate 1e-1"


def finals(paths: list[str]) -> list[str]:
    return [path for path in paths if path.startswith("runs/")]


@pytest.mark.parametrize("devices", [("4", "5"), ()])
def test_what_a_process_is_started_with(compared, monkeypatch, devices):
    """A device of its own, if there are any; the lock, to be held by those that survive us; no Ctrl-C of ours."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    status, _, paths, _ = compared(scores, jobs=2, devices=devices)
    assert status == 0 and len(compared.given) == len(paths) == 10
    visible = [given["env"]["CUDA_VISIBLE_DEVICES"] for given in compared.given]
    assert visible[:2] == list(devices or ("7", "7")) and set(visible) == set(devices or ("7",))
    lock = (compared.directory / LOCK_FILE).stat().st_ino
    for given in compared.given:
        assert given["held"] == [lock] and given["start_new_session"] is True
        assert given["env"].items() >= (os.environ.items() - {("CUDA_VISIBLE_DEVICES", "7")})


def test_a_process_imports_nothing_from_the_current_directory(compared, tmp_path):
    """Nor does the installed command: a file there may have the name of a package."""
    compared(scores)
    start = compared.given[0]["command"]
    (tmp_path / "yaml.py").write_text("raise ImportError('of something else')")
    version = [*start[: start.index("train")], "--version"]
    process = zygote._POPEN(version, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=120)[0] == f"sasr {sasr.__version__}\n"


def test_the_cores_are_shared_by_the_processes(compared, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "cores", lambda: 6)
    assert compared(scores, jobs=2)[0] == 0
    assert {given["env"]["OMP_NUM_THREADS"] for given in compared.given} == {"3"}


def test_a_point_with_a_run_that_failed_is_left_out(compared):
    status, found, paths, messages = compared(but(high_9="diverges"))
    assert status == 1 and finals(paths) == FINALS
    assert found["chosen"] == {"sasr": {"learning_rate": 1e-3}} and found["left_out"] == {
        "sasr": [{"learning_rate": "1e-1"}]
    }
    assert {run["tuned"]["learning_rate"] for run in found["runs"] if run["stage"] == "final"} == {1e-3}
    assert f"note: {LEFT_OUT}" in messages
    table = (compared.directory / "table.md").read_text()
    assert f"- {LEFT_OUT}" in table and "/seed-9 failed: it diverges (see logs/" in table
    # five runs of ten steps, and the three steps of the one that failed
    cost = found["methods"][0]["tuning_cost"]
    assert (cost["runs"], cost["failed"], cost["steps"], cost["rollout_tokens"]) == (6, 1, 53, 5 * 30 + 9)
    assert "6 runs (1 failed), 53 steps" in table
    assert comparison_state(compared.directory, found).text == "finished, but for 1 run to tune that failed"
    command._close(
        SimpleNamespace(content=lambda: found), SimpleNamespace(message=messages.append), Path("out"), status
    )
    assert messages[-1] == "done, but for runs to tune that failed; the table is in out/table.md"


def test_without_a_point_there_is_nothing_to_choose(compared):
    status, found, paths, _ = compared(but(tuning="has no memory"))
    assert (status, found["chosen"], found["left_out"], finals(paths)) == (1, {}, {}, [])
    assert [row["missing_seeds"] for row in found["methods"]] == [[1, 2], [1, 2]]
    assert "sasr: not finished: seed 1, 2" in (compared.directory / "table.md").read_text()


def test_a_choice_stays_once_final_runs_have_been_given_it(compared):
    outcome = but(high_9="diverges", **{"runs/random/seed-2": "diverges"})
    compared(outcome)
    # Whatever would have become of it now, two choices in one row of the table would be worse.
    status, found, paths, _ = compared(scores)
    assert paths == ["runs/random/seed-2"] and status == 1
    assert found["chosen"] == {"sasr": {"learning_rate": 1e-3}}
    assert {run["tuned"]["learning_rate"] for run in found["runs"] if run["stage"] == "final"} == {1e-3}
    assert LEFT_OUT in report.notes(found) and found["methods"][0]["tuning_cost"]["steps"] == 53
    again = compared(scores)
    assert again[2] == [] and again[1] == found


def test_before_final_runs_the_failed_ones_are_tried_again(compared):
    compared(but(high_9="diverges", runs="has no memory"))
    status, found, paths, _ = compared(scores)
    assert paths == [f"tuning/sasr/{HIGH}/seed-9", *FINALS] and status == 0
    assert found["chosen"] == {"sasr": {"learning_rate": "1e-1"}} and found["left_out"] == {}


@pytest.mark.parametrize("outcome", ["stop", "ended"])
def test_a_run_that_was_stopped_has_not_failed(compared, outcome):
    """By the user, together with all others, or alone."""
    status, found, paths, _ = compared(but(low="diverges", high_9=outcome))
    assert status == (143 if outcome == "stop" else 1) and finals(paths) == [] and found["chosen"] == {}
    status, found, paths, _ = compared(but(low="diverges"))
    assert found["chosen"] == {"sasr": {"learning_rate": "1e-1"}} and finals(paths) == FINALS


def test_a_warmup_that_fails_takes_its_points_with_it(compared):
    """With a rate of its own a point has a warm-up of its own."""
    runs = comparison(sft_warmup_steps=WARMUP).runs({})
    (lost,) = [run.warmup for run in runs if f"{HIGH}/seed-8" in run.path]
    status, found, paths, messages = compared(but(**{lost: "diverges"}), sft_warmup_steps=WARMUP)
    assert found["chosen"] == {"sasr": {"learning_rate": 1e-3}} and f"note: {LEFT_OUT}" in messages
    (waited,) = [run for run in found["runs"] if run["directory"].endswith(f"{HIGH}/seed-8")]
    assert waited["status"] == f"failed: its warm-up did ({lost})" and waited["directory"] not in paths
    assert status == 1 and finals(paths) == FINALS and found["methods"][0]["tuning_cost"]["runs"] == 5


def test_what_cannot_be_read_is_no_failed_run(compared):
    """It asks to be removed, so that the run can be made again, and then counts."""
    compared(but(runs="has no memory"))
    (compared.directory / "tuning" / "sasr" / HIGH / "seed-9" / "exams" / "final.jsonl").write_text("{")
    status, found, paths, _ = compared(scores)
    assert (status, found["chosen"], paths) == (1, {}, [])


def test_a_results_json_by_hand_is_refused_in_a_line(compared):
    (compared.directory / report.RESULTS_FILE).write_text('{"runs": 3}')
    with pytest.raises(InputError, match=r"results.json is not as sasr writes it"):
        compared(scores)
