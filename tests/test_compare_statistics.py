"""The numbers of a comparison, against examples worked by hand and against what must hold for any data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasr import InputError
from sasr.compare import statistics
from sasr.compare.statistics import (
    holm,
    interval,
    least_p,
    mean,
    pooled_differences,
    pooled_interval,
    sign_flip_p,
)

finite = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 3))


def test_sign_flips_by_hand():
    # of the 8 assignments only +++ and --- are as far from zero as 3 + 2 + 1
    assert sign_flip_p([0.3, 0.2, 0.1]) == 2 / 8
    # sums of +-3 +-2 +-1 that are at least |3 + 2 - 1| = 4 in size: 6, 4, -4, -6
    assert sign_flip_p([0.3, 0.2, -0.1]) == 4 / 8
    assert sign_flip_p([0.5]) == 1.0
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1] * 8) == least_p(8) == 2 / 256
    # equal but for rounding: 0.1 + 0.2 - 0.3 is not 0 in floating point
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1.0


@given(st.lists(finite, min_size=1, max_size=7))
def test_sign_flips_against_their_definition(differences):
    observed = abs(sum(differences))
    flips = [sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in _signs(len(differences))]
    expected = np.mean([abs(flip) >= observed - 1e-9 for flip in flips])
    assert sign_flip_p(differences) == pytest.approx(expected)
    assert sign_flip_p([-d for d in differences]) == pytest.approx(expected)
    assert least_p(len(differences)) <= sign_flip_p(differences) <= 1


def _signs(count: int):
    return itertools.product((1, -1), repeat=count)


def test_random_flips_agree_with_all(monkeypatch):
    differences = [0.05, 0.02, -0.01, 0.04, 0.03, -0.02, 0.01, 0.02]
    exact = sign_flip_p(differences)
    monkeypatch.setattr(statistics, "EXACT_SEEDS", 4)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p([1.0] * 40) == 1 / (statistics.RANDOM_FLIPS + 1) == least_p(40)


def test_sign_flips_of_noise_reject_as_often_as_they_say():
    rng = np.random.default_rng(0)
    p_values = np.array([sign_flip_p(rng.normal(size=6)) for _ in range(1000)])
    for level in (1 / 32, 1 / 8, 1 / 2):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * np.sqrt(level / 1000))


def test_holm_by_hand():
    # sorted 0.01 x 3, 0.02 x 2, 0.03 x 1, never falling: 0.03, 0.04, 0.04
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for one, other in itertools.combinations(range(len(p_values)), 2):
        if p_values[one] < p_values[other]:
            assert adjusted[one] <= adjusted[other]
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4), st.booleans())
def test_interval_holds_the_mean_and_stays_within_the_data(values, crossed):
    low, high = interval(values, crossed=crossed, resamples=200)
    everything = [number for of_seed in values for number in of_seed]
    assert min(everything) - 1e-9 <= low <= high <= max(everything) + 1e-9
    assert interval(values, crossed=crossed, resamples=200) == (low, high), "its own seeded generator"


def test_interval_of_what_does_not_vary_is_a_point():
    for crossed in (False, True):
        assert interval([[0.25] * 5] * 3, crossed=crossed) == pytest.approx((0.25, 0.25))
    # one seed always right, the other never: what varies is which seeds are drawn
    assert interval([[1.0] * 9, [0.0] * 9]) == pytest.approx((0.0, 1.0))
    # the same, but for crossed problems: the choice of seeds is all that matters there too
    assert interval([[1.0] * 9, [0.0] * 9], crossed=True) == pytest.approx((0.0, 1.0))


def test_interval_has_the_width_of_both_sources_of_chance():
    rng = np.random.default_rng(1)
    seeds, problems, of_seeds, of_problems = 12, 60, 0.05, 0.4
    nested = [rng.normal(rng.normal(0, of_seeds), of_problems, problems) for _ in range(seeds)]
    expected = 2 * 1.96 * np.sqrt(np.var([v.mean() for v in nested]) / seeds + of_problems**2 / (seeds * problems))
    low, high = interval(nested)
    assert high - low == pytest.approx(expected, rel=0.15)
    # The same hard and easy problems for every seed: more seeds do not average their choice away.
    shared = rng.normal(0, of_problems, problems)
    crossed = [shared + rng.normal(0, of_seeds) for _ in range(seeds)]
    low, high = interval(crossed, crossed=True)
    expected = 2 * 1.96 * np.sqrt(np.var([v.mean() for v in crossed]) / seeds + np.var(shared) / problems)
    assert high - low == pytest.approx(expected, rel=0.1)
    assert np.diff(interval(crossed)) < 0.6 * (high - low), "drawing problems anew for each seed would hide it"


def test_intervals_cover_as_often_as_they_say():
    """Worst case kept honest: with five seeds a percentile bootstrap is too narrow, but not by much."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        low, high = interval([rng.normal(rng.normal(0, 1), 1, 20) for _ in range(5)], resamples=300)
        hits += low <= 0 <= high
    assert 0.75 <= hits / 200 <= 0.98


