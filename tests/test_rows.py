"""Which rows a run trains on and which it holds out for the test and for validation."""

from __future__ import annotations

import json
import re

import pytest
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

import sasr.cli
import sasr.run
import toy
from sasr import InputError, TaskConfig
from sasr.rows import (
    RowReader,
    check_positions,
    collect_rows,
    difficulty_notes,
    harder_than_shown,
    held_out_rows,
    overlap_notes,
)
from sasr.tasks import JsonlTask, StoriesTask
from whole_runs import command, finish, start


def prompts(rows):
    return [row["prompt"] for row in rows]


@pytest.fixture
def data(tmp_path):
    def write(count, name="rows.jsonl", first=0):
        rows = [
            {"prompt": f"{i}+1=", "completion": str(i + 1), "answer": str(i + 1)} for i in range(first, first + count)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows + rows[:3]))  # some twice
        return str(tmp_path / name)

    return write


def collected(tmp_path, task, **settings):
    rows, _, held_out = collect_rows(task, TaskConfig(**settings), toy.settings(tmp_path))
    return prompts(rows), prompts(held_out)


def three(tmp_path, task, validation_rows, **settings):
    """(training, test, validation) prompts."""
    settings = {**settings, "validation_rows": validation_rows}
    rows, test = collected(tmp_path, task, **settings)
    rows_again, validation = collected(tmp_path, task, **settings, exam_split="validation")
    assert rows == rows_again, "which split the exams use must not change what is trained on"
    assert not set(rows) & set(validation) and not set(test) & set(validation)
    return rows, test, validation


def test_generated_rows(tmp_path):
    base, test = collected(tmp_path, StoriesTask(), train_rows=30, exam_rows=10)
    for count in (1, 25):
        rows, tested, validation = three(tmp_path, StoriesTask(), count, train_rows=30, exam_rows=10)
        assert (rows, tested, len(validation)) == (base, test, count)
    assert len(three(tmp_path, StoriesTask(), 5, train_rows=30, exam_rows=0)[2]) == 5


def test_data_files(tmp_path, data):
    path = data(200)
    base, test = collected(tmp_path, JsonlTask(), data=path, exam_rows=15)
    rows, tested, validation = three(tmp_path, JsonlTask(), 12, data=path, exam_rows=15)
    assert tested == test and len(test) == 15 and len(validation) == 12
    assert rows == [prompt for prompt in base if prompt not in validation]
    assert collected(tmp_path, JsonlTask(), data=path, exam_rows=15, train_rows=20) == (base[:20], test)
    fewer = three(tmp_path, JsonlTask(), 5, data=path, exam_rows=15)[2]
    assert validation[:5] == fewer, "a larger set continues a smaller one"


def test_held_out_rows_do_not_eat_up_a_small_dataset(tmp_path, data):
    rows, test, validation = three(tmp_path, JsonlTask(), 128, data=data(40), exam_rows=128)
    assert (len(test), len(validation)) == (4, 4) and len(rows) >= 32


def test_the_first_rows_alone_keep_their_demonstrations(tmp_path, data):
    """... and the others are questions for GRPO still."""
    settings = {"data": data(60), "exam_rows": 4}
    every, few = (
        collect_rows(JsonlTask(), TaskConfig(**settings, demonstration_rows=count), toy.settings(tmp_path))[0]
        for count in (None, 5)
    )
    assert prompts(few) == prompts(every) and [row["answer"] for row in few] == [row["answer"] for row in every]
    completions = [row["completion"] for row in every]
    assert None not in completions
    assert [row["completion"] for row in few] == completions[:5] + [None] * (len(every) - 5)


