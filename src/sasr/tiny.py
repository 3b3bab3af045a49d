"""Models of about 0.6 million parameters from scratch, and the tokenizer for them: for demos and tests on a CPU."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import randomness

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A word or a digit each with the space before it, a run of one and the same sign such as #### or <<, or one space.
# Whatever the text is, the pieces put together are the text.
_PIECE = r" ?[A-Za-z]+| ?[0-9]| ?([^A-Za-z0-9\s])\1*|\s"
_SPECIAL = ("<pad>", "<eos>", "<unk>")
_MAX_VOCABULARY = 4096
_MAX_LENGTH = 512
_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": _MAX_LENGTH,
    "tie_word_embeddings": True,
}


def tiny_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Makes a tokenizer of whole words, single digits and runs of a sign.

    Words that `texts` do not have are spelled from shorter pieces, so decoding gives back any text of theirs and any
    ASCII text. The same texts give the same tokens, in whatever order they come.

    Args:
        texts (`Sequence[str]`):
            What the model will see. Of more than about 4,000 different pieces, the most frequent ones become tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in split.pre_tokenize_str(text))
    # Every sign for itself lets any word be spelled; a digit after a space is one token like any other digit.
    base = {*string.printable, *(f" {digit}" for digit in string.digits), *(sign for piece in counts for sign in piece)}
    words = sorted((piece for piece in counts if piece not in base), key=lambda piece: (-counts[piece], piece))
    room = max(0, _MAX_VOCABULARY - len(_SPECIAL) - len(base))
    vocabulary = [*_SPECIAL, *sorted(base), *sorted(words[:room])]

    # WordPiece takes a whole piece if it is known, else the longest known beginnings; no mark for what continues.
    model = models.WordPiece(
        {token: i for i, token in enumerate(vocabulary)},
        unk_token="<unk>",
        continuing_subword_prefix="",
        max_input_chars_per_word=10_000,
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    attn_implementation: str | None,
    seed: int,
) -> PreTrainedModel:
    """Makes `tiny-llama` or `tiny-qwen2` with weights drawn from `seed`."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    config_class = {"tiny-llama": LlamaConfig, "tiny-qwen2": Qwen2Config}[name]
    config = config_class(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_SIZES,
    )
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with randomness.kept(), torch.device("cpu"):  # where the weights are drawn
        randomness.seed(seed)
        # In float32 first, so that every dtype gets the same numbers.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    model = model.to(dtype).eval()
    model.config.dtype = dtype
    model.config._name_or_path = model.name_or_path = name
    return model
