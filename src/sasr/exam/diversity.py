"""How different texts are from each other: distinct n-grams and self-BLEU. Pure text, no tokenizer.

Words are numbers (`1,200.5` is one), words and single signs, so that figures of models with different tokenizers can be
compared. All measures are of the completions of one problem; a mean over problems is the caller's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+|[^\s]")
_ORDERS = (1, 2, 3, 4)


def words_of(text: str) -> list[str]:
    """The words, numbers and signs of a text."""
    return _WORD.findall(text)


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` words, with repetitions; none if there are fewer words."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams over all n-grams of the texts together (Li et al. 2016, arXiv 1510.03055): in (0, 1], 1 if none
    occurs twice. `None` if no text has `n` words. Falls as texts are added: compare only equal numbers of texts."""
    grams = [gram for text in texts for gram in ngrams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU-4 of each text with the others as references (Zhu et al. 2018, arXiv 1802.01886): in [0, 1], 1 if all
    are the same, low if they share little. `None` for fewer than two texts.

    BLEU is that of Papineni et al. 2002 with the closest reference length; orders above 1 count one more match and one
    more n-gram (Lin and Och 2004), since short texts may have no 4-gram in common.
    """
    if len(texts) < 2:
        return None
    split = [words_of(text) for text in texts]
    counts = [[Counter(ngrams(words, n)) for words in split] for n in _ORDERS]
    most = [_two_most(of_order) for of_order in counts]
    scores = []
    for i, words in enumerate(split):
        precisions = []
        for n, of_order, best in zip(_ORDERS, counts, most, strict=True):
            matches = total = 0
            for gram, count in of_order[i].items():
                first, holder, second = best[gram]
                matches += min(count, second if holder == i else first)
                total += count
            extra = 1 if n > 1 else 0
            precisions.append((matches + extra) / (total + extra) if total + extra else 0.0)
        closest = min((len(other) for j, other in enumerate(split) if j != i), key=lambda m: (abs(m - len(words)), m))
        scores.append(_brevity(len(words), closest) * _geometric_mean(precisions))
    return sum(scores) / len(scores)


def _two_most(counters: Sequence[Counter]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Of each n-gram its highest count in one text, that text, and the highest count in another text: the clip of
    every text against all others without comparing each pair."""
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, counter in enumerate(counters):
        for gram, count in counter.items():
            first, holder, second = best.get(gram, (0, -1, 0))
            best[gram] = (count, i, first) if count > first else (first, holder, max(second, count))
    return best


def _brevity(length: int, reference: int) -> float:
    return 1.0 if length >= reference else math.exp(1 - reference / length) if length else 0.0


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if all(values) else 0.0
