"""Data and models that `sasr train` cannot use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import toy
from refusals import JSONL, ROW, SMALL
from sasr.run import check_reward_weights

pytestmark = pytest.mark.usefixtures("clean")


DATA = {
    "empty": ("", [], ["rows.jsonl", "no records"]),
    "blank-lines": ("\n\n", [], ["rows.jsonl", "no records"]),
    "bad-json": (ROW + "\n" + "{'prompt': 1}\n", [], ["rows.jsonl:3", "invalid JSON"]),
    "not-an-object": (ROW + "[1, 2]\n", [], ["rows.jsonl:2", "not a JSON object"]),
    "no-prompt": (ROW + '{"question": "x"}\n', [], ["rows.jsonl:2", "no field 'prompt'", "question"]),
    "no-demonstrations": (
        '{"prompt": "1+1=", "answer": "2"}\n' * 4,
        [],
        ["no demonstrations", "SFT steps", "add completions"],
    ),
    "no-demonstrations-at-all": (
        '{"prompt": "1+1=", "answer": "2"}\n' * 4,
        ["--schedule", "sft"],
        ["no demonstrations", "add completions"],
    ),
    "no-answers": ('{"prompt": "1+1=", "completion": "2"}\n' * 4, [], ["no answers", "GRPO steps", "add answers"]),
    "no-answers-grpo": (
        '{"prompt": "1+1=", "completion": "2"}\n' * 4,
        ["--schedule", "grpo", "--sft_warmup_steps", "0"],
        ["no answers", "add answers"],
    ),
    "all-held-out": (ROW * 4, ["--exam_rows", "4"], ["no training rows are left", "exam_rows"]),
}


@pytest.fixture
def words(tmp_path):
    """A tokenizer in a directory with a stand-in for weights: JSONL rows do not come with a vocabulary."""
    toy.model().save_pretrained(tmp_path / "lm")
    toy.tokenizer().save_pretrained(tmp_path / "lm")
    return ["--task", "jsonl", "--model_name_or_path", "lm", "--data", "rows.jsonl"]


@pytest.mark.parametrize("name", DATA)
def test_data(error, words, name):
    text, flags, fragments = DATA[name]
    Path("rows.jsonl").write_text(text)
    message = error(*SMALL, *words, *flags)
    assert [f for f in fragments if f not in message] == [], message


def test_demonstrations_without_a_solution(error, words):
    Path("rows.jsonl").write_text(ROW * 4)
    Path("demos.jsonl").write_text('{"prompt": "1+1="}\n')
    message = error(*SMALL, *words, "--demonstrations", "demos.jsonl")
    assert "no demonstrations" in message


def test_long_prompt_names_the_row(error, words):
    Path("rows.jsonl").write_text(ROW + json.dumps({"prompt": "9+8=" * 20, "completion": "1", "answer": "1"}) + "\n")
    message = error(*SMALL, *words, "--max_prompt_length", "40")
    assert "80 tokens" in message and "max_prompt_length (40)" in message and "9+8=9+8=" in message


def test_conversations_without_a_chat_template(error, words):
    row = {"prompt": [{"role": "user", "content": "1+1="}], "completion": "2", "answer": "2"}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "no chat template" in error(*SMALL, *words)


def test_tiny_model_needs_a_vocabulary(error):
    Path("rows.jsonl").write_text(ROW * 4)
    message = error(*SMALL, *JSONL, "--data", "rows.jsonl")
    assert "tiny-llama" in message and "not of jsonl" in message


def test_model_directory_without_weights(error, words):
    Path("rows.jsonl").write_text(ROW * 4)
    Path("lm/model.safetensors").unlink()
    assert "no weights (model.safetensors)" in error(*SMALL, *words)
    Path("lm/config.json").unlink()
    assert "no config.json" in error(*SMALL, *words)


def test_model_with_damaged_weights(error, words):
    Path("rows.jsonl").write_text(ROW * 4)
    whole = Path("lm/model.safetensors").read_bytes()
    Path("lm/model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors is damaged" in error(*SMALL, *words)


OWN = """
from sasr.tasks import StoriesTask
class Raises(StoriesTask):
    name = "raises"
    def reward_funcs(self):
        return [missing]
class Single(StoriesTask):
    name = "single"
    def reward_funcs(self):
        return len
"""


@pytest.mark.parametrize(
    ("text", "name", "fragments"),
    [
        (OWN, "Raises", ["task raises: its reward_funcs() failed: NameError", "own.py:6)", "correct it"]),
        (OWN, "Single", ["task single: its reward_funcs() must return a list of functions", "len"]),
        ("import sys\nsys.exit(3)\n", "Any", ["cannot import own.py: SystemExit: 3", "own.py:2)"]),
    ],
)
def test_mistakes_in_a_task_of_ones_own(error, text, name, fragments):
    Path("own.py").write_text(text)
    message = error(*SMALL, "--task", f"own.py:{name}", "--model_name_or_path", "tiny-llama")
    assert [f for f in fragments if f not in message] == [], message


def test_rewards_that_trl_takes():
    settings = SimpleNamespace(training=SimpleNamespace(reward_weights=None))
    for rewards in ([len], [len, "owner/reward-model"]):
        check_reward_weights(SimpleNamespace(name="mine", reward_funcs=lambda rewards=rewards: rewards), settings)