@pytest.mark.parametrize(("questions", "each", "most"), [(125, 8, 12), (30, 16, 3), (9, 30, 1)])
def test_several_rows_of_a_question_count_once(tmp_path, questions, each, most):
    """A tenth of the questions, however many solutions each has: all of them leave training together. Questions
    without an answer, which no exam could ask, do not count."""
    every = [(i, j) for j in range(each) for i in range(questions)]
    rows = [{"prompt": f"{i}+1=", "completion": f"{j}\n{i + 1}", "answer": str(i + 1)} for i, j in every]
    rows += [{"prompt": f"{i}-1=", "completion": str(i - 1)} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    left, test, validation = three(tmp_path, JsonlTask(), 128, data=str(tmp_path / "rows.jsonl"))
    assert len(test) == len(validation) == most
    assert len(left) == each * (questions - 2 * most) + 200


def test_a_question_that_is_written_in_two_ways_is_one(tmp_path):
    """In other case or spacing, or with accents encoded otherwise: copies of a dataset differ so. What is held out is
    what would be without the copies."""
    rows = [{"prompt": f"Combien font\u00e9s {i} ?", "completion": "1", "answer": "1"} for i in range(60)]
    copies = [{**row, "prompt": row["prompt"].replace("\u00e9", "e\u0301").upper() + "\n"} for row in rows]
    found = []
    for content in (rows, [*rows, *copies]):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        found.append(three(tmp_path, JsonlTask(), 3, data=str(tmp_path / "rows.jsonl"), exam_rows=4))
    (left, *held_out), (all_left, *all_held_out) = found
    spelled = {row["prompt"]: copy["prompt"] for row, copy in zip(rows, copies, strict=True)}
    held = {prompt for split in all_held_out for prompt in split}
    assert len(held) == 7 and not held & set(all_left)
    assert all(spelled[prompt] not in all_left for prompt in held & set(spelled))
    assert len(all_left) == 2 * 53 and len(left) == 53
    assert [len(split) for split in held_out] == [4, 3]
    asked = [{"prompt": spelled[row["prompt"]]} for row in rows[:5]]
    assert "5 of the 5 rows of the exams are training rows too" in overlap_notes(asked, rows, [])[0]


@pytest.mark.parametrize("generated", [False, True])
def test_validation_rows_with_an_exam_file_come_from_the_training_data(tmp_path, data, generated):
    where = {"train_rows": 60} if generated else {"data": data(60)}
    exam = data(20, "exam.jsonl", first=50)  # half of them are in the training data as well
    task = StoriesTask() if generated else JsonlTask()
    base, test = collected(tmp_path, task, **where, exam_data=exam, exam_rows=20)
    rows, tested, validation = three(tmp_path, task, 6, **where, exam_data=exam, exam_rows=20)
    assert tested == test and len(test) == 20 and len(validation) == 6
    assert set(validation) <= set(base) and rows == [prompt for prompt in base if prompt not in validation]


@pytest.mark.parametrize("generated", [False, True])
def test_demonstrations_of_held_out_questions_are_not_studied(tmp_path, data, generated):
    """... of either split, whichever the exams use: they are the worked solutions of the exam."""
    task = StoriesTask() if generated else JsonlTask()
    where = {"train_rows": 30} if generated else {"data": data(60)}
    where |= {"exam_rows": 6, "validation_rows": 5}
    rows, test, validation = three(tmp_path, task, **where)
    apart = [{"prompt": prompt, "completion": "#### 1", "answer": "1"} for prompt in test + validation + rows]
    shown = tmp_path / "shown.jsonl"
    shown.write_text("".join(json.dumps(row) + "\n" for row in [*apart, {**apart[0], "completion": "again"}]))
    for split in ("test", "validation"):
        config = TaskConfig(**where, demonstrations=str(shown), exam_split=split)
        reader = RowReader(task)
        trained, studied, asked = collect_rows(task, config, toy.settings(tmp_path), reader)
        assert prompts(trained) == rows and prompts(asked) == (test if split == "test" else validation)
        assert prompts(studied) == rows
        (note,) = reader.notes()
        assert note.startswith("note: 12 demonstrations are of questions that are held out for exams")
        assert note.endswith(f"{shown}:1")
        assert overlap_notes(asked, trained, studied) == []


def test_demonstrations_of_an_exam_file_are_counted(tmp_path, data):
    """... as training rows are that are in it too; those for validation come from the data."""
    where = {"data": data(60), "exam_data": data(20, "exam.jsonl", first=55), "validation_rows": 6}
    rows, test, validation = three(tmp_path, JsonlTask(), **where)
    shown = data(70, "shown.jsonl")
    reader = RowReader(JsonlTask())
    trained, studied, asked = collect_rows(
        reader.task, TaskConfig(**where, demonstrations=shown), toy.settings(tmp_path), reader
    )
    assert set(prompts(studied)) == {f"{i}+1=" for i in range(70)} - set(validation)
    (note,) = overlap_notes(asked, trained, studied)
    assert note.startswith("note: 15 of the 20 rows of the exams are training rows or demonstrations too")
    (note,) = overlap_notes(asked, trained, [])
    assert note.startswith(f"note: {len(set(test) & set(rows))} of the 20 rows of the exams are training rows too")
    unshown = [{**row, "completion": None} for row in studied]
    assert overlap_notes(asked, [], unshown) == [], "what is not studied gives nothing away"


def test_nothing_but_demonstrations_of_held_out_questions(tmp_path, data):
    where = {"data": data(40), "exam_rows": 4}
    _, test, _ = three(tmp_path, JsonlTask(), 1, **where)
    shown = tmp_path / "shown.jsonl"
    shown.write_text("".join(json.dumps({"prompt": prompt, "completion": "1"}) + "\n" for prompt in test))
    with pytest.raises(InputError, match=r"all 4 demonstrations are of questions .*shown.jsonl:1.*exam_data"):
        collect_rows(JsonlTask(), TaskConfig(**where, demonstrations=str(shown)), toy.settings(tmp_path))


def test_a_run_tells_of_demonstrations_of_its_exams(tmp_path, data, monkeypatch, capsys):
    toy.model(directory=tmp_path / "lm")

    def enough(*args, **kwargs):
        raise InputError("enough")

    monkeypatch.setattr(sasr.run, "load_model", enough)
    flags = ["--task", "jsonl", "--model_name_or_path", str(tmp_path / "lm"), "--sft_warmup_steps", "2"]
    flags += ["--data", data(40), "--demonstrations", data(45, "shown.jsonl"), "--output_dir", str(tmp_path / "run")]
    for own, wanted in (
        ([], "4 demonstrations are of questions that are held out for exams, and SFT leaves them out"),
        (["--exam_data", data(9, "exam.jsonl", first=38)], "7 of the 9 rows of the exams are training rows or demons"),
    ):
        assert sasr.cli.main(["train", *flags, *own]) == 2
        out, err = capsys.readouterr()
        assert out.startswith(f"note: {wanted}") and "enough" in err


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"exam_at": ["start"]}, "unknown exam_at 'start': use one of initial, warmup, final"),
        ({"exam_at": ["finl"]}, r"did you mean final\?"),
        ({"exam_at": ["final", "initial", "final"]}, "exam_at names a moment twice"),
        ({"exam_at": "final"}, "exam_at is 'final': it must be a list"),
        ({"exam_at": None}, "exam_at is None"),
        ({"validation_rows": -1}, "validation_rows is -1"),
        ({"wrong_demonstrations": "skip"}, "unknown wrong_demonstrations 'skip': use one of study, drop"),
        ({"exam_split": "train"}, "unknown exam_split 'train': use one of test, validation"),
        ({"exam_split": "validation"}, "set validation_rows to 1 or more"),
    ],
)
def test_refused(settings, match):
    with pytest.raises(InputError, match=match):
        TaskConfig(**settings)


