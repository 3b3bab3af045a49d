"""What every command does on a full disk: one line, nothing lost, and the command that it names goes on.

The limit on the size of a file stands for the disk: writes fail as they do there. Real full disks are in faults.
"""

from __future__ import annotations

import resource
import shlex
from contextlib import contextmanager

import pytest
import yaml

import sasr.cli
import toy
from sasr.errors import RunFailed
from sasr.metrics import read_metrics
from small_exam import EXAM, MORE, assert_same_exam

TRAIN = [
    "train", "--train_rows", "40", "--exam_rows", "2", "--exam_samples", "2", "--sft_warmup_steps", "2",
    "--max_steps", "4", "--per_device_train_batch_size", "8", "--num_generations", "4", "--max_completion_length", "4",
]  # fmt: skip
COMPARED = {"methods": {"sft": {"sft_warmup_steps": 0}}, "seeds": 1, "budget": "steps=4"}


@contextmanager
def files_up_to(size: int):
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failed(capsys, command: list[str], size: int) -> str:
    """What the command says for why it failed."""
    with files_up_to(size):
        status = sasr.cli.main(command)
    out, err = capsys.readouterr()
    assert status == 1, out + err
    (line,) = [line for line in err.splitlines() if line.startswith("sasr: failed: ")]
    assert "Traceback" not in out + err and "File too large" in line
    return line


def goes_on_with(line: str) -> None:
    """Do what the line says."""
    assert sasr.cli.main(shlex.split(line.partition(" with: sasr ")[2])) == 0


@pytest.mark.usefixtures("in_exam_place")
def test_exam(whole_exam, tmp_path, capsys):
    completions = whole_exam / "completions.jsonl"
    part = tmp_path / "part"
    line = failed(capsys, ["exam", *EXAM, *MORE, "--output_dir", str(part)], completions.stat().st_size * 2 // 3)
    assert "the rows that were done are safe" in line
    assert 0 < len(read_metrics(part / "completions.jsonl")) < len(read_metrics(completions))
    goes_on_with(line)
    assert_same_exam(part, whole_exam)


def test_training_before_its_first_step(tmp_path, capsys):
    run = tmp_path / "run"
    line = failed(capsys, [*TRAIN, "--output_dir", str(run)], 100)
    assert "nothing has been done yet: start it again" in line
    line = failed(capsys, [*TRAIN, "--output_dir", str(run)], 1_000_000)
    assert f"the initial model cannot be written to {run}" in line and "there is no checkpoint yet" in line
    goes_on_with(line)
    assert [metrics["step"] for metrics in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (run / "model.safetensors").is_file()


def test_reference_model(tmp_path, capsys):
    trained = toy.trainer(tmp_path / "run", lm=toy.model(directory=tmp_path / "lm"), beta=0.1, max_steps=8)
    with files_up_to(1000), pytest.raises(RunFailed, match=r"the reference model cannot .*File too large"):
        trained.train()
    assert trained.state.global_step < 8


def test_comparison(tmp_path, capsys):
    out, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    settings = {name.removeprefix("--"): value for name, value in zip(TRAIN[1::2], TRAIN[2::2], strict=True)}
    del settings["max_steps"]
    recipe.write_text(yaml.safe_dump({"model_name_or_path": "tiny-llama", **settings, "compare": COMPARED}))
    command = ["compare", "--config", str(recipe), "--output_dir", str(out)]
    assert "nothing has been trained yet" in failed(capsys, command, 100)
    line = failed(capsys, command, 800)
    assert (out / "comparison.yaml").is_file() and not (out / "results.json").exists()
    assert "every run is safe up to its last checkpoint" in line
    goes_on_with(line)
    assert (out / "table.md").is_file()
