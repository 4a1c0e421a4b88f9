"""Text whose language-model loss is mixed into the policy's, so that it does not forget how to write (InstructGPT's
PPO-ptx).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from camel_ray.errors import DataError
from camel_ray.ppo.experience import Sequences


@dataclass(frozen=True)
class PtxText:
    """Tokenised texts, of which every update sees a seeded choice."""

    texts: tuple[tuple[int, ...], ...]
    batch_size: int

    def batch(self, seed: int) -> Sequences:
        """`batch_size` texts (all, if there are fewer); every token but the first of each is predicted."""
        chosen = random.Random(seed).sample(self.texts, min(self.batch_size, len(self.texts)))
        return Sequences(
            tokens_N=torch.tensor([token for text in chosen for token in text], dtype=torch.long),
            lengths_B=torch.tensor([len(text) for text in chosen], dtype=torch.long),
            action_N=torch.tensor([k > 0 for text in chosen for k in range(len(text))], dtype=torch.bool),
        )


def encode_texts(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, batch_size: int, updates: int
) -> PtxText:
    """Tokenise as many texts as the stage can use, each cut at `max_length` tokens.

    Raises DataError if no text has two tokens.
    """
    wanted = batch_size * updates
    kept: list[tuple[int, ...]] = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length)["input_ids"]
        if len(ids) > 1:
            kept.append(tuple(ids))
        if len(kept) == wanted:
            break
    if not kept:
        raise DataError("ppo.ptx.data has no text of two tokens or more; use other data, or leave ptx out")
    return PtxText(tuple(kept), batch_size)
