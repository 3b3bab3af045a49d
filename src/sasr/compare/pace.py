"""How long a comparison will still take: by what runs alike took, and by how far those at work have come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

WARMUP = ""  # the method of a shared warm-up


class AtWork(NamedTuple):
    """A run that has been started: its method, the seconds so far, the share of its steps that they took it through
    (more than 0, 1 in its exam, `None` where that is not known), and whether those are all that it has."""

    method: str
    spent: float
    share: float | None
    fresh: bool = True


class Pace:
    """The seconds that runs took, by method."""

    def __init__(self) -> None:
        self._took: dict[str, list[float]] = defaultdict(list)

    def took(self, method: str, seconds: float) -> None:
        """A run of this method, `WARMUP` for a shared warm-up, is done."""
        self._took[method].append(seconds)

    def left(self, at_work: Iterable[AtWork], ahead: Iterable[str]) -> float | None:
        """Seconds of work that are left, for one run at a time; `None` as long as there is nothing to tell it from.

        Args:
            at_work (`Iterable[AtWork]`): The runs that have been started.
            ahead (`Iterable[str]`): The methods of those that have not, one for each run.
        """
        took = {method: list(seconds) for method, seconds in self._took.items()}
        seconds = 0.0
        unforeseen = [AtWork(method, 0.0, None) for method in ahead]
        for run in at_work:
            if run.share is None or run.share >= 1:  # of its exam nothing is known
                unforeseen.append(run)
                continue
            if run.fresh:  # of one that goes on only the rest is known
                took.setdefault(run.method, []).append(run.spent / run.share)
            seconds += run.spent / run.share - run.spent
        # A warm-up tells nothing about runs with rollouts.
        others = [each for method, group in took.items() if method != WARMUP for each in group]
        for run in unforeseen:
            alike = took.get(run.method) or others or ([run.spent] if run.share else None)
            if not alike:
                return None
            seconds += max(0.0, fmean(alike) - run.spent)
        return seconds
