"""Examining a model on held-out rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sasr.exam.diversity import distinct_n, self_bleu
    from sasr.exam.exam import ExamResult, examine, examine_rows, merge_records, summarise
    from sasr.exam.passk import bootstrap_interval, mean_pass_at_k, pass_at_k, proportion_interval

# Imported on first use: figures of exams are read without torch, which takes seconds to import.
_WHERE = {
    "ExamResult": "exam",
    "bootstrap_interval": "passk",
    "distinct_n": "diversity",
    "examine": "exam",
    "examine_rows": "exam",
    "mean_pass_at_k": "passk",
    "merge_records": "exam",
    "pass_at_k": "passk",
    "proportion_interval": "passk",
    "self_bleu": "diversity",
    "summarise": "exam",
}

__all__ = [
    "ExamResult",
    "bootstrap_interval",
    "distinct_n",
    "examine",
    "examine_rows",
    "mean_pass_at_k",
    "merge_records",
    "pass_at_k",
    "proportion_interval",
    "self_bleu",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sasr.exam' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"sasr.exam.{_WHERE[name]}"), name)
