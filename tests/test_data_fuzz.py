"""Whatever a data file holds, its loader gives rows that a trainer can use, or one line that names file and line."""

from __future__ import annotations

import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sasr import InputError
from sasr.checkpoints import digest_rows
from sasr.run import _dataset
from sasr.tasks import TASKS, get_task, hold_out, load_rows
from sasr.tasks.gym import ReasoningGymTask
from sasr.tasks.loading import for_model
from test_tasks_datasets import GSM8K, KK

GOOD = {
    "jsonl": {"prompt": "1+1=", "completion": "2", "answer": "2", "meta": {"source": "a", "tags": [1]}},
    "gsm8k": GSM8K,
    "math": {"problem": "p", "solution": r"so \boxed{2}", "level": "Level 2", "type": "Algebra"},
    "kk": KK,
    "svamp": {"Body": "Ann has 2.", "Question": "How many?", "Answer": 2.0, "Equation": "( 1 + 1 )"},
    "multiarith": {"question": "How many?", "final_ans": "2"},
    "stories": {"prompt": "Tom has 2 pens.", "completion": "1 + 1 = 2 . #### 2", "answer": "2", "difficulty": 1},
    "gym": {"prompt": "p", "completion": "<answer>2</answer>", "gym_seed": 1, "gym_index": 1, "difficulty": 2},
}


def task_of(name):
    if name != "gym":
        return TASKS[name]()
    # Without the package: only its reading of records is tried here.
    task = ReasoningGymTask.__new__(ReasoningGymTask)
    task.name, task.dataset, task.options = "reasoning_gym/chain_sum", "chain_sum", {}
    return task


def load(task, path, content, skipped=None):
    """Rows, all of them fit for a data set, or the line of an `InputError`, which names the place."""
    path.write_bytes(content)
    try:
        rows = load_rows(task, str(path), skipped=skipped)
    except InputError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 700 and message.startswith(str(path)), message
        message.encode()
        assert re.match(r":\d+: |: (no records|none of the)", message.removeprefix(str(path))), message
        return message
    _dataset(for_model(rows, "m", any(isinstance(row["prompt"], list) for row in rows)))
    train, held = hold_out(rows, 2)
    assert len(train) + len(held) <= len(rows)
    digest_rows(rows)
    for row in rows:
        for text in ("", row["completion"] if isinstance(row["completion"], str) else "x"):
            if not isinstance(task, ReasoningGymTask):  # its scorer is another process
                assert isinstance(task.well_formed(text), bool)
                task.path(text, row), task.steps_valid(text, row)
    return rows


def lines(*records):
    return b"".join(r + b"\n" if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("name", GOOD)
def test_the_good_record_is_good(name, path):
    assert len(load(task_of(name), path, lines(GOOD[name]))) == 1


def nasty(good):
    """(name, line) of records that are wrong in one way, built from a good one."""
    text = next(key for key, value in good.items() if isinstance(value, str))
    deep = b"[" * 5000 + b"]" * 5000
    yield "half a surrogate", json.dumps({**good, text: "a\ud800b"}).encode()
    yield "invalid UTF-8", json.dumps({**good, text: "x"}).encode().replace(b'"x"', b'"\xff"')
    yield "UTF-16", json.dumps(good).encode("utf-16")
    yield "deep", json.dumps({**good, text: 0}).encode().replace(b": 0", b": " + deep, 1)
    yield "NaN", json.dumps({**good, text: float("nan")}).encode()
    yield "infinite", json.dumps({**good, text: 0}).encode().replace(b": 0", b": 1e999", 1)
    yield "5000 digits", json.dumps({**good, text: 0}).encode().replace(b": 0", b": " + b"9" * 5000, 1)
    yield "no object", b"[1, 2]"
    yield "cut", json.dumps(good).encode()[:-3]
    yield "NUL line", b"\x00\x00\x00"
    for key in good:
        for value in (None, "", "   ", 5, -1.5, True, [], {}, [None], {"a": 1}, [{"role": "user"}], 10**30, "\x00"):
            yield f"{key} is {value!r}", json.dumps({**good, key: value}).encode()
        yield f"without {key}", json.dumps({k: v for k, v in good.items() if k != key}).encode()


@pytest.mark.parametrize("name", GOOD)
def test_nasty_records(name, path):
    """Each before and after good ones; with `skipped` the good ones are all that is left."""
    task = task_of(name)
    good = [{**GOOD[name], **({"quiz": f"{GOOD[name]['quiz']} {i}"} if name == "kk" else {})} for i in range(2)]
    refused = 0
    for what, line in nasty(GOOD[name]):
        for place, content in ((1, lines(line, *good)), (3, lines(*good, line))):
            found = load(task, path, content)
            if isinstance(found, str):
                # A value of another kind than before is found where the second one is.
                assert re.match(rf":({place}|2): ", found.removeprefix(str(path))), (what, found)
                refused += 1
                skipped: list[str] = []
                kept = load(task, path, content, skipped)
                assert skipped and len(kept) + len(skipped) == 3, what
            else:
                assert len(found) == 3, what
    assert refused > 25


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no records"),
        (b"\n\r\n  \n", "no records"),
        (b"\xef\xbb\xbf", "no records"),
        (b"\x00" * 5, ":1: invalid JSON"),
        (b'{"prompt": "a"}\r\n{"prompt": }\r\n', ":2: invalid JSON"),
        (b'{"prompt": "a"}\r{"prompt": }\r', ":2: invalid JSON"),
        (b'{"prompt": "a"}\n{"prompt": "\xc3"}\n', ":2: not UTF-8 text"),
        (b'{"prompt": "a", "n": 1}\n{"prompt": "b", "n": "x"}', ":2: column 'n' is text here, but a number in "),
        (b'{"prompt": "a", "n": 9007199254740993}\n{"prompt": "b", "n": 0.5}', ":2: column 'n' is a number here, but"),
        (b'{"prompt": "a", "m": {"t": [1, "x"]}}', ":1: column 'm.t[]' has a number beside text"),
        (b'{"prompt": "a", "completions": 1}', ":1: a column cannot be named 'completions'"),
        (b'{"prompt": "a", "\\ud800": 1}', ":1: column '\\ud800' has half of a surrogate pair"),
        (b'{"prompt": "a", "difficulty": NaN}', ":1: invalid JSON (NaN is no JSON"),
        (b'{"prompt": "a", "difficulty": 1e400}', ":1: difficulty must be a number, not inf"),
        (b'{"prompt": "a", "difficulty": [1]}', ":1: difficulty must be a number, not [1]"),
    ],
)
def test_what_the_message_says(path, content, message):
    assert message in load(TASKS["jsonl"](), path, content)


