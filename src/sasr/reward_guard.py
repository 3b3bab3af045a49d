"""What a reward function may do wrong, and what becomes of it: never a reward of zero.

A function that raises, takes longer than `reward_timeout`, or gives something else than one number for each completion
has failed for the whole batch; one that gives NaN or an infinity, for that completion. So has a task's verifier that
could not judge a completion. A completion for which any function failed gets no reward at all: TRL leaves it out of
its group, where a zero would count as a wrong answer. They are counted in `verifier_failures`.

`None` from a function stays what it is in TRL: the function has nothing to say of this completion.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl.trainer.utils import is_async_callable, remove_none_values

from . import thoughts
from .errors import InputError
from .limits import TooLate, within
from .tasks.text import one_line

CHOICES = ("count", "stop")
# Generations in a row without one reward: training goes nowhere, however often it is said.
_PATIENCE = 3
_FAILED = -math.inf  # survives being gathered from all ranks, and being a tensor, unlike a word


class RewardGuard:
    """Stands between a trainer and its reward functions.

    Args:
        trainer ([`SASRTrainer`]): Whose `reward_failures` and `reward_timeout` apply. Its `tell` is told each new
            reason of a failure, on the main process.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._reasons: list[str] = []  # of the generation under way, on this rank
        self._said: set[str] = set()
        self._fruitless = 0

    def wrap(self, functions: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """The functions as TRL is to call them; reward models (`torch.nn.Module`) stay as they are."""
        return [
            function if isinstance(function, torch.nn.Module) else self._guarded(function, name)
            for function, name in zip(functions, names, strict=True)
        ]

    def settle(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards of all ranks, shape (completions, reward functions), in which those of a completion are NaN if a
        function failed for it."""
        failed = torch.isinf(rewards).any(1, keepdim=True)
        return rewards.masked_fill(failed, math.nan)

    def count(self, rewards: torch.Tensor, further: bool = False) -> int:
        """Count the failures among rewards of all ranks as the functions gave them, for a new generation of rollouts,
        or for `further` ones of the same step. Raises `InputError`, on all ranks alike, where training is not to go
        on."""
        count, size = int(torch.isinf(rewards).any(1).sum()), len(rewards)
        reasons, self._reasons = list(dict.fromkeys(self._reasons)), []
        if count < size:
            self._fruitless = 0
        elif not further:
            self._fruitless += 1
        if not count:
            return 0
        why = "; ".join(reasons[:3]) or "on another process"
        if self.trainer.args.reward_failures == "stop":
            raise InputError(
                f"{count} of {size} completions could not be judged ({why}): correct the reward, or set "
                "reward_failures to count"
            )
        if self._fruitless >= _PATIENCE:
            raise InputError(
                f"no completion of {_PATIENCE} generations in a row could be judged ({why}): correct the reward"
            )
        for reason in reasons:
            if reason not in self._said and self.trainer.is_world_process_zero():
                self._said.add(reason)
                self.trainer.tell(f"a completion could not be judged and is left out: {reason}")
        return count

    def _guarded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        limit = self.trainer.args.reward_timeout

        @functools.wraps(function, updated=())
        def call(*, completions: list, **columns: Any) -> list[float | None]:
            with self._noting(name) as outcome, within(limit):
                if getattr(function, "reads_opened_thought", False):
                    completions = self._with_opened_thought(columns["prompts"], completions)
                given = function(completions=completions, **columns)
                outcome.values = self._numbers(function, given, len(completions), name)
            return outcome.values or [_FAILED] * len(completions)

        @functools.wraps(function, updated=())
        async def call_async(*, completions: list, **columns: Any) -> list[float | None]:
            with self._noting(name) as outcome:
                given = await asyncio.wait_for(function(completions=completions, **columns), limit or None)
                outcome.values = self._numbers(function, given, len(completions), name)
            return outcome.values or [_FAILED] * len(completions)

        return call_async if is_async_callable(function) else call

    def _with_opened_thought(self, prompts: list, completions: list) -> list:
        trainer = self.trainer
        parsers = (getattr(trainer._tokenizer, name, None) for name in ("response_template", "response_schema"))
        if any(parsers) and not isinstance(completions[0], str):
            return completions  # TRL has taken the thought out already, also one that was cut off
        # A dataset gives each message the keys of all.
        template, given = trainer.chat_template_kwargs, remove_none_values(list(prompts))
        return thoughts.with_opened_thought(given, completions, trainer._tokenizer, **template)

    def _noting(self, name: str) -> _Outcome:
        return _Outcome(name, self._reasons, self.trainer.args.reward_timeout)

    def _numbers(self, function: Any, given: Any, count: int, name: str) -> list[float | None]:
        if isinstance(given, str | bytes | dict):
            raise TypeError(f"it gave {one_line(repr(given), 60)}, not a list of numbers")
        values = list(given)
        if len(values) != count:
            raise ValueError(f"it gave {len(values)} rewards for {count} completions")
        judges = getattr(function, "judges", False)
        numbers: list[float | None] = []
        for value in values:
            number = None if value is None else _number(value)
            if number is None and not judges:
                numbers.append(None)
            elif number is None or not math.isfinite(number):
                if number is not None:
                    self._reasons.append(f"{name} gave {number}")
                numbers.append(_FAILED)
            else:
                numbers.append(number)
        self._reasons += [f"{name}: {reason}" for reason in getattr(function, "failures", ())]
        return numbers


class _Outcome:
    """Makes an error of a reward function a reason; what the user has to mend and Ctrl-C pass."""

    def __init__(self, name: str, reasons: list[str], limit: float):
        self.name, self.reasons, self.limit = name, reasons, limit
        self.values: list[float | None] | None = None

    def __enter__(self) -> _Outcome:
        self.begun = time.monotonic()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if error is None or isinstance(error, InputError):
            return False
        late = isinstance(error, asyncio.TimeoutError) and 0 < self.limit <= time.monotonic() - self.begun
        if late or isinstance(error, TooLate):  # a function's own time limits raise the same error
            self.reasons.append(f"{self.name} took longer than reward_timeout, {self.limit:g} s")
        elif isinstance(error, Exception):
            self.reasons.append(f"{self.name} raised {type(error).__name__}: {one_line(error, 150)}{_place(traceback)}")
        else:
            return False
        return True


def no_reward(completions: list, **columns: Any) -> list[float]:
    """Stands in for a reward where none is needed."""
    return [0.0] * len(completions)


def _place(traceback: Any) -> str:
    """The line of the user's code."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    file = traceback.tb_frame.f_code.co_filename
    return "" if file == __file__ else f" ({file}:{traceback.tb_lineno})"


def _number(value: Any) -> float:
    """Numbers of Python, numpy and torch, but not text that looks like one. Raises `TypeError`."""
    if isinstance(value, str | bytes):
        raise TypeError(f"it gave {one_line(repr(value), 60)}, which is no number")
    return float(value)
