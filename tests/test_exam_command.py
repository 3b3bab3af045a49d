"""`sasr exam` as a user runs it, on tiny local models: figures, stopping and going on, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from rich.text import Text

import sasr.cli
import sasr.exam.command
import toy
from sasr.exam import summarise
from sasr.exam.questions import exam_rows
from sasr.exam.request import read_request
from sasr.exam.store import block_seed, digest_of_model
from sasr.exam.view import ExamView, figure_rows
from sasr.tasks import get_task

LIMIT = 240
ROWS = 12
SMALL = ["--n", "4", "--batch_size", "4", "--max_new_tokens", "4"]  # four rows a block
MORE = ["--initial_model", "start", "--nll_task", "jsonl", "--nll_data", "rows.jsonl"]
EXAM = ["--model", "lm", "--task", "jsonl", "--data", "rows.jsonl", *SMALL]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with two models and a file of rows."""
    where = tmp_path_factory.mktemp("exam")
    toy.model(0, where / "lm")
    toy.model(1, where / "start")
    rows = [{**row, "difficulty": i % 2} for i, row in enumerate(toy.rows(ROWS))]
    for i, row in enumerate(rows):
        row["answer"] = "0123456789"[i % 10]  # one digit, so that a random model hits some
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "error" if name == "TRANSFORMERS_VERBOSITY" else "true"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """An exam without a stop, in this process."""
    before = Path.cwd()
    os.chdir(place)
    try:
        assert sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", "whole"]) == 0
    finally:
        os.chdir(before)
    return place / "whole"


def content(directory: Path) -> dict:
    return json.loads((directory / "exam.json").read_text())


def assert_same_exam(a: Path, b: Path) -> None:
    assert (a / "completions.jsonl").read_bytes() == (b / "completions.jsonl").read_bytes()
    one, other = ({k: v for k, v in content(path).items() if k != "command"} for path in (a, b))
    one["figures"].pop("seconds"), other["figures"].pop("seconds")
    assert one == other