class Moody(JsonlTask):
    """A verifier that cannot judge the answer 6."""

    def check(self, completion, row):
        return 1 / (completion != "6") and super().check(completion, row)


def with_wrong(path, *wrong):
    """Rows of n + 1 for n of 0 to 6, the completions of these numbers wrong. The last row has no answer."""
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1 + (i in wrong)), "answer": str(i + 1)} for i in range(7)]
    del rows[6]["answer"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_wrong_demonstrations_are_left_to_grpo(tmp_path):
    data = with_wrong(tmp_path / "rows.jsonl", 1, 3, 6)
    reader = RowReader(Moody())
    kept = TaskConfig(data=data, exam_rows=0)
    rows = collect_rows(reader.task, kept, toy.settings(tmp_path), reader)[0]
    assert [row["completion"] for row in rows] == ["1", "3", "3", "5", "5", "6", "8"] and reader.notes() == []
    config = TaskConfig(data=data, exam_rows=0, wrong_demonstrations="drop")
    left = collect_rows(reader.task, config, toy.settings(tmp_path), reader)[0]
    # What cannot be judged is no known mistake.
    assert [row["completion"] for row in left] == ["1", None, "3", None, "5", "6", "8"]
    assert [row["prompt"] for row in left] == [row["prompt"] for row in rows], "their questions stay"
    assert [place.rpartition("/")[2] for place in reader.wrong] == ["rows.jsonl:2", "rows.jsonl:4"]
    (note,) = reader.notes()
    assert note.startswith("note: 2 demonstrations are wrong by the task's own verifier") and "rows.jsonl:2" in note


def test_verdicts_of_a_run_that_goes_on_count_again(tmp_path):
    """... for the same demonstrations; a verifier may be in another mood now."""
    data = with_wrong(tmp_path / "rows.jsonl", 1, 3)
    config = TaskConfig(data=data, exam_rows=0, wrong_demonstrations="drop")

    class Strict(JsonlTask):
        def check(self, completion, row):
            raise AssertionError("asked again")

    def left(task, *earlier):
        reader = RowReader(task, "error", *earlier)
        rows = collect_rows(task, config, toy.settings(tmp_path), reader)[0]
        return [row["completion"] for row in rows], reader

    expected, reader = left(Moody())
    (tmp_path / "run").mkdir()
    reader.keep_verdicts(tmp_path / "run")
    again, known = left(Strict(), tmp_path / "run")
    assert again == expected and again.count(None) == 2 and known.wrong == reader.wrong
    with_wrong(tmp_path / "rows.jsonl", 2)
    assert left(Moody(), tmp_path / "run")[0].index(None) == 2, "other rows are judged"
    with_wrong(tmp_path / "rows.jsonl", 1, 3)
    (tmp_path / "run" / "wrong_demonstrations.json").write_text("{")
    assert left(Moody(), tmp_path / "run")[0] == expected, "a damaged file is none"


def test_wrong_demonstrations_of_a_file_of_their_own(tmp_path):
    """... are those that count: SFT does not study the rows' own then."""
    data, apart = with_wrong(tmp_path / "rows.jsonl", *range(7)), with_wrong(tmp_path / "apart.jsonl", 2)
    config = TaskConfig(data=data, demonstrations=apart, exam_rows=0, wrong_demonstrations="drop")
    reader = RowReader(JsonlTask())
    rows, demonstrations, _ = collect_rows(reader.task, config, toy.settings(tmp_path), reader)
    assert [i for i, row in enumerate(demonstrations) if row["completion"] is None] == [2]
    assert all(row["completion"] for row in rows) and len(reader.wrong) == 1


def test_columns_that_trls_sft_trainer_renders_are_noted(tmp_path):
    row = {"prompt": "1+1=", "completion": "2", "answer": "2"}
    for extra, count in (({"tools": [{"name": "add"}]}, 1), ({"tools": []}, 0), ({"tool": "x"}, 0)):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | extra) + "\n")
        reader = RowReader(JsonlTask())
        reader.load(str(tmp_path / "rows.jsonl"), "train")
        assert (
            reader.notes() == ["note: the column tools of the rows is in no prompt: write it into the messages"] * count
        )


