"""An exponential moving average of the weights, kept in the pieces the optimizer keeps them in.

So it costs 4 bytes per trained parameter over all ranks together, and no communication until somebody wants it whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class WeightAverage:
    """`pieces` follow the fp32 masters: decay * piece + (1 - decay) * master after every update."""

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.pieces = [master.detach().clone() for master in masters]

    @torch.no_grad()
    def update(self, masters: Sequence[Tensor]) -> None:
        """Take in the weights after an update."""
        for piece, master in zip(self.pieces, masters, strict=True):
            piece.lerp_(master.detach(), 1.0 - self.decay)
