"""Rollout with a transformers model and the decode loop of `camel_ray.models.generation`: needs nothing but torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camel_ray.errors import WorkerLost
from camel_ray.models.generation import Generation, generate
from camel_ray.models.load import load_causal_lm, load_tokenizer
from camel_ray.ppo.batching import balance, decode_rows
from camel_ray.ppo.experience import Sequences
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.roles.forward import per_action
from camel_ray.ppo.settings import Place, RoleSettings

if TYPE_CHECKING:
    from camel_ray.ppo.roles.actor import Actor


class TransformersEngine:
    """Draws answers with a transformers model: the actor's own where it may, else a copy that `load_weights` keeps up
    to date. Implements `RolloutEngine`.
    """

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        assert settings.rollout is not None
        self.settings, self.device = settings.rollout, place.device
        self.micro_batch_tokens = settings.micro_batch_tokens
        tokenizer = load_tokenizer(settings.tokenizer)
        self.pad_id = tokenizer.pad_token_id
        actor: Actor | None = place.roles.get("actor")
        # Sharded parameters are of no use outside the engine.
        self.shares_actor = actor is not None and actor.engine.zero < 3
        self.model: Any
        if self.shares_actor and actor is not None:
            self.policy, self.model = actor.policy, actor.policy.model
        else:
            model = load_causal_lm(settings.model, tokenizer, seed=settings.seed)
            self.model = model.to(device=place.device, dtype=settings.dtype).eval()
            self.policy = PolicyModule(self.model)

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int
    ) -> list[Generation]:
        """See `RolloutEngine`. All randomness of an answer is one row of uniform numbers."""
        if not prompts:
            return []
        sampling = self.settings.sampling
        generator = torch.Generator()
        uniforms_BT = torch.stack([torch.rand(max_new_tokens, generator=generator.manual_seed(seed)) for seed in seeds])
        longest = max(map(len, prompts)) + max_new_tokens
        return generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_ids=self.settings.stop_ids,
            pad_id=self.pad_id,
            uniforms_BT=uniforms_BT,
            batch_size=decode_rows(self.micro_batch_tokens, longest),
        )

    def logprobs(self, sequences: Sequences) -> Tensor:
        """See `RolloutEngine`."""
        (micro_batches,) = balance(sequences.lengths_B.tolist(), ranks=1, budget=self.micro_batch_tokens)
        temperature = self.settings.sampling.temperature
        return per_action(
            lambda batch: self.policy(batch.input_BT, batch.index_A, batch.target_A, temperature, "none")[0],
            sequences,
            micro_batches,
            self.device,
        )

    def load_weights(self, buckets: Iterable[Mapping[str, Tensor]]) -> None:
        """See `RolloutEngine`."""
        missing: set[str] = set(self.model.state_dict()) - set(self.model.all_tied_weights_keys or ())
        for bucket in buckets:
            _, unexpected = self.model.load_state_dict(dict(bucket), strict=False)
            if unexpected:
                raise WorkerLost(_other_model(sorted(unexpected)[0]))
            missing -= bucket.keys()
        if missing:
            raise WorkerLost(_other_model(sorted(missing)[0]))

    def close(self) -> None:
        """Nothing to free: the process ends with its host."""


def _other_model(name: str) -> str:
    return f"role rollout got weights of another model (first difference: {name}); run again to continue"
