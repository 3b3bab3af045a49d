"""QLoRA with the real bitsandbytes, on a CPU: adapters on a base in 4 bits, through the command (`make test-qlora`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import sasr.cli
import toy
from sasr import InputError, engine_checks
from sasr.checkpoints import model_facts
from sasr.models import load_model
from sasr.quantised import config_of
from sasr.work import Work
from whole_runs import assert_same_run, metrics

pytestmark = [pytest.mark.qlora, pytest.mark.usefixtures("environment")]
LAST = 24
SETTINGS = {
    "task": "jsonl", "schedule": "alternate", "max_steps": LAST, "sft_warmup_steps": 8, "save_steps": 6,
    "save_total_limit": 10, "per_device_train_batch_size": 8, "num_generations": 4,
    "per_device_sft_batch_size": 8, "beta": 0.02,
    "max_completion_length": 4, "exam_rows": 8, "exam_samples": 2, "sft_learning_rate": 0.02, "learning_rate": 0.005,
    "lora_r": 8, "lora_alpha": 16, "lora_target_modules": "all-linear", "seed": 5,
}  # fmt: skip
QLORA = ["--use_peft", "--load_in_4bit", "--use_bnb_nested_quant"]
NESTED = {"load_in_4bit": True, "use_bnb_nested_quant": True}
PEFT = LoraConfig(r=4, target_modules="all-linear")


def save_base(directory: Path) -> Path:
    """Wide enough for blocks of 64 weights, and for bitsandbytes to pack them for inference."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "max_position_embeddings": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(toy.CHARACTERS) + 3, **sizes, **ends)).save_pretrained(directory)
    toy.tokenizer().save_pretrained(directory)
    return directory


def train(directory: Path, *more: str) -> int:
    flags = [text for key, value in SETTINGS.items() for text in (f"--{key}", str(value))]
    where = ["--data", str(directory.parent / "rows.jsonl"), "--model_name_or_path", str(directory.parent / "lm")]
    return sasr.cli.main(["train", *flags, *where, *QLORA, "--output_dir", str(directory), *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("qlora")
    save_base(place / "lm")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy.rows(40)))
    assert train(place / "run") == 0
    return place / "run"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(save_base(tmp_path_factory.mktemp("base") / "lm"))


def quantised(base: str):
    return load_model(base, quantization=config_of(NESTED, torch.float32))[0]


def packed(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}


