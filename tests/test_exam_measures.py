"""Measures of an exam, against values worked out by hand and against properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sasr.exam import measures
from sasr.exam.diversity import distinct_n, ngrams, self_bleu, words_of
from sasr.exam.exam import summarise
from sasr.exam.measures import by_difficulty, gain, lengths, path_diversity, text_diversity, wrong_reason


def completion(text="x", correct=True, path=None, steps_valid=None, tokens=1):
    verdict = {"correct": correct, "well_formed": True, "truncated": False, "failure": None}
    return {"text": text, "tokens": tokens, **verdict, "path": path, "steps_valid": steps_valid}


def record(*samples, difficulty=None, greedy=True):
    answer = {"prompt": "p", "answer": "a", "difficulty": difficulty}
    return {**answer, "greedy": completion(correct=greedy), "samples": list(samples)}


def test_words():
    assert words_of("Tom's 1,200.5 + 3=\n4.") == ["Tom", "'", "s", "1,200.5", "+", "3", "=", "4", "."]
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")] and ngrams(["a"], 2) == []


def test_distinct_n_by_hand():
    texts = ["a b a", "a b c"]
    assert distinct_n(texts, 1) == 3 / 6
    assert distinct_n(texts, 2) == 3 / 4  # ab, ba, ab, bc
    assert distinct_n(["a"], 2) is None and distinct_n([], 1) is None


def test_self_bleu_by_hand():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert self_bleu(["a b", "c d"]) == 0
    assert self_bleu(["a b"]) is None and self_bleu([]) is None
    # "a b c d" against "a b c e": 3/4, (2+1)/(3+1), (1+1)/(2+1), (0+1)/(1+1), equal lengths; the other is alike.
    assert self_bleu(["a b c d", "a b c e"]) == pytest.approx((3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # "a b" has both words of "a b c d" in order: precisions 1, brevity exp(1 - 4/2).
    # "a b c d" against "a b": 2/4, (1+1)/(3+1), (0+1)/(2+1), (0+1)/(1+1), no penalty.
    other = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b", "a b c d"]) == pytest.approx((math.exp(-1) + other) / 2)
    # Clipping: "a a a a" may match "a" twice in "a a b b" and once in "a c c c", so 2/4, then (1+1)/(3+1), 1/3, 1/2;
    # "a a b b": 2/4, (1+1)/(3+1), 1/3, 1/2; "a c c c": 1/4, 1/4, 1/3, 1/2.
    texts = ["a a a a", "a a b b", "a c c c"]
    first, third = (1 / 2 * 1 / 2 * 1 / 3 * 1 / 2) ** 0.25, (1 / 4 * 1 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert self_bleu(texts) == pytest.approx((first + first + third) / 3)


texts = st.lists(st.text(alphabet="ab 1.", max_size=12), min_size=2, max_size=5)


@given(texts, st.randoms(use_true_random=False))
def test_text_measures_are_in_range_and_without_order(texts, rng):
    shuffled = list(texts)
    rng.shuffle(shuffled)
    bleu = self_bleu(texts)
    assert 0 <= bleu <= 1 + 1e-12 and self_bleu(shuffled) == pytest.approx(bleu)
    for n in (1, 2):
        share = distinct_n(texts, n)
        assert share == distinct_n(shuffled, n)
        assert share is None or 0 < share <= 1
    doubled = texts + texts
    assert all(not words_of(text) for text in texts) or self_bleu(doubled) >= bleu - 1e-12


def test_measures_of_paths_look_at_correct_samples_only():
    same = record(*[completion(path="p")] * 3, completion(path="q", correct=False))
    mixed = record(completion(path="p"), completion(path="p"), completion(path="q"), completion())
    single = record(completion(path="p"), completion(path="q", correct=False))
    measured = path_diversity([same, mixed, single])
    every = {"problems": 2, "distinct": 1.5, "pairs_differ": pytest.approx((0 + 2 / 3) / 2)}
    assert measured == {**every, "valid": every}, "what cannot be checked is not invalid"
    none = {"problems": 0, "distinct": None, "pairs_differ": None}
    assert path_diversity([single]) == {**none, "valid": none}
    lucky = record(*[completion(path="p", steps_valid=True)] * 2, completion(path="q", steps_valid=False))
    measured = path_diversity([lucky])
    assert measured["distinct"] == 2 and measured["valid"] == {"problems": 1, "distinct": 1, "pairs_differ": 0}


@given(st.lists(st.lists(st.sampled_from("pqr"), max_size=6), min_size=1, max_size=4))
def test_pairs_differ_is_the_share_of_pairs(problems):
    shares = []
    for paths in problems:
        pairs = [(a, b) for i, a in enumerate(paths) for b in paths[i + 1 :]]
        shares += [sum(a != b for a, b in pairs) / len(pairs)] if pairs else []
    measured = path_diversity([record(*(completion(path=path) for path in paths)) for paths in problems])
    assert measured["problems"] == len(shares)
    assert measured["pairs_differ"] == (pytest.approx(sum(shares) / len(shares)) if shares else None)


def test_wrong_reason_counts_what_can_be_checked():
    good, bad, unknown = (completion(steps_valid=valid) for valid in (True, False, None))
    wrong = completion(correct=False, steps_valid=False)
    assert wrong_reason([record(good, bad), record(good, unknown, wrong)]) == {
        "checked": 3,
        "rate": pytest.approx(1 / 3),
    }
    assert wrong_reason([record(unknown)]) == {"checked": 0, "rate": None}


def test_by_difficulty_in_order():
    right, wrong = completion(), completion(correct=False)
    rows = [record(right, wrong, difficulty=10), record(right, right, difficulty=2, greedy=False)]
    rows += [record(wrong, wrong, difficulty=2), record(right, right), record(right, right, difficulty="hard")]
    found = by_difficulty(rows)
    assert list(found) == ["2", "10", "hard"]
    assert found["2"] == {"rows": 2, "greedy_accuracy": 0.5, "pass_at_1": 0.5}
    assert found["10"] == {"rows": 1, "greedy_accuracy": 1.0, "pass_at_1": 0.5}
    assert by_difficulty([record(right)]) == {}


def test_lengths_gain_and_text():
    rows = [record(completion("a b", tokens=4), completion("a b", tokens=2)), record(completion("c", False, tokens=9))]
    assert lengths(rows) == {"sampled": 5, "correct": 3, "wrong": 9}
    assert text_diversity(rows) == {"problems": 1, "distinct_1": 0.5, "distinct_2": 0.5, "self_bleu": pytest.approx(1)}
    assert gain({1: 0.25, 2: 0.5, 4: 0.75}) == {"k": 4, "gain": 0.5}
    assert gain({1: 0.25}) == {"k": 1, "gain": None} and gain({})["gain"] is None


def test_they_are_part_of_the_result():
    rows = [record(completion(path="p", steps_valid=True), completion(path="q", steps_valid=False), difficulty=3)]
    figures = summarise(rows, 2).to_dict()
    assert figures["by_difficulty"]["3"]["rows"] == 1
    assert figures["paths"]["distinct"] == 2 and figures["wrong_reason"] == {"checked": 2, "rate": 0.5}
    bare = [{key: value for key, value in rows[0].items() if key != "difficulty"}]
    for sample in bare[0]["samples"]:
        del sample["path"], sample["steps_valid"]
    assert summarise(bare, 2).paths["problems"] == 0, "records of older exams"


def test_robustness_by_hand():
    """Two of three rows fit the perturbation; they had 1/2 and 1, and have 0 and 1/2."""

    def record(hits, **more):
        return {"samples": [{"correct": hit} for hit in hits], **more}

    records = [record([1, 0]), record([0, 0]), record([1, 1])]
    records += [
        record([0, 0], perturbation="names", original=0),
        record([1, 0], perturbation="names", original=2),
        record([1, 1], perturbation="order", original=1),
    ]
    found = measures.robustness(records)
    assert list(found) == ["names", "order"]
    names = found["names"]
    assert (names["rows"], names["pass_at_1"], names["original_pass_at_1"]) == (2, 0.25, 0.75)
    assert names["difference"] == -0.5 and names["ratio"] == pytest.approx(1 / 3)
    assert names["difference_interval"] == [-0.5, -0.5]
    assert names["interval"] == [0, 0.5], "of the perturbed rows"
    order = found["order"]
    assert order["ratio"] is None, "no original was solved"
    assert order["interval"] == [pytest.approx(0.025), 1]
    assert measures.robustness(records[:3]) == {}
