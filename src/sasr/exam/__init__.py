"""Examining a model on held-out rows."""

from sasr.exam.diversity import distinct_n, self_bleu
from sasr.exam.exam import ExamResult, examine, examine_rows, merge_records, summarise
from sasr.exam.passk import bootstrap_interval, mean_pass_at_k, pass_at_k

__all__ = [
    "ExamResult",
    "bootstrap_interval",
    "distinct_n",
    "examine",
    "examine_rows",
    "mean_pass_at_k",
    "merge_records",
    "pass_at_k",
    "self_bleu",
    "summarise",
]