def test_both_kinds_of_steps_teach_the_adapter(run):
    lines = metrics(run)
    assert {line["kind"] for line in lines} == {"sft", "grpo"}
    losses = [line["sft_loss"] for line in lines if line["kind"] == "sft"]
    assert losses[-1] < 0.6 * losses[0]
    assert all(line["grad_norm"] > 0 for line in lines if line["kind"] == "sft")
    kl = [line["kl"] for line in lines if line["kind"] == "grpo"]
    assert min(kl) > 0.01, "from the base, which is the model with its adapter disabled"
    files = {path.name for path in (run / f"checkpoint-{LAST}").glob("*.safetensors")}
    assert files == {"adapter_model.safetensors"}
    first, last = (load_file(run / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (6, LAST))
    assert {tensor.dtype for tensor in last.values()} == {torch.float32}
    assert all(not torch.equal(first[name], last[name]) for name in last)


def test_resume_is_bit_for_bit(run):
    """The base is quantised again, to the same bits."""
    part = run.parent / "part"
    shutil.copytree(run, part, ignore=shutil.ignore_patterns(f"checkpoint-{LAST}", "checkpoint-18"))
    exams = json.loads((part / "exam.json").read_text())
    del exams["final"]
    (part / "exam.json").write_text(json.dumps(exams))
    assert sasr.cli.main(["train", "--output_dir", str(part), "--resume_from_checkpoint"]) == 0
    assert_same_run(part, run)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bnb_4bit_quant_type", "fp4"], ["quantization", "4 bit nf4, nested then, 4 bit fp4, nested now"]),
        (["--load_in_4bit", "false"], ["parameters"]),
    ],
)
def test_a_base_quantised_otherwise_is_another_run(run, capsys, flags, words):
    capsys.readouterr()
    assert sasr.cli.main(["train", "--output_dir", str(run), "--resume_from_checkpoint", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "belongs to another run" in error and [w for w in words if w not in error] == []


def exam(run: Path, name: str, *more: str) -> tuple[dict, list]:
    out, initial = run.parent / name, str(run.parent / "lm")
    assert (
        sasr.cli.main(["exam", "--model", str(run), "--initial_model", initial, "--output_dir", str(out), *more]) == 0
    )
    records = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    return json.loads((out / "exam.json").read_text()), [record["greedy"]["text"] for record in records]


def test_its_exam_is_that_of_the_run(run):
    content, greedy = exam(run, "as-trained")
    told = [json.loads(line)["greedy"]["text"] for line in (run / "exams" / "final.jsonl").read_text().splitlines()]
    assert greedy == told and content["settings"]["load_in_4bit"] is True
    merged, _ = exam(run, "merged", "--load_in_4bit", "false")
    assert merged["figures"]["kl"] > 0.01 and merged["figures"]["kl"] != content["figures"]["kl"], "another base"


def test_the_adapter_stays_beside_its_base(run):
    """Merged into 4 bits it would be rounded."""
    ids = torch.arange(3, 13).unsqueeze(0)
    expected = PeftModel.from_pretrained(quantised(str(run.parent / "lm")), run)
    found, _ = load_model(str(run), quantization=config_of(NESTED, torch.float32))
    with torch.no_grad():
        assert torch.equal(found.eval()(ids).logits, expected.eval()(ids).logits)


def test_the_adapter_is_in_float32_and_the_base_stays(tmp_path, base):
    """TRL casts the adapter to bfloat16: at this rate its larger weights would stay where they are."""
    trained = toy.trainer(
        tmp_path, lm=quantised(base), schedule="alternate", sft_warmup_steps=2, max_steps=6, learning_rate=1e-6,
        sft_learning_rate=1e-6, separate_optimizer_states=True, more={"peft_config": PEFT},
    )  # fmt: skip
    own = {name: p for name, p in trained.model.named_parameters() if p.requires_grad}
    assert own and all("lora_" in name and p.dtype == torch.float32 for name, p in own.items())
    before = packed(trained.model), {name: p.detach().clone() for name, p in own.items()}
    trained.train()
    assert trained.counts["sft_steps"] == 4 and trained.counts["grpo_steps"] == 2
    assert all(torch.equal(p, before[0][name]) for name, p in packed(trained.model).items())
    moved = torch.cat([(p.detach() != before[1][name]).flatten() for name, p in own.items()])
    assert moved.float().mean() > 0.99


def test_an_exam_between_two_steps_leaves_the_gradient(base):
    """On CPUs with AVX512-BF16 bitsandbytes would go over to kernels without a backward pass."""
    model = quantised(base)
    model.add_adapter(LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    ids = torch.arange(3, 13).unsqueeze(0)

    def gradient() -> torch.Tensor:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert torch.equal(gradient(), before) and before.norm() > 0


def test_the_weights_are_counted_not_their_bytes(tmp_path, base):
    whole, quarter = load_model(base)[0], quantised(base)
    for model in (whole, quarter):
        model.add_adapter(PEFT)
    assert vars(Work(whole, 1)) == vars(Work(quarter, 1))
    bytes_of = [sum(p.nbytes for n, p in m.named_parameters() if "proj.base" in n) for m in (whole, quarter)]
    assert bytes_of[0] == 8 * bytes_of[1], "32 bits and 4"
    assert model_facts(quarter)["quantization"] == "4 bit nf4, nested" and not model_facts(whole).get("quantization")


def test_not_in_pieces(tmp_path, base):
    trained = toy.trainer(tmp_path, lm=quantised(base), more={"peft_config": PEFT})
    trained.is_fsdp_enabled = True
    with pytest.raises(InputError, match="load_in_4bit needs weights in one piece"):
        engine_checks.check(trained)


def test_without_kernels_for_the_machine(run, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", broken)
    new, lm = str(run.parent / "new"), str(run.parent / "lm")
    task = ["--task", "jsonl", "--data", "rows.jsonl", "--sft_warmup_steps", "2"]
    for command in (
        ["train", "--output_dir", new, "--model_name_or_path", lm, *QLORA, *task],
        ["exam", "--output_dir", new, "--model", str(run)],
    ):
        capsys.readouterr()
        assert sasr.cli.main(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "no 4-bit kernels for this machine's cpu" in err, err
        assert "no kernel image is available" in err and not (run.parent / "new").exists()
