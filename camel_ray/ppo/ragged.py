"""Sums, means and scans over sequences of different lengths that lie one after the other in a flat tensor.

Everything in `ppo` keeps sequences flat: values (A,) and lengths (B,) with sum A. Nothing here loops over tokens or
sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_lengths(lengths_B: Tensor, **values_A: Tensor) -> None:
    """Raise ValueError if the lengths do not add up to the size of each of the flat tensors."""
    total = int(lengths_B.sum())
    for name, value_A in values_A.items():
        if value_A.shape[0] != total:
            raise ValueError(f"{name} has {value_A.shape[0]} tokens, but the lengths add up to {total}")


def sequence_index(lengths_B: Tensor) -> Tensor:
    """The sequence every flat token belongs to, (A,)."""
    return torch.repeat_interleave(torch.arange(lengths_B.shape[0], device=lengths_B.device), lengths_B)


def last_index(lengths_B: Tensor) -> Tensor:
    """Flat index of the last token of each sequence, (B,); meaningless where a sequence is empty."""
    return lengths_B.cumsum(0) - 1


def sequence_sum(values_A: Tensor, lengths_B: Tensor) -> Tensor:
    """Sum of each sequence, (B,); 0 for an empty one."""
    total_B = torch.zeros(lengths_B.shape[0], dtype=values_A.dtype, device=values_A.device)
    return total_B.index_add_(0, sequence_index(lengths_B), values_A)


def sequence_mean(values_A: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean of each sequence, (B,); 0 for an empty one."""
    return sequence_sum(values_A, lengths_B) / lengths_B.clamp(min=1).to(values_A.dtype)


def token_mean(values_A: Tensor) -> Tensor:
    """Mean over all tokens; 0 where there are none."""
    return values_A.sum() / max(values_A.shape[0], 1)


def sequence_mean_token_mean(values_A: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean over the sequences that have tokens of each one's own token mean; 0 where there are none."""
    filled = (lengths_B > 0).sum().clamp(min=1)
    return sequence_mean(values_A, lengths_B).sum() / filled


def next_value(values_A: Tensor, lengths_B: Tensor) -> Tensor:
    """The value of the following token of the same sequence, 0 after the last one, (A,)."""
    shifted_A = torch.zeros_like(values_A)
    shifted_A[:-1] = values_A[1:]
    shifted_A[last_index(lengths_B)[lengths_B > 0]] = 0.0
    return shifted_A


def discounted_sum(values_A: Tensor, lengths_B: Tensor, discount: float) -> Tensor:
    """S_j = v_j + discount * S_{j+1} within every sequence, (A,).

    A scan by doubling (Hillis and Steele 1986): after step k each token holds the sum of its next 2^k terms. That is
    log2(longest) passes over the flat tensor, without padding and without powers of 1 / discount, which would overflow.
    """
    if values_A.shape[0] == 0:
        return values_A.clone()
    longest = int(lengths_B.max())
    end_A = torch.repeat_interleave(lengths_B.cumsum(0), lengths_B)
    remaining_A = end_A - torch.arange(values_A.shape[0], device=values_A.device)
    sum_A = values_A.clone()
    step = 1
    while step < longest:
        inside_A = remaining_A[:-step] > step
        sum_A[:-step] += torch.where(inside_A, sum_A[step:] * discount**step, 0.0)
        step *= 2
    return sum_A


def gather_index(lengths_B: Tensor, rows_R: Tensor) -> Tensor:
    """Flat indices of all tokens of the sequences `rows_R`, in that order: `values_A[gather_index(...)]` reorders
    sequences.
    """
    chosen_R = lengths_B[rows_R]
    start_R = (lengths_B.cumsum(0) - lengths_B)[rows_R]
    own_start_R = chosen_R.cumsum(0) - chosen_R
    offset = torch.arange(int(chosen_R.sum()), device=lengths_B.device)
    return torch.repeat_interleave(start_R - own_start_R, chosen_R) + offset
