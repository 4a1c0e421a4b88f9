"""From one score per answer to one reward per action token."""

from __future__ import annotations

import torch
from torch import Tensor

from camel_ray.ppo.experience import Sequences
from camel_ray.ppo.ragged import check_lengths, last_index, sequence_index


def adjust_scores(scores_B: Tensor, finished_B: Tensor, *, clip: float | None, missing_eos_penalty: float) -> Tensor:
    """Limit scores to [-clip, clip], then subtract the penalty from answers that did not end by themselves, (B,).

    In this order the penalty is never clipped away.
    """
    if clip is not None:
        scores_B = scores_B.clamp(-clip, clip)
    return scores_B - missing_eos_penalty * (~finished_B).to(scores_B.dtype)


def overlong_penalties(lengths_B: Tensor, *, longest: int, buffer: int, penalty: float) -> Tensor:
    """What answers of `lengths_B` tokens pay for their length, float32 (B,): 0 up to `longest` - `buffer`, from there
    in a straight line to `penalty` at `longest` (DAPO, Yu et al. 2025, eq. 13). A `buffer` of 0 charges nothing.
    """
    if buffer == 0:
        return torch.zeros(lengths_B.shape[0], device=lengths_B.device)
    return penalty * ((lengths_B - (longest - buffer)).float() / buffer).clamp(0.0, 1.0)


def turn_lengths(sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Tokens of every turn the policy wrote and the sequence it belongs to, both (turns,), in order of the tokens.

    A turn is a run of action tokens: a single-turn answer is one, a conversation has several with observations
    between them.
    """
    action_N = sequences.action_N
    # The first token of a sequence is never an action, so a run cannot reach over from the sequence before.
    begins_N = action_N.clone()
    begins_N[1:] &= ~action_N[:-1]
    turn_A = (begins_N.cumsum(0) - 1)[action_N]
    row_R = sequence_index(sequences.lengths_B)[begins_N]
    return torch.bincount(turn_A, minlength=row_R.shape[0]), row_R


def longest_turns(sequences: Sequences) -> Tensor:
    """Tokens of the longest turn of each sequence, (B,); 0 without one."""
    length_R, row_R = turn_lengths(sequences)
    longest_B = torch.zeros(sequences.lengths_B.shape[0], dtype=length_R.dtype, device=length_R.device)
    return longest_B.scatter_reduce_(0, row_R, length_R, "amax")


def place_rewards(kl_A: Tensor, scores_B: Tensor, lengths_B: Tensor, *, kl_coefficient: float) -> Tensor:
    """-kl_coefficient * kl on every action token, plus the score on the last one of each answer, (A,).

    (Ziegler et al. 2019, eq. 2.) An answer without tokens gets no reward.
    """
    check_lengths(lengths_B, kl_A=kl_A)
    rewards_A = -kl_coefficient * kl_A
    filled_B = lengths_B > 0
    rewards_A[last_index(lengths_B)[filled_B]] += scores_B[filled_B].to(rewards_A.dtype)
    return rewards_A
