"""Long series as few points that look the same. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

POINTS = 1000

Points = tuple[list[float], list[float]]


def thin(xs: Sequence[float], ys: Sequence[float], limit: int = POINTS) -> Points:
    """At most `limit` of the points, in order: the first, the last, and of each stretch between them the lowest and the
    highest. No peak is lost, and no value is made up."""
    if len(xs) <= limit:
        return list(xs), list(ys)
    stretches = max(1, (limit - 2) // 2)
    inner = len(xs) - 2
    kept = {0, len(xs) - 1}
    for i in range(stretches):
        stretch = range(1 + i * inner // stretches, 1 + (i + 1) * inner // stretches)
        kept |= {min(stretch, key=lambda j: ys[j]), max(stretch, key=lambda j: ys[j])}
    order = sorted(kept)
    return [xs[i] for i in order], [ys[i] for i in order]


def smooth(ys: Sequence[float], window: int) -> list[float]:
    """Running means over `window` points around each, fewer at the ends."""
    sums = [0.0]
    for y in ys:
        sums.append(sums[-1] + y)
    half, last = window // 2, len(ys)
    bounds = [(max(0, i - half), min(last, i + half + 1)) for i in range(last)]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in bounds]


def roof(values: Sequence[float]) -> float | None:
    """Where to cut off the few peaks of a series next to which the rest would be a flat line; `None` if there are none
    that high."""
    ordered = sorted(values)
    if not ordered:
        return None
    usual = ordered[int(0.98 * (len(ordered) - 1))]
    return 1.25 * usual if ordered[-1] > 2.5 * usual > 0 else None


def shares(steps: Sequence[int], kinds: Sequence[Mapping[str, int]], most: int = POINTS) -> list[list[float]]:
    """The kinds of steps as `[first step, last step, share of sft, share of both]`, what is left being grpo. Each entry
    stands by itself, the last step of some and how many of each kind they are; more than `most` become a quarter as
    many."""
    found = []
    columns = len(steps) if len(steps) <= most else most // 4
    for i in range(columns):
        part = slice(i * len(steps) // columns, (i + 1) * len(steps) // columns)
        group = kinds[part]
        total = max(1, sum(sum(counts.values()) for counts in group))
        sft, both = (sum(counts.get(name, 0) for counts in group) / total for name in ("sft", "both"))
        before = max(0, sum(group[0].values()) - 1)
        found.append([steps[part][0] - before, steps[part][-1], sft, both])
    return found
