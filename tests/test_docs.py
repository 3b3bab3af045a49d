"""What the documentation says works."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import toy

ROOT = Path(__file__).parent.parent


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def sasr(cwd: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "sasr", "train", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


SMALL = [
    *("--max_steps", "8", "--sft_warmup_steps", "3", "--per_device_train_batch_size", "8", "--num_generations", "4"),
    *("--max_completion_length", "8", "--exam_rows", "2", "--exam_samples", "2"),
]


def test_task_of_your_own(tmp_path):
    """The example of docs/tasks.md, on a local model; beta > 0 loads the reference model by path."""
    (code,) = blocks("docs/tasks.md", "python")
    (tmp_path / "my_task.py").write_text(code)
    words = ["".join(str((3 * i + j) % 10) for j in range(3)) for i in range(20)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"word": word}) + "\n" for word in words))
    toy.model(directory=tmp_path / "lm")
    where = ["--task", "my_task.py:Reverse", "--data", "words.jsonl", "--model_name_or_path", "lm"]
    printed = sasr(tmp_path, *where, "--output_dir", "run", "--beta", "0.1", *SMALL)
    assert "done: " in printed
    assert (tmp_path / "run" / "reference_model" / "weights.safetensors").is_file()


def test_schedule_of_your_own(tmp_path):
    """The example of docs/schedules.md decides the steps of a run, which resumes."""
    (code,) = blocks("docs/schedules.md", "python")
    (tmp_path / "my_rule.py").write_text(code)
    where = ["--schedule", "my_rule.py:StudyWhenFarOff", "--train_rows", "50", "--output_dir", "run"]
    printed = sasr(tmp_path, *where, *SMALL, "--save_steps", "4")
    assert "done: " in printed
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for before, line in pairwise(lines[2:]):
        assert (line["kind"] == "sft") == (before["sft_grad_norm"] > 1.5 * before["warmup_grad_norm"])
    sasr(tmp_path, "--resume_from_checkpoint", "run/checkpoint-4")


def test_jsonl_rows_need_no_code(tmp_path):
    rows = [
        {"prompt": "1+2=", "completion": "3", "answer": "3"},
        {"prompt": "2+2=", "completion": None, "answer": "4"},
        {"prompt": "3+3=", "completion": "6"},
    ] * 4
    rows = [{**row, "prompt": f"{i}{row['prompt']}"} for i, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toy.model(directory=tmp_path / "lm")
    where = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "lm"]
    assert "done: " in sasr(tmp_path, *where, *SMALL)
    assert (tmp_path / "runs" / "jsonl-1" / "exam.json").is_file()


def test_tiny_model_with_beta(tmp_path):
    """A model made from scratch has no path of its own to load the reference model from: it gets one."""
    printed = sasr(tmp_path, "--beta", "0.05", "--train_rows", "50", *SMALL)
    assert "reference model of beta: the policy at the end of the warm-up" in printed
    assert (tmp_path / "runs" / "stories-1" / "initial_model" / "model.safetensors").is_file()


def test_python_of_the_readme(tmp_path):
    (code,) = blocks("README.md", "python")
    toy.model(directory=tmp_path / "lm")
    small = "per_device_train_batch_size=8, num_generations=4, max_completion_length=4, use_cpu=True"
    for written, run in {
        '"Qwen/Qwen2.5-0.5B-Instruct"': repr(str(tmp_path / "lm")),
        'output_dir="run", sft_warmup_steps=60, max_steps=500': f"output_dir={str(tmp_path)!r}, sft_warmup_steps=2, "
        "max_steps=4",
        "per_device_train_batch_size=16, gradient_accumulation_steps=4, num_generations=8": small,
    }.items():
        assert code.count(written) == 1
        code = code.replace(written, run)
    names = {"my_reward": toy.reward, "dataset": toy.rows()}
    exec(code, names)
    assert names["trainer"].state.global_step == 4


def test_python_of_the_models_page(tmp_path, monkeypatch):
    (code,) = blocks("docs/models.md", "python")
    monkeypatch.chdir(tmp_path)
    toy.model(directory=tmp_path / "runs" / "gsm8k-1")
    exec(code, {})
    assert {value.dtype for value in load_file("gsm8k-bf16/model.safetensors").values()} == {torch.bfloat16}
    assert AutoTokenizer.from_pretrained("gsm8k-bf16").eos_token


def test_python_of_the_robustness_page():
    use, own = blocks("docs/robustness.md", "python")
    names: dict = {}
    exec(use, names)
    assert names["task"].perturbations() == ("names", "numbers", "order", "distractor")
    assert names["changed"]["original_prompt"] == names["original"]["prompt"] != names["changed"]["prompt"]
    exec("from sasr.tasks import Task\n" + own, names)
    row = {"prompt": "Reverse ab: ", "answer": "ba"}
    assert names["Reverse"].perturbers(None)["capitals"](row, None)["answer"] == "BA"


def test_every_python_block_is_run_by_a_test():
    pages = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    found = {page: len(blocks(page, "python")) for page in pages}
    run = {"README.md": 1, "docs/models.md": 1, "docs/tasks.md": 1, "docs/schedules.md": 1, "docs/robustness.md": 2}
    assert {page: count for page, count in found.items() if count} == run


def test_links_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_tests_that_are_named_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for path in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`(test_\w+)(?:\.py)?(?:\.\.\.)?`", path.read_text()):
            assert name in tests or (ROOT / "tests" / f"{name}.py").is_file(), f"{path.name}: {name}"


def templates() -> list[str]:
    """Every text in the source, with `...` for what varies."""
    found = []
    for path in (ROOT / "src" / "sasr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_of_the_troubleshooting_page_are_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^`(.*)`\n:   ", page, re.MULTILINE)
    assert len(messages) > 20
    known = templates()
    for message in messages:
        pattern = ".*".join(re.escape(part) for part in message.split("..."))
        assert any(re.search(pattern, " ".join(text.split())) for text in known), message


def test_every_metric_is_documented(tmp_path):
    from sasr.callbacks import _NAMES

    text = (ROOT / "docs" / "metrics.md").read_text()
    assert all(f"`{name}`" in text for name in _NAMES.values())
