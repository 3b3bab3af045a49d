"""What makes steps faster changes none of their results: each short cut against the way round."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.kernels import chunked_logprob
from trl.trainer.utils import add_fused_lm_head

import toy
from sasr import fused_head, prefill, record, spread
from sasr.rollouts import ObservedGRPOTrainer
from sasr.sft_loss import log_likelihoods
from sasr.task_config import TaskConfig
from sasr.tasks.base import Task, Verdict

PROMPTS = ["1+2=", "1+2=", "1+2=", "34+5=", "34+5=", "34+5=", "1+2="]  # of two lengths, and one comes back


def padded(texts: list[str]) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    encoded = toy.tokenizer()(texts, padding=True, return_tensors="pt")
    return toy.tokenizer()(texts)["input_ids"], {k: encoded[k] for k in ("input_ids", "attention_mask")}


def windowed():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MistralForCausalLM(
        MistralConfig(vocab_size=16, num_key_value_heads=1, sliding_window=3, pad_token_id=0, eos_token_id=1, **sizes)
    )


def adapted():
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    return get_peft_model(toy.model(), config)


@pytest.mark.parametrize("make", [toy.model, windowed, adapted], ids=["dense", "sliding-window", "lora"])
def test_prompts_read_once_give_the_same_rollouts(make):
    model, (ids, inputs) = make(), padded(PROMPTS)
    read: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.append(tuple(given[0].shape)))
    options = {"do_sample": True, "max_new_tokens": 8, "output_logits": True, "return_dict_in_generate": True}
    found = {}
    for how in ("apart", "shared"):
        torch.manual_seed(1)
        read.clear()
        with prefill.shared(model, ids if how == "shared" else [[i] for i in range(7)]):
            found[how] = model.generate(**inputs, **options)
        assert read[:2] == ([(2, 4), (7, 1)] if how == "shared" else [(7, 5), (7, 1)])
    assert found["shared"].sequences.tolist() == found["apart"].sequences.tolist()
    for a, b in zip(found["shared"].logits, found["apart"].logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert "generate" not in vars(model), "the model is left as it was"


def test_a_compiled_model_makes_the_same_rollouts(tmp_path):
    """Its wrapper takes any arguments: without their positions the shorter prompts go wrong."""
    prompts = [{"prompt": p, "answer": "12", "completion": "12"} for p in ("1+2=", "1+2+3+4+5+6=")]
    found = []
    for compiled in (False, True):
        trained = toy.trainer(
            tmp_path / str(compiled), lm=toy.model(initializer_range=0.5), data=Dataset.from_list(prompts),
            schedule="grpo", sft_warmup_steps=0, max_steps=1, torch_compile=compiled,
            torch_compile_backend="eager" if compiled else None, max_completion_length=8,
        )  # fmt: skip
        trained.train()
        assert (type(trained.model_wrapped).__name__ == "OptimizedModule") == compiled
        (rollouts,) = trained._buffered_inputs
        found.append((rollouts["prompt_ids"].tolist(), rollouts["completion_ids"].tolist()))
    assert len({tuple(ids) for ids in found[0][0]}) == 2, "prompts of two lengths"
    assert found[0] == found[1]


class OtherCache:
    """A model that keeps something else than keys and values by row."""

    def forward(self, input_ids, attention_mask):
        raise NotImplementedError  # read for its parameters

    def __call__(self, input_ids, attention_mask, use_cache):
        return type("Output", (), {"past_key_values": object()})


def test_a_cache_that_cannot_be_copied_is_left_alone():
    index = [0, 0, 0, 1, 1, 1, 0]
    _, inputs = padded(PROMPTS)
    assert prefill.prompt_cache(toy.model(), **inputs, index=index).layers[0].keys.shape[:3:2] == (7, 4)
    assert prefill.prompt_cache(OtherCache(), **inputs, index=index) is None
    size = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=len(toy.tokenizer()), **size))
    assert prefill.prompt_cache(recurrent, **inputs, index=index) is None
    assert prefill.prompt_cache(toy.model(), *(value[:, -1:] for value in inputs.values()), index=index) is None


class Split(OtherCache):
    """A model with a layer on each of two devices, which keeps the number of the row in every key."""

    def __call__(self, input_ids, attention_mask, use_cache):
        cache = DynamicCache()
        for layer, device in enumerate(("meta", "cpu")):
            keys = torch.arange(2.0, device=device).reshape(2, 1, 1, 1).expand(2, 1, 3, 4)
            cache.update(keys, keys, layer)
        return SimpleNamespace(past_key_values=cache)


def test_a_model_that_is_split_over_devices(monkeypatch):
    """By `device_map`: keys and values are where their layer is, and what the head gives where the head is."""
    inputs = {name: torch.ones(3, 4, dtype=torch.long, device="meta") for name in ("input_ids", "attention_mask")}
    cache = prefill.prompt_cache(Split(), **inputs, index=[0, 1, 0])
    assert [layer.keys.device.type for layer in cache.layers] == ["meta", "cpu"]
    assert cache.layers[0].values.shape == (3, 1, 3, 4)
    assert cache.layers[1].values[:, 0, 0, 0].tolist() == [0, 1, 0]
    with FakeTensorMode():
        of_head = torch.zeros(2, 3, device="cuda:1")
        found = SimpleNamespace(log_probs=of_head, entropy=of_head)
        trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext), temperature=1.0)
        batch = {"labels": torch.zeros(2, 4, dtype=torch.long)}
        both = log_likelihoods(trainer, lambda **inputs: found, batch)
        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", lambda self: (of_head, of_head, None))
        trainer = object.__new__(ObservedGRPOTrainer)
        trainer.accelerator = SimpleNamespace(device=torch.device("cpu"))
        both += trainer._get_per_token_logps_and_entropies()[:2]
    assert {str(part.device) for part in both} == {"cpu"}


# ---- mixed precision ----


class Casts(TorchDispatchMode):
    """Counts how often a weight matrix of the model is cast."""

    def __init__(self, model):
        super().__init__()
        self.weight, self.count = model.model.layers[0].mlp.up_proj.weight, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.weight.data_ptr():
            self.count += kwargs.get("dtype") == torch.bfloat16
        return func(*args, **(kwargs or {}))


def test_rollouts_cast_the_weights_once_and_are_the_same(tmp_path, monkeypatch):
    trained = toy.trainer(tmp_path, bf16=True, max_steps=1, sft_warmup_steps=1, max_completion_length=6)
    trained.train()
    ids, found, casts = padded(PROMPTS)[0], {}, {}
    trained.eos_token_ids = trained.generation_config.eos_token_id = [15]  # none ends early
    for how in ("once", "each time"):
        if how == "each time":
            monkeypatch.setattr(trained.accelerator, "autocast", nullcontext)
        torch.manual_seed(1)
        with Casts(trained.model) as seen:
            found[how], _ = trained._generate_single_turn(ids, None, {}, 1)
        casts[how] = seen.count
    assert found["once"] == found["each time"]
    assert casts == {"once": 1, "each time": 1 + max(map(len, found["once"]))}  # the prompts', and one a token


def test_exams_within_a_run_cast_the_weights_once_a_batch(tmp_path):
    class Any(Task):
        name = "any"

        def to_row(self, record):
            return record

        def check(self, completion, row):
            assert not torch.is_autocast_enabled("cpu"), "a judge may be a model of its own precision"
            return Verdict(True, True)

        def well_formed(self, completion):
            return True

    rows = [{"prompt": prompt, "answer": "3"} for prompt in ("1+2=", "2+1=", "3+0=")]
    changes = {"bf16": True, "gradient_checkpointing": False, "max_steps": 1, "sft_warmup_steps": 1}
    trained = toy.trainer(tmp_path, **changes)
    trained.args.per_device_eval_batch_size = 3
    results = record(trained, Any(), rows, TaskConfig(exam_at=["initial"], exam_samples=2))
    with Casts(trained.model) as seen:
        trained.train()
    assert results["initial"]["pass_at"]["1"] == 1.0
    assert seen.count == 3 + 1  # a greedy batch, two of samples, and the step itself


# ---- the LM head ----


def test_the_head_scores_labelled_positions_only_with_the_same_result(monkeypatch):
    scored = []
    apply = chunked_logprob.ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        chunked_logprob.ChunkedLogProbFunction, "apply", lambda *given: (scored.append(len(given[0])), apply(*given))[1]
    )
    _, inputs = padded(["1+2=03", "34+5=39", "9+9=18"])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :-2] = -100
    found = []
    for device in ("meta", "cpu"):  # on another device it is TRL's own
        model = toy.model()
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        with fused_head.labelled_only(torch.device(device)):
            output = model(**inputs, labels=labels, fused_lm_head=True)
        (output.log_probs.sum() + 0.1 * output.entropy.sum()).backward()
        found.append([output.log_probs, output.entropy, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert scored == [3 * 6, 3 * 2]


# ---- padding ----


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_trimming_changes_no_step(tmp_path, monkeypatch, loss_type):
    settings = {
        "schedule": "grpo", "sft_warmup_steps": 0, "max_steps": 3, "loss_type": loss_type, "num_iterations": 2,
        "gradient_accumulation_steps": 4, "steps_per_generation": 4, "per_device_train_batch_size": 2, "beta": 0.1,
        "max_completion_length": 16, "learning_rate": 1e-2, "epsilon_high": 5.0 if loss_type == "cispo" else 0.2,
    }  # fmt: skip
    trim, found, widths = spread.trimmed, {}, []
    for choice in ("whole", "trimmed"):
        lm = toy.model(directory=tmp_path / "lm")

        def watched(batches, choice=choice):
            if choice == "whole":
                return batches
            smaller = trim(batches)
            widths.extend(
                (a["completion_ids"].size(1), b["completion_ids"].size(1))
                for a, b in zip(batches, smaller, strict=True)
            )
            return smaller

        monkeypatch.setattr(spread, "trimmed", watched)
        run = toy.trainer(tmp_path / choice, lm=lm, **settings)
        run.train()
        found[choice] = toy.history(run, "loss", "grad_norm", "entropy", "kl")
    assert any(after < before for before, after in widths), "some slice must be shorter than its generation"
    torch.testing.assert_close(torch.tensor(found["trimmed"]), torch.tensor(found["whole"]), rtol=1e-4, atol=1e-6)
    assert any(norm > 0 for _, norm, *_ in found["whole"])


# ---- waiting for the device ----


class Looks(TorchDispatchMode):
    """Counts how often a tensor's value is asked for: on a GPU each one waits until the GPU is done."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def looks(trainer) -> int:
    with Looks() as counted:
        trainer.train()
    return counted.count


