"""Worked solutions -> token batches for SFT.

The prompt is tokenised exactly as GRPO tokenises it and the completion is appended, so that SFT and rollouts see the
same context. (Tokenising prompt and completion as one text can merge tokens across the border.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational
from trl.trainer.utils import remove_none_values

from . import thoughts
from .errors import InputError
from .tasks.text import one_line

Ids = list[int]
_CONTENT = "4217"  # in no template


@dataclass(frozen=True)
class Demonstration:
    """Token ids of one prompt and its worked solution, which ends with an end token."""

    prompt_ids: Ids
    completion_ids: Ids

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt_ids) + len(self.completion_ids)


def tokenize_prompts(prompts: Sequence[Any], tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any) -> list[Ids]:
    """Token ids of text prompts, standard or conversational, as [`~trl.GRPOTrainer`] tokenises them. Needs no model."""
    if not prompts:
        return []
    if is_conversational({"prompt": prompts[0]}):
        try:
            return tokenizer.apply_chat_template(
                conversation=list(prompts),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **template_kwargs,
            )["input_ids"]
        except TemplateError as error:
            raise refused_by_template(tokenizer, error) from error
    return tokenizer(text=list(prompts))["input_ids"]


def tokenize_demonstrations(
    rows: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    tokenize_prompts: Callable[[list[Any]], list[Ids]],
    end_token_ids: Sequence[int],
    **template_kwargs: Any,
) -> list[Demonstration]:
    """Tokenise rows with `prompt` and `completion`.

    Args:
        rows (`Sequence[dict]`): Standard (text) or conversational (lists of messages) rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's.
        tokenize_prompts (`Callable`): The trainer's own way to tokenise prompts.
        end_token_ids (`Sequence[int]`): Tokens that end a rollout; a demonstration ends with the first of them, as a
            rollout would, and gets the tokenizer's EOS if it has none.
        template_kwargs: Passed to the chat template.

    Raises:
        [`InputError`]: For a completion of several turns, and for one that the template refuses or does not show.
    """
    if not rows:
        return []
    ends = set(end_token_ids)
    tokenize = _continued(tokenizer)
    demonstrations = []
    for row, prompt_ids in zip(rows, tokenize_prompts([row["prompt"] for row in rows]), strict=True):
        text = completion_text(row, tokenizer, **template_kwargs)
        ids = tokenize(text)
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        if end is not None and tokenizer.decode(ids[end + 1 :], skip_special_tokens=True).strip():
            raise InputError(
                f"the completion of {one_line(row['prompt'], 80)} goes on after its first end of turn, where a rollout "
                "ends: make a row of each turn, with the turns before it in its prompt"
            )
        ids = ids[: end + 1] if end is not None else [*ids, tokenizer.eos_token_id]
        demonstrations.append(Demonstration(list(prompt_ids), ids))
    return demonstrations


def _continued(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], Ids]:
    """Tokenises what stands behind other text. Some tokenizers, such as Llama 2's, put a space before whatever they are
    given, which a completion by itself would teach."""

    def ids_of(text: str) -> Ids:
        return tokenizer(text=text, add_special_tokens=False)["input_ids"]

    before = "\n"
    first = ids_of(before)

    def ids_behind(text: str) -> Ids:
        alone = ids_of(text)
        if tokenizer.decode([*first, *alone]) == before + text:
            return alone
        whole = ids_of(before + text)
        reads_right = whole[: len(first)] == first and tokenizer.decode(whole) == before + text
        return whole[len(first) :] if reads_right else alone

    return ids_behind


def completion_text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any) -> str:
    """What the model is to write after the prompt, its thought included, with the chat template's end of turn if it
    has one."""
    prompt, completion = row["prompt"], row["completion"]
    if not is_conversational({"prompt": prompt}):
        return completion
    prompt, completion = remove_none_values([prompt, completion])  # which a dataset fills messages with
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]

    def rendered(messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options, **template_kwargs))
        except TemplateError as error:
            raise refused_by_template(tokenizer, error) from error

    start, whole = rendered(prompt, add_generation_prompt=True), rendered([*prompt, *completion])
    opened = thoughts.opened_by(start)
    if whole.startswith(start) and thoughts.shows_thoughts(completion, opened + whole[len(start) :]):
        return whole[len(start) :]
    # The template opens a thought in the prompt that a finished turn does not have, takes thoughts out of it, or puts
    # an empty one before them: that is for the turns of the past, while this one is to be written by the model.
    if len(completion) > 1 or completion[0].get("tool_calls"):
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} does not show the completion of {one_line(prompt, 80)} as "
            "it would be written: make a row of each turn, without tool calls"
        )
    before, _, after = rendered([*prompt, {"role": "assistant", "content": _CONTENT}]).rpartition(_CONTENT)
    # What stands before a content, such as a channel; not an empty thought.
    before = before[len(start) :] if before.startswith(start) and not opened else ""
    before = "" if thoughts.begins_empty(before) else before
    return before + thoughts.as_completion(completion[0], opened) + after


def refused_by_template(tokenizer: PreTrainedTokenizerBase, error: TemplateError) -> InputError:
    """The error of a template that refuses a prompt, in one line."""
    return InputError(
        f"the chat template of {tokenizer.name_or_path} refuses a prompt ({' '.join(str(error).split())}): "
        "change the rows' messages, or the template"
    )


def empty_thought_notes(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any
) -> list[str]:
    """A note if the chat template gives demonstrations without a thought an empty one."""
    shown = [row for row in rows if row.get("completion") and is_conversational({"prompt": row["prompt"]})]
    plain = [row for row in shown if not any(map(thoughts.thought_of, row["completion"]))]
    if not plain:
        return []
    row = plain[0]
    opened = thoughts.opened_in(row["prompt"], tokenizer, **template_kwargs)
    if not thoughts.begins_empty(opened + completion_text(row, tokenizer, **template_kwargs)):
        return []
    return [
        f"note: by the chat template a turn begins with a thought; {len(plain)} of {len(shown)} demonstrations have "
        "none, and SFT shows an empty one: put thoughts between <think> and </think>, or, where the template knows it, "
        "turn them off (--chat_template_kwargs '{\"enable_thinking\": false}')"
    ]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template closes an assistant turn, `None` without a template.

    Where it is not the tokenizer's EOS, generation has to be told to stop at it."""
    if tokenizer.chat_template is None:
        return None
    row = {"prompt": [{"role": "user", "content": "x"}], "completion": _CONTENT}
    # Behind the content: a template without a generation prompt has the special token of the role before it.
    after = completion_text(row, tokenizer).rpartition(_CONTENT)[2]
    ids = tokenizer(text=after, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return next((token for token in ids if token in special), None)


def collate(demonstrations: Sequence[Demonstration], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right. Returns `input_ids`, `attention_mask` and `labels`, all of shape (batch, longest); labels are
    -100 on prompts and padding."""
    longest = max(d.length for d in demonstrations)
    shape = (len(demonstrations), longest)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for i, d in enumerate(demonstrations):
        start, end = len(d.prompt_ids), d.length
        input_ids[i, :end] = torch.tensor(d.prompt_ids + d.completion_ids)
        attention_mask[i, :end] = 1
        labels[i, start:end] = torch.tensor(d.completion_ids)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