def test_nothing_but_wrong_demonstrations(tmp_path):
    rows = [{"prompt": f"{i}+1=", "completion": "no", "answer": str(i + 1)} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(data=str(tmp_path / "rows.jsonl"), exam_rows=0, wrong_demonstrations="drop")
    with pytest.raises(InputError, match=r"all 3 demonstrations are wrong by the verifier of task jsonl .*:1"):
        collect_rows(JsonlTask(), config, toy.settings(tmp_path))


def test_questions_harder_than_every_demonstration(tmp_path):
    def rows(shown, levels, **more):
        return [
            {"completion": "x" if level in shown else None, "answer": "y", "difficulty": level} | more
            for level in levels
        ]

    easy = rows([1, 2], [1, 2, 3, 4.5, "5"])
    assert harder_than_shown(easy, []) == [3, 4.5, 5]
    assert harder_than_shown(rows([3], [1, 2, 3]), []) == [] == harder_than_shown(rows([], [1, 2]), [])
    assert harder_than_shown(easy, rows([2], [2])) == [3, 4.5, 5] and harder_than_shown(easy, rows([9], [9])) == []
    assert harder_than_shown([*easy, *rows([], [1], difficulty=None)], []) == [], "nothing is known then"
    assert harder_than_shown(rows([1], [1, 2], answer=None), []) == [], "GRPO asks none of them"
    (note,) = difficulty_notes(easy, [], toy.settings(tmp_path))
    assert note.startswith("note: the questions of difficulty 3, 4.5, 5 are harder than every demonstration")
    (note,) = difficulty_notes(rows([1], range(1, 7)), [], toy.settings(tmp_path))
    assert "difficulty 2, 3, 4, ... are" in note
    assert note.endswith("(--curriculum adaptive)"), "what auto comes to"
    for settings in ({"curriculum": "none"}, {"rollouts_ahead": 1}):
        (note,) = difficulty_notes(easy, [], toy.settings(tmp_path, **settings))
        assert note.endswith("SFT may teach to answer them as if they were easy: --curriculum adaptive has helped")
    for settings in ({"curriculum": "adaptive"}, {"schedule": "grpo", "sft_warmup_steps": 0}):
        assert difficulty_notes(easy, [], toy.settings(tmp_path, **settings)) == []


def test_prompt_and_completion_have_to_fit_into_the_model():
    rotary, learned = toy.model().config, GPT2Config(n_positions=64)
    assert check_positions(60, rotary, 4) == check_positions(60, learned, 4) == []
    words = "61 tokens, which with max_completion_length (4) is more than the 64"
    (note,) = check_positions(61, rotary, 4)
    assert words in note, "those turn further, so that it is for the user to say"
    with pytest.raises(InputError, match=re.escape(f"{words} positions of the model")):
        check_positions(61, learned, 4)
    with pytest.raises(InputError, match="max_new_tokens"):
        check_positions(61, rotary, 4, "max_new_tokens", hard=True)


def test_a_demonstration_has_to_fit_into_the_model(tmp_path):
    """Longer than max_completion_length it is studied whole: the step that drew it ended in an index error."""
    learned = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(toy.tokenizer()), n_positions=40, n_embd=8, n_layer=1, n_head=1)
    )
    long = [{**row, "completion": row["completion"] * (20 if i == 3 else 1)} for i, row in enumerate(toy.rows(8))]
    data = Dataset.from_list(long)
    with pytest.raises(InputError, match=r"the prompt of row 4 with its completion has \d+ tokens, more than the 40"):
        toy.trainer(tmp_path / "sft", lm=learned, data=data)
    toy.trainer(tmp_path / "grpo", lm=learned, data=data, schedule="grpo", sft_warmup_steps=0)
    toy.trainer(tmp_path / "rotary", data=data)


