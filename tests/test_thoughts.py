"""Thoughts that a chat template opens in the prompt, or takes out of a finished turn: by TRL's copies of the templates
that models come with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import sasr.cli
import toy
from sasr import InputError, SASRTrainer, thoughts
from sasr.demonstrations import completion_text, empty_thought_notes, end_of_turn_id
from sasr.exam.exam import examine_rows
from sasr.tasks import JsonlTask, get_task
from sasr.tasks.judging import judged_demonstrations
from sasr.tasks.text import after_thinking
from test_demonstrations import TEMPLATE, chat_model, chat_tokenizer, conversation

FILES = Path(trl.__path__[0], "chat_templates").glob("*.jinja")
# Not those for pictures, which take a content that is text for one of no parts.
TEMPLATES = {f.stem: f.read_text("utf-8") for f in FILES if not f.name.startswith(("idefics", "llava", "smolvlm"))}
QUESTION = [{"role": "user", "content": "1+1?"}]
PLAIN = "It is 2.\n#### 2"
THOUGHTFUL = f"<think>\nOne and one.\n</think>\n\n{PLAIN}"
OPENS = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
DROPS = OPENS.replace("m.content }}", "m.content.split('</think>')[-1].lstrip() }}")


def written(template: str, content: str, **extra) -> tuple[str, str]:
    """(what of a thought the prompt opens, what a demonstration of this content teaches to write)."""
    tokenizer = chat_tokenizer()
    tokenizer.bos_token = "<eos>"
    tokenizer.chat_template = template
    row = {"prompt": QUESTION, "completion": [{"role": "assistant", "content": content, **extra}]}
    return thoughts.opened_in(QUESTION, tokenizer), completion_text(row, tokenizer)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_shows_the_answer_and_the_thought(name):
    opened, plain = written(TEMPLATES[name], PLAIN)
    assert opened in ("", "<think>", "<think>\n")
    assert PLAIN in after_thinking(opened + plain)
    assert plain.count(PLAIN) == 1
    opened, thoughtful = written(TEMPLATES[name], THOUGHTFUL)
    turn = opened + thoughtful
    assert turn.count("<think>") == turn.count("</think>") == 1
    assert turn.index("<think>") < turn.index("One and one.") < turn.index("</think>") < turn.index(PLAIN)
    assert turn.rpartition(PLAIN)[2] == plain.rpartition(PLAIN)[2]  # the same end of turn


def test_templates_that_open_a_thought_and_drop_it_are_among_them():
    opened = {name for name, template in TEMPLATES.items() if written(template, PLAIN)[0]}
    assert {"deepseek_r1_distill", "qwen3_5_think", "nemotron_3_nano"} <= opened
    assert not {"qwen3", "qwen2_5", "llama3", "qwen3_5_nothink"} & opened
    end = "<｜end▁of▁sentence｜>"
    assert written(TEMPLATES["deepseek_r1_distill"], PLAIN) == ("<think>\n", f"\n</think>\n\n{PLAIN}{end}")
    assert written(TEMPLATES["deepseek_r1_distill"], THOUGHTFUL)[1] == f"One and one.\n</think>\n\n{PLAIN}{end}"


@pytest.mark.parametrize("template", [TEMPLATE, OPENS, DROPS, TEMPLATES["qwen3_5_think"], TEMPLATES["qwen3"]])
def test_a_thought_beside_the_content_is_shown(template):
    opened, text = written(template, PLAIN, reasoning_content="One and one.")
    assert (opened + text).startswith(f"<think>\nOne and one.\n</think>\n\n{PLAIN}<|")


def test_a_channel_before_the_content_stays():
    text = written(TEMPLATES["gptoss"], THOUGHTFUL)[1]
    assert text == f"<|channel|>final<|message|>{THOUGHTFUL}<|return|>"
    channel = TEMPLATE.replace("<|{{ m.role }}|>", "<|{{ m.role }}|>{% if m.role == 'assistant' %}final: {% endif %}")
    drops = channel.replace("m.content }}", "m.content.split('</think>')[-1].lstrip() }}")
    assert written(drops, PLAIN) == ("", f"final: {PLAIN}<|end|>\n")
    assert written(drops, THOUGHTFUL) == ("", f"final: {THOUGHTFUL}<|end|>\n")


@pytest.mark.parametrize(
    "completion",
    [
        [THOUGHTFUL, {"role": "user", "content": "2+2?"}, "<think>\nmore\n</think>\n\n4"],
        [{"role": "assistant", "content": THOUGHTFUL, "tool_calls": [{"name": "add"}]}],
    ],
    ids=["several turns", "a tool call"],
)
def test_what_cannot_be_shown_whole_is_refused(completion):
    """Joined without their roles, SFT would study what the user says."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = DROPS
    turns = [{"role": "assistant", "content": part} if isinstance(part, str) else part for part in completion]
    with pytest.raises(InputError, match=r"does not show the completion of .* as it would be written: make a row of"):
        completion_text({"prompt": QUESTION, "completion": turns}, tokenizer)


