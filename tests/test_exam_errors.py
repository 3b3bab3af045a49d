"""What `sasr exam` refuses: in one line, before any model is loaded where that is possible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import sasr.cli
import toy
from sasr.quantised import accelerator_or_cpu
from sasr.tiny import tiny_tokenizer
from small_exam import EXAM, MORE, content, refused

pytestmark = pytest.mark.usefixtures("in_exam_place")


REFUSED = {
    "no model": (["--task", "jsonl"], ["no model", "--model"]),
    "missing model": ([*EXAM, "--model", "./nowhere"], ["'./nowhere'", "no such file or directory"]),
    "no weights": ([*EXAM, "--model", "empty"], ["'empty'", "no weights (model.safetensors)"]),
    "no model there": ([*EXAM, "--model", "nothing"], ["'nothing'", "no config.json"]),
    "no task": (["--model", "lm"], ["no task", "--task"]),
    "unknown task": ([*EXAM, "--task", "jsonnl"], ["unknown task 'jsonnl'", "did you mean jsonl?"]),
    "task option": (
        ["--model", "lm", "--task", "stories", "--task_options", '{"stps": 2}'], ["option of task stories 'stps'"]
    ),
    "task options": ([*EXAM, "--task_options", "steps"], ["--task_options", "no JSON object"]),
    "task without data": (["--model", "lm", "--task", "jsonl"], ["task jsonl has no data of its own"]),
    "missing data": ([*EXAM, "--data", "none.jsonl"], ["none.jsonl", "no such file"]),
    "other task's data": ([*EXAM, "--task", "gsm8k"], ["rows.jsonl:1", "no field 'question'", "task gsm8k"]),
    "no answer": ([*EXAM, "--data", "unanswered.jsonl"], ["unanswered.jsonl:3", "no answer", "leave the row out"]),
    "blank answer": ([*EXAM, "--data", "blank.jsonl"], ["blank.jsonl:2", "no answer", "leave the row out"]),
    "answer that nothing matches": (
        [*EXAM, "--data", "solutions.jsonl"], ["solutions.jsonl:2", r"match the answer '1+1=2\n#### 2'"]
    ),
    "answer without a number": (
        [*EXAM, "--task", "gsm8k", "--data", "gsm8k.jsonl"], ["gsm8k.jsonl:2", "ends in `#### <number>`"]
    ),
    "broken LaTeX": ([*EXAM, "--task", "math", "--data", "math.jsonl"], ["math.jsonl:1", "\\boxed{}"]),
    "gsm8k's data as kk": ([*EXAM, "--task", "kk", "--data", "gsm8k.jsonl"], ["gsm8k.jsonl:1", "no field 'quiz'"]),
    "broken line": ([*EXAM, "--data", "broken.jsonl"], ["broken.jsonl:2", "invalid JSON"]),
    "k above n": ([*EXAM, "--k", "1", "8"], ["k is 8", "n is 4", "raise n or lower k"]),
    "no k": ([*EXAM, "--k", "0", "2"], ["k is 0", "1 or more"]),
    "k without a number": ([*EXAM, "--k"], ["--k", "expected at least one argument"]),
    "difficulty that no row has": (
        [*EXAM, "--difficulty", "1", "hard"], ["no row has difficulty 'hard'", "there are 0, 1"]
    ),
    "rows without difficulty": ([*EXAM, "--data", "unsolved.jsonl", "--difficulty", "1"], ["have no difficulty"]),
    "no samples": ([*EXAM, "--n", "0"], ["n is 0", "1 or more"]),
    "no rows": ([*EXAM, "--rows", "0"], ["rows is 0", "1 or more"]),
    "no batch": ([*EXAM, "--batch_size", "0"], ["batch_size is 0", "1 or more"]),
    "no tokens": ([*EXAM, "--max_new_tokens", "-1"], ["max_new_tokens is -1"]),
    "cold": ([*EXAM, "--temperature", "0"], ["temperature is 0.0", "above 0"]),
    "no number": ([*EXAM, "--n", "many"], ["--n", "'many'"]),
    "wrong dtype": ([*EXAM, "--dtype", "int8"], ["unknown dtype 'int8'", "bfloat16"]),
    "unknown engine": ([*EXAM, "--engine", "vlm"], ["unknown engine 'vlm'", "did you mean vllm?"]),
    "no vllm for a made model": ([*EXAM, "--model", "tiny-llama", "--engine", "vllm"], ["made from scratch"]),
    "no vllm for GGUF": ([*EXAM, "--model", "lm.gguf", "--engine", "vllm"], ["GGUF file"]),
    "no vllm for an adapter": ([*EXAM, "--model", "adapter", "--engine", "vllm"], ["PEFT adapter", "merge it"]),
    "no vllm in 4 bits": ([*EXAM, "--load_in_4bit", "--engine", "vllm"], ["load_in_4bit is for engine transformers"]),
    "4 bits of a made model": ([*EXAM, "--model", "tiny-llama", "--load_in_4bit"], ["made from scratch", "4bit needs"]),
    "4 bits, perhaps": ([*EXAM, "--load_in_4bit", "maybe"], ["--load_in_4bit", "maybe"]),
    "unknown flag": ([*EXAM, "--sampels", "3"], ["unknown argument --sampels"]),
    "stray word": ([*EXAM, "now"], ["unknown argument now"]),
    "no home of the model": ([*EXAM, "--model", "~nosuch/x"], ["'~nosuch/x'", "no such file or directory"]),
    "no initial model": ([*EXAM, "--initial_model", "./nowhere"], ["'./nowhere'"]),
    "other words": ([*EXAM, "--initial_model", "other"], ["initial_model other"]),
    "another made model": ([*EXAM, "--initial_model", "tiny-llama"], ["initial_model tiny-llama is made anew"]),
    "nll without task": ([*EXAM, "--nll_data", "rows.jsonl"], ["nll_data needs nll_task"]),
    "nll without solutions": (
        [*EXAM, "--nll_task", "jsonl", "--nll_data", "unsolved.jsonl"], ["nll_task jsonl", "worked solution"]
    ),
    "a run's directory": ([*EXAM, "--output_dir", "run"], ["run", "of a run of sasr train"]),
    "full directory": ([*EXAM, "--output_dir", "empty"], ["empty", "holds no exam"]),
    "a file": ([*EXAM, "--output_dir", "rows.jsonl"], ["rows.jsonl", "cannot be written"]),
    "broken config": (["--model", "mess"], ["mess/config.yaml", "not valid YAML"]),
    "too many stories": (["--model", "tiny-llama", "--task", "mine.py:Few"], ["different stories"]),
}  # fmt: skip


@pytest.fixture
def mistakes(exam_place):
    """What the cases of `REFUSED` need."""
    for name in ("empty", "nothing", "mess", "run", "adapter"):
        (exam_place / name).mkdir(exist_ok=True)
    (exam_place / "nothing" / "note.txt").write_text("")
    shutil.copy(exam_place / "lm" / "config.json", exam_place / "empty")
    (exam_place / "adapter" / "adapter_config.json").write_text("{}")
    shutil.copytree(exam_place / "lm", exam_place / "other", dirs_exist_ok=True)
    tiny_tokenizer(["1 + 1 = 2"]).save_pretrained(exam_place / "other")
    (exam_place / "mess" / "config.yaml").write_text("a: [\n")
    (exam_place / "run" / "exam.json").write_text(json.dumps({"final": {"greedy_accuracy": 0.5}}))
    row = {"prompt": "1+1=", "answer": "2"}
    (exam_place / "unsolved.jsonl").write_text(json.dumps(row) + "\n")
    (exam_place / "unanswered.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps({'prompt': '1+2='})}\n")
    for name, wrong in (("blank", " "), ("solutions", "1+1=2\n#### 2")):
        (exam_place / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'answer': wrong})}\n")
    gsm8k = [{"question": "1+1?", "answer": f"1+1\n#### {number}"} for number in ("2", "two")]
    (exam_place / "gsm8k.jsonl").write_text("".join(json.dumps(record) + "\n" for record in gsm8k))
    (exam_place / "math.jsonl").write_text(json.dumps({"problem": "p", "solution": "\\boxed{\\frac{1}{2"}) + "\n")
    (exam_place / "broken.jsonl").write_text(json.dumps(row) + "\n{oops\n")
    (exam_place / "mine.py").write_text(
        "from sasr.tasks import StoriesTask\n\n"
        "class Few(StoriesTask):\n    def generate(self, count=None, seed=None, split='train'):\n"
        "        raise sasr_error('only 3 different stories')\n\n"
        "from sasr.errors import InputError as sasr_error\n"
    )


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(mistakes, capsys, monkeypatch, case):
    def loaded(*args):
        raise AssertionError("the model was loaded before the error was found")

    monkeypatch.setattr("sasr.exam.examiner.Examiner._load", loaded)
    flags, words = REFUSED[case]
    message = refused(capsys, flags)
    assert all(word in message for word in words), message
    assert not Path("exams").exists(), "a refused exam leaves nothing behind"


def test_vllm_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr("sasr.exam.vllm_engine.find_spec", lambda name: None)
    message = refused(capsys, [*EXAM, "--engine", "vllm"])
    assert "vLLM is not installed" in message and "leave --engine out" in message


def test_more_tokens_than_the_model_has_positions(capsys, tmp_path):
    """Those that turn go on beyond, and a training that asks for them goes on: so does its exam."""
    more = ["--max_new_tokens", "62", "--output_dir", str(tmp_path / "exam")]
    shape = {"vocab_size": len(toy.tokenizer()), "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path / "learned")
    toy.tokenizer().save_pretrained(tmp_path / "learned")
    status = sasr.cli.main(["exam", *EXAM, "--model", str(tmp_path / "learned"), *more])
    err = capsys.readouterr().err
    assert status == 2 and "64 positions" in err and "lower max_new_tokens" in err and err.count("\n") == 1
    assert not (tmp_path / "exam").exists()
    assert sasr.cli.main(["exam", *EXAM, *more, "--rows", "1", "--n", "1"]) == 0
    assert "than the 64 tokens that the model was made for" in capsys.readouterr().out


def test_too_little_memory(capsys, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sasr.exam.examiner.examine_rows", full)
    assert sasr.cli.main(["exam", *EXAM, "--output_dir", str(tmp_path / "exam")]) == 2
    assert "4 completions at a time: lower batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "flags", "said"),
    [
        ("sasr.exam.examiner.load_model", [], "model 'lm': not enough memory on {} for its weights: use --dtype bf"),
        ("transformers.PreTrainedModel.to", [], "GB in float32: use --dtype bfloat16, with --load_in_4bit true too"),
        ("transformers.PreTrainedModel.to", ["--dtype", "bfloat16"], "GB in bfloat16: use --load_in_4bit true, or a"),
        # Neither for worked solutions nor for samples does it matter how many are generated at a time.
        ("sasr.exam.scoring._log_probabilities", MORE, "not enough memory to measure entropy, KL or NLL: set dtype to"),
        ("sasr.exam.scoring._log_probabilities", ["--entropy"], "not enough memory to measure entropy, KL or NLL: set"),
    ],
    ids=["files", "device", "narrow", "solutions", "samples"],
)
def test_too_little_memory_for_the_model(capsys, monkeypatch, tmp_path, where, flags, said):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(where, full)
    assert sasr.cli.main(["exam", *EXAM, *flags, "--output_dir", str(tmp_path / "exam")]) == 2
    err = capsys.readouterr().err
    assert said.format(accelerator_or_cpu()) in err and err.count("\n") == 1


def test_another_exams_directory(whole_exam, capsys, tmp_path):
    for flags, key in ((["--seed", "1"], "seed"), (["--rows", "5"], "rows"), (["--entropy"], "entropy")):
        message = refused(capsys, [*EXAM, *MORE, *flags, "--output_dir", "whole"])
        assert "holds another exam" in message and f"({key} is" in message
    part = tmp_path / "part"
    shutil.copytree(whole_exam, part)
    (part / "exam.json").write_text(json.dumps({**content(whole_exam), "figures": None}))
    lines = (part / "completions.jsonl").read_text().splitlines(keepends=True)
    (part / "completions.jsonl").write_text("".join([*lines[:2], lines[5]]))
    status = sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", str(part)])
    assert status == 2 and "completions.jsonl:3 is no record of this exam" in capsys.readouterr().err
    (part / "exam.json").write_text("{")
    assert "cannot be read" in refused(capsys, [*EXAM, "--output_dir", str(part)])
