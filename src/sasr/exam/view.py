"""The terminal view of `sasr exam`: a bar while it runs, the figures at the end; plain lines without a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from sasr.compare.view import columns
from sasr.counting import CountView


class ExamView(CountView):
    """Shows an exam, or another count of judged completions.

    Arguments are those of [`TerminalView`].
    """

    unit = "completions"

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of equal length, the first one the heading."""
        rows = [[self._clean(cell) for cell in row] for row in rows]  # difficulties are text of the data
        if not self._rich:
            for line in columns(rows):
                self._print(line)
            return
        table = Table(box=None, pad_edge=False, header_style="dim")
        for i, title in enumerate(rows[0]):
            table.add_column(Text(title), no_wrap=True, justify="right" if i else "left", style="" if i else "bold")
        for row in rows[1:]:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)


def figure_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The figures of an exam as (name, value, 95% interval); what was not measured is left out."""
    rows = [("measure", "value", "95% interval")]

    def add(name: str, value: Any, interval: Sequence[float] | None = None) -> None:
        if value is not None:
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            rows.append((name, shown, f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""))

    add("greedy accuracy", figures["greedy_accuracy"], figures["greedy_interval"])
    for k, value in figures["pass_at"].items():
        add(f"pass@{k}", value, figures["pass_at_intervals"][k])
    for level, group in figures["by_difficulty"].items():
        add(f"  pass@1 at difficulty {level} ({group['rows']} rows)", group["pass_at_1"])
    gain, paths, words, reason = (figures[key] for key in ("gain", "paths", "text", "wrong_reason"))
    add(f"pass@{gain['k']} - pass@1", gain["gain"])
    add(f"right for the wrong reason (of {reason['checked']} checked)", reason["rate"])
    for name, group in (("correct samples", paths), ("those with valid steps", paths["valid"])):
        add(f"distinct paths of {name} ({group['problems']} problems)", group["distinct"])
        add("  share of pairs that differ", group["pairs_differ"])
    for name, title in (("distinct_1", "distinct-1"), ("distinct_2", "distinct-2"), ("self_bleu", "self-BLEU")):
        add(f"{title} of correct samples ({words['problems']} problems)", words[name])
    for kind, group in figures["robustness"].items():
        add(f"pass@1 perturbed by {kind} ({group['rows']} rows)", group["pass_at_1"], group["interval"])
        add("  of the same rows as they were", group["original_pass_at_1"])
        add("  ratio", group["ratio"])
    add("entropy, nats a token", figures["entropy"])
    add("KL to the initial model, nats a token", figures["kl"])
    if nll := figures["nll"]:
        add(f"NLL of {nll['task']}, nats a token ({nll['rows']} rows)", nll["per_token"])
        add("  of the initial model", nll["initial_per_token"])
    add("tokens of a sampled completion", figures["lengths"]["sampled"])
    for name in ("format_rate", "truncation_rate", "verifier_failures"):
        add(name.replace("_", " "), figures[name])
    return rows
