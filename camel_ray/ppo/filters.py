"""Groups of answers that can teach something.

The estimators `rloo` and `group` compare answers to one prompt. Where all of them earned the same, every advantage is
0: the answers cost a forward and a backward pass and change nothing but the mean over the batch (DAPO, Yu et al.
2025, section 3.2). Pure, and about one number per answer: the caller draws other prompts in their place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def rows_with_signal(rewards: Sequence[float], groups: Sequence[int]) -> list[int]:
    """Rows of the answers whose group (`groups` names each one's) has rewards that are not all equal, in order.

    A group of one has no signal, and neither has one with a reward that is not a number.
    """
    of_group: dict[int, list[float]] = defaultdict(list)
    for reward, group in zip(rewards, groups, strict=True):
        of_group[group].append(reward)
    useful = {
        group
        for group, values in of_group.items()
        if all(value == value for value in values) and min(values) < max(values)
    }
    return [row for row, group in enumerate(groups) if group in useful]


def uniform_share(rewards: Sequence[float], groups: Sequence[int]) -> float:
    """Share of the groups that have no signal; 0 without groups."""
    useful = {groups[row] for row in rows_with_signal(rewards, groups)}
    return 1.0 - len(useful) / len(set(groups)) if groups else 0.0