def test_exams_on_validation_rows_at_chosen_moments(tmp_path):
    """... do not change what is learned, and the plain output has only what there is."""
    short = ["--max_steps", "8", "--save_steps", "100"]
    chosen = ["--exam_at", "final", "warmup", "--validation_rows", "6", "--exam_split", "validation"]
    printed = finish(start(command(tmp_path / "chosen", *short, *chosen)))
    exams = json.loads((tmp_path / "chosen" / "exam.json").read_text())
    assert [(label, exam["split"], exam["rows"]) for label, exam in exams.items()] == [
        ("warmup", "validation", 6),
        ("final", "validation", 6),
    ]
    assert "6 held out for validation" in printed and "\x1b" not in printed
    assert re.findall(r"^exam (\w+):", printed, re.MULTILINE) == ["warmup", "final"]
    assert "after warm-up" in printed and "at the end" in printed and "before" not in printed

    (tmp_path / "none.yaml").write_text((tmp_path / "chosen" / "config.yaml").read_text() + "\n")
    recipe = re.sub(r"exam_at:\n(- \w+\n)+", "exam_at: []\n", (tmp_path / "none.yaml").read_text())
    assert "exam_at: []" in recipe
    (tmp_path / "none.yaml").write_text(recipe)
    where = ["--config", str(tmp_path / "none.yaml"), "--output_dir", str(tmp_path / "none")]
    printed = finish(start([*command(None)[:4], *where]))
    assert not re.search("^exam", printed, re.MULTILINE) and "done: " in printed
    assert not (tmp_path / "none" / "exam.json").exists()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("chosen", "none")]
    assert weights[0] == weights[1]


def test_an_exam_file_is_asked_for_what_can_be_judged(tmp_path):
    """Half of its rows had no answer, and so had half of the exam."""
    rows = [{"prompt": f"{n}?", "answer": str(n) if n % 2 else None} for n in range(40)]
    file, data = tmp_path / "exam.jsonl", tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.write_text(json.dumps({"prompt": "a?", "completion": "1", "answer": "1"}) + "\n")
    config = TaskConfig(task="jsonl", data=str(data), exam_data=str(file), exam_rows=16)
    reader = RowReader(JsonlTask(), "error")
    assert len(held_out_rows(reader, config, 1)) == 16
