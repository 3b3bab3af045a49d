"""What perturbation does on the published files and on stories: how many rows it applies to, and whether the solver of
Knights and Knaves agrees with the published answers, demonstrations and formulas.

Run: python benchmarks/perturbations.py FOLDER, with gsm8k/, math/, kk/ and ood/ in it (JSONL in the published schemas).
"""

from __future__ import annotations

import glob
import json
import os
import random
import sys

from sasr import get_task
from sasr.tasks import KnightsKnavesTask, Row, StoriesTask, Task, load_rows
from sasr.tasks.perturb import kk_language
from sasr.tasks.perturb.kk_reasoning import reasoning

FILES = {"gsm8k": "gsm8k/*.jsonl", "math": "math/*.jsonl", "kk": "kk/*.jsonl"}
FILES |= {"svamp": "ood/svamp.jsonl", "multiarith": "ood/multiarith.jsonl"}
SWAPPED = {"knight": "knave", "knave": "knight"}


def corrupted(conclusion: str, rng: random.Random) -> str:
    """A published conclusion made wrong: a role flipped, a person left out, named otherwise, or judged twice."""
    lines = conclusion.splitlines()
    i = rng.randrange(len(lines))
    role = lines[i].rpartition(" ")[2]
    flipped = lines[i].removesuffix(role) + SWAPPED[role]
    kept = [*lines[:i], *lines[i + 1 :]]
    other = lines[i].replace(") ", ") Not ", 1)
    return "\n".join(rng.choice([[*lines[:i], flipped, *lines[i + 1 :]], kept, [*kept, other], [*lines, flipped]]))


def agreement(path: str, rng: random.Random) -> dict[str, int]:
    """How many of a file's records agree with what the solver makes of their text."""
    task = KnightsKnavesTask()
    counts = dict.fromkeys(("records", "read", "formulas", "answer", "demonstration", "accepted", "rejected"), 0)
    with open(path, encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            puzzle = kk_language.read(record["quiz"])
            row, conclusion = task.to_row(record), record["solution_text_format"]
            counts["records"] += 1
            counts["accepted"] += task.check(f"CONCLUSION:\n{conclusion}", row).correct
            counts["rejected"] += not task.check(f"CONCLUSION:\n{corrupted(conclusion, rng)}", row).correct
            if puzzle is None:
                continue
            statements = kk_language.read_statements(record["statements"], len(record["names"]))
            counts["read"] += 1
            counts["formulas"] += puzzle.formulas == statements
            counts["answer"] += kk_language.solve(puzzle.formulas) == [tuple(record["solution"])]
            counts["demonstration"] += reasoning(puzzle) == record["cot_repeat_steps"]
    return counts


def main(folder: str) -> None:
    rng = random.Random(0)
    for path in sorted(glob.glob(os.path.join(folder, FILES["kk"]))):
        counts = agreement(path, rng)
        print(f"{os.path.relpath(path, folder):22}", "  ".join(f"{name} {n}" for name, n in counts.items()))
    for name, pattern in FILES.items():
        task = get_task(name)
        for path in sorted(glob.glob(os.path.join(folder, pattern))):
            report(os.path.relpath(path, folder), task, load_rows(task, path))
    stories = StoriesTask()
    report("stories held out", stories, stories.generate(1000, 0, "test"))
    report("stories training", stories, stories.generate(1000, 0, "train"))


def report(what: str, task: Task, rows: list[Row]) -> None:
    applied = {kind: sum(task.perturb(row, kind, 0) is not None for row in rows) for kind in task.perturbations()}
    print(f"{what:22} rows {len(rows)}  ", "  ".join(f"{kind} {count}" for kind, count in applied.items()))


if __name__ == "__main__":
    main(sys.argv[1])
