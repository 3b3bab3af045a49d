"""`sasr check`: what it finds in data, that it says nothing of good data, and that it loads no model."""

from __future__ import annotations

import json

import pytest

import sasr.cli
import sasr.models
import toy
from sasr.check import facts
from sasr.tasks import JsonlTask

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sasr.models, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    return tmp_path


@pytest.fixture
def check(capsys):
    """`check(*flags)`: exit status, lines of standard output, standard error, and what `--json` wrote."""

    def run(*flags):
        status = sasr.cli.main(["check", *flags, "--json", "check.json"])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out.splitlines(), err, json.loads(open("check.json").read()) if status < 2 else None

    return run


def write(name, *records):
    with open(name, "w") as file:
        file.writelines(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records)
    return name


def row(number, **changes):
    return {"prompt": f"{number}+1=", "completion": f"{number + 1}", "answer": f"{number + 1}", **changes}


def cells(lines, title):
    (line,) = (line for line in lines if line.strip().startswith(title))
    return line.split(title)[1].split()


def test_good_data(check):
    status, lines, err, found = check("--task", "stories", "--train_rows", "60", "--exam_rows", "10")
    assert status == 0 and err == "" and lines[-1] == "no problems found"
    assert cells(lines, "rows") == ["60", "10"]
    assert cells(lines, "demonstrations that the verifier accepts") == ["60", "(100%)", "10", "(100%)"]
    assert cells(lines, "difficulty 3") == ["60", "10"]
    tokens = found["splits"]["train"]["tokens"]["demonstrations"]
    assert 15 < tokens["minimum"] <= tokens["median"] <= tokens["p95"] <= tokens["maximum"] < 48 == tokens["limit"]
    assert found["problems"] == found["notes"] == [] and found["model"] == "tiny-llama"


def test_bad_data(check):
    records = [row(i) for i in range(30)]
    records[3] = row(3, completion="5")
    records[7] = row(7, completion="7 + 1\nis eight\n8")
    records += [row(5), {**row(5), "prompt": " 5+1= "}, row(9, answer="11", completion=None), row(90, answer=None)]
    exam = [row(1), row(40), {**row(2), "prompt": "2+1=\n"}]
    flags = ["--task", "jsonl", "--data", write("rows.jsonl", *records), "--exam_data", write("exam.jsonl", *exam)]
    status, lines, _, found = check(*flags)
    assert status == 1 and "no problems found" not in lines
    wrong, contrary, overlap = (problem for problem in found["problems"])
    assert wrong["text"].startswith("1 of 32 demonstrations of train are wrong") and wrong["rows"] == ["rows.jsonl:4"]
    assert contrary["text"].startswith("1 rows of train repeat a prompt with another answer")
    assert contrary["rows"] == ["rows.jsonl:33"]
    assert overlap["text"].startswith("2 of 3 prompts of test are in train too (1 exactly")
    assert overlap["rows"] == ["exam.jsonl:1", "exam.jsonl:3"]
    *_, dropped = check(*flags, "--wrong_demonstrations", "drop")
    assert dropped["problems"] == [contrary, overlap], "SFT would not see it"
    assert dropped["notes"][0]["rows"] == wrong["rows"]
    malformed, repeated = (note for note in found["notes"])
    assert malformed["rows"] == ["rows.jsonl:8"] and "not in the format" in malformed["text"]
    assert repeated["rows"] == ["rows.jsonl:31", "rows.jsonl:32", "rows.jsonl:33"] and "(2 exactly" in repeated["text"]
    for problem in found["problems"]:
        assert f"problem: {problem['text']}" in lines
    assert cells(lines, "with answer") == ["33", "(97%)", "3", "(100%)"]
    assert cells(lines, "with demonstration") == ["33", "(97%)", "3", "(100%)"]
    assert cells(lines, "demonstrations that the verifier accepts") == ["31", "(96.8%)", "3", "(100%)"]
    assert "tokens were not counted: name a model, --model NAME" in lines


@pytest.mark.parametrize("more", [[], ["--wrong_demonstrations", "drop"]])
def test_what_is_not_studied_is_judged_by_all_the_same(check, more):
    """Of rows that SFT never sees it said what SFT would teach, and with drop that all was well."""
    wrong = [row(40), row(41, completion="5")]
    flags = ["--task", "jsonl", "--data", write("rows.jsonl", *map(row, range(30)))]
    status, _, _, found = check(*flags, "--exam_data", write("exam.jsonl", *wrong), *more)
    (problem,) = found["problems"]
    assert status == 1 and problem["rows"] == ["exam.jsonl:2"]
    assert problem["text"].startswith("1 of 2 demonstrations of test are wrong") and "SFT" not in problem["text"]
    asked = write("asked.jsonl", *wrong)
    shown = write("shown.jsonl", *map(row, range(30)))
    flags = ["--task", "jsonl", "--data", asked, "--demonstrations", shown, "--exam_rows", "0"]
    status, _, _, found = check(*flags, *more)
    (problem,) = found["problems"]
    assert status == 1 and problem["rows"] == ["asked.jsonl:2"] and "SFT" not in problem["text"]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_lengths_are_those_of_a_training(check, place, template):
    toy.model(directory=place / "lm")
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(place / "lm")
    records = [row(i) for i in range(20)] + [row(12345, completion="1" * 9)]
    flags = ["--task", "jsonl", "--data", write("rows.jsonl", *records), "--model", "lm", "--exam_rows", "0"]
    status, lines, _, found = check(*flags, "--max_prompt_length", "7", "--max_completion_length", "9")
    extra = template is not None  # `=` at the beginning of the answer
    tokens = found["splits"]["train"]["tokens"]
    assert tokens["prompts"] == {
        "minimum": 4 + extra, "median": 5 + extra, "p95": 5 + extra, "maximum": 8 + extra, "limit": 7, "over": 1
    }  # fmt: skip
    assert tokens["demonstrations"]["maximum"] == 10 and tokens["demonstrations"]["over"] == 1
    assert status == 1 and cells(lines, "over max_prompt_length (7)") == ["1"]
    assert "training would not start" in found["problems"][0]["text"]
    assert found["problems"][0]["rows"] == ["rows.jsonl:21"] == found["notes"][0]["rows"]


