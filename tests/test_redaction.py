"""Secrets in settings, at any depth: not in reports, not told to trackers, not in the fingerprint of a checkpoint.

Nor those of the Hub in what a run leaves."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import torch
import yaml

import report_data
from sasr import SASRConfig, checkpoints
from sasr.parsing import parse
from sasr.redaction import hub_tokens, redacted_command
from sasr.report import describe, html
from sasr.report.document import settings_table
from sasr.run import config_text, config_values
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


def test_config_yaml(tmp_path, monkeypatch):
    """push_to_hub uploads it. Options of a task are not ours to judge: without them it may not start."""
    flags = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    flags += ["--hub_token", "secret1", "--hub-token=secret2"]
    flags += ["--model_init_kwargs", '{"token": "secret3", "revision": "v1"}', "--task_options", '{"steps": 3}']
    monkeypatch.setattr(sys, "argv", ["sasr", "train", *flags])
    settings = parse(flags)
    assert (settings.training.hub_token, settings.training.model_init_kwargs["token"]) == ("secret2", "secret3")
    text = config_text(settings)
    assert "secret" not in text and "--hub_token '(hidden)' '--hub-token=(hidden)'" in text
    written = yaml.safe_load(text)
    assert "hub_token" not in written and written["model_init_kwargs"] == {"revision": "v1"}
    assert config_values(settings)["task_options"] == {"steps": 3}
    settings.given["task_options"] = {"api_key": "needed"}
    assert config_values(settings)["task_options"] == {"api_key": "needed"}
    again = parse([*flags[:4], "--hub_token", "other"], written)
    assert again.training.hub_token == "other" and again.training.model_init_kwargs == {"revision": "v1"}
    then, now = (checkpoints.fingerprint(each.training.to_dict()) for each in (settings, again))
    assert not checkpoints._differences(then, now) and not checkpoints._differences(now, then)
    alone, none = ({"model_init_kwargs": value} for value in ({"token": "secret4"}, None))
    assert not checkpoints._differences(alone, none)


def test_a_run_of_a_comparison_gets_them_again():
    given = {"seed": 1, "hub_token": "secret1", "model_init_kwargs": '{"token": "secret2"}', "task_options": NESTED}
    assert list(hub_tokens(given)) == ["hub_token", "model_init_kwargs"]
    assert not hub_tokens({"model_init_kwargs": {"revision": "v1"}, "task_options": NESTED})
    assert redacted_command(["train", "--hub_token", "secret", "--seed=1", '--x={"token": "secret"}']) == [
        *("train", "--hub_token", "(hidden)", "--seed=1", '--x={"token": "(hidden)"}')
    ]


def test_saved_arguments():
    """training_args.bin, which transformers uploads too."""
    made = {"model_init_kwargs": {"token": "secret1", "revision": "main"}, "hub_token": "secret2"}
    given, file = SASRConfig(**OWN, **made), io.BytesIO()
    torch.save(given, file)
    assert b"secret" not in file.getvalue()
    file.seek(0)
    read = torch.load(file, weights_only=False)
    assert (read.hub_token, read.model_init_kwargs, read.max_steps) == (None, {"revision": "main"}, 10)
    assert (given.hub_token, given.model_init_kwargs["token"]) == ("secret2", "secret1")


def test_trackers():
    settings = {"seed": 1, "hub_token": "secret1", "task_options": {"api_key": "secret2", "n": 3}}
    settings["model_init_kwargs"] = '{"token": "secret3"}'
    told = Trackers(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[])), settings).settings
    assert told == {
        "seed": 1,
        "task_options": {"api_key": "(hidden)", "n": 3},
        "model_init_kwargs": '{"token": "(hidden)"}',
    }
