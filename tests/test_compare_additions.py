"""A comparison that grows, and what is wrong with its files: seeds and methods that are added, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import sasr.cli
import toy
from sasr.compare import command, runner
from sasr.compare.check import comparison_text
from sasr.compare.measures import measure
from sasr.compare.plan import Run
from sasr.compare.reading import read
from sasr.errors import InputError

SETTINGS = {
    "task": "stories", "model_name_or_path": "tiny-llama", "train_rows": 40, "exam_rows": 4, "sft_warmup_steps": 2,
    "per_device_train_batch_size": 4, "num_generations": 4,
}  # fmt: skip


@pytest.fixture
def where_every_run_fails(tmp_path, monkeypatch):
    """A directory to compare in, where it is only the plan that is looked at."""
    monkeypatch.chdir(tmp_path)

    def fails(*args, **kwargs):
        return SimpleNamespace(returncode=1, poll=lambda: 1, wait=lambda: 1, kill=lambda: None)

    monkeypatch.setattr(runner.subprocess, "Popen", fails)


def planned(section: dict, **more) -> Path:
    """The file of a comparison that was begun in `out`."""
    Path("out").mkdir()
    written = Path("out/comparison.yaml")
    none = dict.fromkeys(("methods", "seeds", "budget", "baseline"))
    written.write_text(comparison_text(read({**SETTINGS, **more, "compare": section}, "r", {}, none)))
    return written


def test_a_method_that_is_added_has_the_seeds_of_the_others(where_every_run_fails):
    section = {"budget": "steps=4", "seeds": "11-12", "methods": ["sft", "static"]}
    written = planned(section)
    again = ["compare", "--output_dir", "out", "--resume_from_checkpoint", "--jobs", "1"]
    assert sasr.cli.main([*again, "--methods", "sft", "static", "sasr", "random", "--seeds", "13"]) == 1
    methods = yaml.safe_load(written.read_text())["compare"]["methods"]
    assert {name: own["seeds"] for name, own in methods.items()} == {name: [11, 12, 13] for name in methods}
    assert list(methods) == ["sft", "static", "sasr", "random"]
    assert not any(own.get("tune") for own in methods.values())


def test_a_run_that_goes_on_gets_the_tokens_that_its_config_yaml_lacks(where_every_run_fails, monkeypatch):
    planned({"budget": "steps=4", "seeds": "11-12", "methods": ["sft"]}, hub_token="secret")
    monkeypatch.setattr(runner, "last_checkpoint", lambda where: Path("checkpoint-2"))
    assert sasr.cli.main(["compare", "--output_dir", "out", "--resume_from_checkpoint", "--jobs", "1"]) == 1
    given = [yaml.safe_load(path.read_text()) for path in Path("out/logs").rglob("*.yaml")]
    assert given == [{"hub_token": "secret"}] * 2


def test_a_run_goes_on_when_the_comparison_was_moved(tmp_path, monkeypatch):
    """Together with its data and its model, whose places config.yaml has as they were."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    toy.rows(40).to_json("rows.jsonl")
    toy.model(0, Path("lm"))
    recipe = {"task": "jsonl", "data": "rows.jsonl", "exam_data": "rows.jsonl", "model_name_or_path": "lm"}
    recipe |= {"exam_rows": 2, "exam_samples": 1, "per_device_train_batch_size": 4, "num_generations": 2}
    recipe |= {"max_completion_length": 4, "save_steps": 2, "lr_scheduler_type": "constant", "report_to": "none"}
    section = {"budget": "steps=4", "seeds": 11, "methods": ["grpo"]}
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "compare": section}))
    assert sasr.cli.main(["compare", "--config", "r.yaml", "--output_dir", "out", "--jobs", "1"]) == 0

    run = Path("out/runs/grpo/seed-11")  # as if it had been killed after its second step
    shutil.rmtree(run / "checkpoint-4")
    for name in ("exam.json", "model.safetensors"):
        (run / name).unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert sasr.cli.main(["compare", "--output_dir", "out", "--resume_from_checkpoint", "--jobs", "1"]) == 0
    given = yaml.safe_load(Path("out/logs/runs/grpo/seed-11.yaml").read_text())
    assert given == {"data": "rows.jsonl", "exam_data": "rows.jsonl", "model_name_or_path": "lm"}
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["data"] == str(tmp_path.resolve() / "there" / "rows.jsonl")


