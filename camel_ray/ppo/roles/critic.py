"""The value model that is trained, for GAE."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from camel_ray.models.load import load_tokenizer
from camel_ray.models.value import load_value_model
from camel_ray.ppo.batching import MicroBatch
from camel_ray.ppo.engine import TrainingEngine, loading
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.losses import token_weights, value_loss
from camel_ray.ppo.roles.forward import on, padded, per_action
from camel_ray.ppo.settings import Batch, CriticSettings, Place, RoleSettings
from camel_ray.ppo.shares import Share


class Critic:
    """The value model that is trained, for GAE."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        training = settings.training
        assert training is not None
        tokenizer = load_tokenizer(settings.tokenizer)
        with loading(settings.model, training, bf16=settings.bf16, world=place.world):
            model = load_value_model(settings.model, tokenizer, seed=settings.seed)
        model = model.to(device=place.device, dtype=settings.dtype)
        self.engine = TrainingEngine(model, training, bf16=settings.bf16, world=place.world)
        self.world = place.world

    def values(self, experience: Experience, share: Share) -> tuple[None, Tensor]:
        """Values before each of this rank's action tokens; (A,) is kept for the buffer."""
        sequences = experience.sequences.select(torch.tensor(share.rows, dtype=torch.long))
        return None, per_action(
            lambda batch: self.engine(batch.input_BT, batch.index_A), sequences, share.micro_batches, self.engine.device
        )

    def update(self, experience: Experience, share: Share, settings: CriticSettings, batch: Batch) -> dict[str, float]:
        """One optimizer step; see `Actor.update`."""
        own = experience.select(torch.tensor(share.rows, dtype=torch.long))
        weight_A = token_weights(
            own.action_lengths_B, settings.loss_aggregation, tokens=batch.tokens, sequences=batch.sequences
        )
        sums = {"value_loss": 0.0, "value_clip_fraction": 0.0}

        def loss_of(rows: MicroBatch) -> Tensor:
            inputs = padded(own.sequences, rows, self.engine.device)
            values_A: Tensor = self.engine(inputs.input_BT, inputs.index_A)
            if not rows:
                return values_A.sum() * 0.0
            part = own.with_(weight_A=weight_A).select(torch.tensor(rows))
            loss_A, clipped_A = value_loss(
                values_A, on(part.values_A, values_A), on(part.returns_A, values_A), clip=settings.clip
            )
            loss = (loss_A * on(part.weight_A, values_A)).sum()
            sums["value_loss"] += float(loss.detach())
            sums["value_clip_fraction"] += float(clipped_A.sum()) / batch.tokens
            return loss

        result = self.engine.update([partial(loss_of, rows) for rows in share.micro_batches])
        return {
            **sums,
            "value_grad_norm": result.grad_norm / self.world,
            "value_skipped": float(result.skipped) / self.world,
        }

    def save(self, directory: str) -> None:
        """Write this rank's part of the training state (collective)."""
        self.engine.save(Path(directory))

    def load(self, directory: str) -> None:
        """Read back what `save` wrote (collective)."""
        self.engine.load(Path(directory))
