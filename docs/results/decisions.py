"""Draws the rule of SASR: p against g_last / g_warmup, and what it decided in a real run.

Run: python docs/results/decisions.py (writes decisions.svg beside itself; needs matplotlib). The run is that of
smollm2-gsm8k/metrics.jsonl.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
BLUE, ORANGE = "tab:blue", "tab:orange"  # SFT, GRPO, as in report.html


def draw() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sasr"  # the same file each time
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (HERE / "smollm2-gsm8k" / "metrics.jsonl").read_text().splitlines()]
    figure, (rule, run) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    ratios = [i / 100 for i in range(301)]
    for gamma, style in ((0.5, ":"), (1.0, "-"), (2.0, "--")):
        rule.plot(ratios, [r / (r + gamma) for r in ratios], style, color="black", label=f"gamma {gamma:g}")
    rule.axvline(1, color="0.8", lw=1, zorder=0)
    rule.set(xlabel="g_last / g_warmup", ylabel="p: probability of SFT", ylim=(0, 1), title="the rule")
    rule.legend(loc="lower right")
    steps = [line["step"] for line in lines]
    run.bar(steps, 1, width=1, color=[BLUE if line["kind"] == "sft" else ORANGE for line in lines], alpha=0.45)
    run.step(steps, [line["p_sft"] for line in lines], where="mid", color="black")
    warmup = sum(line["phase"] == "warm-up" for line in lines)
    run.axvline(warmup + 0.5, color="black", lw=1, ls=":")
    run.text(warmup / 2 + 0.5, 0.06, "warm-up", ha="center")
    run.set(xlabel="step", ylim=(0, 1), xlim=(0.5, len(lines) + 0.5), title="a run: SFT blue, GRPO orange, p black")
    figure.savefig(HERE / "decisions.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw()
