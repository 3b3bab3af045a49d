"""Secrets in settings, at any depth: not in reports, not told to trackers, not in the fingerprint of a checkpoint."""

from __future__ import annotations

import json
from types import SimpleNamespace

import report_data
from sasr import SASRConfig, checkpoints
from sasr.report import describe, html
from sasr.report.document import settings_table
from sasr.tracking import Trackers

OWN = {"output_dir": "unused", "sft_warmup_steps": 4, "max_steps": 10, "use_cpu": True}
NESTED = {
    "task_options": {"api_key": "secret1", "steps": 3, "servers": [{"url": "here", "HF_TOKEN": "secret2"}]},
    "model_init_kwargs": '{"token": "secret3", "attn_implementation": "sdpa"}',
    "chat_template_kwargs": '{"broken": ',
}


def test_a_report(tmp_path):
    directory = report_data.run(tmp_path / "run", **NESTED)
    page = html({**describe(directory, directory / "report.html"), "made": ""})
    assert "secret" not in page
    for told in ("'steps': 3", "'url': 'here'", "sdpa", "broken"):
        assert told in page, told
    settings = settings_table("", {"a": [{"my_key": "secret4"}, 5], "b": ["x", "y"], "c": '{"d": [1]}', "hub_token": 1})
    assert [row[1] for row in settings["rows"]] == ["{'my_key': '(hidden)'}, 5", "x, y", '{"d": [1]}', "(hidden)"]


def test_arguments_and_fingerprints():
    """transformers tells most trackers `args.to_dict()` by itself."""
    made = {"model_init_kwargs": {"token": "secret1", "revision": "main"}, "hub_token": "secret2"}
    made |= {"chat_template_kwargs": {"nested": [{"API_KEY": "secret3"}]}}
    given = SASRConfig(**OWN, **made)
    assert "secret" not in json.dumps(given.to_dict(), default=str) + given.to_json_string()
    assert given.to_dict()["model_init_kwargs"] == {"token": "(hidden)", "revision": "main"}
    assert given.model_init_kwargs["token"] == "secret1"
    # One that was written before this, and one with another token, belong to the same run.
    now = checkpoints.fingerprint(given.to_dict())
    then = now | {"model_init_kwargs": {"token": "secret1", "revision": "main"}}
    assert not checkpoints._differences(then, now)
    other = checkpoints.fingerprint(SASRConfig(**OWN | {**made, "model_init_kwargs": {"revision": "v2"}}).to_dict())
    assert "model_init_kwargs" in checkpoints._differences(then, other)


def test_trackers():
    settings = {"seed": 1, "hub_token": "secret1", "task_options": {"api_key": "secret2", "n": 3}}
    settings["model_init_kwargs"] = '{"token": "secret3"}'
    told = Trackers(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[])), settings).settings
    assert told == {
        "seed": 1,
        "task_options": {"api_key": "(hidden)", "n": 3},
        "model_init_kwargs": '{"token": "(hidden)"}',
    }
