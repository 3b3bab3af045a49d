"""Thoughts between `<think>` and `</think>`, which a chat template may open in the prompt, or take out of a turn.

DeepSeek-R1, QwQ and later Qwen write `<think>` at the end of the prompt, so that a completion begins inside a thought
and nothing in it says so; and some take the thought out of a finished turn, which a demonstration is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
_EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"  # as Qwen's templates write it
_BEGINS_EMPTY = re.compile(rf"\s*{OPEN}\s*{CLOSE}")
_AT_THE_END = re.compile(rf"{OPEN}\s*\Z")


def opened_by(text: str) -> str:
    """The end of a prompt's text that opens a thought, from `<think>` on; empty if it opens none."""
    found = _AT_THE_END.search(text)
    return found[0] if found else ""


def opened_in(prompt: Any, tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any) -> str:
    """As [`opened_by`], of a prompt as the model gets it: text, or messages in the tokenizer's chat template."""
    if isinstance(prompt, str):
        return opened_by(prompt)
    if OPEN not in str(tokenizer.chat_template):
        return ""  # without rendering it, which is done for every rollout
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **template_kwargs)
    return opened_by(str(text))


def with_opened_thought(
    prompts: Sequence[Any], completions: Sequence[Any], tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any
) -> list[Any]:
    """Completions, text or messages, with the `<think>` that their prompts opened: a verifier that reads them knows
    that a thought which was cut off is none of the answer."""
    known: dict[str, str] = {}  # a group has one prompt
    turns = []
    for prompt, completion in zip(prompts, completions, strict=True):
        key = str(prompt)
        if key not in known:
            known[key] = opened_in(prompt, tokenizer, **template_kwargs)
        opened = known[key]
        if not opened:
            turns.append(completion)
        elif isinstance(completion, str):
            turns.append(opened + completion)
        else:
            first, *others = completion
            turns.append([{**first, "content": opened + str(first.get("content") or "")}, *others])
    return turns


def thought_of(message: Mapping[str, Any]) -> str:
    """What an assistant's message thinks, in its content or apart from it; empty if nothing."""
    content = str(message.get("content") or "")
    apart = str(message.get("reasoning_content") or "")
    thought = content.partition(CLOSE)[0].replace(OPEN, "", 1) if CLOSE in content else apart
    return thought.strip()


def shows_thoughts(messages: Sequence[Mapping[str, Any]], turn: str) -> bool:
    """Whether a whole turn has the thoughts of these messages."""
    found = [thought for thought in map(thought_of, messages) if thought]
    return all(thought in turn for thought in found) and not (found and begins_empty(turn))


def begins_empty(turn: str) -> bool:
    """Whether a whole turn begins with a thought of no word."""
    return _BEGINS_EMPTY.match(turn) is not None


def as_completion(message: Mapping[str, Any], opened: str) -> str:
    """A message's thought and content as a completion of a prompt that ends with `opened`. Where that opens a thought
    and the message has none, it is empty."""
    content = str(message.get("content") or "")
    if CLOSE not in content:
        thought = thought_of(message)
        content = f"{OPEN}\n{thought}\n{CLOSE}\n\n{content}" if thought else (_EMPTY if opened else "") + content
    if not opened:
        return content
    turn = content if content.lstrip().startswith(OPEN) else opened + content
    turn = turn.lstrip()
    return turn[len(opened if turn.startswith(opened) else OPEN) :]
