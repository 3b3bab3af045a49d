"""The SFT gradient norm as a two-sided proxy for KL(pi_data || pi), on models small enough to enumerate.

L_SFT = KL(pi_data || pi) + H(pi_data), so both have the same gradient. If L_SFT is beta-smooth and satisfies the
Polyak-Lojasiewicz inequality with mu, then sqrt(2 mu KL) <= ||grad L_SFT|| <= sqrt(2 beta KL) (arXiv 2505.13026).

- `tabular`: a softmax over A answers for each of n questions. Here both constants are known: the Hessian's largest
  eigenvalue is at most 1 / (2 n), and KL(p || q) <= chi^2(p || q) gives mu = min(pi) / (2 n).
- `language_model`: a Llama of 30k parameters whose answers are all two-digit strings. It learns by SFT, is pushed off
  by policy gradient on a wrong answer, and learns again; the curvature beta is measured on the way.

Run: python docs/results/gradient_bound.py (writes gradient_bound.json and gradient_bound.svg beside itself; about a
minute on one core). Needs matplotlib.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
QUESTIONS, DIGITS, START = 12, 10, 10


def tabular(logits: torch.Tensor, data: torch.Tensor) -> tuple[float, float, float, float]:
    """(gradient norm by autograd, KL in nats, mu, beta) of a softmax table; both arguments (questions, answers)."""
    logits = logits.detach().double().requires_grad_()
    policy = logits.log_softmax(1)
    loss = -(data * policy).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    entropy = -torch.xlogy(data, data).sum(1).mean()
    count = len(logits)
    return (
        float(gradient.norm()),
        float((loss - entropy).detach()),
        float(policy.detach().exp().min()) / (2 * count),
        1 / (2 * count),
    )


class LanguageModel:
    """Questions 0 ... n-1 as one token each, answers of two digits; demonstrations are right with probability .7."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=START + QUESTIONS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=8, attn_implementation="eager",
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).double()
        answers = torch.cartesian_prod(torch.arange(DIGITS), torch.arange(DIGITS))
        self.answers = answers  # (100, 2)
        self.data = torch.zeros(QUESTIONS, len(answers), dtype=torch.float64)
        for question in range(QUESTIONS):
            for offset, share in ((0, 0.7), (1, 0.1), (10, 0.1), (37, 0.1)):
                self.data[question, (17 * question + offset) % 100] = share
        self.entropy = -torch.xlogy(self.data, self.data).sum(1).mean()
        self.wrong = torch.tensor([(17 * question + 50) % 100 for question in range(QUESTIONS)])

    def logprobs(self) -> torch.Tensor:
        """log pi(answer | question) of every answer, shape (questions, 100): two forward passes for all."""
        questions = START + torch.arange(QUESTIONS)
        prefixes = torch.cartesian_prod(questions, torch.arange(DIGITS))  # question, first digit
        logits = self.model(input_ids=prefixes).logits.log_softmax(-1)
        first = logits[:, 0].view(QUESTIONS, DIGITS, -1)[:, 0, :DIGITS]  # the same whatever digit follows
        second = logits[:, 1].view(QUESTIONS, DIGITS, -1)[:, :, :DIGITS]
        return (first.unsqueeze(2) + second).reshape(QUESTIONS, -1)

    def loss(self) -> torch.Tensor:
        """L_SFT over all demonstrations, nats per answer."""
        return -(self.data * self.logprobs()).sum(1).mean()

    def reward_loss(self) -> torch.Tensor:
        """Minus the expected reward of a policy gradient that pays for one wrong answer."""
        return -self.logprobs().exp()[torch.arange(QUESTIONS), self.wrong].mean()

    def norm_and_kl(self) -> tuple[float, float]:
        loss = self.loss()
        gradient = torch.autograd.grad(loss, list(self.model.parameters()))
        return math.sqrt(sum(float(g.square().sum()) for g in gradient)), float((loss - self.entropy).detach())

    def curvature(self, rounds: int = 12) -> float:
        """The Hessian's largest eigenvalue, by power iteration."""
        parameters = list(self.model.parameters())
        gradient = torch.autograd.grad(self.loss(), parameters, create_graph=True)
        vector, value = [torch.randn_like(p) for p in parameters], 0.0
        for _ in range(rounds):
            size = math.sqrt(sum(float(v.square().sum()) for v in vector))
            vector = [v / size for v in vector]
            vector = list(torch.autograd.grad(gradient, parameters, vector, retain_graph=True))
            value = math.sqrt(sum(float(v.square().sum()) for v in vector))
        return value

    def descend(self, loss: Callable[[], torch.Tensor], steps: int, rate: float, each: Callable[[], None]) -> None:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=rate)
        for _ in range(steps):
            each()
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def language_model(sft: int = 150, off: int = 60, again: int = 90, every: int = 10) -> list[dict[str, float | str]]:
    """Norm and KL on the path SFT, policy gradient towards wrong answers, SFT; the curvature every so many steps."""
    lm, path = LanguageModel(), []

    def record(phase: str) -> None:
        norm, kl = lm.norm_and_kl()
        point: dict[str, float | str] = {"step": len(path), "phase": phase, "norm": norm, "kl": kl}
        if len(path) % every == 0:
            point["curvature"] = lm.curvature()
        path.append(point)

    lm.descend(lm.loss, sft, 3e-3, lambda: record("SFT"))
    lm.descend(lm.reward_loss, off, 1e-3, lambda: record("off"))
    lm.descend(lm.loss, again, 3e-3, lambda: record("SFT again"))
    return path


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sasr"  # the same file each time
    import matplotlib.pyplot as plt

    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = []
    for scale in torch.linspace(0.1, 4, 300):
        data = torch.rand(4, 6, dtype=torch.float64).softmax(1)
        table.append(tabular(data.log() + scale * torch.randn(4, 6, dtype=torch.float64), data))
    path = language_model()
    (HERE / "gradient_bound.json").write_text(json.dumps({"tabular": table, "language_model": path}, indent=1) + "\n")

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    kl = [t[1] for t in table]
    left.loglog(kl, [t[0] for t in table], ".", ms=3, label="gradient norm")
    left.loglog(kl, [math.sqrt(2 * t[3] * t[1]) for t in table], "_", ms=3, label="sqrt(2 beta KL)")
    left.loglog(kl, [math.sqrt(2 * t[2] * t[1]) for t in table], "_", ms=3, label="sqrt(2 mu KL)")
    left.set(xlabel="KL(pi_data || pi), nats", title="softmax table, exact constants")
    left.legend()
    for phase, colour in (("SFT", "tab:cyan"), ("off", "tab:purple"), ("SFT again", "tab:blue")):
        part = [p for p in path if p["phase"] == phase]
        middle.loglog([p["kl"] for p in part], [p["norm"] for p in part], ".", ms=4, color=colour, label=phase)
    known = [p for p in path if "curvature" in p]
    middle.loglog(
        [p["kl"] for p in known],
        [math.sqrt(2 * p["curvature"] * p["kl"]) for p in known],
        "k_",
        label="sqrt(2 beta KL)",
    )
    middle.set(xlabel="KL, nats per answer", title="language model, measured curvature")
    middle.legend()
    right.plot([p["step"] for p in path], [p["norm"] for p in path], label="gradient norm")
    right.plot([p["step"] for p in path], [math.sqrt(p["kl"]) for p in path], label="sqrt(KL)")
    right.set(xlabel="step", title="SFT, pushed off, SFT again", yscale="log")
    right.legend()
    figure.savefig(HERE / "gradient_bound.svg", metadata={"Date": None})
    ratio = [p["norm"] ** 2 / (2 * p["kl"]) for p in path]
    print(f"language model: ||grad||^2 / (2 KL) from {min(ratio):.3f} to {max(ratio):.3f}")
    print(
        f"measured curvature from {min(p['curvature'] for p in known):.2f} to {max(p['curvature'] for p in known):.2f}"
    )
    for p in known:
        print(f"{p['step']:4d} {p['phase']:<10} KL {p['kl']:.4f} norm {p['norm']:.4f} curvature {p['curvature']:.2f}")


if __name__ == "__main__":
    main()
