"""What is left to learn, and the norm, on the study's eight tasks: one run of `sasr-left` each.

Run: python docs/results/rule-study/left.py (needs matplotlib). Draws left.svg from left.json, which was taken from the
metrics.jsonl of the runs of again.yaml and told-again.yaml (seed 41 of the digits, 45 of the stories).
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
COLOURS = {"all": "tab:green", "few": "tab:blue", "poor": "tab:red", "harder": "tab:orange"}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "left"
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, run in json.loads((HERE / "left.json").read_text(encoding="utf-8")).items():
        family, task = name.split()
        style = "-" if family == "digits" else "--"
        for panel, values in zip(panels, (run["left_to_learn"], run["norm_ratio"]), strict=True):
            panel.plot(run["step"], values, style, color=COLOURS[task], lw=1.2, label=f"{family}: {task}")
    for panel, title in zip(panels, ("left_to_learn", "g_last / g_warmup"), strict=True):
        panel.axvline(60, color="grey", lw=0.8)
        panel.set(xlabel="optimizer step; SFT alone up to 60", title=title, ylim=(0, None))
    panels[1].set(ylim=(0, 4))
    panels[1].legend(fontsize=7, ncols=2)
    figure.savefig(HERE / "left.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
