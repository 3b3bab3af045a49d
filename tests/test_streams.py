"""Streams of rows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import RepeatSampler

from sasr.streams import RowStream


@given(size=st.integers(1, 40), takes=st.lists(st.integers(0, 30), max_size=8), seed=st.integers(0, 2**31))
def test_position_is_the_whole_state(size, takes, seed):
    whole = RowStream(size, seed).take(sum(takes))
    stream, parts = RowStream(size, seed), []
    for count in takes:
        resumed = RowStream(size, seed)
        resumed.position = stream.position
        part = stream.take(count)
        assert resumed.take(count) == part
        parts += part
    assert parts == whole


@given(size=st.integers(1, 40), passes=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_every_row_once_a_pass(size, passes, seed):
    drawn = RowStream(size, seed).take(size * passes)
    assert all(Counter(drawn[i * size : (i + 1) * size]) == Counter(range(size)) for i in range(passes))


@given(chunks=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_same_order_as_trl(chunks, batch, seed):
    size = chunks * batch  # TRL drops an incomplete batch
    sampler = RepeatSampler(range(size), mini_repeat_count=1, batch_size=batch, shuffle=True, seed=seed)
    expected = [*sampler, *sampler, *sampler]
    assert RowStream(size, seed).take(3 * size) == expected


def test_stream_can_go_back():
    stream = RowStream(7, seed=1)
    first = stream.take(30)
    stream.position = 0
    assert stream.take(30) == first
    stream.position = 11
    assert stream.take(19) == first[11:]


def test_no_shuffle_and_no_rows():
    assert RowStream(3, 0, shuffle=False).take(7) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="no rows"):
        RowStream(0, 0).take(1)
