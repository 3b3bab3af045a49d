"""The report without a run: thinning, smoothing, shown texts, which completions it shows."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_data import HOSTILE, completion
from sasr.report import completions, series
from sasr.report.text import embed, tidy, visible

floats = st.floats(-1e6, 1e6)


# ---- series ----


@given(st.lists(floats, max_size=200), st.integers(4, 60))
def test_thin_keeps_ends_and_peaks_and_makes_nothing_up(ys, limit):
    xs = [3.0 * i for i in range(len(ys))]
    some_xs, some_ys = series.thin(xs, ys, limit)
    assert len(some_xs) == len(some_ys) <= max(limit, 0)
    assert some_xs == sorted(set(some_xs)) and set(zip(some_xs, some_ys, strict=True)) <= set(zip(xs, ys, strict=True))
    if ys:
        assert (min(some_ys), max(some_ys)) == (min(ys), max(ys))
        assert (some_xs[0], some_xs[-1]) == (xs[0], xs[-1])


@given(st.lists(floats, min_size=1, max_size=60), st.integers(1, 70))
def test_smooth_is_the_mean_of_the_window(ys, window):
    for i, value in enumerate(series.smooth(ys, window)):
        near = ys[max(0, i - window // 2) : i + window // 2 + 1]
        assert value == pytest.approx(sum(near) / len(near), abs=1e-6)


@given(st.lists(st.sampled_from(["sft", "grpo", "both"]), max_size=120), st.integers(4, 40))
def test_shares_count_every_step_once(kinds, most):
    found = series.shares(range(1, len(kinds) + 1), [{kind: 1} for kind in kinds], most)
    assert len(found) <= most
    assert [column[0] for column in found[1:]] == [column[1] + 1 for column in found[:-1]]
    for name, at in (("sft", 2), ("both", 3)):
        assert sum((c[1] - c[0] + 1) * c[at] for c in found) == pytest.approx(kinds.count(name))


def test_roof_cuts_peaks_alone():
    assert series.roof([]) is None and series.roof([0.0, 5.0]) is None
    assert series.roof([1.0] * 99 + [50.0]) == 1.25
    assert series.roof([float(i) for i in range(100)]) is None


# ---- text ----


@given(st.text(st.characters(), max_size=80) | st.just(HOSTILE), st.integers(1, 60))
def test_nothing_in_a_shown_text_is_invisible(text, limit):
    shown = visible(text, limit)
    shown.encode()
    for sign in shown:
        assert sign in "\n\t" or sign.isprintable() or unicodedata.category(sign) == "Zs"
    if text.isprintable() and len(text) <= limit:
        assert shown == text


def test_visible_names_the_sign_and_what_was_cut():
    assert visible("a\u202eb\x00\r\n\t\U000e0041") == "a\\u202eb\\u0000\n\t\\U000e0041"
    assert visible("x" * 1_000_000, 10) == "x" * 10 + " \u2026 [999,990 more characters]"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_embedded_json_cannot_end_its_element(value):
    text = embed({"it": value, "hostile": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == tidy({"it": value, "hostile": HOSTILE})


# ---- completions ----


@given(st.integers(0, 5000), st.integers(1, 8), st.floats(0, 1e5))
def test_chosen_rows_are_few_and_fit_the_budget(rows, exams, length):
    chosen = completions.choose(rows, exams, length)
    assert len(set(chosen)) == len(chosen) == min(rows, len(chosen)) <= completions.QUESTIONS
    assert all(0 <= row < rows for row in chosen)
    if len(chosen) > completions.FEWEST:
        assert len(chosen) * exams * 5 * min(length, completions.TEXT) <= completions.BUDGET


def test_few_exams_keep_the_first_and_the_last():
    labels = [f"step-{i}" for i in range(30)]
    chosen = completions.few(labels)
    assert len(chosen) == 8 and (chosen[0], chosen[-1]) == (labels[0], labels[-1])
    assert completions.few(labels[:3]) == labels[:3]


@pytest.mark.parametrize(
    ("given", "verdict", "why"),
    [
        (completion("#### 7", True), "right", "right"),
        (completion("#### 7", True, steps_valid=False), "reason", "right answer, but a step does not hold"),
        (completion("1 = 1 . #### 8"), "wrong", "wrong answer: got 8, expected 7"),
        (completion("#### 8\nThe answer is 7"), "wrong", "wrong answer: got 8, expected 7"),
        (completion("what", well_formed=False), "format", "bad format"),
        (completion("1", truncated=True, well_formed=False), "cut", "cut at the limit of 12 tokens"),
        (completion("1", failure="time-out"), "failed", "verifier failed: time-out"),
    ],
)
def test_why_a_completion_counts_as_it_does(given, verdict, why):
    assert completions.judged(given, {"answer": "7"}, "stories") == (verdict, why)


def test_an_answer_is_only_named_where_the_text_tells_it():
    assert completions.judged(completion("a knave"), {"answer": "b"}, "my.py:Task")[1] == "wrong answer: expected b"