def test_steps_look_at_the_device_no_more_often_than_trl(tmp_path):
    common = {"gradient_accumulation_steps": 4, "max_steps": 6, "sft_warmup_steps": 0}
    args = toy.settings(tmp_path, schedule="grpo", **common)
    names = set(GRPOConfig.__dataclass_fields__) & set(vars(args)) - {"generation_batch_size"}
    values = {name: getattr(args, name) for name in names}
    more = {"model": toy.model(), "train_dataset": toy.rows(), "processing_class": toy.tokenizer()}
    stock = looks(GRPOTrainer(reward_funcs=toy.reward, args=GRPOConfig(**values), **more))
    # Four times a step: when prompts are read once, to count tokens, for infinite rewards, for the norm. Never for each
    # of the four micro-batches.
    assert 0 < looks(toy.trainer(tmp_path, schedule="grpo", **common)) <= stock + 4 * 6
    shared = {
        name: values[name]
        for name in set(SFTConfig.__dataclass_fields__) & names
        if name not in ("loss_type", "max_length")
    }
    more["train_dataset"] = toy.rows().select_columns(["prompt", "completion"])
    stock = looks(SFTTrainer(args=SFTConfig(**shared), **more))
    assert 0 < looks(toy.trainer(tmp_path, schedule="sft", **common)) <= stock