@pytest.mark.parametrize(("devices", "budget", "jobs"), [(0, "seconds=9", 1), (0, "steps=9", 6), (2, "seconds=9", 2)])
def test_a_budget_of_seconds_has_a_run_at_a_time_on_a_device(monkeypatch, devices, budget, jobs):
    """Runs that share a machine take time from each other, and the last of them has it for itself."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runner, "cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    given = read({**SETTINGS, "compare": {"budget": budget}}, "r", {}, {}).budget
    assert command._jobs(None, given) == (jobs, [str(device) for device in range(devices)])
    assert command._jobs("3", given)[0] == 3, "what is asked for"


@pytest.mark.parametrize(
    ("visible", "devices"), [("4,5", ["4", "5"]), ("4,5,6", ["4", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_devices_have_the_names_that_the_environment_gives_them(monkeypatch, visible, devices):
    """A run that is given "0" would work on a device that is somebody else's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    budget = read({**SETTINGS, "compare": {"budget": "steps=9"}}, "r", {}, {}).budget
    assert command._jobs(None, budget) == (2, devices)


@pytest.mark.parametrize(("on_cpu", "expected"), [("true", (6, [])), ("false", (2, ["0", "1"]))])
def test_runs_on_a_cpu_are_not_handed_out_to_gpus(where_every_run_fails, monkeypatch, on_cpu, expected):
    """As many as there are GPUs, they left cores idle."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runner, "cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    jobs, found = command._jobs, []

    def asked(*arguments):
        found.append(jobs(*arguments))
        raise InputError("far enough")

    monkeypatch.setattr(command, "_jobs", asked)
    flags = ["--methods", "sft", "--budget", "steps=4", "--sft_warmup_steps", "2", "--use_cpu", on_cpu]
    assert sasr.cli.main(["compare", *flags]) == 2
    assert found == [expected]


def test_seconds_that_runs_share_are_said(where_every_run_fails, capsys):
    section = {"budget": "seconds=4", "seeds": "11-12", "methods": ["sft", "static"]}
    planned(section, lr_scheduler_type="constant")
    again = ["compare", "--output_dir", "out", "--resume_from_checkpoint"]
    notes = []
    for more in ([], ["--jobs", "2"], []):  # what was shared once has been shared
        assert sasr.cli.main([*again, *more]) == 1
        notes.append([line for line in Path("out/table.md").read_text().splitlines() if "--jobs 1" in line])
        assert ("note: " + "".join(notes[-1]).removeprefix("- ") in capsys.readouterr().out) == bool(more)
    assert notes[0] == [] and notes[1] == notes[2]
    assert "up to 2 at a time" in notes[1][0] and "budgets in seconds are not equal" in notes[1][0]


def test_a_method_that_is_added_is_tuned_like_the_others(where_every_run_fails):
    grid = {"learning_rate": [1e-4, 3e-4]}
    section = {"budget": "steps=4", "seeds": "11", "methods": ["static", "random"], "tune": grid}
    written = planned(section)
    more = ["--methods", "static", "random", "cosine"]
    sasr.cli.main(["compare", "--output_dir", "out", "--resume_from_checkpoint", "--jobs", "1", *more])
    methods = yaml.safe_load(written.read_text())["compare"]["methods"]
    assert {name: own["tune"] for name, own in methods.items()} == {name: grid for name in methods}


def test_runs_that_are_added_read_the_data_of_the_others(where_every_run_fails, capsys):
    toy.rows(40).to_json("rows.jsonl")
    before = Path("rows.jsonl").read_text()
    recipe = {**SETTINGS, "task": "jsonl", "data": "rows.jsonl", "output_dir": "out"}
    section = {"budget": "steps=4", "seeds": "11", "methods": ["sft", "static"]}
    Path("r.yaml").write_text(yaml.safe_dump({**recipe, "compare": section}))
    assert sasr.cli.main(["compare", "--config", "r.yaml", "--jobs", "1"]) == 1
    planned = Path("out/comparison.yaml").read_text()

    more = ["compare", "--output_dir", "out", "--resume_from_checkpoint", "--jobs", "1", "--seeds", "12"]
    Path("rows.jsonl").write_text("".join(before.splitlines(keepends=True)[1:]))
    capsys.readouterr()
    assert sasr.cli.main(more) == 2
    assert "the data have changed since the first runs of out: put the old ones back" in capsys.readouterr().err
    assert Path("out/comparison.yaml").read_text() == planned
    Path("rows.jsonl").write_text(before)
    assert sasr.cli.main(more) == 1
    assert yaml.safe_load(Path("out/comparison.yaml").read_text())["compare"]["methods"]["sft"]["seeds"] == [11, 12]


def test_demonstrations_of_the_questions_of_the_exam(where_every_run_fails, capsys):
    toy.rows(40).to_json("rows.jsonl")
    toy.rows(60).to_json("shown.jsonl")
    recipe = {**SETTINGS, "task": "jsonl", "data": "rows.jsonl", "demonstrations": "shown.jsonl"}
    section = {"budget": "steps=4", "seeds": "11", "methods": ["sft", "static"], "tune": {"learning_rate": [1e-4]}}
    for name, own, wanted in (
        ("split", {}, "note: 8 demonstrations are of questions that are held out for exams"),
        ("apart", {"exam_data": "shown.jsonl"}, "note: 4 of the 4 rows of the exams are training rows or demons"),
    ):
        Path("r.yaml").write_text(yaml.safe_dump({**recipe, **own, "output_dir": name, "compare": section}))
        for more in ([], ["--resume_from_checkpoint"]):
            flags = ["--output_dir", name, *more] if more else ["--config", "r.yaml"]
            assert sasr.cli.main(["compare", *flags, "--jobs", "1"]) == 1
            out = capsys.readouterr().out
            assert out.count(wanted) == 1, out
        assert len(json.loads(Path(name, "rows.json").read_text())) == 2
    toy.rows(8).to_json("shown.jsonl")
    assert sasr.cli.main(["compare", "--output_dir", "split", "--resume_from_checkpoint"]) == 2
    assert "the data have changed" in capsys.readouterr().err


@pytest.mark.parametrize("methods", ["sft static", ["sft", "static"], {"sft": None}, {"sft": {"seeds": "1-3"}}])
def test_a_comparison_yaml_by_hand_is_refused_in_a_line(tmp_path, monkeypatch, capsys, methods):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    section = {"budget": "steps=4", "baseline": "sft", "methods": methods}
    (tmp_path / "out" / "comparison.yaml").write_text(yaml.safe_dump({**SETTINGS, "compare": section}))
    for more in (["--config", "out/comparison.yaml"], ["--resume_from_checkpoint"]):
        assert sasr.cli.main(["compare", "--output_dir", "out", *more]) == 2


def test_a_grid_of_warmups_that_are_no_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section = {"budget": "steps=9", "seeds": 1, "methods": {"sft": {"tune": {"sft_warmup_steps": ["ten", 2]}}}}
    Path("r.yaml").write_text(yaml.safe_dump({**SETTINGS, "compare": section}))
    assert sasr.cli.main(["compare", "--config", "r.yaml", "--output_dir", "out"]) == 2
    assert "sft_warmup_steps is 'ten', but it must be a whole number" in capsys.readouterr().err


RECORD = {"prompt": "p", "answer": "1", "greedy": {"correct": True}, "samples": [{"correct": True}]}
FINAL = {"samples": 1, "rows": 2, "step": 1, "seconds": 1.0}


@pytest.mark.parametrize(
    ("exam", "lines", "records"),
    [
        (FINAL, 1, [RECORD]),  # cut between two lines
        (FINAL, 1, []),
        (FINAL, 0, [RECORD, RECORD]),
        (FINAL, 1, [RECORD, {}]),
        (FINAL, 1, [RECORD, 5]),
        ({}, 1, [RECORD, RECORD]),
        (None, 1, [RECORD, RECORD]),
    ],
)
def test_damaged_files_of_a_run_are_not_measured(tmp_path, exam, lines, records):
    (tmp_path / "r" / "exams").mkdir(parents=True)
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 1, "phase": "hybrid", "kind": "sft"}\n' * lines)
    (tmp_path / "r" / "exam.json").write_text(json.dumps({"final": exam}))
    (tmp_path / "r" / "exams" / "final.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(InputError, match=r"remove .* and start again"):
        measure(tmp_path, Run("r", "final", "sft", 1, {}))
