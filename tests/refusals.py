"""A short run on the command line, and the form of what `sasr` says to wrong input."""

from __future__ import annotations

import json

import pytest

from sasr import InputError

SMALL = [
    *("--output_dir", "run", "--train_rows", "40", "--exam_rows", "0", "--max_steps", "4", "--sft_warmup_steps", "2"),
    *("--per_device_train_batch_size", "8", "--per_device_sft_batch_size", "4", "--save_steps", "2"),
]
ROW = json.dumps({"prompt": "1+1=", "completion": "2", "answer": "2"}) + "\n"
JSONL = ["--task", "jsonl", "--model_name_or_path", "tiny-llama"]


def checked(status: int, out: str, err: str) -> str:
    assert status == 2, (status, out, err)
    assert err.startswith("sasr: error: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err + out and out == "", out
    message = err.removeprefix("sasr: error: ").strip()
    assert len(message) < 400, "one line that can be read"
    return message


def error_of(function, *args, **kwargs) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message
