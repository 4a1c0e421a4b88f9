"""Share of answers equal to their reference, white space aside."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Share in [0, 1] of pairs with the same words; runs of white space count as one space, letter case counts.

    Raises ValueError if the lengths differ or there are no pairs.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses need as many references (got {len(references)}), at least one")
    return sum(h.split() == r.split() for h, r in zip(hypotheses, references, strict=True)) / len(hypotheses)
