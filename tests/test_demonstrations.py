"""Tokenising worked solutions as GRPO sees the prompts."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import toy
from sasr import InputError, SASRTrainer
from sasr.demonstrations import collate, completion_text, end_of_turn_id, tokenize_demonstrations, tokenize_prompts
from sasr.training_rows import collect

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with a chat template whose end of turn is not the EOS, as base models have it."""
    special = ["<pad>", "<eos>", "<|end|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left",
        additional_special_tokens=special[2:],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def chat_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def conversation(question: str, answer: str | None) -> dict:
    completion = None if answer is None else [{"role": "assistant", "content": answer}]
    return {"prompt": [{"role": "user", "content": question}], "completion": completion, "answer": "2"}


def prefixing_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: it puts a space before whatever it is given."""
    vocabulary = [("<pad>", 0.0), ("<eos>", 0.0), ("<unk>", -9.0), ("\n", -1.0), *((c, -1.0) for c in "▁12:ab")]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


@pytest.mark.parametrize("completion", ["12", " 12", "\n12", "\n a", "ab 2"])
def test_a_completion_begins_as_it_is_written(completion):
    """By itself it would begin with one space more, which the model would learn to write."""
    tokenizer = prefixing_tokenizer()
    rows = [{"prompt": "a:\n", "completion": completion}]
    (found,) = tokenize_demonstrations(rows, tokenizer, lambda prompts: tokenize_prompts(prompts, tokenizer), [1])
    ids = [*found.prompt_ids, *found.completion_ids]
    assert tokenizer.decode(ids) == f"a:\n{completion}<eos>"
    assert ids == [*tokenizer(f"a:\n{completion}")["input_ids"], 1], "as in the whole text"


def chat_trainer(tmp_path, rows):
    tokenizer = chat_tokenizer()
    return SASRTrainer(
        model=chat_model(tokenizer),
        reward_funcs=lambda completions, **_: [float(len(c[0]["content"]) % 3) for c in completions],
        args=toy.settings(tmp_path, max_steps=8),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def test_conversations_train_with_the_context_that_grpo_sees(tmp_path):
    rows = [conversation("1+1?", "2"), conversation("é ü?", None), conversation("3?", "3")]
    trained = chat_trainer(tmp_path, rows)
    tokenizer = trained._tokenizer
    assert [tokenizer.decode(d.prompt_ids) for d in trained.demonstrations] == [
        "<|user|>1+1?<|end|>\n<|assistant|>",
        "<|user|>3?<|end|>\n<|assistant|>",
    ]
    # cut after the end of turn, as a rollout is: the newline that the template adds is not part of the answer
    assert [tokenizer.decode(d.completion_ids) for d in trained.demonstrations] == ["2<|end|>", "3<|end|>"]
    prompts = [row["prompt"] for row in rows]
    assert tokenize_prompts(prompts, tokenizer) == trained._tokenize_prompts(prompts)[0]
    trained.train()
    assert trained.counts["sft_steps"] >= 4


def test_generation_stops_at_the_templates_end_of_turn(tmp_path):
    trained = chat_trainer(tmp_path, [conversation("1+1?", "2"), conversation("2+1?", "3")])
    end = trained._tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_of_turn_id(trained._tokenizer) == end
    assert end in trained.eos_token_ids and end in trained.generation_config.eos_token_id
    assert end_of_turn_id(toy.tokenizer()) is None
    # Whoever loads the model afterwards stops there too.
    for moment in ("begun", "trained"):
        trained.save_model(str(tmp_path / moment))
        assert sorted(GenerationConfig.from_pretrained(tmp_path / moment).eos_token_id) == [1, end]
        trained.train() if moment == "begun" else None


def test_the_end_of_turn_is_behind_the_content(tmp_path):
    """An old template without a generation prompt: what follows the prompt begins with a special token, the role."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TEMPLATE.partition("{% if add")[0]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end_of_turn_id(tokenizer) == end
    row = conversation("1+1?", "2")
    (found,) = tokenize_demonstrations([row], tokenizer, lambda p: tokenize_prompts(p, tokenizer), [1, end])
    assert tokenizer.decode(found.completion_ids) == "<|assistant|>2<|end|>"


def test_a_demonstration_of_several_turns_is_refused(tmp_path):
    """It would be cut after the first: of a tool's call and the answer to it SFT would study the call alone."""
    rows = [conversation("1+1?", "2"), conversation("3*4?", "mul(3, 4)")]
    rows[1]["completion"] += [{"role": "user", "content": "12"}, {"role": "assistant", "content": "12"}]
    with pytest.raises(InputError, match=r"the completion of \[.*3\*4.* goes on after its first end of turn"):
        chat_trainer(tmp_path, rows)
    # What only ends twice does not go on.
    row = {"prompt": "1?", "completion": "2<eos>\n<eos>"}
    tokenizer = chat_tokenizer()
    (found,) = tokenize_demonstrations([row], tokenizer, lambda p: tokenize_prompts(p, tokenizer), [1])
    assert tokenizer.decode(found.completion_ids) == "2<eos>"


def test_prompt_and_completion_are_tokenised_apart():
    """A tokenizer that merges over the border must not: rollouts start after the prompt's last token."""
    core = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, merges=[("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    assert tokenizer("ab")["input_ids"] == [3]
    row = {"prompt": "a", "completion": "b"}
    (demonstration,) = tokenize_demonstrations([row], tokenizer, lambda p: tokenize_prompts(p, tokenizer), [0])
    assert (demonstration.prompt_ids, demonstration.completion_ids) == ([1], [2, 0])
    assert tokenize_demonstrations([], tokenizer, lambda p: tokenize_prompts(p, tokenizer), [0]) == []


def test_template_that_renders_a_finished_turn_differently():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>think{% endif %}")
    assert completion_text(conversation("1?", "2"), tokenizer) == "2<|end|>\n"


def test_collate_masks_prompt_and_padding():
    from sasr.demonstrations import Demonstration

    batch = collate([Demonstration([5, 6], [7, 1]), Demonstration([5], [8, 9, 8, 1])], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 0], [5, 8, 9, 8, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 1, -100], [-100, 8, 9, 8, 1]]
    assert all(t.dtype == torch.long for t in batch.values())


def test_keys_that_only_other_messages_have_are_not_there(tmp_path):
    """A dataset fills them in; a template that asks whether there are any would see them, in training alone."""
    rows = [conversation("1+1?", "2"), conversation("2+1?", "3")]
    rows[0]["prompt"].insert(0, {"role": "system", "content": "brief", "tool_calls": [{"name": "add"}]})
    trained = chat_trainer(tmp_path, rows)
    tokenizer = trained._tokenizer
    tokenizer.chat_template = TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{% for k in m %}.{{ k }}{% endfor %}")
    collected = collect(trained, None)
    prompts = tokenize_prompts([row["prompt"] for row in rows], tokenizer)
    assert [d.prompt_ids for d in collected.demonstrations] == prompts
    assert trained._tokenize_prompts([row["prompt"] for row in trained.train_dataset])[0] == prompts
    texts = [tokenizer.decode(d.completion_ids) for d in collected.demonstrations]
    assert all("tool_calls" not in text for text in texts) and ".content" in texts[0]


@pytest.mark.parametrize("separate", [False, True])
def test_rows_without_a_prompt_are_refused(tmp_path, separate):
    chats = Dataset.from_list([{"messages": [{"role": "user", "content": "1+1?"}]}])
    rows = Dataset.from_list([{"prompt": "1+1=", "completion": "2", "answer": "2"}])
    changes = {"data": rows, "more": {"demonstration_dataset": chats}} if separate else {"data": chats}
    what = "demonstration_dataset" if separate else "train_dataset"
    with pytest.raises(InputError, match=rf"{what} needs the column 'prompt' \(messages\): of a conversation"):
        toy.trainer(tmp_path, **changes)


def test_a_template_that_refuses_a_prompt_is_named(tmp_path):
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    refused = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1="}]]
    with pytest.raises(InputError, match=r"the chat template of .* refuses a prompt \(no system role\): change"):
        tokenize_prompts(refused, tokenizer)
