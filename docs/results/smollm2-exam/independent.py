"""Accuracy by transformers and math-verify alone, nothing of sasr, to compare an exam with.

python independent.py MODEL COMPLETIONS.jsonl [SAMPLES] asks the prompts of an exam's completions.jsonl again, greedily
and SAMPLES times at temperature 1. Only `prompt` and `answer` are read for that; what is right is decided here.
"""

import json
import re
import sys
from pathlib import Path

import torch
from math_verify import parse, verify
from transformers import AutoModelForCausalLM, AutoTokenizer


def right(text: str, answer: str) -> bool:
    roles = dict(re.findall(r"(\w+)=(knight|knave)", answer))
    if roles:  # Knights and Knaves: one role for each person
        return dict(re.findall(r"\(\d+\) (\w+) is a (knight|knave)", text.rpartition("CONCLUSION:")[2])) == roles
    stated = re.findall(r"####\s*\$?([\d.,/-]+)", text)
    boxed = re.findall(r"\\boxed\{.*", text)
    found = f"${stated[-1].strip('.,')}$" if stated else f"${boxed[-1]}$" if boxed else None
    return found is not None and verify(parse(f"${answer}$"), parse(found))


model_name, path, samples = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1
records = [json.loads(line) for line in Path(path).read_text().splitlines()]
tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
torch.manual_seed(1)
modes = {"greedy": ({"do_sample": False}, 1), "sampled": ({"do_sample": True, "top_k": 0}, samples)}
correct: dict[str, list[bool]] = {"greedy": [], "sampled": []}
for start in range(0, len(records), 20):
    batch = records[start : start + 20]
    prompts, chat = [r["prompt"] for r in batch], not isinstance(batch[0]["prompt"], str)
    if chat:
        prompts = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=not chat)
    for mode, (options, repeats) in modes.items():
        output = model.generate(**inputs, **options, num_return_sequences=repeats, max_new_tokens=256)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        correct[mode] += [right(text, batch[i // repeats]["answer"]) for i, text in enumerate(texts)]
exam = {
    "greedy": [r["greedy"]["correct"] for r in records],
    "sampled": [s["correct"] for r in records for s in r["samples"]],
}
for mode, found in correct.items():
    p, n = sum(found) / len(found), len(found)
    q, m = sum(exam[mode]) / len(exam[mode]), len(exam[mode])
    error = (p * (1 - p) / n + q * (1 - q) / m) ** 0.5
    print(f"{mode}: independent {sum(found)}/{n} = {p:.4f}, sasr exam {sum(exam[mode])}/{m} = {q:.4f}, "
          f"difference {q - p:+.4f}, its standard error {error:.4f}")
