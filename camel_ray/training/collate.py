"""Rows of token ids to tensors, for language modelling on plain text.

`StreamRows` is how any trainer reads its rows: keys of the endless stream (see batches.py) instead of row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

IGNORED = -100
"""Label of a token that the loss does not count."""
VALIDATION_PASS = -1
"""Pass number of validation rows: what is drawn at random for them is the same every time."""


class StreamRows(Dataset[dict[str, Any]]):
    """Rows by key `pass x rows + row`. Each row also carries `stream`: its pass and number, for what is drawn at
    random.
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
        columns = self.rows[[key % len(self.rows) for key in keys]]
        return [
            {**{name: values[i] for name, values in columns.items()}, "stream": divmod(key, len(self.rows))}
            for i, key in enumerate(keys)
        ]


@dataclass(frozen=True)
class CausalCollator:
    """`input_ids`, `labels` and, where there is padding, `attention_mask`, all (B, T), padded on the right."""

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows with `input_ids`; every token is a label."""
        ids_BT, mask_BT = pad_right([row["input_ids"] for row in rows], self.pad_id)
        batch = {"input_ids": ids_BT, "labels": ids_BT.masked_fill(mask_BT == 0, IGNORED)}
        # Without a mask attention takes its fast causal path.
        return batch if bool(mask_BT.all()) else {**batch, "attention_mask": mask_BT}


@dataclass(frozen=True)
class MaskedCollator:
    """Hides `share` of the tokens (Devlin et al. 2019): 80 % become the mask token, 10 % a random one, 10 % stay.

    Special tokens are never hidden. What is hidden depends on the seed, the row and the pass only, so that a resumed
    run hides the same tokens. At least one token of a row is hidden.
    """

    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    share: float
    seed: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows with `input_ids` and `stream`."""
        hidden = [self._hide(np.asarray(row["input_ids"]), *row["stream"]) for row in rows]
        ids_BT, mask_BT = pad_right([ids for ids, _ in hidden], self.pad_id)
        labels_BT, _ = pad_right([labels for _, labels in hidden], IGNORED)
        return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}

    def _hide(self, ids_T: np.ndarray, epoch: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng([self.seed, epoch - VALIDATION_PASS, row])
        candidates = np.flatnonzero(~np.isin(ids_T, self.special_ids))
        chosen = candidates[random.random(len(candidates)) < self.share]
        if len(chosen) == 0 and len(candidates):
            chosen = random.choice(candidates, size=1)
        labels_T = np.full_like(ids_T, IGNORED)
        labels_T[chosen] = ids_T[chosen]
        kind = random.random(len(chosen))
        ids_T = ids_T.copy()
        ids_T[chosen[kind < 0.8]] = self.mask_id
        replaced = chosen[(kind >= 0.8) & (kind < 0.9)]
        ids_T[replaced] = random.integers(0, self.vocab_size, size=len(replaced))
        return ids_T, labels_T


def pad_right(rows: Sequence[Sequence[int] | np.ndarray], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded with `value` to (B, T), and the mask (B, T) that is 1 where a row has a token."""
    length = max(len(row) for row in rows)
    padded_BT = torch.full((len(rows), length), value, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        padded_BT[i, : len(row)] = torch.as_tensor(row)
        mask_BT[i, : len(row)] = 1
    return padded_BT, mask_BT
