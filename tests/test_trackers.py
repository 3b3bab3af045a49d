"""What trackers hold after a real run: every metric, every exam at its step, the settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from transformers.integrations import TensorBoardCallback

import toy
from sasr import InputError
from sasr.tracking import Trackers

MISSING = "is not installed: pip install 'sasr[trackers]'"
SMALL = {
    "train_rows": 60, "exam_rows": 2, "exam_samples": 2, "exam_every": 3, "max_steps": 8, "sft_warmup_steps": 2,
    "per_device_train_batch_size": 8, "per_device_sft_batch_size": 4, "num_generations": 4, "max_completion_length": 16,
    "save_steps": 4, "seed": 3, "run_name": "small",
}  # fmt: skip
EXAMS = {0: "initial", 2: "warmup", 3: "step-3", 6: "step-6", 8: "final"}


def train(directory: Path, tracker: str, *more: str) -> None:
    flags = [text for key, value in SMALL.items() for text in (f"--{key}", str(value))]
    run = ["--output_dir", str(directory / "run"), "--report_to", tracker]
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(directory)}
    offline |= {"TRACKIO_DIR": str(directory / "trackio")} if tracker == "trackio" else {}  # read while importing
    command = [sys.executable, "-m", "sasr", "train", *(more or flags), *run]
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]


def assert_complete(directory: Path, scalars: dict[str, dict[int, float]], labels: dict[int, str]) -> None:
    """`scalars` are those of the tracker, by name and step."""
    for key in ("p_sft", "sft_loss", "sft_grad_norm", "warmup_grad_norm", "sft_steps", "rollout_tokens", "unsolved"):
        expected = {line["step"]: line[key] for line in metrics(directory) if line.get(key) is not None}
        assert expected and scalars[f"train/sasr/{key}"] == pytest.approx(expected, rel=1e-6), key
    for key in ("loss", "reward", "grad_norm"):
        expected = {line["step"]: line[key] for line in metrics(directory) if line.get(key) is not None}
        assert scalars[f"train/{key}"] == pytest.approx(expected, rel=1e-6), key
    exams = json.loads((directory / "run" / "exam.json").read_text())
    assert {exam["step"]: label for label, exam in exams.items()} == labels == EXAMS
    for name, of in (
        ("pass@1", lambda exam: exam["pass_at"]["1"]),
        ("pass@2", lambda exam: exam["pass_at"]["2"]),
        ("greedy_accuracy", lambda exam: exam["greedy_accuracy"]),
        ("format_rate", lambda exam: exam["format_rate"]),
        ("mean_completion_tokens", lambda exam: exam["mean_completion_tokens"]),
    ):
        expected = {exam["step"]: of(exam) for exam in exams.values()}
        assert scalars[f"exam/{name}"] == pytest.approx(expected, rel=1e-6), name


def read_tensorboard(folder: Path) -> tuple[dict, dict]:
    """(scalars, texts), by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0}).Reload()
    tags = events.Tags()
    scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags["scalars"]}
    for tag in set(scalars) - {"train/epoch"}:  # which transformers logs once more at the end
        assert len(events.Scalars(tag)) == len(scalars[tag]), f"{tag} has a step twice"
    texts: dict[str, dict[int, str]] = defaultdict(dict)
    for tag in tags["tensors"]:
        for event in events.Tensors(tag):
            texts[tag.removesuffix("/text_summary")][event.step] = make_ndarray(event.tensor_proto).item().decode()
    return scalars, texts


def test_tensorboard_and_resume(tmp_path):
    train(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    scalars, texts = read_tensorboard(folder)
    assert_complete(tmp_path, scalars, texts["exam/label"])
    settings = yaml.safe_load(texts["config.yaml"][0].removeprefix("```yaml\n").removesuffix("```"))
    assert settings == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert json.loads(texts["args"][0])["gamma"] == 1.0

    # As if it had been killed in its last exam, and then again: the first has steps to do, with an exam
    # among them, the second has none.
    exams = json.loads((tmp_path / "run" / "exam.json").read_text())
    for checkpoint, begin in (("checkpoint-4", 5), ("checkpoint-8", 9)):
        kept = {label: exam for label, exam in exams.items() if label != "final"}
        (tmp_path / "run" / "exam.json").write_text(json.dumps(kept))
        before = set((tmp_path / "run" / "runs").rglob("events*"))  # a folder is of a second, and may be that of two
        train(tmp_path, "tensorboard", "--resume_from_checkpoint", str(tmp_path / "run" / checkpoint))
        (written,) = set((tmp_path / "run" / "runs").rglob("events*")) - before
        again, texts = read_tensorboard(written)
        assert list(again.get("train/sasr/p_sft", {})) == list(range(begin, 9))
        labels = {step: label for step, label in EXAMS.items() if step >= begin} or {8: "final"}
        assert texts["exam/label"] == labels
        assert again["exam/pass@1"] == {step: scalars["exam/pass@1"][step] for step in labels}


@pytest.mark.skipif(find_spec("trackio") is None, reason=f"trackio {MISSING}")
def test_trackio(tmp_path):
    train(tmp_path, "trackio")
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as s\n"
        "print(json.dumps([s.get_logs('huggingface', 'small'), s.get_run_config('huggingface', 'small')], default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    logs, config = json.loads(done.stdout.splitlines()[-1])
    assert_logged(tmp_path, logs, config)


@pytest.mark.skipif(find_spec("wandb") is None, reason=f"wandb {MISSING}")
def test_wandb_offline(tmp_path):
    from wandb.proto import wandb_internal_pb2

    train(tmp_path, "wandb")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    logs, config = [], {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            logs.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        for changes in (record.config, record.run.config):
            config |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in changes.update}
    assert_logged(tmp_path, logs, config)


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Those of a .wandb file: a head of 7 bytes, then LevelDB's log format."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def assert_logged(directory: Path, logs: list[dict], config: dict) -> None:
    scalars: dict[str, dict[int, float]] = defaultdict(dict)
    labels = {}
    for log in logs:
        step = log.get("train/global_step")
        for name, value in log.items():
            if isinstance(value, int | float):
                assert step not in scalars[name] or not name.startswith(("train/sasr/", "exam/")), "no step twice"
                scalars[name][step] = value
        if "exam/label" in log:
            labels[step] = log["exam/label"]
    assert_complete(directory, scalars, labels)
    for key in ("task", "exam_rows", "gamma", "model_name_or_path", "max_steps"):
        written = yaml.safe_load((directory / "run" / "config.yaml").read_text())
        assert config[key] == written[key], key


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, monkeypatch):
    """As wandb without a login, after the model was loaded and examined."""

    def begin(self, *arguments, **options):
        raise ConnectionError("no key\nlog in")

    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", begin)
    trained = toy.trainer(tmp_path, report_to="tensorboard", max_steps=2, sft_warmup_steps=1)
    Trackers(trained, {})
    with pytest.raises(
        InputError, match=r"report_to: TensorBoardCallback cannot begin: ConnectionError: no key log in"
    ):
        trained.train()
