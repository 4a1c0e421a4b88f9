"""The frozen first policy, which the KL penalty pulls towards."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from camel_ray.models.adapters import adapter_off
from camel_ray.models.load import load_causal_lm, load_tokenizer
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.roles.forward import per_action
from camel_ray.ppo.settings import Place, RoleSettings
from camel_ray.ppo.shares import Share


class Reference:
    """The frozen first policy: a model of its own, or the actor with its adapters off where both live together."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        self.device = place.device
        self.actor = place.roles.get("actor") if settings.lora is not None else None
        if self.actor is None:
            tokenizer = load_tokenizer(settings.tokenizer)
            model = load_causal_lm(settings.model, tokenizer, seed=settings.seed)
            self.policy = PolicyModule(model.to(device=place.device, dtype=settings.dtype)).eval()

    def logprobs(self, experience: Experience, share: Share, *, temperature: float) -> tuple[None, Tensor]:
        """Log-probabilities of this rank's action tokens under the first policy; (A,) is kept for the buffer."""
        forward = self.policy if self.actor is None else self.actor.engine
        sequences = experience.sequences.select(torch.tensor(share.rows, dtype=torch.long))
        with nullcontext() if self.actor is None else adapter_off(self.actor.policy.model):
            return None, per_action(
                lambda batch: forward(batch.input_BT, batch.index_A, batch.target_A, temperature, "none")[0],
                sequences,
                share.micro_batches,
                self.device,
            )
