"""Checkpoints by the clock, between those of `save_steps`: they bound in minutes what a power cut, a kill or a failure
of one of several processes can take, however long a step is. Only the newest is kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from accelerate.utils import broadcast_object_list

from .checkpoints import all_checkpoints, read_state
from .errors import InputError

_SHARE = 1 / 20


class TimedSaves:
    """When the next one is due.

    Args:
        minutes (`float`): Since the last checkpoint, of either kind, or the beginning; 0 for never.
        processes (`int`): How many there are. The clock of the first one counts.
        clock (`Callable`): Gives seconds.
    """

    def __init__(self, minutes: float, processes: int = 1, clock: Callable[[], float] = time.monotonic):
        self.minutes, self.processes, self.clock = minutes, processes, clock
        self._last, self._cost, self._step = clock(), 0.0, -1

    def due(self, step: int) -> bool:
        """Asked after each step and at the end of an epoch, by all processes. Where writing takes long it is due
        later, so that no more than a twentieth of the time goes into it."""
        if not self.minutes or step == self._step:
            return False
        wait = max(60 * self.minutes, self._cost * (1 / _SHARE - 1))
        due = self.clock() - self._last >= wait
        return broadcast_object_list([due])[0] if self.processes > 1 else due

    def saved(self, step: int, begun: float) -> None:
        """A checkpoint has been written, of this step, since `begun` on the clock."""
        self._last, self._step = self.clock(), step
        self._cost = self._last - begun


def drop_timed(run_dir: Path, newest: Path) -> None:
    """Delete the checkpoints of this kind but the newest, which replaces them."""
    for checkpoint in all_checkpoints(run_dir):
        with suppress(InputError):  # of one that is damaged, which says nothing
            if checkpoint != newest and read_state(checkpoint).get("timed"):
                shutil.rmtree(checkpoint, ignore_errors=True)
