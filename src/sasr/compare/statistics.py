"""What a table of a few seeds can say: intervals over seeds and problems, a paired test, a correction for many tests.

The unit of replication is the seed: it decides the weights, the order of the data and the rollouts, and hundreds of
problems answered by one model are not hundreds of experiments. So seeds are resampled first and problems second, and
the test permutes seeds alone. Runs of several tasks with one seed share its coins, and often its questions: over tasks
too a seed counts once ([`pooled_interval`], [`pooled_differences`]).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from sasr.errors import InputError

RESAMPLES = 2000
EXACT_SEEDS, RANDOM_FLIPS = 16, 20_000
_BLOCK = 2**22  # numbers held at a time


def interval(
    values: Sequence[Sequence[float] | np.ndarray],
    *,
    crossed: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean over seeds, by a bootstrap over seeds and over the problems of each.

    Args:
        values (one array of shape `(problems,)` per seed): A number per problem, e.g. its pass@1, or the difference of
            two methods in it. With one seed only problems are resampled: the interval says nothing about other seeds.
        crossed (`bool`, *optional*, defaults to `False`): All seeds answered the same problems. A resample then draws
            one set of problems for all its seeds; drawing one for each would hide what the choice of problems did.
        level (`float`, *optional*, defaults to `0.95`): Coverage.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of a generator of its own; numpy's global state is not used.

    Returns:
        `tuple[float, float]`: Lower and upper bound.
    """
    arrays = _arrays(values)
    if crossed and len({array.size for array in arrays}) > 1:
        raise InputError("seeds that answered the same problems need one number for each of them")
    rng = np.random.default_rng(seed)
    count = len(arrays)
    times = rng.multinomial(count, [1 / count] * count, size=resamples)  # how often each seed is drawn
    means = np.zeros(resamples)
    if crossed:
        table = np.stack(arrays)
        for block in _blocks(resamples, table.shape[1]):
            drawn = times[block] @ table / count
            means[block] = np.take_along_axis(drawn, _indices(rng, *drawn.shape), axis=1).mean(axis=1)
    else:
        for index, array in enumerate(arrays):
            means += _sums(array, times[:, index], rng) / count
    return _percentiles(means, level)


def pooled_interval(
    seeds: Sequence[Sequence[Sequence[float] | np.ndarray]],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean over the runs of several tasks, by a bootstrap over seeds, each with all of its
    tasks, and over problems. It is about other seeds of these tasks; tasks are not resampled.

    Args:
        seeds (one sequence of arrays of shape `(problems,)` per seed): Of each task that was run with the seed a number
            per problem, as in [`interval`], which gives the same where each seed has one task. Tasks of a seed with
            equally many problems are taken to have the same ones, in the same order, and share what is drawn of them.
        level (`float`, *optional*, defaults to `0.95`): Coverage.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of a generator of its own.

    Returns:
        `tuple[float, float]`: Lower and upper bound.
    """
    clusters = _clusters(seeds)
    rng = np.random.default_rng(seed)
    count = len(clusters)
    times = rng.multinomial(count, [1 / count] * count, size=resamples)
    sums = np.zeros(resamples)
    for index, arrays in enumerate(clusters):
        alike: dict[int, np.ndarray] = {}
        for array in arrays:
            alike[array.size] = alike.get(array.size, 0.0) + array
        for array in alike.values():
            sums += _sums(array, times[:, index], rng)
    return _percentiles(sums / (times @ [len(arrays) for arrays in clusters]), level)


def pooled_differences(seeds: Sequence[Sequence[Sequence[float] | np.ndarray]]) -> list[float]:
    """One difference per seed, for [`sign_flip_p`], of runs of several tasks: the sum over the tasks of the seed, so
    that the test is of the mean over the runs also where some seeds have more tasks than others.

    Args:
        seeds (one sequence of arrays per seed): As in [`pooled_interval`].
    """
    return [sum(float(array.mean()) for array in arrays) for arrays in _clusters(seeds)]


def mean(values: Sequence[Sequence[float] | np.ndarray]) -> float:
    """Mean over seeds of the mean over problems."""
    return float(np.mean([array.mean() for array in _arrays(values)]))


def sign_flip_p(differences: Sequence[float], *, flips: int = RANDOM_FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of paired differences, one per seed, by permuting which of the two methods is which.

    If a method and the baseline were the same, each difference could as well have had the other sign. The p-value is
    the share of the 2^n assignments of signs whose mean is at least as far from zero as the observed one: exact up to
    16 seeds, from random assignments beyond. With n seeds it cannot be below 2 / 2^n.

    Args:
        differences (`Sequence[float]`): Method minus baseline, one per seed.
        flips (`int`, *optional*, defaults to `20000`): Random assignments where there are too many for all.
        seed (`int`, *optional*, defaults to `0`): Of the random assignments.
    """
    given = np.asarray(differences, dtype=np.float64)
    if given.ndim != 1 or given.size == 0 or not np.isfinite(given).all():
        raise InputError("a sign-flip test needs one finite difference per seed")
    observed = abs(given.sum())
    # Sums in another order differ in the last digits: what is equal by arithmetic counts as equal.
    bound = observed - 1e-12 * np.abs(given).sum()
    if given.size <= EXACT_SEEDS:
        signs = np.array(list(product((1.0, -1.0), repeat=given.size)))
        return float(np.mean(np.abs(signs @ given) >= bound))
    rng = np.random.default_rng(seed)
    extreme = 0
    for block in _blocks(flips, given.size):
        signs = rng.choice((1.0, -1.0), size=(block.stop - block.start, given.size))
        extreme += int(np.sum(np.abs(signs @ given) >= bound))
    return (extreme + 1) / (flips + 1)  # the observed assignment is one of them


def least_p(seeds: int) -> float:
    """The smallest p-value that `sign_flip_p` can give with so many seeds."""
    return min(1.0, 2.0 / 2**seeds) if seeds <= EXACT_SEEDS else 1 / (RANDOM_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given: each bounds the chance of any false alarm."""
    adjusted, highest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _arrays(values: Sequence[Sequence[float] | np.ndarray]) -> list[np.ndarray]:
    arrays = [np.asarray(array, dtype=np.float64) for array in values]
    if not arrays or any(array.ndim != 1 or array.size == 0 or not np.isfinite(array).all() for array in arrays):
        raise InputError("an interval needs at least one seed, and finite numbers for the problems of each")
    return arrays


def _clusters(seeds: Sequence[Sequence[Sequence[float] | np.ndarray]]) -> list[list[np.ndarray]]:
    if not seeds:
        raise InputError("an interval needs at least one seed, and finite numbers for the problems of each")
    return [_arrays(arrays) for arrays in seeds]


def _sums(array: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of each resample the sum of the means of as many draws of these problems as it has of their seed."""
    owners, sums = np.repeat(np.arange(len(times)), times), np.zeros(len(times))
    for block in _blocks(len(owners), array.size):
        own = array[_indices(rng, block.stop - block.start, array.size)].mean(axis=1)
        sums += np.bincount(owners[block], weights=own, minlength=len(times))
    return sums


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def _indices(rng: np.random.Generator, resamples: int, problems: int) -> np.ndarray:
    return rng.integers(problems, size=(resamples, problems))


def _blocks(total: int, width: int) -> list[slice]:
    rows = max(1, _BLOCK // width)
    return [slice(start, min(start + rows, total)) for start in range(0, total, rows)]
