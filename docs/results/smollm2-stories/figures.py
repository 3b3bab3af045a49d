"""The tables of a pretrained model in docs/evidence.md, from the results of compare.yaml, poor.yaml and harder.yaml.

Run: python docs/results/smollm2-stories/figures.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "rule-study"))

from page import insert, paired, read, shown  # noqa: E402

from sasr.compare.statistics import interval, mean  # noqa: E402


def table(path: Path) -> list[str]:
    """The methods of a comparison, best first."""
    values = read(path)
    lines = [
        "| method | pass@1 | greedy | `sasr` - it | SFT share | time in steps | rollout tokens |",
        "|---" * 7 + "|",
    ]
    methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
    for method in sorted(methods, key=lambda m: -m["metrics"]["pass@1"]["mean"]):
        name, each, metrics = method["method"], method["per_run"], method["metrics"]
        gains = paired(values["sasr"], values[name])
        gain = shown(mean(gains), interval(gains), "+") if name != "sasr" else ""
        lines.append(
            f"| `{name}` ({len(method['seeds'])}) | {shown(metrics['pass@1']['mean'], metrics['pass@1']['interval'])} "
            f"| {metrics['greedy']['mean']:.3f} | {gain} | {method['sft_share']:.2f} | {each['seconds'] / 60:.0f} min "
            f"| {each.get('rollout_tokens', 0) / 1000:.0f}k |"
        )
    return lines


if __name__ == "__main__":
    page = HERE.parents[1] / "evidence.md"
    insert(page, "smollm2-stories", table(HERE / "results.json"))
    for name in ("poor", "harder"):
        insert(page, f"smollm2-{name}", table(HERE / f"{name}.json"))