def test_tasks_that_repeat_each_other_count_once():
    rng = np.random.default_rng(3)
    gains = [rng.normal(rng.normal(0.1, 0.2), 0.4, 30) for _ in range(6)]
    once = [[gain] for gain in gains]
    assert pooled_interval(once) == pytest.approx(interval(gains))
    assert pooled_differences(once) == pytest.approx([gain.mean() for gain in gains])
    for copies in (2, 8):
        repeated = [[gain] * copies for gain in gains]
        assert pooled_interval(repeated) == pytest.approx(interval(gains))
        assert sign_flip_p(pooled_differences(repeated)) == sign_flip_p([gain.mean() for gain in gains])
        # counted by pairs it would look like more than there is
        low, high = interval(gains * copies)
        assert high - low < 0.8 * np.diff(interval(gains))


def test_tasks_with_noise_of_their_own_do_tell_more():
    rng = np.random.default_rng(4)
    of_seeds, of_runs, seeds, tasks, problems = 0.05, 0.2, 12, 4, 40
    coins = rng.normal(0, of_seeds, seeds)
    gains = [[rng.normal(coin + rng.normal(0, of_runs), 0.1, problems) for _ in range(tasks)] for coin in coins]
    means = [np.mean([task.mean() for task in of_seed]) for of_seed in gains]
    expected = 2 * 1.96 * np.sqrt(np.var(means) / seeds + 0.1**2 / (seeds * tasks * problems))
    low, high = pooled_interval(gains)
    assert high - low == pytest.approx(expected, rel=0.15)
    assert high - low < np.diff(interval([of_seed[0] for of_seed in gains]))


def test_seeds_with_unequal_numbers_of_tasks():
    gains = [[[0.3, 0.3], [0.5]], [[0.1, 0.1, 0.1]], [[-0.2]]]
    assert pooled_differences(gains) == pytest.approx([0.8, 0.1, -0.2])
    assert sign_flip_p(pooled_differences(gains)) == 6 / 8  # all but +8 -1 -2 and its mirror are as far as 8 + 1 - 2
    # Resamples of one seed alone give the mean over its runs, not half of what it has in sum.
    assert pooled_interval(gains, level=1.0) == pytest.approx((-0.2, 0.4))
    for nothing in ([], [[]], [[[]]], [[[0.1], [float("nan")]]]):
        with pytest.raises(InputError, match="at least one seed"):
            pooled_interval(nothing)
        with pytest.raises(InputError, match="at least one seed"):
            pooled_differences(nothing)


def test_mean_is_over_seeds_not_over_problems():
    assert mean([[1.0], [0.0, 0.0, 0.0]]) == 0.5


def test_large_data_in_blocks():
    values = [np.linspace(0, 1, 3000) for _ in range(2)]
    for crossed in (False, True):
        low, high = interval(values, crossed=crossed, resamples=300)
        assert 0.45 < low < 0.5 < high < 0.55


@pytest.mark.parametrize("values", [[], [[]], [[0.1], [float("nan")]], [[[0.1]]]])
def test_nothing_to_compute(values):
    with pytest.raises(InputError, match="at least one seed"):
        interval(values)
    with pytest.raises(InputError, match="same problems"):
        interval([[0.1], [0.1, 0.2]], crossed=True)
    with pytest.raises(InputError, match="one finite difference per seed"):
        sign_flip_p([])
