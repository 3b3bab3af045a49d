"""The launch configurations of recipes/accelerate: with two processes on a CPU, each engine takes the steps of one."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import sharded_run
from docs_commands import ROOT

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))


def launch(name: str, directory: Path, *more: str) -> tuple[list[str], list[list]]:
    """What two processes do on a CPU with this file: ([engine, type of a parameter], history)."""
    directory.mkdir(exist_ok=True)
    script = str(Path(__file__).with_name("sharded_run.py"))
    config = ["--config_file", str(ROOT / "recipes" / "accelerate" / name), "--mixed_precision", "no"]
    command = [ACCELERATE, "launch", *config, "--num_processes", "2", "--main_process_port", "0", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(directory), *more], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((directory / "history.json").read_text())


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> list[list]:
    directory = tmp_path_factory.mktemp("one")
    sharded_run.main(directory)
    return json.loads((directory / "history.json").read_text())[1]


def assert_same_steps(history: list[list], one: list[list]) -> None:
    """The SFT steps, their norms and the decisions are those of one process; the rollouts draw from other generators,
    one for each process, so that what follows the first GRPO step is alike only in its decisions."""
    assert [row[1] for row in history] == [row[1] for row in one], "the kinds of steps"
    first = next(i for i, row in enumerate(one) if row[1] == 0)
    assert 4 <= first < 12
    for row, other in zip(history[:first], one[:first], strict=True):
        for a, b in zip(row, other, strict=True):
            assert (a is None and b is None) or math.isclose(a, b, rel_tol=1e-5), (row, other)


def test_ddp(tmp_path, one):
    (engine, parameter), history = launch("ddp.yaml", tmp_path / "run")
    assert (engine, parameter) == ("MULTI_CPU", "Parameter")
    assert_same_steps(history, one)


def test_fsdp2_and_resume(tmp_path, one):
    (engine, parameter), history = launch("fsdp2.yaml", tmp_path / "run")
    assert (engine, parameter) == ("FSDP", "DTensor"), "sharded for real"
    assert_same_steps(history, one)
    again = Path(shutil.copytree(tmp_path / "run", tmp_path / "again"))
    shutil.rmtree(again / "checkpoint-12")
    assert launch("fsdp2.yaml", again, str(again / "checkpoint-6"))[1] == history, "to the bit"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_can_be_read_and_names_its_command(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.gpu_ids is None, "accelerate would put it in the place of CUDA_VISIBLE_DEVICES"
    (line,) = [line for line in path.read_text().splitlines() if "accelerate launch" in line]
    words = shlex.split(line[line.index("accelerate launch") :])
    assert words[words.index("--config_file") + 1] == f"recipes/accelerate/{path.name}"
    assert words[words.index("-m") + 1 :][:2] == ["sasr", "train"]
