"""Full disks, directories that cannot be written any more, and checkpoints damaged after they were written."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_kills import KILLER, assert_nothing_lost

from sasr.checkpoints import all_checkpoints
from whole_runs import LAST, command, finish, metrics, resume_command, start

pytestmark = pytest.mark.faults
# A mount of one's own, in which root's rights do not exceed a user's: it goes with the process.
ALONE = ["unshare", "-rm", "bash", "-c"]
CAN_MOUNT = shutil.which("unshare") and not subprocess.run([*ALONE, "mount -t tmpfs none /mnt"]).returncode
AS_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def told(errors: str) -> str:
    """The one line of a run that failed."""
    assert "Traceback" not in errors, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("sasr: failed: ")]
    return line


@pytest.mark.skipif(not CAN_MOUNT, reason="this system lets nobody mount a small disk (unshare -rm)")
@pytest.mark.parametrize("megabytes", [10, 20, 31, 42, 60, 84, 99])
def test_full_disk(whole, tmp_path, megabytes, tried, survived):
    """The run ends with one line; what it had saved is whole; with more room it goes on."""
    disk, fault = tmp_path / "disk", "disk full"
    disk.mkdir()
    run = disk / "run"
    script = f"""
        mount -t tmpfs -o size={megabytes}m none {disk}
        {shlex.join(command(run))} > {tmp_path}/out 2> {tmp_path}/errors; echo $? > {tmp_path}/status
        cp -r {run} {tmp_path}/then
        mount -o remount,size=1g {disk}
        {shlex.join(resume_command(run))} && cp -r {run} {tmp_path}/run
    """
    tried(fault)
    process = start([*ALONE, script])
    out = finish(process)
    assert (tmp_path / "status").read_text().strip() == "1", out
    line = told((tmp_path / "errors").read_text())
    assert "cannot be written" in line or "No space left on device" in line
    saved = all_checkpoints(tmp_path / "then")
    safe = f"{saved[0].name} is safe" if saved else "there is no checkpoint yet"
    assert f"{safe}; when this is mended, " in line and line.endswith(f"--output_dir {run} --resume_from_checkpoint")
    assert_nothing_lost(tmp_path / "run", whole)
    survived(fault)


@pytest.mark.parametrize("phase", ["writing a checkpoint", "writing an exam", "writing metrics"])
def test_directory_becomes_read_only(whole, tmp_path, phase, tried, survived):
    run, fault = tmp_path / "run", f"directory made read-only before {phase}"
    tried(fault)
    deed = f"run:chmod -R a-w {run}"
    process = start([*AS_USER, sys.executable, KILLER, phase, "3", deed, *command(run)[3:]])
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 1, out + errors
    assert "ermission denied" in told(errors)
    subprocess.run(["chmod", "-R", "u+w", str(run)], check=True)
    finish(start(resume_command(run)))
    assert_nothing_lost(run, whole)
    survived(fault)


def damage(file: Path, how: str, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut short":
        content = content[: draw.randrange(len(content))]
    elif how == "with a flipped bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    if how == "gone":
        file.unlink()


@pytest.mark.parametrize("how", ["cut short", "with a flipped bit", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "sasr_state.json", "trainer_state.json"])
def test_damaged_checkpoint(whole, tmp_path, name, how, tried, survived):
    """It is noticed, said, and the one before taken."""
    run, fault = tmp_path / "run", f"file of a checkpoint {how}"
    shutil.copytree(whole, run)
    exams = json.loads((run / "exam.json").read_text())
    (run / "exam.json").write_text(json.dumps({label: exam for label, exam in exams.items() if label != "final"}))
    newest, before = all_checkpoints(run)[:2]
    tried(fault)
    damage(newest / name, how, random.Random(f"{name} {how}"))
    out = finish(start(resume_command(run)))
    if (name, how) != ("sasr_state.json", "gone"):  # without it, it is none of ours
        assert f"{newest.name} is passed over: {newest / name} " in out
    assert newest.name == f"checkpoint-{LAST}" and f"step {int(before.name[11:]) + 1}/" in out
    assert len(metrics(run)) == LAST
    assert_nothing_lost(run, whole)
    survived(fault)