def test_what_the_schedule_needs(check):
    data = write("rows.jsonl", *[row(i, completion=None) for i in range(20)])
    flags = ["--task", "jsonl", "--data", data]
    assert check(*flags)[0] == 0, "no schedule was named, so none needs demonstrations"
    assert check(*flags, "--schedule", "grpo")[0] == 0
    status, lines, *_ = check(*flags, "--schedule", "sft", "--sft_warmup_steps", "2")
    assert status == 1 and "problem: task jsonl has no demonstrations" in lines[-1]


def test_questions_harder_than_every_demonstration(check, place):
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1), "difficulty": 1 + i % 2} for i in range(8)]
    rows = [row | ({"completion": row["answer"]} if row["difficulty"] == 1 else {}) for row in rows]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task", "jsonl", "--data", "rows.jsonl", "--exam_rows", "0"]
    status, lines, _, report = check(*flags)
    wanted = "the questions of difficulty 2 are harder than every demonstration"
    assert status == 0 and any(wanted in line for line in lines) and wanted in report["notes"][0]["text"]
    assert not any(wanted in line for line in check(*flags, "--curriculum", "adaptive")[1])


def test_demonstrations_of_held_out_questions(check):
    """What a training leaves out is a note; what it would study, a problem."""
    shown = write("shown.jsonl", *[row(i) for i in range(45)])
    flags = ["--task", "jsonl", "--data", write("rows.jsonl", *[row(i) for i in range(40)]), "--demonstrations", shown]
    status, _, _, found = check(*flags)
    assert status == 0 and found["splits"]["demonstrations"]["rows"] == 41 and found["splits"]["test"]["rows"] == 4
    assert found["notes"][0]["text"].startswith("4 demonstrations are of questions that are held out for exams")
    status, _, _, found = check(*flags, "--exam_data", write("exam.jsonl", *[row(i) for i in range(40, 50)]))
    assert status == 1 and found["problems"][0]["text"].startswith("5 of 10 prompts of test are in demonstrations too")


def test_records_left_out(check):
    data = write("rows.jsonl", *[row(i) for i in range(20)], "{broken\n", {"question": "q"}, '{"prompt": NaN}\n')
    status, out, err, _ = check("--task", "jsonl", "--data", data)
    assert status == 2 and err.startswith("sasr: error: rows.jsonl:21: invalid JSON") and not out
    status, lines, _, found = check("--task", "jsonl", "--data", data, "--bad_rows", "skip")
    assert status == 0 and len(found["skipped"]) == 3
    assert lines[-2].startswith("note: 3 records left out (bad_rows skip), the first: rows.jsonl:21: invalid JSON")


def test_a_verifier_that_fails_is_counted_apart(check, place):
    (place / "own.py").write_text(
        "from sasr.tasks import JsonlTask\nclass Own(JsonlTask):\n"
        "    def check(self, completion, row):\n"
        "        return 1 / (completion != '4') and super().check(completion, row)\n"
    )
    data = write("rows.jsonl", *[row(i) for i in range(4)])
    status, lines, _, found = check("--task", "own.py:Own", "--data", data, "--exam_rows", "0")
    assert status == 1 and cells(lines, "could not judge") == ["1"]
    (problem,) = found["problems"]
    assert "1 of 4 demonstrations of train could not be judged (ZeroDivisionError" in problem["text"]
    assert problem["rows"] == ["rows.jsonl:4"] and found["splits"]["train"]["judged"]["wrong"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "storys"], "unknown task 'storys'"),
        (["--task", "jsonl", "--data", "gone.jsonl"], "gone.jsonl: no such file"),
        (["--gama", "1"], "unknown argument --gama"),
        (["--json"], "--json needs the name of a file"),
        (["--model", "a/b/c"], "'a/b/c'"),
        (["--config", "storis"], "no recipe 'storis'"),
        (["--bad_rows", "drop"], "unknown bad_rows 'drop'"),
        (["--json", "no/such/check.json"], "there is no directory no/such"),
        (["--task", "jsonl", "--data", "rows.jsonl", "--model", "tiny-llama"], "learns from scratch the words of"),
    ],
)
def test_wrong_input(flags, message, capsys):
    write("rows.jsonl", row(1))
    assert sasr.cli.main(["check", *flags]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("sasr: error: ") and err.count("\n") == 1 and message in err and not out


def test_progress_and_percentiles():
    rows = [row(i) for i in range(150)]
    told = []
    assert facts.judge(JsonlTask(), rows, told.append).count == 150 and told == [64, 128, 150]
    found = facts.lengths(list(range(1, 101)), 98)
    assert (found.minimum, found.median, found.p95, found.maximum, found.over) == (1, 50, 95, 100, [98, 99])
    assert facts.lengths([], 5) is None
