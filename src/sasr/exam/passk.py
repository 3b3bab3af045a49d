"""pass@k without bias, and its interval over problems.

The estimator is that of Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374):
from `n` samples of one problem, `c` of them correct, pass@k is the chance that `k` samples drawn without replacement
hold a correct one. Computing `1 - (1 - c/n)^k` instead would be biased low.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sasr.errors import InputError


def pass_at_k(n: int, c: int | Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k of each problem, `1 - C(n-c, k) / C(n, k)`.

    Args:
        n (`int`): Samples drawn per problem.
        c (`int` or array of shape `(problems,)`): How many of them are correct.
        k (`int`): Samples that one attempt may use, `1 <= k <= n`.

    Returns:
        `np.ndarray`: pass@k in [0, 1], float64, of the shape of `c`.

    Raises:
        InputError: `k` is not in `1..n`, or a count is not in `0..n`.
    """
    if not 1 <= k <= n:
        raise InputError(f"pass@{k} needs at least {max(k, 1)} samples per problem and k >= 1, but n = {n}")
    correct = np.asarray(c)
    if correct.size and (correct.min() < 0 or correct.max() > n):
        raise InputError(f"a problem has a count of correct samples outside 0..{n}")
    # C(n-c, k) / C(n, k) as a product of k factors: the binomials themselves overflow. The factor is zero as soon as
    # n - c - i is, and the ones after it would be negative.
    i = np.arange(k)
    factors = np.clip(n - correct[..., None] - i, 0, None) / (n - i)
    return 1.0 - factors.prod(axis=-1)


def mean_pass_at_k(n: int, c: Sequence[int] | np.ndarray, k: int) -> float:
    """Mean of [`pass_at_k`] over problems; `c` has shape `(problems,)`."""
    if len(c) == 0:
        raise InputError("pass@k of no problems is not defined")
    return float(pass_at_k(n, c, k).mean())


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, resampling problems.

    Args:
        values (array of shape `(problems,)`): One number per problem, e.g. its pass@k. All samples of a problem are
            folded into that number first, since they are not independent of each other.
        level (`float`, *optional*, defaults to `0.95`): Coverage.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of a generator of its own; numpy's global state is not used.

    Returns:
        `tuple[float, float]`: Lower and upper bound.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise InputError(f"a bootstrap over problems needs one number per problem, got shape {values.shape}")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, 2**22 // values.size)  # bounds the index matrix to 32 MiB
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = values[rng.integers(values.size, size=(stop - start, values.size))].mean(axis=1)
    tail = (1.0 - level) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def proportion_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean of rates in [0, 1], one per problem: [`bootstrap_interval`], but where all are 0 or all are 1
    that of Clopper and Pearson, because resampling equal values gives an interval of no width, whatever their number.
    Not for differences: of those, all 0 is a result."""
    values = np.asarray(values, dtype=np.float64)
    bound = ((1.0 - level) / 2) ** (1 / values.size) if values.size else 0.0
    if values.ndim == 1 and values.size and (values == 0).all():
        return 0.0, 1.0 - bound
    if values.ndim == 1 and values.size and (values == 1).all():
        return bound, 1.0
    return bootstrap_interval(values, level=level, seed=seed)
