"""Cuts a stream of documents into sequences of equal length for pretraining.

Best-fit packing of conversations is TRL's; this is the simpler thing for plain text: no padding, no token lost but
the last few.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt


def pack_documents(token_lists: Sequence[Sequence[int]], length: int, separator_id: int) -> npt.NDArray[np.int32]:
    """Sequences of exactly `length` tokens, shape (n, length), from documents that each end with `separator_id`.

    Concatenating the rows gives the documents in order; up to length - 1 tokens at the end that fill no row are left
    out. n is 0 if the documents have fewer than `length` tokens together. Raises ValueError if `length` is not
    positive.
    """
    if length < 1:
        raise ValueError(f"length is {length}; it has to be at least 1")
    sizes = np.fromiter(map(len, token_lists), dtype=np.int64, count=len(token_lists))
    total = int(sizes.sum()) + len(token_lists)
    # Separators stand where documents end; all other places are filled with the documents' tokens in order.
    is_token = np.ones(total, dtype=bool)
    is_token[np.cumsum(sizes + 1) - 1] = False
    stream = np.full(total, separator_id, dtype=np.int32)
    stream[is_token] = np.fromiter(chain.from_iterable(token_lists), dtype=np.int32, count=total - len(token_lists))
    rows = total // length
    return stream[: rows * length].reshape(rows, length)
