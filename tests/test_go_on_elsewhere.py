"""Going on from a checkpoint in another directory, or behind later ones, and what `config.yaml` keeps for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import sasr.cli
from sasr import InputError
from sasr.compare import report
from sasr.compare.reading import read
from sasr.metrics import read_totals
from sasr.parsing import parse, read_recipe
from sasr.run import config_text
from sasr.run_directory import check_free, keep_settings, origin_of
from sasr.runs.state import run_state

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture
def run(finished_run):
    return Path(shutil.copytree(finished_run, "run"))


def steps_of(directory: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_into_a_directory_that_holds_something_else(error, run):
    """Its model, or the metrics and exams of another run, would be replaced."""
    Path("other").mkdir()
    (Path("other") / "model.safetensors").write_text("precious")
    checkpoint = str(min(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:])))
    message = error("--resume_from_checkpoint", checkpoint, "--output_dir", "other")
    assert "other is not empty" in message
    assert [path.name for path in Path("other").iterdir()] == ["model.safetensors"]


def test_into_a_directory_of_its_own(run, capsys):
    """With what had been measured by then."""
    first = min(int(path.name[11:]) for path in run.glob("checkpoint-*"))
    command = ["train", "--resume_from_checkpoint", f"run/checkpoint-{first}", "--output_dir", "other"]
    assert sasr.cli.main(command) == 0 and "note: checkpoint" not in capsys.readouterr().out
    assert steps_of(Path("other")) == steps_of(run)
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:])).name
    weights = [(Path(name) / last / "model.safetensors").read_bytes() for name in ("run", "other")]
    assert weights[0] == weights[1]


def killed(directory: Path, whole: Path) -> None:
    """What is left of a run that is whole if it was killed after step 3, before its first checkpoint."""
    shutil.rmtree(directory)
    shutil.copytree(whole, directory)
    for checkpoint in directory.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (directory / "model.safetensors").unlink()
    (directory / ".lock").write_text("")
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:3]))


def test_before_its_own_first_checkpoint_it_goes_on_where_it_began(run, error, capsys):
    """It began again at step 0, and the command that had begun it was refused."""
    other, bare = Path("other"), ["--output_dir", "other", "--resume_from_checkpoint"]
    begun = ["--resume_from_checkpoint", "run/checkpoint-2", "--output_dir", "other"]
    assert sasr.cli.main(["train", *begun]) == 0
    whole = Path(shutil.copytree(other, "whole"))
    for command in (bare, begun):
        killed(other, whole)
        capsys.readouterr()
        assert sasr.cli.main(["train", *command]) == 0
        origin = Path("run/checkpoint-2").resolve()
        assert f"other has no checkpoint yet: beginning again at {origin}\n" in capsys.readouterr().out
        assert steps_of(other) == steps_of(run)
        assert sorted(path.name for path in other.glob("checkpoint-*")) == ["checkpoint-4"]
        assert (other / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert sasr.cli.main(["train", *begun]) == 0, "with a checkpoint of its own it goes on from there"
    killed(other, whole)
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    shutil.rmtree(run / "checkpoint-2")
    for command in (bare, begun):
        message = error(*command)
        assert "other has no checkpoint of its own yet, and " in message
        assert "run/checkpoint-2, where it began, is gone: put it back, or begin another run in another" in message
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_a_run_that_begins_by_itself_forgets_where_another_began(run):
    (other := Path("other")).mkdir()
    keep_settings(other, "# sasr train\n", run / "checkpoint-2")
    assert origin_of(other) == (run / "checkpoint-2").resolve()
    keep_settings(other, "# sasr train\n", other / "checkpoint-4")
    assert origin_of(other) == (run / "checkpoint-2").resolve()
    check_free(other)
    keep_settings(other, "# sasr train\n", None)
    assert origin_of(other) is None


def test_killed_between_its_initial_model_and_its_settings():
    """The directory was refused to the same command."""
    (other := Path("other")).mkdir()
    (other / "initial_model").mkdir()
    with pytest.raises(InputError, match="other is not empty"):
        check_free(other)
    (other / ".lock").touch()
    check_free(other)


def test_behind_later_checkpoints(run, capsys):
    first, last = (pick(int(path.name[11:]) for path in run.glob("checkpoint-*")) for pick in (min, max))
    assert first < last
    assert sasr.cli.main(["train", "--resume_from_checkpoint", f"run/checkpoint-{first}"]) == 0
    assert f"note: checkpoint-{last} of a later step stays" in capsys.readouterr().out


@pytest.mark.parametrize("options", ['{\n  "steps": 2\n}', '{"steps": 2}\nseed: 7', '{"steps":\u20282}'])
def test_an_argument_of_several_lines_stays_a_comment(monkeypatch, options):
    flags = ["--output_dir", "x", "--task_options", '{"steps": 2}']
    monkeypatch.setattr("sys.argv", ["sasr", "train", "--task_options", options])
    Path("config.yaml").write_text(config_text(parse(flags)), encoding="utf-8")
    assert read_recipe("config.yaml")["task_options"] == {"steps": 2}
    assert read_recipe("config.yaml")["seed"] == 42


def test_the_environment_is_kept_without_secrets(monkeypatch):
    for name in ("SASR_TEST_ONE", "SASR_TEST_TOKEN"):
        monkeypatch.setenv(name, "")  # for it to be as before afterwards
        monkeypatch.delenv(name)
    Path("recipe.yaml").write_text("env: {SASR_TEST_ONE: 'yes', SASR_TEST_TOKEN: hf_secret}\n")
    flags = ["--output_dir", "x", "--config", "recipe.yaml", "--sft_warmup_steps", "1"]
    kept = yaml.safe_load(config_text(parse(flags)))
    assert kept["env"] == {"SASR_TEST_ONE": "yes"}


@pytest.mark.parametrize("value", ["2025-02-30", "0x_"])
def test_a_value_that_yaml_cannot_read(error, value):
    Path("recipe.yaml").write_text(f"run_name: {value}\n")
    assert "recipe.yaml: not valid YAML (" in error("--config", "recipe.yaml")


def test_a_directory_named_after_a_task_is_not_hidden():
    for task in ("./mine.py:Mine", "../x.py:T"):
        made: list[Path] = []
        assert not sasr.cli._new_directory(["--task", task], made).name.startswith((".", "-"))


def test_what_sparse_logs_do_not_tell():
    """Finished is not spent, and every tenth step is no share."""
    Path("run").mkdir()
    Path("run/.lock").write_text("finished")
    assert run_state(Path("run"), 90, {"max_steps": 100}, {}).text == "finished"
    assert run_state(Path("run"), 90, {"max_steps": 100, "max_seconds": 5}, {}).text == "budget spent at step 90"
    line = {"phase": "hybrid", "kind": "sft", "p_sft": 1.0}
    for every, share in ((1, 1.0), (10, None)):
        text = "".join(json.dumps({"step": step, **line}) + "\n" for step in range(every, 41, every))
        Path("metrics.jsonl").write_text(text)
        assert read_totals("metrics.jsonl")[2] == share


def test_results_of_a_comparison_have_no_token():
    secret = {"hub_token": "hf_x", "model_init_kwargs": {"token": "hf_y"}}
    secret |= {"env": {"HF_TOKEN": "hf_v", "WANDB_API_KEY": "hf_w", "HF_HUB_OFFLINE": "1"}}
    secret |= {"task_options": {"api_key": "hf_u", "servers": [{"password": "hf_t"}], "steps": 3}}
    recipe = {"task": "stories", "sft_warmup_steps": 4, "max_steps": 10, **secret}
    made = read({**recipe, "compare": {"methods": {"sft": {"hub_token": "hf_z"}, "sasr": {}}}}, "r.yaml", {}, {})
    found = report.results(made, [], {}, {}, {}, "sasr compare")
    text = json.dumps(found)
    assert "hf_" not in text and "sft_warmup_steps" in text
    assert found["comparison"]["env"] == {"HF_HUB_OFFLINE": "1"}
    assert found["comparison"]["task_options"]["steps"] == 3 and made.settings["env"] == secret["env"]
