"""Which difficulty comes next (`curriculum`), in the questions of GRPO and the demonstrations of SFT after the warm-up.

- `none`: all rows alike, whatever their difficulty.
- `auto`: `adaptive` where a tenth of what GRPO asks is harder than all that SFT shows, else `none`.
- `easy_to_hard`: one more level is open in each equal part of the steps, the easiest first; all rows of these alike.
- `adaptive`: a level is drawn by its number of rows times s (1 - s), s its current success rate in rollouts: most where
  half of them succeed.

s (1 - s) is the variance of a reward of 0 or 1, without which a group of rollouts has nothing to teach (learnability,
arXiv 2502.12272). A fifth of the draws takes all rows alike, so that no level starves and its rate stays known.

No torch. The state is integers and sums; every draw is a function of (seed, position), so a run resumes bit for bit.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .streams import RowStream

if TYPE_CHECKING:
    from .config import SASRConfig
    from .schedules import Schedule

MODES = ("auto", "none", "easy_to_hard", "adaptive")
_UNIFORM = 0.2  # share of the draws that looks at no success rate
_MEMORY = 0.95  # what an earlier question of the same level counts against the last one
_SHOWN = 12  # levels
_MANY = 10  # one question in so many


def level_of(value: Any, where: str) -> float:
    """A row's `difficulty` as a number. Raises `InputError` naming `where` if there is none."""
    try:
        level = float(value)
    except (TypeError, ValueError):
        level = float("nan")
    if level != level:
        shown = "no difficulty" if value is None else f"the difficulty {value!r}, which is no number"
        raise InputError(f"{where} has {shown}: a curriculum needs one in every row, or set curriculum to none")
    return level


def harder_than_shown(asked: Iterable[float], shown: Iterable[float]) -> list[float]:
    """The levels of questions above those of all demonstrations, in ascending order; none without demonstrations, or if
    fewer than a tenth of the questions are such: with few demonstrations the rarest level is easily missed."""
    hardest, questions = max(shown, default=float("inf")), list(asked)
    harder = [level for level in questions if level > hardest]
    return sorted(set(harder)) if len(harder) * _MANY >= len(questions) else []


def chosen_mode(args: SASRConfig, schedule: Schedule, harder: Sequence[float]) -> str:
    """What `curriculum` comes to in a run by this schedule, whose questions of these levels are harder than every
    demonstration."""
    if args.curriculum != "auto":
        return args.curriculum
    # Rollouts are made ahead before the success that would choose their questions is known.
    studies_and_asks = all(args.kinds_of_steps(schedule))
    return "adaptive" if harder and studies_and_asks and not args.rollouts_ahead else "none"


class SuccessRates:
    """The success rate of each level in the last rollouts, its prior one half. Attributes: the state.

    Args:
        levels (`Sequence[float]`): The levels that there are.
    """

    def __init__(self, levels: Sequence[float]):
        self.sums = {level: (0.0, 0.0) for level in levels}  # of shares of correct rollouts, and of questions

    def observe(self, level: float, correct: float) -> None:
        """Take a question of that level, of whose rollouts the share `correct` was."""
        share, count = self.sums[level]
        self.sums[level] = (_MEMORY * share + correct, _MEMORY * count + 1)

    def rate(self, level: float) -> float:
        """In (0, 1)."""
        share, count = self.sums[level]
        return (share + 1) / (count + 2)


class Levels:
    """The level of each question, and how often its rollouts succeed lately. Without levels it notes nothing.

    Args:
        of_question (`Mapping[int, float]`): By row.
        others (`Iterable[float]`): Levels that only demonstrations have.
    """

    def __init__(self, of_question: Mapping[int, float], others: Iterable[float] = ()):
        self.of_question = of_question
        self.rates = SuccessRates(sorted({*of_question.values(), *others}))

    def observe(self, row: int, correct: float) -> None:
        """Take the share of correct rollouts of a question."""
        if row in self.of_question:
            self.rates.observe(self.of_question[row], correct)

    def success(self) -> dict[float, float]:
        """The success rate of each level, the easiest first; none if there are so many that nobody would look."""
        return {level: self.rates.rate(level) for level in self.rates.sums} if len(self.rates.sums) <= _SHOWN else {}

    def state_dict(self) -> list[tuple[float, float, float]]:
        """JSON-safe: (level, its two sums) of each."""
        return [(level, *sums) for level, sums in self.rates.sums.items()]

    def load_state_dict(self, state: Sequence[Sequence[float]]) -> None:
        """Take over what `state_dict` gave. A run that goes on from another's warm-up may know further levels."""
        self.rates.sums |= {level: (share, count) for level, share, count in state if level in self.rates.sums}


