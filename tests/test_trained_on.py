"""`sasr exam` of a run asks nothing that the run was trained on, whatever has become of its data since."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import yaml

import sasr.cli
import toy
from sasr import locks
from sasr.errors import InputError
from sasr.exam.questions import exam_rows
from sasr.exam.request import read_request
from sasr.rows import RowReader
from sasr.run_directory import check_free, clear
from sasr.tasks import get_task
from sasr.trained_on import WRONG_FILE, digests, keep, without_studied
from small_exam import refused

FILE = "trained_on.json"


def write(file, numbers):
    rows = [{"prompt": f"{i}+1=", "completion": f"{i + 1}", "answer": f"{i + 1}"} for i in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`run`, trained on 55 of the 60 rows of `rows.jsonl` and on demonstrations of 90 and 91."""
    place = tmp_path_factory.mktemp("trained")
    toy.model(directory=place / "lm")
    write(place / "rows.jsonl", range(60))
    write(place / "shown.jsonl", [*range(60), 90, 91])
    flags = ["--task", "jsonl", "--model_name_or_path", "lm", "--schedule", "static", "--max_completion_length", "4"]
    flags += ["--data", "rows.jsonl", "--demonstrations", "shown.jsonl", "--sft_warmup_steps", "1", "--max_steps", "1"]
    flags += ["--switch_step", "1", "--per_device_train_batch_size", "4", "--num_generations", "4"]
    flags += ["--exam_rows", "5", "--exam_samples", "1", "--output_dir", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert sasr.cli.main(["train", *flags]) == 0
    return place


@pytest.fixture
def run(place, tmp_path, monkeypatch):
    """A copy, in a directory to work in."""
    shutil.copytree(place, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    config = yaml.safe_load((tmp_path / "place" / "run" / "config.yaml").read_text())
    config["data"] = "rows.jsonl"
    (tmp_path / "place" / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "place" / "run"


def asked(run, *flags):
    """(the numbers that are asked, the notes)."""
    request = read_request(["--model", str(run), *flags])
    reader = RowReader(get_task(request.task))
    rows = exam_rows(reader.task, request, reader)
    return [int(row["prompt"].partition("+")[0]) for row in rows], reader.notes()


def test_a_run_keeps_what_it_was_trained_on(run):
    held_out, notes = asked(run)
    assert len(held_out) == 5 and notes == []
    kept = json.loads((run / FILE).read_text())["prompts"]
    assert len(set(kept)) == len(kept) == 55 + 2, "those of the demonstrations too"


def test_questions_that_were_trained_on_are_not_asked(run, capsys):
    held_out, _ = asked(run)
    others = [i for i in range(60) if i not in held_out]
    write(run.parent / "rows.jsonl", [*held_out[:2], *others])
    left, (note,) = asked(run)
    assert left == held_out[:2]
    assert note.startswith("note: the data have changed since the run began: 3 of the 5 questions that they hold out")
    assert asked(run / "initial_model")[0] == left, "the same questions as the model after it"
    write(run.parent / "rows.jsonl", others)
    message = refused(capsys, ["--model", str(run)])
    assert "the run was trained on all 5 questions that its data hold out now" in message and "--data" in message
    assert len(asked(run, "--data", "rows.jsonl", "--rows", "9")[0]) == 9, "who names a file gets it"
    write(run.parent / "rows.jsonl", range(90, 92))
    assert "trained on all 1 questions" in refused(capsys, ["--model", str(run)])


def test_other_rows_are_no_fault(run):
    """... neither more nor fewer, if none of those that are asked was trained on."""
    held_out, _ = asked(run)
    write(run.parent / "rows.jsonl", [*held_out, *range(100, 160)])
    more, notes = asked(run)
    assert len(more) == 5 and notes == [] and not set(more) & set(range(60)) - set(held_out)
    fewer = [i for i in range(60) if i not in held_out][:15]
    write(run.parent / "rows.jsonl", [*held_out, *fewer])
    assert asked(run) == (held_out[:2], [])


def test_a_question_in_another_spelling_was_trained_on(tmp_path):
    keep(tmp_path, digests([{"prompt": "Combien font\u00e9s  2 ?"}]))
    rows = [{"prompt": "COMBIEN fonte\u0301s 2 ?\n"}, {"prompt": "combien font\u00e9s 3 ?"}]
    assert without_studied(tmp_path, rows) == rows[1:]
    # Earlier versions kept digests of the text as it is.
    (tmp_path / FILE).write_text(json.dumps({"prompts": [hashlib.sha256(b"How  MANY?").hexdigest()[:16]]}))
    assert without_studied(tmp_path, [{"prompt": "How  MANY?"}, *rows]) == rows


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_a_run_of_an_earlier_version(run, damage):
    """... or whose file is damaged is examined as before: nothing is known."""
    held_out, _ = asked(run)
    write(run.parent / "rows.jsonl", [i for i in range(60) if i not in held_out])
    damage(run / FILE)
    left, notes = asked(run)
    assert len(left) == 5 and notes == []


def test_rows_of_an_exam_file_are_asked_all_the_same(run):
    """As the run's own exams ask them, which say that they flatter."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    held_out, _ = asked(run)
    write(run.parent / "exam.jsonl", [i for i in range(64) if i not in held_out])
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "exam_data": "exam.jsonl"}))
    left, (note,) = asked(run, "--rows", "50")
    assert len(left) == 50 and note.startswith("note: the run was trained on 55 of the 59 rows of its exams")


def test_a_run_that_ended_before_its_first_step(run):
    """Its directory may be used again, and the file goes with the rest."""
    for path in run.iterdir():
        if path.name not in ("config.yaml", FILE, locks.LOCK_FILE):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match="not empty"):
        check_free(run)
    (run / "config.yaml").write_text("# sasr train\n" + (run / "config.yaml").read_text())
    (run / WRONG_FILE).write_text("{}")
    assert (run / FILE).is_file()
    check_free(run)
    clear(run)
    assert not (run / FILE).exists() and not (run / WRONG_FILE).exists()
