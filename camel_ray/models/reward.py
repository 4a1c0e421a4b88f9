"""Scores of a reward model: one number per sequence, on the scale the model was normalised to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel


def score(model: PreTrainedModel, sequences: Sequence[Sequence[int]], *, pad_id: int, batch_tokens: int) -> list[float]:
    """Reward of each sequence (prompt and answer as token ids), in the order given.

    `model`: a sequence classifier with one output. The result is (raw - reward_mean) / reward_std with the two figures
    of the model's configuration (0 and 1 where it has none). `batch_tokens`: most tokens, padding included, in one
    forward pass; a longer sequence goes alone. Raises ValueError for an empty sequence.
    """
    if any(len(s) == 0 for s in sequences):
        raise ValueError("an empty sequence has no score")
    mean = float(getattr(model.config, "reward_mean", 0.0))
    std = float(getattr(model.config, "reward_std", 1.0))
    was_training = model.training
    model.eval()
    scores = [0.0] * len(sequences)
    try:
        with torch.inference_mode():
            for rows in _batches([len(s) for s in sequences], batch_tokens):
                length = max(len(sequences[i]) for i in rows)
                ids_BT = torch.full((len(rows), length), pad_id)
                mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
                for k, i in enumerate(rows):
                    ids_BT[k, : len(sequences[i])] = torch.tensor(sequences[i])
                    mask_BT[k, : len(sequences[i])] = 1
                logits_B1 = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device)).logits
                for i, raw in zip(rows, logits_B1.float().squeeze(-1).tolist(), strict=True):
                    scores[i] = (raw - mean) / std
    finally:
        model.train(was_training)
    return scores


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers in groups of similar length whose padded size stays within the budget."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a group is its longest, so the padded size is known without looking ahead.
        if group and (len(group) + 1) * lengths[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