def test_figures_are_those_of_the_completions(whole, place):
    figures, settings = content(whole)["figures"], content(whole)["settings"]
    records = [json.loads(line) for line in (whole / "completions.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(ROWS))
    asked = [json.loads(line)["prompt"] for line in (place / "rows.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == asked, "in file order"
    again = summarise(records, 4, seconds=figures["seconds"]).to_dict()
    assert {key: figures[key] for key in again} == json.loads(json.dumps(again))
    assert list(figures["by_difficulty"]) == ["0", "1"] and figures["by_difficulty"]["0"]["rows"] == 6
    samples = [sample for record in records for sample in record["samples"]]
    tokens = sum(sample["tokens"] for sample in samples)
    for name in ("kl", "entropy"):
        assert figures[name] == pytest.approx(sum(s[name] * s["tokens"] for s in samples) / tokens)
        assert figures[name] > 0 and name not in records[0]["greedy"]
    assert "token_ids" not in samples[0] and len({sample["text"] for sample in samples}) > 1
    assert figures["nll"]["rows"] == ROWS and figures["nll"]["per_token"] != figures["nll"]["initial_per_token"]
    assert figures["lengths"]["sampled"] == tokens / len(samples)
    assert '"kind":"exam"' in (whole / "report.html").read_text()
    assert settings["max_new_tokens"] == 4 and content(whole)["versions"].keys() >= {"sasr", "torch"}


def test_asked_again_it_only_shows_the_figures(whole, capsys, monkeypatch):
    def loaded(*args):
        raise AssertionError("examined twice")

    monkeypatch.setattr(sasr.exam.command, "_examine", loaded)
    before = (whole / "exam.json").read_bytes()
    assert sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", "whole"]) == 0
    out = capsys.readouterr().out
    assert "done before" in out and "pass@4" in out and "KL to the initial model" in out
    assert "\x1b" not in out and (whole / "exam.json").read_bytes() == before


@pytest.mark.parametrize("kept", ["nothing", "a broken line", "half a block", "a block and a half", "all"])
def test_going_on_gives_the_same_exam(whole, tmp_path, capsys, kept):
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "exam.json").write_text(json.dumps({**content(whole), "figures": None}))
    lines = (whole / "completions.jsonl").read_text().splitlines(keepends=True)
    text = {
        "nothing": "", "a broken line": "".join(lines[:4]) + lines[4][:50], "half a block": "".join(lines[:2]),
        "a block and a half": "".join(lines[:6]), "all": "".join(lines),
    }[kept]  # fmt: skip
    (part / "completions.jsonl").write_text(text)
    assert sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", str(part)]) == 0
    done = {"a broken line": 4, "a block and a half": 4, "all": ROWS}.get(kept)
    assert (f"going on after {done} rows" if done else "12 rows") in capsys.readouterr().out
    assert_same_exam(part, whole)


def start(*flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sasr", "exam", *EXAM, *MORE, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# A task that is slow to judge keeps the process at work until the signal comes.
SLOW = """
import time
from sasr.tasks import JsonlTask

class Slow(JsonlTask):
    def check_all(self, completions, rows):
        time.sleep({seconds})
        return super().check_all(completions, rows)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_killed(place, tmp_path, number):
    task = tmp_path / "slow.py"
    task.write_text(SLOW.format(seconds=1))
    flags = ["--task", f"{task}:Slow"]
    process = start(*flags, "--output_dir", str(tmp_path / "part"))
    path = tmp_path / "part" / "completions.jsonl"
    deadline = time.monotonic() + LIMIT
    try:
        while not path.exists() or path.read_bytes().count(b"\n") < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number], errors
    assert content(tmp_path / "part")["figures"] is None and "Traceback" not in errors
    if number != signal.SIGKILL:
        (line,) = [line for line in out.splitlines() if line.startswith("stopped; go on with: sasr exam --model lm")]
        assert line.endswith(f"--output_dir {tmp_path / 'part'}")
        assert line.endswith(content(tmp_path / "part")["command"])
        assert "stopped after" in (tmp_path / "part" / "report.html").read_text()
    task.write_text(SLOW.format(seconds=0))
    assert sasr.cli.main(["exam", *EXAM, *MORE, *flags, "--output_dir", str(tmp_path / "part")]) == 0
    assert sasr.cli.main(["exam", *EXAM, *MORE, *flags, "--output_dir", str(tmp_path / "straight")]) == 0
    assert_same_exam(tmp_path / "part", tmp_path / "straight")


def test_a_block_does_not_depend_on_the_others(place, whole, tmp_path):
    """The second block alone, as a file of its own, has the greedy completions and prompts of the whole exam."""
    assert len({block_seed(seed, block) for seed in range(30) for block in range(30)}) == 900
    assert sasr.cli.main(["exam", *EXAM, "--rows", "8", "--output_dir", str(tmp_path / "part")]) == 0
    records, others = (
        [json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()]
        for directory in (tmp_path / "part", whole)
    )
    texts = [[[s["text"] for s in (r["greedy"], *r["samples"])] for r in part[:8]] for part in (records, others)]
    assert len(records) == 8 and texts[0] == texts[1], "fewer rows are the first of more"


def test_a_run_gives_the_defaults(place, tmp_path, capsys):
    """Held-out rows, limits and seed are those of the run, so the figures are about the same questions."""
    run = tmp_path / "run"
    flags = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "lm", "--schedule", "sft"]
    flags += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--num_generations", "4", "--save_steps", "2"]
    flags += ["--max_completion_length", "5", "--exam_rows", "3", "--exam_samples", "3", "--temperature", "0.8"]
    assert sasr.cli.main(["train", *flags, "--seed", "7", "--output_dir", str(run)]) == 0
    final = json.loads((run / "exam.json").read_text())["final"]
    for model in (run, run / "checkpoint-2"):
        request = read_request(["--model", str(model)])
        assert (request.task, request.rows, request.n, request.max_new_tokens) == ("jsonl", 3, 3, 5)
        assert (request.temperature, request.seed, request.held_out) == (0.8, 7, True)
    assert not read_request(["--model", str(run), "--data", "rows.jsonl"]).held_out
    assert read_request(["--model", str(run), "--task", "gsm8k"]).held_out is False
    assert read_request(["--model", str(run), "--n", "9"]).n == 9
    assert sasr.cli.main(["exam", "--model", str(run), "--output_dir", str(tmp_path / "exam")]) == 0
    records = [json.loads(line) for line in (tmp_path / "exam" / "completions.jsonl").read_text().splitlines()]
    told = [json.loads(line) for line in (run / "exams" / "final.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == [r["prompt"] for r in told]
    assert [r["greedy"]["text"] for r in records] == [r["greedy"]["text"] for r in told]
    assert content(tmp_path / "exam")["figures"]["greedy_accuracy"] == final["greedy_accuracy"]
    # The run ends without a final model: the checkpoint is named.
    shutil.copytree(run, tmp_path / "cut")
    (tmp_path / "cut" / "config.json").unlink()
    capsys.readouterr()
    message = refused(capsys, ["--model", str(tmp_path / "cut")])
    assert "the run has not ended" in message and "checkpoint-2" in message


def test_task_options_are_those_of_the_run(place, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"task": "stories", "task_options": {"steps": [1, 2]}}))
    model = ["--model", str(run)]
    request = read_request(model)
    assert request.task_options == {"steps": [1, 2]} and request.held_out
    assert read_request([*model, "--task", "gsm8k"]).task_options is None
    other = read_request([*model, "--task_options", '{"steps": 4}'])
    assert other.task_options == {"steps": 4} and not other.held_out, "other rows were held out"
    flags = ["--model", "tiny-llama", "--task", "stories", "--task_options", '{"steps": [2, 5]}', "--rows", "3", *SMALL]
    assert sasr.cli.main(["exam", *flags, "--output_dir", str(tmp_path / "exam")]) == 0
    assert list(content(tmp_path / "exam")["figures"]["by_difficulty"]) == ["2", "5"]
    assert content(tmp_path / "exam")["settings"]["task_options"] == {"steps": [2, 5]}


def test_generated_rows_are_of_the_test_split(place, tmp_path):
    from sasr.tasks import StoriesTask

    flags = ["--model", "tiny-llama", "--task", "stories", "--rows", "3", *SMALL, "--entropy"]
    assert sasr.cli.main(["exam", *flags, "--output_dir", str(tmp_path / "exam")]) == 0
    records = [json.loads(line) for line in (tmp_path / "exam" / "completions.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == [r["prompt"] for r in StoriesTask().generate(3, None, "test")]
    figures = content(tmp_path / "exam")["figures"]
    assert figures["entropy"] > 1 and figures["kl"] is None and figures["nll"] is None


def refused(capsys, flags: list[str]) -> str:
    status = sasr.cli.main(["exam", *flags])
    out, err = capsys.readouterr()
    assert status == 2 and out == "", (status, out, err)
    assert err.startswith("sasr: error: ") and err.count("\n") == 1 and len(err) < 420, err
    return err.removeprefix("sasr: error: ").strip()


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
    "unknown flag": ([*EXAM, "--sampels", "3"], ["unknown argument --sampels"]),
    "stray word": ([*EXAM, "now"], ["unknown argument now"]),
    "no initial model": ([*EXAM, "--initial_model", "./nowhere"], ["'./nowhere'"]),
    "other words": ([*EXAM, "--initial_model", "tiny-llama", "--task", "mine.py:Mine"], ["initial_model tiny-llama"]),
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
def mistakes(place):
    """What the cases of `REFUSED` need."""
    for name in ("empty", "nothing", "mess", "run", "adapter"):
        (place / name).mkdir(exist_ok=True)
    (place / "nothing" / "note.txt").write_text("")
    shutil.copy(place / "lm" / "config.json", place / "empty")
    (place / "adapter" / "adapter_config.json").write_text("{}")
    (place / "mess" / "config.yaml").write_text("a: [\n")
    (place / "run" / "exam.json").write_text(json.dumps({"final": {"greedy_accuracy": 0.5}}))
    row = {"prompt": "1+1=", "answer": "2"}
    (place / "unsolved.jsonl").write_text(json.dumps(row) + "\n")
    (place / "unanswered.jsonl").write_text(f"{json.dumps(row)}\n\n{json.dumps({'prompt': '1+2='})}\n")
    for name, wrong in (("blank", " "), ("solutions", "1+1=2\n#### 2")):
        (place / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'answer': wrong})}\n")
    gsm8k = [{"question": "1+1?", "answer": f"1+1\n#### {number}"} for number in ("2", "two")]
    (place / "gsm8k.jsonl").write_text("".join(json.dumps(record) + "\n" for record in gsm8k))
    (place / "math.jsonl").write_text(json.dumps({"problem": "p", "solution": "\\boxed{\\frac{1}{2"}) + "\n")
    (place / "broken.jsonl").write_text(json.dumps(row) + "\n{oops\n")
    (place / "mine.py").write_text(
        "from sasr.tasks import JsonlTask, StoriesTask\n\n"
        "class Mine(JsonlTask):\n    def vocabulary_texts(self):\n        return ['1 + 1 = 2']\n\n"
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
    monkeypatch.setattr("sasr.exam.vllm_engine.importlib.util.find_spec", lambda name: None)
    message = refused(capsys, [*EXAM, "--engine", "vllm"])
    assert "vLLM is not installed" in message and "leave --engine out" in message


def test_more_tokens_than_the_model_has_positions(capsys, tmp_path):
    status = sasr.cli.main(["exam", *EXAM, "--max_new_tokens", "62", "--output_dir", str(tmp_path / "exam")])
    err = capsys.readouterr().err
    assert status == 2 and "64 positions" in err and "lower max_new_tokens" in err and err.count("\n") == 1
    assert not (tmp_path / "exam").exists()


def test_too_little_memory(capsys, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sasr.exam.examiner.examine_rows", full)
    assert sasr.cli.main(["exam", *EXAM, "--output_dir", str(tmp_path / "exam")]) == 2
    assert "4 completions at a time: lower batch_size" in capsys.readouterr().err


def test_another_exams_directory(whole, capsys, tmp_path):
    for flags, key in ((["--seed", "1"], "seed"), (["--rows", "5"], "rows"), (["--entropy"], "entropy")):
        message = refused(capsys, [*EXAM, *MORE, *flags, "--output_dir", "whole"])
        assert "holds another exam" in message and f"({key} is" in message
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    (part / "exam.json").write_text(json.dumps({**content(whole), "figures": None}))
    lines = (part / "completions.jsonl").read_text().splitlines(keepends=True)
    (part / "completions.jsonl").write_text("".join([*lines[:2], lines[5]]))
    status = sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", str(part)])
    assert status == 2 and "completions.jsonl:3 is no record of this exam" in capsys.readouterr().err
    (part / "exam.json").write_text("{")
    assert "cannot be read" in refused(capsys, [*EXAM, "--output_dir", str(part)])


def test_other_weights_are_another_exam(place, tmp_path):
    assert digest_of_model("lm") == digest_of_model(str(place / "lm")) != digest_of_model("start")
    assert digest_of_model("owner/name") is None


def test_config_of_something_else_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"hidden_size": 4}))
    assert read_request(["--model", str(tmp_path), "--task", "math"]).run is None


def test_help(capsys):
    assert sasr.cli.main(["exam", "--help"]) == 0
    assert "--initial_model" in capsys.readouterr().out
    assert sasr.cli.main(["--help"]) == 0
    assert "sasr exam" in capsys.readouterr().out


def test_on_a_terminal_there_is_a_bar_and_a_table(whole):
    console = Console(file=io.StringIO(), force_terminal=True, width=70, legacy_windows=False)
    with ExamView(console) as view:
        view.start(100, 20)
        view.update(60)
    view.table(figure_rows(content(whole)["figures"]))
    shown = console.file.getvalue()
    assert "━" in shown and "60/100 completions" in shown and "greedy accuracy" in shown
    assert all(len(Text.from_ansi(line).plain) <= 70 for line in shown.splitlines())


def test_plain_progress_has_pace_and_time_left(capsys):
    times = iter([0.0, 0.0, 10.0, 45.0, 100.0])
    with ExamView(clock=lambda: next(times)) as view:
        view.start(100, 20)
        view.update(30)
        times = iter([45.0, 45.0, 80.0, 80.0])
        view.update(40)
        view.update(100)
    assert capsys.readouterr().out.splitlines() == [
        "40/100 completions  2.2 s each  2m15s left",
        "100/100 completions  1.0 a second",
    ]


SWAP = """
from sasr.tasks.jsonl import JsonlTask


class Swap(JsonlTask):
    name = "swap"

    def perturbers(self):
        return {"swap": self.swap}

    def swap(self, row, rng):
        a, _, b = row["prompt"].rstrip("=").partition("+")
        return {"prompt": f"{b}+{a}="} if a != b else None
"""


def test_only_the_passk_asked_for(whole, tmp_path, capsys):
    """Any k up to n, in ascending order; the others of a figure are as without."""
    out = tmp_path / "exam"
    assert sasr.cli.main(["exam", *EXAM, "--k", "3", "1", "3", "--output_dir", str(out)]) == 0
    figures, before = content(out)["figures"], content(whole)["figures"]
    assert list(figures["pass_at"]) == list(figures["pass_at_intervals"]) == ["1", "3"]
    assert list(before["pass_at"]) == ["1", "2", "4"], "by default the powers of two"
    assert figures["pass_at"]["1"] == before["pass_at"]["1"] <= figures["pass_at"]["3"] <= before["pass_at"]["4"]
    assert figures["gain"] == {"k": 3, "gain": figures["pass_at"]["3"] - figures["pass_at"]["1"]}
    shown = capsys.readouterr().out
    assert "pass@3  " in shown and "pass@3 - pass@1" in shown and "pass@2" not in shown
    assert content(out)["settings"]["k"] == [1, 3] and content(whole)["settings"]["k"] is None
    message = refused(capsys, [*EXAM, "--k", "1", "--output_dir", str(out)])
    assert "holds another exam (k is [1, 3] there, not [1])" in message
    assert sasr.cli.main(["exam", *EXAM, "--k", "4", "--output_dir", str(tmp_path / "four")]) == 0
    assert content(tmp_path / "four")["figures"]["gain"]["gain"] is None, "there is no pass@1 to compare with"


def test_only_rows_of_a_difficulty(place, tmp_path, capsys):
    """They are chosen first, and cut to --rows then."""
    out = tmp_path / "exam"
    flags = ["--difficulty", "1", "--rows", "4"]
    assert sasr.cli.main(["exam", *EXAM, *flags, "--output_dir", str(out)]) == 0
    records = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["prompt"] for line in (place / "rows.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == asked[1:9:2]
    assert list(content(out)["figures"]["by_difficulty"]) == ["1"] and content(out)["settings"]["difficulty"] == ["1"]
    capsys.readouterr()
    message = refused(capsys, [*EXAM, "--difficulty", "0", "--rows", "4", "--output_dir", str(out)])
    assert "difficulty is ['1'] there, not ['0']" in message


MIXED = """
from sasr.tasks import StoriesTask


class Mixed(StoriesTask):
    def generate(self, count=None, seed=None, split="train"):
        rows = super().generate(count, seed, split)
        return [{**row, "difficulty": i % 4} for i, row in enumerate(rows)]
"""


def test_generated_and_held_out_rows_of_a_difficulty(tmp_path):
    """As many as are wanted, not the few that are among the first so many: of a task that generates its rows, of a run
    with such a task, and of a run with a file for its exams."""
    (tmp_path / "mixed.py").write_text(MIXED)
    task = f"{tmp_path / 'mixed.py'}:Mixed"
    settings = {"task": task, "seed": 1}
    for name, own in (("generated", {}), ("filed", {"task": "jsonl", "data": "rows.jsonl", "exam_data": "rows.jsonl"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings | own))
    for flags, level in (
        (["--model", "lm", "--task", task], "3"),
        (["--model", str(tmp_path / "generated")], "3"),
        (["--model", str(tmp_path / "filed")], "1"),
    ):
        request = read_request([*flags, "--rows", "5", "--difficulty", level])
        rows = exam_rows(get_task(request.task), request)
        every = exam_rows(get_task(request.task), read_request([*flags, "--rows", "20"]))
        assert [row for row in every if str(row["difficulty"]) == level][:5] == rows and len(rows) == 5


def test_rows_asked_in_another_form(place, capsys):
    """All rows but those of equal numbers once more; the figures of the original rows count these alone."""
    (place / "swap.py").write_text(SWAP)
    command = ["exam", *EXAM, "--task", "swap.py:Swap", "--perturb", "all", "--output_dir", "perturbed"]
    assert sasr.cli.main(command) == 0
    figures = content(place / "perturbed")["figures"]
    records = [json.loads(line) for line in (place / "perturbed" / "completions.jsonl").read_text().splitlines()]
    changed = [record for record in records if record.get("perturbation") == "swap"]
    unequal = [i for i, row in enumerate(toy.rows(ROWS)) if row["prompt"][0] != row["prompt"][2]]
    assert [record["original"] for record in changed] == unequal and len(records) == ROWS + len(unequal)
    for record in changed:
        a, b = records[record["original"]]["prompt"][:-1].split("+")
        assert record["prompt"] == f"{b}+{a}=" and record["answer"] == records[record["original"]]["answer"]
    group = figures["robustness"]["swap"]
    assert (figures["rows"], group["rows"]) == (ROWS, len(unequal))
    rate = sum(sample["correct"] for record in changed for sample in record["samples"]) / (4 * len(changed))
    assert group["pass_at_1"] == pytest.approx(rate)
    assert "pass@1 perturbed by swap" in capsys.readouterr().out
    assert sasr.cli.main(command) == 0 and "done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--task", "swap.py:Swap", "--perturb", "swop"], "unknown perturbation of task swap 'swop'"),
        (["--perturb", "names"], "task jsonl has no perturbations"),
        (["--perturb", "all"], "task jsonl knows no perturbation"),
        (["--perturb"], "expected at least one argument"),
    ],
)
def test_perturbations_that_there_are_not(place, capsys, flags, named):
    (place / "swap.py").write_text(SWAP)
    assert sasr.cli.main(["exam", *EXAM, *flags, "--output_dir", "none"]) == 2
    assert named in capsys.readouterr().err and not (place / "none").exists()