WORDS = st.text(st.characters(exclude_characters="<>"), max_size=20)


@given(
    thought=WORDS, content=WORDS, space=st.sampled_from(["", "\n"]), opened=st.sampled_from(["<think>", "<think>\n"])
)
def test_what_is_written_goes_on_where_the_prompt_ends(thought, content, space, opened):
    for given_content in (f"<think>{space}{thought}</think>{content}", f"{thought}</think>{content}"):
        turn = opened + thoughts.as_completion({"content": given_content}, opened)
        assert turn.count("<think>") == turn.count("</think>") == 1 and turn.startswith("<think>")
        assert after_thinking(turn) == content
        assert turn[len("<think>") :].partition("</think>")[0].strip() == thought.strip()
    turn = opened + thoughts.as_completion({"content": content}, opened)
    assert thoughts.begins_empty(turn) and after_thinking(turn) == f"\n\n{content}"
    assert thoughts.as_completion({"content": content}, "") == content


def test_a_trainers_rewards_know_that_a_thought_was_open(tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = DROPS
    seen = []

    def spy(completions, **_):
        seen.extend(message["content"] for (message,) in completions)
        return [0.0] * len(completions)

    rows = [conversation("1+1?", "2"), conversation("3-1?", "<think>\nthree\n</think>\n2")]
    trained = SASRTrainer(
        model=chat_model(tokenizer),
        reward_funcs=[*JsonlTask().reward_funcs(), spy],
        args=toy.settings(tmp_path, max_steps=8),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    taught = [tokenizer.decode(d.completion_ids) for d in trained.demonstrations]
    assert taught == ["\n</think>\n\n2<|end|>", "three\n</think>\n2<|end|>"]
    said = ["so the answer is 2", "hm\n</think>\nthe answer is 2", "#### 2</think>", "hm</think>#### 3"]
    ids = [tokenizer(text)["input_ids"] for text in said]
    rewards = trained.rewards_of([trained.train_dataset[0]] * 4, ids)
    assert rewards[:, 0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert seen == said  # a function of the user's own gets what TRL gives it
    # What TRL has parsed has its thought no more.
    parsed = [[{"role": "assistant", "reasoning_content": "hm", "content": "#### 2"}]]
    asked = {"prompts": [QUESTION], "completions": parsed, "answer": ["2"]}
    tokenizer.response_template = {"parts": []}
    assert trained.reward_funcs[0](**asked) == [1.0]
    tokenizer.response_template = None
    assert trained.reward_funcs[0](**asked) == [0.0]
    tokenizer.chat_template = TEMPLATE
    assert trained.rewards_of([trained.train_dataset[0]] * 4, ids)[:, 0].tolist() == [1.0, 1.0, 0.0, 0.0]


class Says:
    """An engine whose model says the same of every question."""

    def __init__(self, tokenizer, text):
        self.ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    def complete(self, prompt_ids, samples, sampling, progress):
        return [[self.ids] * (1 + samples) for _ in prompt_ids]


@pytest.mark.parametrize("template, right", [(OPENS, False), (TEMPLATE, True)])
def test_exams_know_it_too(template, right):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    record = examine_rows(
        None, tokenizer, JsonlTask(), [conversation("1+1?", None)], samples=1, max_new_tokens=9, eos_token_ids=[1],
        engine=Says(tokenizer, "the answer is 2"),
    )[0]  # fmt: skip
    assert [completion["correct"] for completion in (record["greedy"], *record["samples"])] == [right, right]
    assert record["greedy"]["text"] == "the answer is 2"  # as it was written


def test_prompts_of_text_that_open_a_thought():
    """As for base models: R1-Zero, TinyZero."""
    rows = [
        {"prompt": "1+1? Assistant: <think>", "completion": completion, "answer": "2"}
        for completion in ("one and one</think> #### 2", "#### 2")
    ]
    assert [verdict.correct for _, verdict in judged_demonstrations(JsonlTask(), rows)] == [True, False]


@pytest.mark.parametrize(
    "task, answer, row",
    [
        ("kk", "CONCLUSION:\n(1) Zoey is a knight", {"answer": "Zoey=knight"}),
        ("gsm8k", "#### 2", {"answer": "2"}),
    ],
)
def test_what_is_only_thought_is_no_answer(task, answer, row):
    found = get_task(task)
    for text, good in ((answer, True), (f"<think>{answer}", False), (f"<think>{answer}</think>\n{answer}", True)):
        verdict = found.check(text, row)
        assert (verdict.correct, verdict.well_formed) == (good, good), text


def test_steps_and_paths_are_those_of_what_is_said():
    task = get_task("stories")
    (row,) = task.generate(1)
    turn = f"<think>\n#### 3 = 4\n</think>\n\n{row['completion']}"
    assert task.check(turn, row).correct and task.well_formed(turn) and task.steps_valid(turn, row)
    assert task.path(turn, row) == task.path(row["completion"], row) is not None


def test_reasoning_gym_reads_what_is_said_after_thinking():
    from sasr.tasks.gym import final_answer

    assert final_answer("<think><answer>3</answer>") is None
    assert final_answer("<think><answer>3</answer></think><answer>4</answer>") == "4"


def test_empty_thoughts_are_noted():
    tokenizer = chat_tokenizer()
    rows = [conversation("1+1?", "2"), conversation("2+1?", "<think>\ntwo\n</think>\n3"), conversation("3?", None)]
    tokenizer.chat_template = DROPS
    (note,) = empty_thought_notes(rows, tokenizer)
    assert "1 of 2 demonstrations have none, and SFT shows an empty one" in note
    assert empty_thought_notes(rows[1:], tokenizer) == []
    tokenizer.chat_template = TEMPLATE
    assert empty_thought_notes(rows, tokenizer) == []
    tokenizer.chat_template = TEMPLATES["qwen3_5_think"]
    assert len(empty_thought_notes(rows, tokenizer)) == 1
    assert empty_thought_notes(rows, tokenizer, enable_thinking=False) == []
    assert empty_thought_notes([{"prompt": "1+1?", "completion": "2"}], tokenizer) == []


def test_the_end_of_turn_of_a_template_that_opens_a_thought():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = DROPS
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>")


@pytest.mark.parametrize("schedule, noted", [("sasr", True), ("grpo", False)])
def test_the_commands_say_so(tmp_path, monkeypatch, capsys, schedule, noted):
    monkeypatch.chdir(tmp_path)
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = DROPS
    tokenizer.save_pretrained("model")
    chat_model(tokenizer).save_pretrained("model")
    with open("rows.jsonl", "w") as file:
        for i in range(30):
            file.write(json.dumps({"prompt": f"{i}+1?", "completion": f"{i + 1}", "answer": f"{i + 1}"}) + "\n")
    flags = ["--task", "jsonl", "--data", "rows.jsonl", "--model_name_or_path", "model", "--schedule", schedule]
    flags += ["--exam_rows", "3"]
    assert sasr.cli.main(["check", *flags]) == 0
    out, _ = capsys.readouterr()
    assert ("SFT shows an empty one" in out) is noted
