from __future__ import annotations

import json
import sys
import types

import pytest

from sasr.errors import InputError
from sasr.tasks import TASKS, JsonlTask, StoriesTask, as_conversation, get_task, load_rows

GSM8K_LINE = json.dumps({"question": "q", "answer": "1+1 = <<1+1=2>>2\n#### 2"})
TASK_FILE = """
from dataclasses import dataclass
from sasr.tasks import JsonlTask

class Mine(JsonlTask):
    name = "mine"

@dataclass
class Settings:
    x: int = 1

mine = Mine()
def make():
    return Mine()
class Sized(Mine):
    def __init__(self, size, *, colour="red"):
        self.size, self.colour = size, colour
def anything(**options):
    return Sized(**options)
def broken():
    raise RuntimeError("no\\nluck")
def nothing():
    return 5
"""


def error_of(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def file(tmp_path):
    def write(text, name="data.jsonl"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_names():
    assert list(TASKS) == ["stories", "gsm8k", "math", "kk", "svamp", "multiarith", "jsonl"]
    for name, cls in TASKS.items():
        assert isinstance(get_task(name), cls) and cls.name == name
    message = error_of(get_task, "gsm8")
    assert "stories, gsm8k, math, kk, svamp, multiarith, jsonl" in message and "did you mean gsm8k?" in message


@pytest.mark.parametrize("name", ["Mine", "mine", "make"])
def test_own_task(name, tmp_path, monkeypatch, file):
    path = file(TASK_FILE, "own_task_module.py")
    assert get_task(f"{path}:{name}").name == "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_task_module", raising=False)
    assert get_task(f"own_task_module:{name}").name == "mine"
    assert get_task(f"own_task_module.py:{name}").name == "mine"


def test_own_task_errors(file):
    path = file(TASK_FILE, "own.py")
    assert "has no 'Other'" in error_of(get_task, f"{path}:Other")
    assert "RuntimeError: no luck" in error_of(get_task, f"{path}:broken")
    assert "own.py:21" in error_of(get_task, f"{path}:broken")
    assert "must be a sasr.tasks.Task" in error_of(get_task, f"{path}:nothing")
    nameless = "from sasr.tasks import Task\n\n\nclass Nameless(Task):\n    to_row = check = well_formed = None\n"
    assert "give its class a name, such as name" in error_of(get_task, file(nameless, "nameless.py") + ":Nameless")
    assert "both parts" in error_of(get_task, f"{path}:")
    assert "no such file" in error_of(get_task, "missing.py:Task")
    assert "ModuleNotFoundError" in error_of(get_task, "no_such_module_here:Task")
    assert "SyntaxError" in error_of(get_task, file("def", "bad.py") + ":Task")


def test_task_options(file):
    assert get_task("stories", {"steps": [1, 2]}).lengths == [1, 2] and get_task("jsonl", {}).name == "jsonl"
    message = error_of(get_task, "stories", {"stps": 2})
    assert "unknown option of task stories 'stps'" in message and "num_train, num_held_out, seed, steps" in message
    assert "did you mean steps?" in message
    assert "task stories: steps must be 1 or more, not 'two'" in error_of(get_task, "stories", {"steps": "two"})
    assert "task math: timeout is 'long'" in error_of(get_task, "math", {"timeout": "long"})
    assert "task gsm8k has no options: leave steps out" in error_of(get_task, "gsm8k", {"steps": 2})
    assert "task_options is 5, but it must be" in error_of(get_task, "stories", 5)


def test_options_of_an_own_task(file):
    path = file(TASK_FILE, "own.py")
    for name in ("Sized", "anything"):
        task = get_task(f"{path}:{name}", {"size": 3, "colour": "blue"})
        assert (task.size, task.colour) == (3, "blue")
    message = error_of(get_task, f"{path}:Sized", {"size": 3, "color": "blue"})
    assert f"unknown option of task '{path}:Sized' 'color'" in message and "use one of size, colour" in message
    assert "'size'" in error_of(get_task, f"{path}:Sized")
    assert "'size': use one of prompt, completion" in error_of(get_task, f"{path}:Mine", {"size": 3}), "those of jsonl"
    assert "has no options: leave size out" in error_of(get_task, "gsm8k", {"size": 3})
    assert "is made already and takes no options" in error_of(get_task, f"{path}:mine", {"size": 3})


def test_files_globs_and_lists(file, tmp_path):
    one, two = file('{"prompt": "1"}\n\n{"prompt": "2"}\n', "a.jsonl"), file('\ufeff{"prompt": "3"}', "b, c.jsonl")
    prompts = {
        one: ["1", "2"],
        two: ["3"],
        f"{one},{one}": ["1", "2", "1", "2"],
        str(tmp_path / "*.jsonl"): ["1", "2", "3"],
    }
    for data, expected in prompts.items():
        assert [row["prompt"] for row in load_rows(JsonlTask(), data)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "p"}\n{"prompt": \n', ":2: invalid JSON"),
        ('{"prompt": "p"}\n[1]\n', ":2: not a JSON object"),
        ('{"prompt": "p"}\n\n{"question": "q"}\n', ":3: record has no field 'prompt'"),
        ('{"prompt": "  "}\n', ":1: field 'prompt' must be"),
        ("\n", "no records"),
        ("[" * 100_000, ":1: "),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_bad_lines_name_file_and_line(file, text, message):
    path = file(text)
    found = error_of(load_rows, JsonlTask(), path)
    assert found.startswith(path) and message in found


def test_missing_field_of_a_dataset(file):
    path = file(GSM8K_LINE + '\n{"question": "q"}\n')
    found = error_of(load_rows, get_task("gsm8k"), path)
    assert found.startswith(f"{path}:2: record has no field 'answer'") and "gsm8k" in found


def test_missing_files(tmp_path):
    assert "no such file" in error_of(load_rows, JsonlTask(), str(tmp_path / "x.jsonl"))
    assert "no file matches" in error_of(load_rows, JsonlTask(), str(tmp_path / "*.jsonl"))
    assert "is a folder" in error_of(load_rows, JsonlTask(), str(tmp_path))
    assert "empty name" in error_of(load_rows, JsonlTask(), "a/b,,c/d")
    assert "has no data of its own" in error_of(load_rows, JsonlTask())


class Odd(JsonlTask):
    name = "odd"

    def to_row(self, record):
        return {"prompt": record["nested"]["text"], "answer": record.get("answer")}


def test_own_task_that_trips_over_a_record(file):
    assert "no field 'nested'; task odd" in error_of(load_rows, Odd(), file("{}"))
    assert ":1: task odd cannot use" in error_of(load_rows, Odd(), file('{"nested": null}'))
    assert "no usable prompt" in error_of(load_rows, Odd(), file('{"nested": {"text": ""}}'))
    assert "answer as text" in error_of(load_rows, Odd(), file('{"nested": {"text": "p"}, "answer": 5}'))
    row = load_rows(Odd(), file('{"nested": {"text": "p"}}'))[0]
    assert row == {"prompt": "p", "completion": None, "answer": None, "difficulty": None}


def test_hub(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == "bad/name":
            raise ConnectionError("no\nnetwork")
        return [json.loads(GSM8K_LINE)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert load_rows(get_task("gsm8k"), split="test")[0]["answer"] == "2"
    load_rows(get_task("gsm8k"), "owner/name")
    error_of(load_rows, get_task("kk"), "owner/name:3ppl")
    assert asked == [("openai/gsm8k", "main", "test"), ("owner/name", None, "train"), ("owner/name", "train", "3ppl")]
    assert "ConnectionError: no network" in error_of(load_rows, get_task("gsm8k"), "bad/name:x")


def test_a_split_of_the_hub_by_name(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return [json.loads(GSM8K_LINE)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    load_rows(get_task("gsm8k"), "owner/name:main:train_sft")
    load_rows(get_task("gsm8k"), "owner/name::train_sft")
    assert asked == [("owner/name", "main", "train_sft"), ("owner/name", None, "train_sft")]


@pytest.mark.parametrize("kind", ["parquet", "csv", "saved", "saved splits"])
def test_a_folder_that_is_a_dataset(tmp_path, monkeypatch, kind):
    from datasets import Dataset, DatasetDict

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset = Dataset.from_list([{"prompt": f"{i}+1=", "answer": f"{i + 1}"} for i in range(3)])
    splits = DatasetDict(train=dataset, test=dataset.select([0]))
    folder = tmp_path / "folder"
    folder.mkdir()
    if kind.startswith("saved"):
        (splits if kind == "saved splits" else dataset).save_to_disk(str(folder))
    else:
        for name, part in splits.items():
            getattr(part, f"to_{kind}")(folder / f"{name}.{kind}")
    monkeypatch.chdir(tmp_path)
    for spelling in ("folder", "./folder", str(folder)):  # the last is what config.yaml has
        rows = load_rows(JsonlTask(), spelling)
        assert [row["prompt"] for row in rows] == ["0+1=", "1+1=", "2+1="]
        assert rows[0]["answer"] == "1"
    assert len(load_rows(JsonlTask(), "folder", "test")) == (3 if kind == "saved" else 1)


def test_a_folder_that_is_a_copy_of_one_of_the_hub(tmp_path, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "openai" / "gsm8k"
    for config in ("main", "socratic"):
        (folder / config).mkdir(parents=True)
        for split in ("train", "test"):
            record = json.loads(GSM8K_LINE) | {"question": f"{config} {split}"}
            Dataset.from_list([record]).to_parquet(folder / config / f"{split}.parquet")
    card = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("main", "socratic"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    monkeypatch.chdir(tmp_path)
    for spelling in ("openai/gsm8k:main", f"{folder}:main", "./openai/gsm8k:main:test"):
        (row,) = load_rows(get_task("gsm8k"), spelling, "test")
        assert row["prompt"].startswith("main test")


def test_fields_of_other_names(file):
    path = file('{"question": "1+1=", "solution": "2.", "final": 2, "prompt": "not this", "source": "x"}')
    names = {"prompt": "question", "completion": "solution", "answer": "final"}
    (row,) = load_rows(get_task("jsonl", names), path)
    assert row == {"prompt": "1+1=", "completion": "2.", "answer": "2", "difficulty": None, "source": "x"}
    # As GSM8K has it: the field that is one column's by name is no other's by default.
    solved = file('{"question": "1+1=", "answer": "1 and 1 are 2."}', "solved.jsonl")
    (row,) = load_rows(get_task("jsonl", {"prompt": "question", "completion": "answer"}), solved)
    assert (row["prompt"], row["completion"], row["answer"]) == ("1+1=", "1 and 1 are 2.", None)
    names = {"prompt": "question", "completion": "solution", "answer": "solution"}
    row = get_task("jsonl", names).to_row({"question": "1+1=", "solution": "2"})
    assert (row["completion"], row["answer"]) == ("2", "2")
    found = error_of(load_rows, get_task("jsonl", {"prompt": "text"}), path)
    assert "record has no field 'text' (its fields: " in found and "task_options" in found
    wanted = "use one of prompt, completion, answer, difficulty (did you mean prompt?)"
    assert f"option of task jsonl 'promt': {wanted}" in error_of(get_task, "jsonl", {"promt": "q"})
    assert "prompt is 3, but it must be the name of a field" in error_of(get_task, "jsonl", {"prompt": 3})


def test_generated():
    task = StoriesTask(num_train=5, num_held_out=2)
    assert load_rows(task) == task.generate(5)
    assert load_rows(task, None, "test") == task.generate(2, split="test")


def test_stories_from_a_file(file):
    rows = StoriesTask().generate(3)
    path = file("\n".join(json.dumps(row) for row in rows))
    assert load_rows(StoriesTask(), path) == rows


def test_as_conversation():
    row = {"prompt": "p", "completion": "c", "answer": "5", "other": 1}
    assert as_conversation(row) == {
        "prompt": [{"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "c"}],
        "answer": "5",
        "other": 1,
    }
    assert as_conversation(as_conversation(row)) == as_conversation(row)
    assert as_conversation({"prompt": "p", "completion": None})["completion"] is None
