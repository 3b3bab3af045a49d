"""Models by name: tiny ones, directories, GGUF files, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import toy
from refusals import error_of
from sasr import model_files
from sasr.models import TINY_MODELS, check_model, load_model, load_tokenizer
from sasr.parsing import parse

TEXTS = [
    "Question: Tom has 12 apples and buys 7 more. How many apples does Tom have?\nAnswer:",
    " Tom has 12+7=<<12+7=19>>19 apples.\n#### 19",
]


def logits(model, ids=((5, 9, 3, 17, 30),)):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A directory with a saved tiny model; tests that damage it copy it first."""
    path = tmp_path_factory.mktemp("saved") / "model"
    model, tokenizer = load_model("tiny-llama", tokenizer_texts=TEXTS, seed=3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_the_tokenizer_is_the_one_with_the_chat_template(saved, monkeypatch):
    """With mistral-common installed transformers takes another for Mistral's models: rows stayed plain text."""
    asked, load = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *args, **options: asked.append(options) or load(*args, **options)
    )
    assert load_tokenizer(str(saved)).eos_token_id is not None
    assert [options["mistral_format"] for options in asked] == [False]


# Tiny models


@pytest.mark.parametrize(
    ("name", "hint"), [("flsh", "name another, or none"), ("flash_attention_2", "install what is missing, or change")]
)
@pytest.mark.parametrize("saved_one", [True, False])
def test_attention_that_is_not_there(saved, saved_one, name, hint):
    model = str(saved) if saved_one else "tiny-llama"
    message = error_of(load_model, model, attn_implementation=name, tokenizer_texts=TEXTS)
    assert message.startswith(f"model {model!r}: cannot load the model (") and hint in message


@pytest.mark.parametrize("name", TINY_MODELS)
def test_tiny_model_is_drawn_from_the_seed_and_nothing_else(name):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, tokenizer = load_model(name, tokenizer_texts=TEXTS, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12)
    again, _ = load_model(name, tokenizer_texts=TEXTS[::-1], seed=5)
    other, _ = load_model(name, tokenizer_texts=TEXTS, seed=6)
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert 5e5 < first.num_parameters() < 1.2e6
    assert first.dtype == torch.float32 and first.config.model_type == name.removeprefix("tiny-")
    assert first.config.vocab_size == len(tokenizer)
    assert first.generation_config.eos_token_id == tokenizer.eos_token_id


def test_tiny_model_in_another_dtype_is_the_same_model():
    full, _ = load_model("tiny-llama", tokenizer_texts=TEXTS)
    half, _ = load_model("tiny-llama", tokenizer_texts=TEXTS, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b)


def test_tokenizer_alone_is_the_one_of_the_model():
    _, tokenizer = load_model("tiny-llama", tokenizer_texts=TEXTS)
    assert load_tokenizer("tiny-llama", tokenizer_texts=TEXTS).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token is None and tokenizer.chat_template is None
    batch = tokenizer(["Tom", "Tom has 12"], padding=True)["input_ids"]
    assert batch[0][0] == tokenizer.pad_token_id and len(batch[0]) == len(batch[1])


def test_tokens_are_words_digits_and_runs_of_a_sign():
    tokenizer = load_tokenizer("tiny-llama", tokenizer_texts=TEXTS)
    assert tokenizer.tokenize(" Tom has 197 apples.\n#### 19") == [
        *(" Tom", " has", " 1", "9", "7", " apples", ".", "\n", "####", " 1", "9"),
    ]
    for digit in "0123456789":
        assert len(tokenizer.encode(digit)) == len(tokenizer.encode(" " + digit)) == 1


