"""What rollout asks of an engine that draws answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from camel_ray.models.generation import Generation
from camel_ray.ppo.experience import Sequences


class RolloutEngine(Protocol):
    """Draws answers with some weights. Built from `RoleSettings` and `Place`; lives in a role host."""

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int
    ) -> list[Generation]:
        """One answer to each prompt (token ids). `seeds`: one number per prompt that fixes all randomness of its
        answer, whatever else is in the batch.
        """
        ...

    def logprobs(self, sequences: Sequences) -> Tensor:
        """Log-probabilities (float32, CPU) of the action tokens at the sampling temperature, (A,), under the weights
        the engine has now.
        """
        ...

    def load_weights(self, buckets: Iterable[Mapping[str, Tensor]]) -> None:
        """Take over weights, in parts by parameter name of the causal model. Raises WorkerLost if they are not the
        weights of this model.
        """
        ...

    def close(self) -> None:
        """Free devices and processes of its own."""
        ...
