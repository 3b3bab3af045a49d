"""What the records of an exam say beyond accuracy: by difficulty, diversity of correct solutions, and right answers for
the wrong reason. Pure functions; the definitions are in docs/exam.md.

Diversity is that of *correct* sampled completions alone: wrong ones differ without end, and are no other solutions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sasr.exam.diversity import distinct_n, self_bleu
from sasr.exam.passk import bootstrap_interval, proportion_interval

Records = Sequence[Mapping[str, Any]]


def by_difficulty(records: Records) -> dict[str, dict[str, float | int | None]]:
    """For each `difficulty` in ascending order its `rows`, `greedy_accuracy` and `pass_at_1` (`None` without samples).
    Rows that have no difficulty are left out."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("difficulty") is not None:
            groups.setdefault(str(record["difficulty"]), []).append(record)
    return {
        key: {
            "rows": len(groups[key]),
            "greedy_accuracy": float(np.mean([record["greedy"]["correct"] for record in groups[key]])),
            "pass_at_1": _mean([sample["correct"] for record in groups[key] for sample in record["samples"]]),
        }
        for key in sorted(groups, key=ascending)
    }


def wrong_reason(records: Records) -> dict[str, float | int | None]:
    """Of the correct sampled completions: `checked`, how many the task can check; `rate`, the share of these with a
    step that does not hold; `None` if none can be checked."""
    valid = [sample.get("steps_valid") for record in records for sample in _correct(record)]
    known = [value for value in valid if value is not None]
    return {"checked": len(known), "rate": _mean([not value for value in known])}


def path_diversity(records: Records) -> dict[str, Any]:
    """Over problems with two or more correct samples whose path is known: `problems`, how many; `distinct`, mean number
    of different paths of a problem; `pairs_differ`, mean share of pairs of its samples that take different paths. And
    under `valid` the same of the samples that have no invalid step: a lucky guess is no other solution."""
    known = [[sample for sample in _correct(record) if sample.get("path") is not None] for record in records]
    valid = [[sample for sample in samples if sample.get("steps_valid") is not False] for samples in known]
    return {**_paths(known), "valid": _paths(valid)}


def _paths(groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float | int | None]:
    distinct, differ = [], []
    for samples in groups:
        n, paths = len(samples), Counter(sample["path"] for sample in samples)
        if n >= 2:
            distinct.append(len(paths))
            differ.append(1 - sum(count * (count - 1) for count in paths.values()) / (n * (n - 1)))
    return {"problems": len(distinct), "distinct": _mean(distinct), "pairs_differ": _mean(differ)}


def text_diversity(records: Records) -> dict[str, float | int | None]:
    """Over problems with two or more correct samples: `problems`, how many, and means over them of `distinct_1`,
    `distinct_2` and `self_bleu` of their correct samples."""
    groups = [[sample["text"] for sample in _correct(record)] for record in records]
    groups = [texts for texts in groups if len(texts) >= 2]
    return {
        "problems": len(groups),
        "distinct_1": _mean([distinct_n(texts, 1) for texts in groups]),
        "distinct_2": _mean([distinct_n(texts, 2) for texts in groups]),
        "self_bleu": _mean([self_bleu(texts) for texts in groups]),
    }


def lengths(records: Records) -> dict[str, float | None]:
    """Mean tokens of the `sampled` completions, and of the `correct` and the `wrong` ones among them."""
    samples = [sample for record in records for sample in record["samples"]]
    return {
        "sampled": _mean([sample["tokens"] for sample in samples]),
        "correct": _mean([sample["tokens"] for sample in samples if sample["correct"]]),
        "wrong": _mean([sample["tokens"] for sample in samples if not sample["correct"]]),
    }


def gain(pass_at: Mapping[int, float]) -> dict[str, float | int | None]:
    """pass@k - pass@1 for the largest `k` there is: what more samples add, 0 where all samples of a problem agree."""
    k = max(pass_at, default=1)
    return {"k": k, "gain": pass_at[k] - pass_at[1] if k > 1 and 1 in pass_at else None}


def robustness(records: Records) -> dict[str, dict[str, Any]]:
    """For each kind of perturbation, over the rows that it fits: `rows`, `pass_at_1` of the perturbed rows with its 95%
    bootstrap `interval`, `original_pass_at_1` of the rows they were made from, their `difference` (perturbed minus
    original, paired) with its `difference_interval`, and `ratio`, `None` where no original was solved."""
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(record["perturbation"] for record in records if "perturbation" in record):
        changed = [record for record in records if record.get("perturbation") == kind]
        now, before = (
            np.array([np.mean([sample["correct"] for sample in record["samples"]]) for record in group])
            for group in (changed, [records[record["original"]] for record in changed])
        )
        found[kind] = {
            "rows": len(changed),
            "pass_at_1": float(now.mean()),
            "interval": list(proportion_interval(now)),
            "original_pass_at_1": float(before.mean()),
            "difference": float((now - before).mean()),
            "difference_interval": list(bootstrap_interval(now - before)),
            "ratio": float(now.mean() / before.mean()) if before.any() else None,
        }
    return found


def _correct(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [sample for sample in record["samples"] if sample["correct"]]


def ascending(key: str) -> tuple[bool, float, str]:
    """Sorts numbers by value, and texts after them."""
    try:
        return False, float(key), key
    except ValueError:
        return True, 0.0, key


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None
