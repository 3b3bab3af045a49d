"""`sasr exam` as a user runs it, on tiny local models: figures, stopping and going on, and what it shows."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
import yaml
from rich.console import Console
from rich.text import Text
from transformers import LlamaConfig, LlamaForCausalLM

import sasr.cli
import sasr.exam.command
from sasr import InputError
from sasr.exam import summarise
from sasr.exam.examiner import Examiner
from sasr.exam.request import read_request
from sasr.exam.store import ExamDirectory, block_seed, digest_of_model
from sasr.exam.view import ExamView, figure_rows
from sasr.run_directory import make_numbered
from sasr.tasks import JsonlTask, get_task
from sasr.tasks.base import Verdict
from small_exam import EXAM, MORE, ROWS, SMALL, assert_same_exam, content, refused
from test_demonstrations import TEMPLATE, chat_tokenizer

pytestmark = pytest.mark.usefixtures("in_exam_place")
LIMIT = 240


def test_figures_are_those_of_the_completions(whole_exam, exam_place):
    figures, settings = content(whole_exam)["figures"], content(whole_exam)["settings"]
    records = [json.loads(line) for line in (whole_exam / "completions.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == list(range(ROWS))
    asked = [json.loads(line)["prompt"] for line in (exam_place / "rows.jsonl").read_text().splitlines()]
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
    assert '"kind":"exam"' in (whole_exam / "report.html").read_text()
    assert settings["max_new_tokens"] == 4 and content(whole_exam)["versions"].keys() >= {"sasr", "torch"}


def test_asked_again_it_only_shows_the_figures(whole_exam, capsys, monkeypatch):
    def loaded(*args):
        raise AssertionError("examined twice")

    monkeypatch.setattr(sasr.exam.command, "_examine", loaded)
    before = (whole_exam / "exam.json").read_bytes()
    assert sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", "whole"]) == 0
    out = capsys.readouterr().out
    assert "done before" in out and "pass@4" in out and "KL to the initial model" in out
    assert "\x1b" not in out and (whole_exam / "exam.json").read_bytes() == before


@pytest.mark.parametrize("kept", ["nothing", "a broken line", "half a block", "a block and a half", "all"])
def test_going_on_gives_the_same_exam(whole_exam, tmp_path, capsys, kept):
    part = tmp_path / "part"
    shutil.copytree(whole_exam, part)
    (part / "exam.json").write_text(json.dumps({**content(whole_exam), "figures": None}))
    lines = (whole_exam / "completions.jsonl").read_text().splitlines(keepends=True)
    text = {
        "nothing": "", "a broken line": "".join(lines[:4]) + lines[4][:50], "half a block": "".join(lines[:2]),
        "a block and a half": "".join(lines[:6]), "all": "".join(lines),
    }[kept]  # fmt: skip
    (part / "completions.jsonl").write_text(text)
    assert sasr.cli.main(["exam", *EXAM, *MORE, "--output_dir", str(part)]) == 0
    done = {"a broken line": 4, "a block and a half": 4, "all": ROWS}.get(kept)
    assert (f"going on after {done} rows" if done else "12 rows") in capsys.readouterr().out
    assert_same_exam(part, whole_exam)


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
def test_stopped_and_killed(exam_place, tmp_path, number):
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
        assert "stopped after" in (tmp_path / "part" / "report.html").read_text()
    task.write_text(SLOW.format(seconds=0))
    assert sasr.cli.main(["exam", *EXAM, *MORE, *flags, "--output_dir", str(tmp_path / "part")]) == 0
    assert sasr.cli.main(["exam", *EXAM, *MORE, *flags, "--output_dir", str(tmp_path / "straight")]) == 0
    assert_same_exam(tmp_path / "part", tmp_path / "straight")


def test_a_block_does_not_depend_on_the_others(exam_place, whole_exam, tmp_path):
    """The second block alone, as a file of its own, has the greedy completions and prompts of the whole exam."""
    assert len({block_seed(seed, block) for seed in range(30) for block in range(30)}) == 900
    assert sasr.cli.main(["exam", *EXAM, "--rows", "8", "--output_dir", str(tmp_path / "part")]) == 0
    records, others = (
        [json.loads(line) for line in (directory / "completions.jsonl").read_text().splitlines()]
        for directory in (tmp_path / "part", whole_exam)
    )
    texts = [[[s["text"] for s in (r["greedy"], *r["samples"])] for r in part[:8]] for part in (records, others)]
    assert len(records) == 8 and texts[0] == texts[1], "fewer rows are the first of more"


def test_a_run_gives_the_defaults(exam_place, tmp_path, capsys):
    """Held-out rows, limits and seed are those of the run, so the figures are about the same questions."""
    run = tmp_path / "run"
    flags = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "lm", "--schedule", "sft"]
    flags += [
        "--max_steps",
        "2",
        "--sft_warmup_steps",
        "0",
        "--per_device_train_batch_size",
        "4",
        "--num_generations",
        "4",
        "--save_steps",
        "2",
    ]
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
    silent = yaml.safe_load((run / "config.yaml").read_text())
    assert silent["per_device_eval_batch_size"] == read_request(["--model", str(run)]).batch_size
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


def test_batches_and_weights_are_those_of_the_run(tmp_path):
    settings = {"task": "jsonl", "per_device_eval_batch_size": 7, "dtype": "bfloat16"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    request = read_request(["--model", str(tmp_path)])
    assert (request.batch_size, request.dtype) == (7, "bfloat16")


def test_what_a_run_was_trained_with_reaches_the_engine(tmp_path):
    """Temperature, seed, what its template is told, and the template's end of turn, which is no EOS of the model."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% if extra %}!{% endif %}" + TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, eos_token_id=1)).save_pretrained(tmp_path)
    settings = {"task": "jsonl", "temperature": 0.8, "seed": 7, "chat_template_kwargs": {"extra": True}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    examiner = Examiner(read_request(["--model", str(tmp_path), "--n", "2"]), get_task("jsonl"))
    end, asked = tokenizer.convert_tokens_to_ids("<|end|>"), []

    class Engine:
        def complete(self, prompt_ids, samples, sampling, progress):
            asked.append(([tokenizer.decode(ids) for ids in prompt_ids], sampling))
            return [[[end]] * (1 + samples) for _ in prompt_ids]

    examiner.engine = Engine()
    rows = [{"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}]
    for block in (0, 3):
        (record,) = examiner.examine(rows, block, lambda done, total: None)
        assert not record["greedy"]["truncated"]
        prompts, sampling = asked.pop()
        assert prompts == ["!<|user|>1+1?<|end|>\n<|assistant|>"]
        assert (sampling.temperature, sampling.seed) == (0.8, block_seed(7, block))
        assert sorted(sampling.eos_ids) == [1, end]


def test_exams_that_begin_together_have_their_own_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [{"temperature": temperature} for temperature in (0.3, 1.0)]
    stores = [ExamDirectory(make_numbered("exams", "lm")[0], own, "sasr exam") for own in settings]
    assert [store.directory.name for store in stores] == ["lm-1", "lm-2"]
    late = ExamDirectory(stores[0].directory, settings[1], "sasr exam")
    assert [store.check() for store in (*stores, late)] == [None] * 3
    with closing(stores[0]) as first:
        first.open([], 1, 1)
    with closing(late), pytest.raises(InputError, match=r"holds another exam \(temperature is 0\.3 there, not 1\.0\)"):
        late.open([], 1, 1)


def test_another_seed_draws_other_samples(tmp_path):
    records = []
    for seed in ("1", "2"):
        assert sasr.cli.main(["exam", *EXAM, "--seed", seed, "--output_dir", str(tmp_path / seed)]) == 0
        lines = (tmp_path / seed / "completions.jsonl").read_text().splitlines()
        records.append([json.loads(line) for line in lines])
    greedy, samples = (
        [[[said["text"] for said in of(record)] for record in part] for part in records]
        for of in (lambda record: [record["greedy"]], lambda record: record["samples"])
    )
    assert greedy[0] == greedy[1] and samples[0] != samples[1]


def test_task_options_are_those_of_the_run(exam_place, tmp_path):
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


def test_generated_rows_are_of_the_test_split(exam_place, tmp_path):
    from sasr.tasks import StoriesTask

    flags = ["--model", "tiny-llama", "--task", "stories", "--rows", "3", *SMALL, "--entropy"]
    assert sasr.cli.main(["exam", *flags, "--output_dir", str(tmp_path / "exam")]) == 0
    records = [json.loads(line) for line in (tmp_path / "exam" / "completions.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == [r["prompt"] for r in StoriesTask().generate(3, None, "test")]
    figures = content(tmp_path / "exam")["figures"]
    assert figures["entropy"] > 1 and figures["kl"] is None and figures["nll"] is None


def test_columns_with_the_names_of_marks_are_only_columns(exam_place, tmp_path, monkeypatch):
    """Of rows that are perturbed here, that is: as sets of robustness tests have them."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (exam_place / "rows.jsonl").read_text().splitlines()]
    marked = [{**row, "perturbation": "x" if i % 2 else None, "original": f"row {i}"} for i, row in enumerate(rows)]
    (tmp_path / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    flags = ["--model", str(exam_place / "lm"), "--task", "jsonl", "--data", "marked.jsonl", *SMALL]
    assert sasr.cli.main(["exam", *flags, "--rows", "4", "--output_dir", "out"]) == 0
    figures = content(tmp_path / "out")["figures"]
    assert figures["rows"] == 4 and figures["robustness"] == {}
    asked = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert not any("perturbation" in record for record in asked)
    monkeypatch.setattr(JsonlTask, "check", lambda self, text, row: Verdict(row["original"].startswith("row"), True))
    assert sasr.cli.main(["exam", *flags, "--rows", "4", "--output_dir", "read"]) == 0
    assert content(tmp_path / "read")["figures"]["greedy_accuracy"] == 1.0, "a check may read them"
    assert (tmp_path / "out" / "report.html").is_file()


def test_other_weights_are_another_exam(exam_place, tmp_path):
    assert digest_of_model("lm") == digest_of_model(str(exam_place / "lm")) != digest_of_model("start")
    assert digest_of_model("owner/name") is None


def test_a_large_file_of_weights_is_looked_at_from_end_to_end(tmp_path):
    file, digests = tmp_path / "large.safetensors", set()
    for first, last in ((0, 0), (0, 1), (480_000, 500_000), (999_999, 1_000_000)):
        weights = bytearray(1_000_000)
        weights[first:last] = b"\1" * (last - first)
        file.write_bytes(weights)
        digests.add(digest_of_model(str(file)))
    assert len(digests) == 4


def test_config_of_something_else_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"hidden_size": 4}))
    assert read_request(["--model", str(tmp_path), "--task", "math"]).run is None


def test_help(capsys):
    assert sasr.cli.main(["exam", "--help"]) == 0
    assert "--initial_model" in capsys.readouterr().out
    assert sasr.cli.main(["--help"]) == 0
    assert "sasr exam" in capsys.readouterr().out


def test_on_a_terminal_there_is_a_bar_and_a_table(whole_exam):
    console = Console(file=io.StringIO(), force_terminal=True, width=70, legacy_windows=False)
    with ExamView(console) as view:
        view.start(100, 20)
        view.update(60)
    view.table(figure_rows(content(whole_exam)["figures"]))
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
