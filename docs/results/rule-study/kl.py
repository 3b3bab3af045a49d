"""What p reads against the exact KL(pi_data || pi), over one real run of SASR.

Each question of the digits task has one demonstration, so pi_data is certain and its entropy 0: KL(pi_data || pi) is
the mean over questions of -log pi(demonstration), exactly. Here over the first 1,000 training questions, from a
checkpoint every 5 steps, with the norm of the gradient over all of them beside what the trainer saw: a batch's norm,
and its repeatable part.

Run: python docs/results/rule-study/kl.py (needs the base model of base.yaml and matplotlib; 2 minutes), with
--draw only from kl.json. Writes kl.json and kl.svg.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from digits import Digits
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
STEPS, WARMUP, EVERY, SEED, EMA = 140, 40, 5, 21, 0.8
CHANGES = {
    "schedule": "sasr", "sft_warmup_steps": WARMUP, "max_steps": STEPS, "sft_norm": "repeatable", "exam_rows": 0,
    "gamma_schedule": "constant", "useful_passes": 0,
    "save_steps": EVERY, "save_total_limit": STEPS, "seed": SEED, "train_rows": 4000,
}  # fmt: skip


def train(directory: Path) -> list[dict]:
    """The metrics of a run that leaves a checkpoint every few steps."""
    recipe = yaml.safe_load((HERE / "all.yaml").read_text(encoding="utf-8"))
    del recipe["compare"]
    config = directory / "recipe.yaml"
    config.write_text(yaml.safe_dump({**recipe, **CHANGES}), encoding="utf-8")
    command = [sys.executable, "-m", "sasr", "train", "--config", str(config), "--output_dir", str(directory / "run")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (directory / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def exact(checkpoint: Path, rows: list[dict]) -> tuple[float, float]:
    """KL in nats per demonstration token, and the norm of its gradient, over all rows."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ends = tokenizer.eos_token
    total, count = 0.0, 0
    for start in range(0, len(rows), 250):  # sums, so that no batch counts more than another
        part = rows[start : start + 250]
        prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in part]
        batch = tokenizer(
            [row["prompt"] + row["completion"] + ends for row in part],
            return_tensors="pt",
            padding=True,
            padding_side="right",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for label, length in zip(labels, prompts, strict=True):
            label[:length] = -100
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        loss.backward()
        total, count = total + loss.item(), count + int((labels[:, 1:] != -100).sum())
    gradients = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    return total / count, float(gradients.norm()) / count


def probabilities(lines: list[dict], key) -> list[tuple[int, float]]:
    """(step, p) of the rule from a norm of each SFT step: its exponential mean against its mean in the warm-up."""
    last, warmup, found = None, [], []
    for line in lines:
        value = key(line)
        if value is not None:
            last = value if last is None else EMA * last + (1 - EMA) * value
            if WARMUP // 2 < line["step"] <= WARMUP:
                warmup.append(value)
        if line["step"] >= WARMUP:
            g = max(last, 0.0)
            found.append((line["step"], g / (g + sum(warmup) / len(warmup))))
    return found


def measure() -> dict:
    """The run's steps, and the exact figures of its checkpoints."""
    rows = Digits().generate(1000, SEED)
    with tempfile.TemporaryDirectory() as name:
        lines = train(Path(name))
        points = []
        for step in range(EVERY, STEPS + 1, EVERY):
            kl, norm = exact(Path(name) / "run" / f"checkpoint-{step}", rows)
            points.append({"step": step, "kl": kl, "norm": norm})
    keys = ("step", "kind", "p_sft", "grad_norm", "sft_agreement", "sft_loss")
    return {"exact": points, "steps": [{key: line.get(key) for key in keys} for line in lines]}


def batch_norm(line: dict) -> float | None:
    return line["grad_norm"] if line["kind"] == "sft" else None


def repeatable_norm(line: dict) -> float | None:
    if line["kind"] != "sft" or line["sft_agreement"] is None:
        return None
    return line["grad_norm"] * line["sft_agreement"]


def draw(points: list[dict], lines: list[dict]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sasr"  # the same file each time
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    left.plot([p["step"] for p in points], [p["kl"] for p in points], "o-", ms=3)
    left.set(yscale="log", xlabel="step", ylabel="nats a token", title="exact KL(pi_data || pi); warm-up to step 40")
    for label, key, mark in (("batch of 32", batch_norm, "."), ("its repeatable part", repeatable_norm, "x")):
        found = [(line["step"], key(line)) for line in lines if key(line) is not None]
        middle.plot(*zip(*found, strict=True), mark, ms=3, label=label)
    middle.plot([p["step"] for p in points], [p["norm"] for p in points], "o-", ms=3, label="all 1,000 questions")
    middle.set(xlabel="step", title="norm of the SFT gradient", ylim=(-0.5, 3))
    middle.legend()
    for label, key in (("from the batch's norm", batch_norm), ("from its repeatable part", repeatable_norm)):
        right.plot(*zip(*probabilities(lines, key), strict=True), label=label)
    right.set(xlabel="step", title="p, gamma 1", ylim=(0, 1))
    right.legend()
    figure.savefig(HERE / "kl.svg", metadata={"Date": None})


def main() -> None:
    path = HERE / "kl.json"
    if "--draw" not in sys.argv:
        path.write_text(json.dumps(measure()) + "\n", encoding="utf-8")
    data = json.loads(path.read_text(encoding="utf-8"))
    draw(data["exact"], data["steps"])
    for p in data["exact"]:
        print(f"step {p['step']:3d}  KL {p['kl']:.3f}  norm over all {p['norm']:.3f}")
    for label, key in (("batch", batch_norm), ("repeatable", repeatable_norm)):
        values = [p for _, p in probabilities(data["steps"], key)]
        print(f"p from the {label} norm: {min(values):.2f} to {max(values):.2f}, last {values[-1]:.2f}")


if __name__ == "__main__":
    main()
