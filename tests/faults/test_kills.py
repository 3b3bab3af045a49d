"""kill -9 and SIGTERM at random moments of every phase of a run, and the loss of one process of two: the run that goes
on is the run that nothing happened to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killer import PHASES

from whole_runs import LAST, assert_same_run, command, finish, metrics, resume_command, start

pytestmark = pytest.mark.faults
KILLER = str(Path(__file__).with_name("killer.py"))
CHAINS = 19  # of three kills, of which not all come
EARLY = ("start", "writing the model", "exam", "writing an exam", "generation", "backward", "writing metrics")
LATER = ("backward", "optimizer step", "writing metrics", "generation", "writing a checkpoint", "exam")
ONCE = {"start", "cutting metrics", "loading a checkpoint", "report"}  # in a process
WITHIN = 60  # seconds in which a run ends that has lost one of its processes


def moments(chain: int) -> list[tuple[str, int, float]]:
    """(phase, which call of it, seconds from its beginning) of each kill; over the chains every phase is met."""
    draw = random.Random(f"kill {chain}")
    phases = (EARLY[chain % len(EARLY)], list(PHASES)[chain % len(PHASES)], draw.choice(LATER))
    return [(phase, 1 if phase in ONCE else draw.randint(1, 2), draw.uniform(0, 0.05)) for phase in phases]


def assert_nothing_lost(run: Path, whole: Path) -> None:
    assert [line["step"] for line in metrics(run)] == list(range(1, LAST + 1)), "no step is missing or doubled"
    assert_same_run(run, whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert "finished" in (run / "report.html").read_text()
    assert not (run / ".unfinished").exists()


@pytest.mark.parametrize("chain", range(CHAINS))
def test_killed_again_and_again(whole, tmp_path, chain, tried, survived):
    run, faults = tmp_path / "run", []
    arguments = command(run)[3:]
    for phase, count, delay in moments(chain):
        process = start([sys.executable, KILLER, phase, str(count), f"KILL:{delay}", *arguments])
        out, errors = process.communicate(timeout=240)
        assert "Traceback" not in errors, errors
        # Loading a checkpoint where there is none yet does not come.
        came = f"now {phase}" in out
        killed = process.returncode == -signal.SIGKILL
        # The report is the last that a run does: on a fast machine it is over before the kill comes.
        assert killed or (process.returncode == 0 and (not came or phase == "report")), out + errors
        if killed:
            faults.append(f"kill -9 in {phase}")
            tried(faults[-1])
        if (run / "config.yaml").is_file():
            arguments = resume_command(run)[3:]
    finish(start([sys.executable, "-m", "sasr", *arguments]))
    assert_nothing_lost(run, whole)
    for fault in faults:
        survived(fault)


# The first generations are those of the exam before the first step.
STOPPED_IN = [
    ("generation", 1),
    ("generation", 8),
    ("backward", 2),
    ("optimizer step", 2),
    ("exam", 2),
    ("writing a checkpoint", 2),
    ("report", 1),
]


@pytest.mark.parametrize(("phase", "count"), STOPPED_IN)
def test_stopped_as_a_scheduler_does(whole, tmp_path, phase, count, tried, survived):
    run, fault = tmp_path / "run", f"SIGTERM in {phase}"
    tried(fault)
    process = start([sys.executable, KILLER, phase, str(count), "TERM:0.01", *command(run)[3:]])
    out, errors = process.communicate(timeout=240)
    assert f"now {phase}" in out and "Traceback" not in errors, out + errors
    if phase == "report":  # the run is over; only its picture is lost, or not even that
        assert process.returncode in (0, 143, -signal.SIGTERM)
    else:
        assert process.returncode == 143, out + errors
        (line,) = [line for line in out.splitlines() if line.startswith("stopped ") and "sasr train" in line]
        step = len(metrics(run)) if (run / "metrics.jsonl").is_file() else 0
        where = (
            f"at step {step}, saved in checkpoint-{step}; go on" if step else "before the first checkpoint; begin again"
        )
        assert line == f"stopped {where} with: sasr train --output_dir {run} --resume_from_checkpoint"
        assert bool(step) == (count != 1)
    finish(start(resume_command(run)))
    assert_nothing_lost(run, whole)
    survived(fault)


@pytest.mark.parametrize(("phase", "rank"), [("generation", 1), ("backward", 0), ("writing a checkpoint", 0)])
def test_one_process_of_two_is_lost(tmp_path, phase, rank, tried, survived):
    """The other one ends too, with an error, instead of waiting for ever; the run goes on from its last checkpoint."""
    run, fault = tmp_path / "run", f"kill -9 of one process of two in {phase}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "FAULT_RANK": str(rank)}

    def launched(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*launch, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    flags = [*command(run)[3:], "--use_cpu", "true"]
    tried(fault)
    count = {"generation": 9, "backward": 14, "writing a checkpoint": 2}[phase]
    killed = launched(KILLER, phase, str(count), "KILL:0.01", *flags)
    for line in killed.stdout:
        if f"now {phase}" in line:
            break
    rest, _ = killed.communicate(timeout=WITHIN)  # counted from the kill
    assert killed.returncode not in (0, 2), rest
    finish(launched("-m", "sasr", *resume_command(run)[3:], "--use_cpu", "true"))
    finish(launched("-m", "sasr", *command(tmp_path / "straight")[3:], "--use_cpu", "true"))
    assert_nothing_lost(run, tmp_path / "straight")
    survived(fault)
