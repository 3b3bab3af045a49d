"""Checkpoints that a run cannot go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import sasr.cli
from refusals import SMALL, checked

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture(scope="module")
def finished_lora(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished_lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory.parent)
        lora = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "all-linear"]
        assert sasr.cli.main(["train", *SMALL, "--output_dir", "run", *lora]) == 0
    return directory


@pytest.fixture
def lora_run(finished_lora):
    copy = Path(shutil.copytree(finished_lora, "run"))
    shutil.rmtree(copy / "checkpoint-4")
    return copy


@pytest.fixture
def run(finished_run):
    return Path(shutil.copytree(finished_run, "run"))


RESUME = ["--output_dir", "run", "--resume_from_checkpoint"]


def test_finished_directory_suggests_to_resume(error, run):
    message = error(*SMALL)
    assert "run is not empty" in message and "--resume_from_checkpoint" in message


def test_an_exam_file_that_is_cut_is_one_line(run, capsys):
    shutil.rmtree(run / "checkpoint-4")
    (run / "exam.json").write_text('{"initial": ')
    capsys.readouterr()
    assert sasr.cli.main(["train", *RESUME]) == 2
    err = capsys.readouterr().err
    assert "run/exam.json cannot be read" in err and "restore it, or move it away" in err and "Traceback" not in err


@pytest.mark.parametrize("lock", [True, False], ids=["", "copied without its lock"])
def test_a_finished_model_without_its_checkpoints_is_not_trained_anew(error, run, lock):
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if not lock:
        (run / ".lock").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "run has the model.safetensors of a finished run and no checkpoint to go on from" in error(*RESUME)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--gamma", "2"], "gamma: 1.0 then, 2.0 now"),
        (["--max_steps", "3"], "max_steps: 4 then, 3 now"),
        (["--seed", "7"], "seed: 42 then, 7 now"),
        (["--lr_scheduler_type", "linear"], "lr_scheduler_type: constant then, linear now"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_checkpoint_of_another_config(error, run, flags, fragment):
    message = error(*RESUME, *flags)
    assert "run/checkpoint-4 belongs to another run" in message and fragment in message


def test_a_home_that_no_shell_has_filled_in(error, run, monkeypatch):
    """transformers does, and so the run is there."""
    monkeypatch.setenv("HOME", str(Path.cwd()))
    checkpoint = Path.cwd() / "run" / "checkpoint-4"
    for flags in (["--output_dir=~/run", "--resume_from_checkpoint"], ["--resume_from_checkpoint=~/run/checkpoint-4"]):
        assert f"{checkpoint} belongs to another run (gamma: 1.0 then, 2.0 now)" in error(*flags, "--gamma", "2")
    message = error("--output_dir=~/other", "--resume_from_checkpoint")
    assert "no checkpoint to resume from in ~/other" in message


def test_checkpoint_of_another_world_size(error, run):
    path = run / "checkpoint-4" / "sasr_state.json"
    state = json.loads(path.read_text())
    state["fingerprint"]["world_size"] = 2
    path.write_text(json.dumps(state))
    (path.parent / "sasr_files.json").unlink()  # which knows the old file's checksum
    assert "world_size: 2 then, 1 now" in error(*RESUME)


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--lora_alpha", "64"], "adapter lora_alpha: 32 then, 64 now"),
        (["--lora_r", "4"], "parameters: "),
        (["--dtype", "bfloat16"], "dtype: torch.float32 then, torch.bfloat16 now"),
        (["--train_rows", "30"], "data: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_checkpoint_of_another_model_or_data(lora_run, capsys, flags, fragment):
    """What only the loaded model shows is still one line, before the first step."""
    before = [(lora_run / name).read_text() for name in ("metrics.jsonl", "config.yaml")]
    status = sasr.cli.main(["train", *RESUME, *flags])
    out, err = capsys.readouterr()
    assert fragment in checked(status, "", err) and "Traceback" not in out
    assert [(lora_run / name).read_text() for name in ("metrics.jsonl", "config.yaml")] == before


def test_directory_that_is_no_checkpoint(error, run):
    message = error("--resume_from_checkpoint", "run/initial_model", "--output_dir", "run")
    assert "is not a checkpoint of sasr" in message and "sasr_state.json" in message
    (run / "checkpoint-4" / "sasr_state.json").write_text("{")
    message = error("--resume_from_checkpoint", "run/checkpoint-4")
    assert "cannot be read" in message and "earlier checkpoint" in message


def test_damaged_checkpoint(error, run):
    for name in ("model.safetensors", "optimizer.pt", "sasr_tensors_0.pt", "trainer_state.json", "rng_state.pth"):
        checkpoint = shutil.copytree(run / "checkpoint-4", run / "checkpoint-5")
        (checkpoint / name).unlink()
        message = error("--resume_from_checkpoint", "run/checkpoint-5")
        assert f"run/checkpoint-5/{name} is missing" in message and "earlier checkpoint" in message
        shutil.rmtree(checkpoint)


def test_resumed_run_whose_config_is_broken(error, run):
    (run / "config.yaml").write_text("gamma: [\n")
    message = error(*RESUME)
    assert "run/config.yaml" in message and "not valid YAML" in message
    (run / "config.yaml").write_text("gama: 1\n")
    assert "unknown setting 'gama'" in error(*RESUME)


def test_output_directory_of_a_resumed_run_is_a_file(error, run):
    Path("file").write_text("")
    message = error("--resume_from_checkpoint", "run/checkpoint-4", "--output_dir", "file")
    assert "output_dir file cannot be written" in message


def test_what_a_kill_left_before_the_model_was_loaded_is_begun_with_the_same_command(error, capsys):
    """As the command of a job script; without settings there is nothing to begin."""
    Path("run").mkdir()
    Path("run/.lock").touch()
    assert "no checkpoint to resume from in run: leave --resume_from_checkpoint out to begin a run" in error(*RESUME)
    assert [path.name for path in Path("run").iterdir()] == [".lock"]
    assert sasr.cli.main(["train", *SMALL, "--resume_from_checkpoint"]) == 0
    assert "run holds no run yet: beginning one" in capsys.readouterr().out
    assert Path("run/checkpoint-4").is_dir() and Path("run/.lock").read_text() == "finished"


def test_where_a_command_that_asks_to_go_on_begins_a_run(monkeypatch):
    Path("empty").mkdir()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    Path("file").write_text("")
    some, what = ["--max_steps", "4"], ["--config=gsm8k"]
    found = {
        (where, settings[0]): sasr.cli._may_begin([*settings, "--output_dir", where], Path(where))
        for where in ("none", "empty", "mine", "file")
        for settings in (some, what)
    }
    assert [key for key, begins in found.items() if begins] == [
        ("none", "--config=gsm8k"), ("empty", "--max_steps"), ("empty", "--config=gsm8k"),
    ]  # fmt: skip
    flags = ["--output_dir", "none", *what]
    assert sasr.cli._resume([*flags, "--resume_from_checkpoint"]) == (flags, None, None, False)
    monkeypatch.setenv("RANK", "1")  # the main process looks at the directory, in which it may have begun already
    assert sasr.cli._may_begin([*some, "--output_dir", "none"], Path("none"))
    assert not sasr.cli._may_begin(["--output_dir", "none"], Path("none"))
