"""`sasr exam` of LoRA runs: the adapter on the base model that it belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sasr.cli
import toy
from sasr.adapters import read_adapter
from sasr.exam.store import digest_of_model
from sasr.models import load_model

pytestmark = pytest.mark.usefixtures("environment")
LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear", "--learning_rate", "0.03"]
SMALL = {
    "max_steps": 4, "sft_warmup_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "save_steps": 2,
    "per_device_sft_batch_size": 4, "max_completion_length": 12, "exam_rows": 4, "exam_samples": 2, "train_rows": 40,
}  # fmt: skip


def train(directory: Path, *more: str) -> None:
    flags = [text for key, value in SMALL.items() for text in (f"--{key}", str(value))]
    assert sasr.cli.main(["train", *flags, *LORA, "--output_dir", str(directory), *more]) == 0


@pytest.fixture(scope="module")
def made_run(tmp_path_factory) -> Path:
    """Of a model that was made from scratch: its base is `initial_model`."""
    directory = tmp_path_factory.mktemp("lora") / "run"
    train(directory)
    return directory


@pytest.fixture
def run(made_run, tmp_path) -> Path:
    return Path(shutil.copytree(made_run, tmp_path / "run"))


def examined(model: Path, out: Path, *more: str) -> tuple[dict, list[dict]]:
    assert sasr.cli.main(["exam", "--model", str(model), "--output_dir", str(out), *more]) == 0
    lines = (out / "completions.jsonl").read_text().splitlines()
    return json.loads((out / "exam.json").read_text()), [json.loads(line) for line in lines]


def told(run: Path, label: str) -> tuple[dict, list[dict]]:
    lines = (run / "exams" / f"{label}.jsonl").read_text().splitlines()
    return json.loads((run / "exam.json").read_text())[label], [json.loads(line) for line in lines]


def greedy(records: list[dict]) -> list[tuple]:
    return [(record["prompt"], record["greedy"]["text"], record["greedy"]["correct"]) for record in records]


@pytest.mark.parametrize(("part", "label"), [(".", "final"), ("checkpoint-4", "final"), ("checkpoint-2", "warmup")])
def test_its_exam_is_that_of_the_run(made_run, tmp_path, part, label):
    """The run itself examines the adapter beside its base, not merged; nothing but `sasr exam` merges it."""
    content, records = examined(made_run / part, tmp_path / "exam", "--initial_model", str(made_run / "initial_model"))
    figures, kept = told(made_run, label)
    assert greedy(records) == greedy(kept) and content["figures"]["greedy_accuracy"] == figures["greedy_accuracy"]
    assert greedy(kept) != greedy(told(made_run, "initial")[1]), "the adapter makes a difference"
    assert content["figures"]["kl"] > 0
    assert (content["settings"]["rows"], content["settings"]["n"]) == (4, 2)


def test_merged_it_is_the_adapter_on_its_base(made_run):
    base = AutoModelForCausalLM.from_pretrained(made_run / "initial_model")
    ids = torch.arange(3, 13).unsqueeze(0)
    with torch.no_grad():
        before = base(ids).logits
        expected = PeftModel.from_pretrained(base, made_run).eval()(ids).logits
        model, tokenizer = load_model(str(made_run))
        got = model.eval()(ids).logits
    assert torch.allclose(got, expected, atol=1e-4) and not torch.allclose(got, before, atol=1e-2)
    assert not any("lora" in name for name, _ in model.named_parameters()) and len(tokenizer) > 10


def test_a_base_with_a_path_is_found_from_anywhere(tmp_path, monkeypatch):
    toy.model(0, tmp_path / "lm")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy.rows(30)))
    monkeypatch.chdir(tmp_path)
    data = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "lm", "--model_revision", "v1"]
    train(Path("run"), *data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapter = read_adapter(tmp_path / "run")
    assert adapter.base == str(tmp_path / "lm") and adapter.revision == "v1" and not (tmp_path / "run/lm").exists()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run" / name).unlink()  # then the base's is taken
    _, records = examined(tmp_path / "run", tmp_path / "exam")
    assert greedy(records) == greedy(told(tmp_path / "run", "final")[1])
    before = digest_of_model(str(tmp_path / "run"))
    toy.model(1, tmp_path / "lm")
    assert digest_of_model(str(tmp_path / "run")) != before, "another base is another exam"


def test_the_base_of_a_run_that_was_moved(run, made_run, tmp_path):
    assert json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        made_run / "initial_model"
    )
    for directory in (run, run / "checkpoint-2"):
        assert read_adapter(directory).base == str(run / "initial_model")


def refused(capsys, *flags: str) -> str:
    capsys.readouterr()
    status = sasr.cli.main(list(flags))
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1 and len(err) < 420, (status, out, err)
    return err.removeprefix("sasr: error: ").strip()


def change(run: Path, **values) -> None:
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | values))


MISTAKES = {
    "base gone": (
        lambda run: (shutil.rmtree(run / "initial_model"), change(run, base_model_name_or_path="/gone/lm")),
        ["base model cannot be used", "'/gone/lm'", "no such file"],
    ),
    "tiny base gone": (
        lambda run: (shutil.rmtree(run / "initial_model"), change(run, base_model_name_or_path="tiny-llama")),
        ["an adapter of tiny-llama, whose weights are gone"],
    ),
    "no base": (
        lambda run: (shutil.rmtree(run / "initial_model"), change(run, base_model_name_or_path=None)),
        ["names no base model", "base_model_name_or_path"],
    ),
    "base without weights": (
        lambda run: (run / "initial_model" / "model.safetensors").unlink(), ["base model cannot be used", "no weights"]
    ),
    "no weights": (lambda run: (run / "adapter_model.safetensors").unlink(), ["without weights", "safetensors"]),
    "damaged weights": (
        lambda run: (run / "adapter_model.safetensors").write_bytes(b"1234"), ["adapter_model.safetensors is damaged"]
    ),
    "other adapter": (lambda run: change(run, peft_type="IA3"), ["type IA3", "only LORA"]),
    "broken config": (lambda run: (run / "adapter_config.json").write_text("{"), ["adapter_config.json", "as JSON"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_no_adapter_to_examine(run, capsys, monkeypatch, tmp_path, case):
    spoil, words = MISTAKES[case]
    spoil(run)

    def loaded(*args):
        raise AssertionError("the model was loaded before the error was found")

    monkeypatch.setattr("sasr.exam.examiner.Examiner._load", loaded)
    message = refused(capsys, "exam", "--model", str(run), "--output_dir", str(tmp_path / "exam"))
    assert str(run) in message and all(word in message for word in words), message
    assert not (tmp_path / "exam").exists()


def test_an_adapter_of_another_model(run, capsys, tmp_path):
    """With more layers than the base has, PEFT would leave out the rest; with fewer it would add nothing there."""
    weights = load_file(run / "adapter_model.safetensors")
    name = min(weights)
    for changed in ({**weights, name.replace("layers.0", "layers.9"): weights[name].clone()}, {**weights, name: None}):
        save_file({k: v for k, v in changed.items() if v is not None}, run / "adapter_model.safetensors")
        status = sasr.cli.main(["exam", "--model", str(run), "--output_dir", str(tmp_path / "exam")])
        err = capsys.readouterr().err
        assert status == 2 and "1 weights do not fit the base model" in err and err.count("\n") == 1, err


def test_training_does_not_start_from_an_adapter(run, capsys, tmp_path):
    message = refused(capsys, "train", "--model_name_or_path", str(run), "--output_dir", str(tmp_path / "next"))
    assert "only a LoRA adapter" in message and "merge it" in message