WORDS = st.sampled_from(
    ["Tom", "has", "apples", "zebras", "12", "7.5", "$3", "<<1+2=3>>", "####", "I'll", "(no)", "50%"]
)
STORIES = st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n", ", ", "  ", "", "\t"]))).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)
PLAIN = load_tokenizer("tiny-llama", tokenizer_texts=TEXTS)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(STORIES | st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=80))
def test_encoding_loses_nothing(text):
    ids = PLAIN.encode(text)
    assert PLAIN.decode(ids) == text
    assert PLAIN.unk_token_id not in ids


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_encoding_loses_nothing_of_its_own_texts(text):
    tokenizer = load_tokenizer("tiny-llama", tokenizer_texts=[text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_stays_small():
    texts = [" ".join(chr(97 + i % 26) + chr(97 + i // 26 % 26) + chr(97 + i // 676) * 3 for i in range(10_000))]
    tokenizer = load_tokenizer("tiny-llama", tokenizer_texts=texts)
    assert len(tokenizer) == 4096
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


# Saved models


def test_saved_model_loads_the_same(saved):
    model, tokenizer = load_model(str(saved))
    original, original_tokenizer = load_model("tiny-llama", tokenizer_texts=TEXTS, seed=3)
    assert torch.equal(logits(model), logits(original))
    assert tokenizer.get_vocab() == original_tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == "<pad>"


def test_tokenizer_without_padding_pads_with_the_end(copy):
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    config["padding_side"] = "right"
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(copy))
    assert tokenizer.pad_token == "<eos>" and tokenizer.padding_side == "left"


def test_dtype_names(saved):
    assert load_model(str(saved), dtype="float16")[0].dtype == torch.float16
    assert load_model(str(saved), dtype="auto")[0].dtype == torch.float32
    for wrong in ("int8", "float31", "nn"):
        assert wrong in error_of(load_model, str(saved), dtype=wrong)


@pytest.mark.parametrize("name", ["tiny-gpt", "tiny-llama2"])
def test_unknown_tiny_model(name):
    assert "tiny-llama, tiny-qwen2" in error_of(check_model, name)


def test_names_that_cannot_be(tmp_path):
    assert "tokenizer_texts" in error_of(load_model, "tiny-llama")
    assert "no such file" in error_of(check_model, str(tmp_path / "absent"))
    assert "no such file" in error_of(check_model, "absent.gguf")
    assert "no such file" in error_of(check_model, "./absent")
    assert "hub id" in error_of(check_model, "a/b/c")
    assert "hub id" in error_of(check_model, "")
    assert "config.json" in error_of(check_model, str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter" in error_of(check_model, str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert ".gguf file itself" in error_of(check_model, str(tmp_path))
    assert "directory" in error_of(check_model, str(tmp_path / "adapter_config.json"))
    check_model("owner/name")
    check_model("gpt2")


def test_damaged_directories(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert "damaged" in error_of(check_model, str(copy))
    weights.rename(copy / "pytorch_model.bin")
    assert "convert them to safetensors" in error_of(load_model, str(copy))
    (copy / "pytorch_model.bin").unlink()
    assert "no weights" in error_of(check_model, str(copy))
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "model-1.safetensors is missing" in error_of(check_model, str(copy))
    index.write_text("[1]")
    assert "weight_map" in error_of(check_model, str(copy))
    index.unlink()
    weights.write_bytes(whole)
    check_model(str(copy))
    (copy / "config.json").write_text("{")
    assert "JSON" in error_of(check_model, str(copy))
    (copy / "config.json").write_text('{"model_type": "nothing-known"}')
    assert "nothing-known" in error_of(load_model, str(copy))


def test_missing_weights_are_not_made_up(copy):
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.2.mlp.up_proj.weight" in error_of(load_model, str(copy))


def test_model_and_tokenizer_must_fit(copy):
    load_tokenizer("tiny-llama", tokenizer_texts=["quite other words"] * 3 + TEXTS).save_pretrained(copy)
    assert "tokens, the model only" in error_of(load_model, str(copy))
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in error_of(load_tokenizer, str(copy))


def test_hub_failures_are_one_line(monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    message = error_of(load_model, "owner/name")
    assert "owner/name" in message and "couldn't connect" in message and "network" in message


@pytest.mark.parametrize("cause", [GatedRepoError, RepositoryNotFoundError])
def test_what_the_hub_keeps_back(monkeypatch, cause):
    def fails(*args, **kwargs):
        try:
            raise cause("403 Client Error", response=SimpleNamespace(headers={}, request=None))
        except cause as error:
            raise OSError(f"{args[0]} cannot be read.\nMake sure to have access to it.") from error

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    message = error_of(load_model, "owner/name")
    assert "`hf auth login`" in message and "network" not in message
    assert ("https://huggingface.co/owner/name" in message) == (cause is GatedRepoError)


# GGUF files


def write_gguf(path: Path, quantise: bool) -> LlamaForCausalLM:
    """Writes a llama model of two layers with a byte-level tokenizer as llama.cpp does, and returns the original."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<|end|>", *bytes_to_unicode().values(), "Ġa", "he"]
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.1)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("unit test")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["Ġ a", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for projection, count in heads.items():
            if projection in key:  # llama.cpp rotates neighbours, transformers rotates halves
                half = tensor.shape[0] // count // 2
                tensor = tensor.view(count, 2, half, -1).transpose(1, 2).reshape(tensor.shape)
        array = tensor.numpy().copy()
        kind = gguf.GGMLQuantizationType.F32
        if quantise and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0 if "mlp" in key else gguf.GGMLQuantizationType.F16
        writer.add_tensor(names.get_name(key, (".weight",)), gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("quantise", [False, True])
def test_gguf_becomes_an_ordinary_model(tmp_path, quantise):
    pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    original = write_gguf(path, quantise)
    model, tokenizer = load_model(str(path))
    assert model.dtype == torch.float32 and model.config._name_or_path == str(path)
    close = {"atol": 0.1, "rtol": 0.05} if quantise else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(logits(model), logits(original), **close)
    text = "the 12 cats\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None

    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    again, same = load_model(str(tmp_path / "saved"))
    assert torch.equal(logits(plain), logits(model)) and torch.equal(logits(again), logits(model))
    assert same.encode(text) == tokenizer.encode(text) and same.eos_token == tokenizer.eos_token


def test_damaged_gguf(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    write_gguf(path, quantise=False)
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[: len(whole) // 2], whole[:-4096], b"GGUF", b"GGUF" + b"\xff" * 500):
        path.write_bytes(damaged)
        assert "damaged" in error_of(load_model, str(path))
    path.write_bytes(b"version https://git-lfs")
    assert "not a GGUF file" in error_of(check_model, str(path))
    path.write_bytes(whole)
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'sasr[gguf]'" in error_of(load_model, str(path))


def test_checking_a_name_imports_nothing_heavy():
    code = "import sys, sasr.models as m; m.check_model('tiny-llama'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--beta", "0.1"], {"revision": "v2"}), ([], None), (["--beta", "0.1", "--use_peft"], None)],
    ids=["reference", "none", "adapter"],
)
def test_the_reference_model_is_of_the_same_revision(tmp_path, monkeypatch, flags, expected):
    """TRL loads it by name, and would take the newest."""
    import sasr.run
    import sasr.trainer

    made: dict[str, Any] = {}

    def trainer(args, **kwargs):
        made.update(kwargs, args=args, model_init_kwargs=args.model_init_kwargs)
        return SimpleNamespace()

    monkeypatch.setattr(sasr.trainer, "SASRTrainer", trainer)
    monkeypatch.setattr(sasr.run, "progress_callbacks", lambda trainer: [])
    names = ["--model_name_or_path", "owner/name", "--model_revision", "v2", "--use_cpu", "true"]
    parsed = parse(["--output_dir", str(tmp_path / "run"), *names, *flags])
    model = toy.model()
    model.config._name_or_path = "owner/name"
    task = SimpleNamespace(reward_funcs=lambda: [toy.reward])
    sasr.run.build_trainer(parsed, model, toy.tokenizer(), task, [{"prompt": "1", "answer": "1"}], [], tmp_path)
    assert made["model_init_kwargs"] == expected
    assert made["args"].model_init_kwargs is None, "or its resumption would be told to be another run"
    adapter = made["peft_config"]
    assert (adapter is not None and adapter.revision == "v2") if "--use_peft" in flags else adapter is None
