"""p as a share of the seconds where rollouts are dear: the table `dear` of docs/rule-study.md, from again/dear-*.json.

The runs, of which the log has the flags: sasr compare --config again.yaml --budget seconds=44 (told-again.yaml, 80)
--per_device_train_batch_size 256 --methods sasr-seconds sasr --baseline sasr --seeds 91-98, four tasks. Run: python
docs/results/rule-study/dear.py
"""

from __future__ import annotations

from again import SECONDS, ahead, chance, further, merged, reached
from page import HERE, insert


def table() -> list[str]:
    """Of each task, and of all, both methods' pass@1 with the steps that they got, and the difference."""
    found = {task: parts for task, parts in further("dear").items() if parts}
    lines = [f"| rollouts dear | `sasr` (steps) | `{SECONDS}` (steps) | the latter - `sasr` | p |", "|---" * 5 + "|"]
    for name, members in ({task: [task] for task in found} | {"**all four**": list(found)}).items():
        values = {task: merged(found[task]) for task in members}
        cells = reached(values, (part for task in members for part in found[task]), ("sasr", SECONDS))
        cells += [ahead(values, SECONDS, "sasr"), chance(values, SECONDS, "sasr")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    insert(HERE.parents[1] / "rule-study.md", "dear", table())