def test_what_is_no_mistake(path):
    task = TASKS["jsonl"]()
    long = {"prompt": "x" * 2**20, "answer": "\x00 y", "completion": "#### 1"}
    assert len(load(task, path, b"\xef\xbb\xbf" + lines(long, long))) == 2
    assert len(load(task, path, b'{"prompt": "a"}\r\n\r\n{"prompt": "\\u2028b", "extra": {}}\r\n')) == 2
    (row,) = load(task, path, b'{"prompt": "a", "completion": " \\n", "n": null}')
    assert row["completion"] is None, "or SFT would teach to say nothing"
    text, messages = {"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}], "completion": "c"}
    assert len(load(task, path, lines(text, messages))) == 2, "both forms, which a chat template makes one"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["", " ", "\x00", "\ud800", "####", "#### 5", "\\boxed{", "\\boxed{1}", "1e9", "a=b,c=d"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_records(name, tmp_path, data):
    fields = st.sampled_from([*GOOD[name], "answer", "extra"])
    record = st.builds(
        lambda changes, gone: {k: v for k, v in {**GOOD[name], **changes}.items() if k not in gone},
        st.dictionaries(fields, JSON, max_size=3),
        st.sets(fields, max_size=1),
    )
    records = data.draw(st.lists(record | JSON, max_size=4))
    task = task_of(name)
    found = load(task, tmp_path / "rows.jsonl", lines(*records))
    skipped: list[str] = []
    kept = load(task, tmp_path / "rows.jsonl", lines(*records), skipped)
    if isinstance(found, list):
        assert kept == found and not skipped
    elif isinstance(kept, list):
        assert len(kept) + len(skipped) == len(records)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | st.lists(st.sampled_from(list('{}[]":,\\nu0e-\n\r \x00')), max_size=40))
def test_any_bytes(tmp_path, content):
    load(
        TASKS["jsonl"](), tmp_path / "rows.jsonl", content if isinstance(content, bytes) else "".join(content).encode()
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(options=JSON)
def test_any_task_options(options):
    """Without reasoning-gym's worker; see test_tasks_gym.py for that."""
    for name in TASKS:
        try:
            task = get_task(name, options)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert not options or set(options) <= {"num_train", "num_held_out", "seed", "steps", "timeout"}
            if hasattr(task, "verifier"):
                task.verifier.close()


@pytest.mark.parametrize("what", ["directory", "directory.jsonl", "fifo.jsonl", "unreadable"])
def test_what_is_no_file(tmp_path, what):
    path = tmp_path / what
    if what.startswith("directory"):
        path.mkdir()
    elif what == "fifo.jsonl":
        os.mkfifo(path)  # opening it would wait for ever
    with pytest.raises(InputError, match=r"is a folder|no such file") as caught:
        load_rows(TASKS["jsonl"](), str(path) if what != "unreadable" else f"{path}.jsonl")
    assert "\n" not in str(caught.value)
