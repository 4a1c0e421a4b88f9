"""Packing: no token is lost, added or moved, but for the rest at the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.data.packing import pack_documents

documents = st.lists(st.lists(st.integers(1, 99), max_size=12), max_size=12)


@given(documents, st.integers(1, 9))
def test_rows_are_the_documents_with_separators_cut_at_equal_lengths(tokens: list[list[int]], length: int) -> None:
    stream = [token for document in tokens for token in (*document, 0)]
    packed = pack_documents(tokens, length, 0)
    assert packed.dtype == np.int32
    assert packed.shape == (len(stream) // length, length)
    assert packed.ravel().tolist() == stream[: len(stream) // length * length]


def test_arrays_are_taken_as_documents_too() -> None:
    packed = pack_documents([np.array([1, 2, 3]), np.array([4])], 2, 9)
    assert packed.tolist() == [[1, 2], [3, 9], [4, 9]]


def test_less_than_one_sequence_gives_none() -> None:
    assert pack_documents([[1, 2]], 8, 0).shape == (0, 8)
    assert pack_documents([], 8, 0).shape == (0, 8)


def test_a_length_of_zero_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="length is 0"):
        pack_documents([[1]], 0, 0)
