"""What of an exam may be chosen: which pass@k, rows of which difficulty, rows in another form."""

from __future__ import annotations

import json

import pytest
import yaml
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

import sasr.cli
import toy
from sasr.exam.questions import exam_rows
from sasr.exam.request import read_request
from sasr.tasks import get_task
from small_exam import EXAM, ROWS, content, refused

pytestmark = pytest.mark.usefixtures("in_exam_place")


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


def test_only_the_passk_asked_for(whole_exam, tmp_path, capsys):
    """Any k up to n, in ascending order; the others of a figure are as without."""
    out = tmp_path / "exam"
    assert sasr.cli.main(["exam", *EXAM, "--k", "3", "1", "3", "--output_dir", str(out)]) == 0
    figures, before = content(out)["figures"], content(whole_exam)["figures"]
    assert list(figures["pass_at"]) == list(figures["pass_at_intervals"]) == ["1", "3"]
    assert list(before["pass_at"]) == ["1", "2", "4"], "by default the powers of two"
    assert figures["pass_at"]["1"] == before["pass_at"]["1"] <= figures["pass_at"]["3"] <= before["pass_at"]["4"]
    assert figures["gain"] == {"k": 3, "gain": figures["pass_at"]["3"] - figures["pass_at"]["1"]}
    shown = capsys.readouterr().out
    assert "pass@3  " in shown and "pass@3 - pass@1" in shown and "pass@2" not in shown
    assert content(out)["settings"]["k"] == [1, 3] and content(whole_exam)["settings"]["k"] is None
    message = refused(capsys, [*EXAM, "--k", "1", "--output_dir", str(out)])
    assert "holds another exam (k is [1, 3] there, not [1])" in message
    assert sasr.cli.main(["exam", *EXAM, "--k", "4", "--output_dir", str(tmp_path / "four")]) == 0
    assert content(tmp_path / "four")["figures"]["gain"]["gain"] is None, "there is no pass@1 to compare with"


def test_only_rows_of_a_difficulty(exam_place, tmp_path, capsys):
    """They are chosen first, and cut to --rows then."""
    out = tmp_path / "exam"
    flags = ["--difficulty", "1", "--rows", "4"]
    assert sasr.cli.main(["exam", *EXAM, *flags, "--output_dir", str(out)]) == 0
    records = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["prompt"] for line in (exam_place / "rows.jsonl").read_text().splitlines()]
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
        (["--model", str(tmp_path / "generated"), "--task", task], "3"),
        (["--model", str(tmp_path / "filed")], "1"),
    ):
        request = read_request([*flags, "--rows", "5", "--difficulty", level])
        rows = exam_rows(get_task(request.task), request)
        every = exam_rows(get_task(request.task), read_request([*flags, "--rows", "20"]))
        assert [row for row in every if str(row["difficulty"]) == level][:5] == rows and len(rows) == 5


def test_rows_asked_in_another_form(exam_place, capsys):
    """All rows but those of equal numbers once more; the figures of the original rows count these alone."""
    (exam_place / "swap.py").write_text(SWAP)
    command = ["exam", *EXAM, "--task", "swap.py:Swap", "--perturb", "all", "--output_dir", "perturbed"]
    assert sasr.cli.main(command) == 0
    figures = content(exam_place / "perturbed")["figures"]
    records = [json.loads(line) for line in (exam_place / "perturbed" / "completions.jsonl").read_text().splitlines()]
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
def test_perturbations_that_there_are_not(exam_place, capsys, flags, named):
    (exam_place / "swap.py").write_text(SWAP)
    assert sasr.cli.main(["exam", *EXAM, *flags, "--output_dir", "none"]) == 2
    assert named in capsys.readouterr().err and not (exam_place / "none").exists()


HALF = SWAP + """

class Half(Swap):
    name = "half"

    def perturbers(self):
        return {"swap": self.swap, "none": lambda row, rng: None}


class Nothing(Half):
    def perturbers(self):
        return {"none": lambda row, rng: None, "nor": lambda row, rng: None}
"""


def test_a_kind_that_fits_no_row(exam_place, capsys):
    """The others are asked all the same."""
    (exam_place / "half.py").write_text(HALF)
    command = [*EXAM, "--task", "half.py:Half", "--perturb", "all", "--output_dir", "half"]
    assert sasr.cli.main(["exam", *command]) == 0
    assert f"note: none of the {ROWS} rows can be perturbed by none\n" in capsys.readouterr().out
    assert list(content(exam_place / "half")["figures"]["robustness"]) == ["swap"]
    message = refused(capsys, [*EXAM, "--task", "half.py:Nothing", "--perturb", "all", "--output_dir", "nothing"])
    assert f"none of the {ROWS} rows of task half can be perturbed by none, nor" in message


def test_rows_without_an_answer_are_left_out_where_that_is_asked_for(exam_place, capsys):
    """Before --rows cuts, as of every other row that cannot be used."""
    rows = [{"prompt": f"{a}+1=", **({} if a % 3 == 1 else {"answer": str(a + 1)})} for a in range(1, 9)]
    (exam_place / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["exam", *EXAM, "--data", "mixed.jsonl", "--rows", "4", "--bad_rows", "skip", "--output_dir", "mixed"]
    assert sasr.cli.main(command) == 0
    assert "note: 3 of 8 rows have no answer and are left out" in capsys.readouterr().out
    records = [json.loads(line) for line in (exam_place / "mixed" / "completions.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["2+1=", "3+1=", "5+1=", "6+1="]
    (exam_place / "unjudged.jsonl").write_text(json.dumps(rows[0]) + "\n")
    message = refused(capsys, [*EXAM, "--data", "unjudged.jsonl", "--bad_rows", "skip"])
    assert "no row has an answer" in message


def test_worked_solutions_are_read_before_the_completions(exam_place, capsys, monkeypatch):
    """What the model cannot read was found after hours of generating, and the exam could not be finished any more."""
    monkeypatch.setattr("sasr.exam.examiner.Examiner.examine", None)
    tokens = AutoConfig.from_pretrained("lm").max_position_embeddings
    shape = {"vocab_size": len(toy.tokenizer()), "n_positions": tokens, "n_embd": 8, "n_layer": 1, "n_head": 1}
    learned = GPT2LMHeadModel(GPT2Config(**shape))
    learned.save_pretrained("learned")
    toy.tokenizer().save_pretrained("learned")
    long = {"prompt": "1+1=", "completion": "2" * tokens, "answer": "2"}
    (exam_place / "long.jsonl").write_text(json.dumps(long) + "\n")
    command = [*EXAM, "--model", "learned", "--nll_task", "jsonl", "--nll_data", "long.jsonl", "--output_dir", "long"]
    status = sasr.cli.main(["exam", *command])
    error = capsys.readouterr().err
    assert status == 2 and f"more than the {tokens} positions of the model: give other nll_data" in error, error
