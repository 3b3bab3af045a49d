"""The date in a chat template is that of the run's first day."""

from __future__ import annotations

import json
from datetime import date

import pytest
import yaml

import sasr.cli
from sasr import checkpoints, shared_warmup, template_date
from sasr.demonstrations import tokenize_prompts
from sasr.parsing import parse
from sasr.run import config_text
from test_demonstrations import TEMPLATE, chat_model, chat_tokenizer

# As Llama 3 has it.
DATED = "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
DATED += "<|user|>{{ date_string }}<|end|>" + TEMPLATE


class Later(date):
    @classmethod
    def today(cls):
        return cls(2031, 2, 3)


@pytest.fixture
def tokenizer():
    found = chat_tokenizer()
    found.chat_template = DATED
    return found


def settings(tmp_path, *flags):
    return parse(["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", *flags])


def test_the_date_is_fixed_once(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(template_date, "date", Later)
    first = settings(tmp_path, "--chat_template_kwargs", '{"other": 1}')
    assert template_date.fix(first, tokenizer) == []
    kwargs = {"other": 1, "date_string": "03 Feb 2031"}
    assert first.training.chat_template_kwargs == kwargs
    assert yaml.safe_load(config_text(first))["chat_template_kwargs"] == kwargs
    (ids,) = tokenize_prompts([[{"role": "user", "content": "1+1?"}]], tokenizer, **kwargs)
    assert tokenizer.decode(ids).startswith("<|user|>03 Feb 2031<|end|>")
    given = settings(tmp_path, "--chat_template_kwargs", '{"date_string": "26 Jul 2024"}')
    assert template_date.fix(given, tokenizer) == []
    assert given.training.chat_template_kwargs == {"date_string": "26 Jul 2024"}


def test_templates_without_a_date_or_without_a_name_for_it(tmp_path, tokenizer):
    for template, notes in ((TEMPLATE, 0), (None, 0), ("{{ strftime_now('%Y') }}" + TEMPLATE, 1)):
        tokenizer.chat_template = template
        found = settings(tmp_path)
        assert len(template_date.fix(found, tokenizer)) == notes
        assert found.training.chat_template_kwargs is None


def test_a_run_goes_on_with_its_date_and_lends_it(tmp_path, tokenizer, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("model")
    chat_model(tokenizer).save_pretrained("model")
    rows = [{"prompt": f"{i}+1?", "completion": f"{i + 1}", "answer": f"{i + 1}"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "model", "--exam_rows", "2"]
    flags += ["--per_device_train_batch_size", "4", "--num_generations", "4", "--per_device_sft_batch_size", "2"]
    flags += ["--max_completion_length", "4", "--sft_warmup_steps", "2", "--save_steps", "2", "--exam_samples", "1"]
    flags += ["--use_cpu", "true"]
    assert sasr.cli.main(["train", *flags, "--max_steps", "3", "--output_dir", "first"]) == 0
    today = yaml.safe_load((tmp_path / "first/config.yaml").read_text())["chat_template_kwargs"]["date_string"]
    monkeypatch.setattr(template_date, "date", Later)
    donor = tmp_path / "first" / "checkpoint-2"
    on = ["--output_dir", "first", "--resume_from_checkpoint", str(donor), "--max_steps", "3"]
    assert sasr.cli.main(["train", *on]) == 0, capsys.readouterr().err
    # Also where a recipe replaces what the run has.
    args = settings(tmp_path, "--chat_template_kwargs", '{"unused": 1}')
    template_date.take_over(args, donor)
    assert args.training.chat_template_kwargs == {"unused": 1, "date_string": today}
    assert sasr.cli.main(["train", *flags, "--max_steps", "3", "--output_dir", "second", "--warmup_from", "first"]) == 0
    lent = yaml.safe_load((tmp_path / "second/config.yaml").read_text())["chat_template_kwargs"]
    assert lent == {"date_string": today}
    # Of one in Python, whose template writes the present date all the time, none can be taken over.
    undated = settings(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "read_state", lambda path: {"fingerprint": {"chat_template_kwargs": None}})
        template_date.take_over(undated, donor)
    assert undated.training.chat_template_kwargs is None
    assert shared_warmup.find(settings(tmp_path, "--warmup_from", "first", "--sft_warmup_steps", "2").training)