class LevelStream:
    """Yields indices, each of a level that is drawn by weights; those of a level come as from a [`RowStream`].

    Args:
        levels (`Mapping[int, float]`): The level of each index.
        seed (`int`): Of the draws and the permutations.
    """

    def __init__(self, levels: Mapping[int, float], seed: int):
        self.seed, self.position = seed, 0
        members: dict[float, list[int]] = {}
        for i, level in levels.items():
            members.setdefault(level, []).append(i)
        self.members = dict(sorted(members.items()))
        self.streams = {level: RowStream(len(indices), seed) for level, indices in self.members.items()}

    @property
    def sizes(self) -> dict[float, int]:
        """Indices of each level, the easiest first."""
        return {level: len(indices) for level, indices in self.members.items()}

    def take(self, count: int, weights: Mapping[float, float]) -> list[int]:
        """The next `count` indices, each of a level drawn with these weights."""
        levels, taken = list(weights), []
        bounds = list(itertools.accumulate(weights[level] for level in levels))
        for position in range(self.position, self.position + count):
            point = random.Random(f"{self.seed}:level:{position}").random() * bounds[-1]
            level = levels[min(bisect.bisect_right(bounds, point), len(levels) - 1)]
            taken.append(self.members[level][self.streams[level].take(1)[0]])
        self.position += count
        return taken

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"position": self.position, "of_levels": [stream.position for stream in self.streams.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.position = state["position"]
        for stream, position in zip(self.streams.values(), state["of_levels"], strict=True):
            stream.position = position


class Curriculum:
    """Draws questions and demonstrations by difficulty.

    Args:
        mode (`str`): `"easy_to_hard"` or `"adaptive"`.
        levels ([`Levels`]): Of the rows that GRPO may ask.
        demonstrations (`Mapping[int, float]`): The indices of the demonstrations, and the level of each.
        seed (`int`): Of the run.

    Raises:
        [`InputError`]: All rows have the same difficulty.
    """

    def __init__(self, mode: str, levels: Levels, demonstrations: Mapping[int, float], seed: int):
        self.mode, self.levels = mode, levels
        known = list(levels.rates.sums)
        if len(known) < 2:
            shown = f"all rows have difficulty {known[0]:g}" if known else "there are no rows"
            raise InputError(f"{shown}: a curriculum needs two levels or more, or set curriculum to none")
        # Seeds that differ from each other and from those of the streams without a curriculum.
        self.questions = LevelStream(levels.of_question, seed + 2)
        self.demonstrations = LevelStream(demonstrations, seed + 3)

    def take_questions(self, count: int, progress: float) -> list[int]:
        """Rows to ask; `progress` in [0, 1) is the part of the steps after the warm-up that is done."""
        return self.questions.take(count, self.weights(self.questions.sizes, progress))

    def take_demonstrations(self, count: int, progress: float) -> list[int]:
        """Indices of demonstrations, as above."""
        return self.demonstrations.take(count, self.weights(self.demonstrations.sizes, progress))

    def weights(self, sizes: Mapping[float, int], progress: float) -> dict[float, float]:
        """What each level of a stream is drawn with; they sum to 1."""
        if self.mode == "easy_to_hard":
            opened = int(progress * len(sizes)) + 1
            shares = {level: float(size) for level, size in itertools.islice(sizes.items(), opened)}
        else:
            shares = {level: size * self._learnability(level) for level, size in sizes.items()}
        total, rows = sum(shares.values()), sum(sizes.values())
        uniform = 0.0 if self.mode == "easy_to_hard" else _UNIFORM
        return {level: (1 - uniform) * share / total + uniform * sizes[level] / rows for level, share in shares.items()}

    def _learnability(self, level: float) -> float:
        rate = self.levels.rates.rate(level)
        return rate * (1 - rate)

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe. The success rates are not in it: they are the state of the levels."""
        return {"questions": self.questions.state_dict(), "demonstrations": self.demonstrations.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.questions.load_state_dict(state["questions"])
        self.demonstrations.load_state_dict(state["demonstrations"])
        if "rates" in state:  # of an earlier version, without the levels
            known = zip(self.levels.rates.sums, state["rates"], strict=True)
            self.levels.load_state_dict([(level, *sums) for level, sums in known])
