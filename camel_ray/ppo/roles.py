"""The five roles. Each is a small class that lives in a `RoleHost` and works on the share of the experience its rank
was given.

A share comes with the rank's micro-batches, cut by the driver (see `batching.py`). All ranks of a role get equally
many, some perhaps empty; an empty one runs on a dummy token, because a forward pass of a sharded model is a
collective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camel_ray.models.load import load_causal_lm, load_reward_model, load_tokenizer, save_model
from camel_ray.models.reward import score
from camel_ray.models.value import load_value_model
from camel_ray.ppo.batching import MicroBatch
from camel_ray.ppo.experience import Experience, PaddedBatch, Sequences
from camel_ray.ppo.kl import estimate_kl
from camel_ray.ppo.losses import policy_loss, value_loss
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.ragged import gather_index
from camel_ray.ppo.rollout.transformers import TransformersRollout
from camel_ray.ppo.settings import Place, PolicySettings, RoleSettings

_DUMMY = PaddedBatch(
    torch.zeros((1, 2), dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
)


def _padded(sequences: Sequences, rows: MicroBatch, device: torch.device) -> PaddedBatch:
    return (sequences.padded(rows) if rows else _DUMMY).to(device)


def _in_order(parts: Sequence[Tensor], micro_batches: Sequence[MicroBatch], lengths_B: Tensor) -> Tensor:
    """Action tokens of micro-batches, put into the order of the sequences, on the CPU."""
    filled = [(part, rows) for part, rows in zip(parts, micro_batches, strict=True) if rows]
    if not filled:
        return torch.zeros(0)
    order_B = torch.tensor([row for _, rows in filled for row in rows])
    lengths_O = lengths_B[order_B]
    flat_A = torch.cat([part for part, _ in filled]).float().cpu()
    return flat_A[gather_index(lengths_O, order_B.argsort())]


class Actor:
    """The policy that is trained."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        assert settings.optimizer is not None
        self.tokenizer = load_tokenizer(settings.tokenizer)
        model = load_causal_lm(settings.model, self.tokenizer, seed=settings.seed)
        self.policy = PolicyModule(model.to(device=place.device, dtype=settings.dtype))
        self.engine = _engine(self.policy, settings, place)
        self.version = 0

    def logprobs(self, experience: Experience, micro_batches: Sequence[MicroBatch], *, temperature: float) -> Tensor:
        """Log-probabilities of this rank's action tokens under the present policy, (A,)."""
        return _logprobs(self.engine, experience, micro_batches, temperature, self.engine.device)

    def update(
        self,
        experience: Experience,
        micro_batches: Sequence[MicroBatch],
        settings: PolicySettings,
        ptx: Sequences | None = None,
        ptx_batches: Sequence[MicroBatch] = (),
        *,
        tokens: int,
        kl_coefficient: float,
        ptx_tokens: int = 1,
    ) -> dict[str, float]:
        """One optimizer step; `tokens` action tokens lie in the batch over all ranks, and each counts the same.

        `kl_coefficient` weighs the KL estimate in the loss (0 where it is in the reward). Returns this rank's share
        of token means: the driver adds up the ranks.
        """
        sums = dict.fromkeys(("policy_loss", "clip_fraction", "entropy", "approximate_kl", "kl_loss", "ptx_loss"), 0.0)
        assert experience.logprobs_A is not None and experience.advantages_A is not None

        def loss_of(rows: MicroBatch) -> Tensor:
            batch = _padded(experience.sequences, rows, self.engine.device)
            logprobs_A: Tensor
            entropy_A: Tensor
            logprobs_A, entropy_A = self.engine(
                batch.input_BT,
                batch.index_A,
                batch.target_A,
                settings.temperature,
                "gradient" if settings.entropy_coefficient > 0 else "value",
            )
            if not rows:
                return logprobs_A.sum() * 0.0
            part = experience.select(torch.tensor(rows))
            old_A, advantages_A = (_on(x, logprobs_A) for x in (part.logprobs_A, part.advantages_A))
            result = policy_loss(
                logprobs_A,
                old_A,
                advantages_A,
                clip_low=settings.clip.low,
                clip_high=settings.clip.high,
                dual_clip=settings.clip.dual,
            )
            loss: Tensor = result.loss_A.sum() - settings.entropy_coefficient * entropy_A.sum()
            if kl_coefficient > 0:
                kl_A = estimate_kl(logprobs_A, _on(part.reference_logprobs_A, logprobs_A), settings.kl_estimator)
                loss = loss + kl_coefficient * kl_A.sum()
                sums["kl_loss"] += float(kl_A.sum()) / tokens
            sums["policy_loss"] += float(result.loss_A.sum()) / tokens
            sums["clip_fraction"] += float(result.clip_active_A.sum()) / tokens
            sums["entropy"] += float(entropy_A.sum()) / tokens
            sums["approximate_kl"] += float((old_A - logprobs_A).sum()) / tokens
            return loss / tokens

        def ptx_loss_of(rows: MicroBatch) -> Tensor:
            assert ptx is not None
            batch = _padded(ptx, rows, self.engine.device)
            logprobs_A, _ = self.engine(batch.input_BT, batch.index_A, batch.target_A, 1.0, "none")
            loss: Tensor = -logprobs_A.sum() / ptx_tokens * (1.0 if rows else 0.0)
            sums["ptx_loss"] += float(loss)
            return settings.ptx_coefficient * loss

        steps = [lambda rows=rows: loss_of(rows) for rows in micro_batches]
        steps += [lambda rows=rows: ptx_loss_of(rows) for rows in ptx_batches]
        learning_rate = self.engine.learning_rate
        norm = self.engine.update(steps)
        return {**sums, "grad_norm": norm / self.engine.world, "learning_rate": learning_rate / self.engine.world}

    def set_version(self, version: int) -> None:
        """Number the present weights."""
        self.version = version

    def full_state(self) -> dict[str, Tensor] | None:
        """All weights under the causal model's own names, on rank 0 (collective)."""
        state = self.engine.full_state()
        return None if state is None else {name.removeprefix("model."): value for name, value in state.items()}

    def save_model(self, directory: str) -> None:
        """Write the policy and its tokenizer as a model directory, from rank 0 (collective)."""
        state = self.full_state()
        if state is not None:
            save_model(self.policy.model, self.tokenizer, Path(directory), state_dict=state)

    def save(self, directory: str) -> None:
        """Write this rank's training state (collective)."""
        self.engine.save(Path(directory))

    def load(self, directory: str) -> None:
        """Read back what `save` wrote (collective)."""
        self.engine.load(Path(directory))


class Critic:
    """The value model that is trained, for GAE."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        tokenizer = load_tokenizer(settings.tokenizer)
        model = load_value_model(settings.model, tokenizer, seed=settings.seed)
        self.engine = _engine(model.to(device=place.device, dtype=settings.dtype), settings, place)

    @torch.no_grad()
    def values(self, experience: Experience, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Values before each of this rank's action tokens, (A,)."""
        parts = []
        for rows in micro_batches:
            batch = _padded(experience.sequences, rows, self.engine.device)
            parts.append(self.engine(batch.input_BT, batch.index_A))
        return _in_order(parts, micro_batches, experience.action_lengths_B)

    def update(
        self, experience: Experience, micro_batches: Sequence[MicroBatch], *, tokens: int, clip: float | None
    ) -> dict[str, float]:
        """One optimizer step; see `Actor.update`."""
        sums = {"value_loss": 0.0, "value_clip_fraction": 0.0}

        def loss_of(rows: MicroBatch) -> Tensor:
            batch = _padded(experience.sequences, rows, self.engine.device)
            values_A: Tensor = self.engine(batch.input_BT, batch.index_A)
            if not rows:
                return values_A.sum() * 0.0
            part = experience.select(torch.tensor(rows))
            loss_A, clipped_A = value_loss(
                values_A, _on(part.values_A, values_A), _on(part.returns_A, values_A), clip=clip
            )
            sums["value_loss"] += float(loss_A.sum()) / tokens
            sums["value_clip_fraction"] += float(clipped_A.sum()) / tokens
            return loss_A.sum() / tokens

        norm = self.engine.update([lambda rows=rows: loss_of(rows) for rows in micro_batches])
        return {**sums, "value_grad_norm": norm / self.engine.world}

    def save(self, directory: str) -> None:
        """Write this rank's training state (collective)."""
        self.engine.save(Path(directory))

    def load(self, directory: str) -> None:
        """Read back what `save` wrote (collective)."""
        self.engine.load(Path(directory))


class Reference:
    """The frozen first policy."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        tokenizer = load_tokenizer(settings.tokenizer)
        model = load_causal_lm(settings.model, tokenizer, seed=settings.seed)
        self.policy = PolicyModule(model.to(device=place.device, dtype=settings.dtype)).eval()
        self.device = place.device

    def logprobs(self, experience: Experience, micro_batches: Sequence[MicroBatch], *, temperature: float) -> Tensor:
        """Log-probabilities of this rank's action tokens under the first policy, (A,)."""
        return _logprobs(self.policy, experience, micro_batches, temperature, self.device)


class Reward:
    """The reward model."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        self.tokenizer = load_tokenizer(settings.tokenizer)
        model = load_reward_model(settings.model, self.tokenizer, seed=settings.seed)
        self.model = model.to(device=place.device, dtype=settings.dtype).eval()
        self.batch_tokens = settings.micro_batch_tokens

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Normalised score of each sequence (prompt and answer, in the reward model's own tokens)."""
        if not sequences:
            return []
        return score(self.model, sequences, pad_id=self.tokenizer.pad_token_id, batch_tokens=self.batch_tokens)


ROLE_CLASSES: Mapping[str, type[Any]] = {
    "actor": Actor,
    "critic": Critic,
    "reference": Reference,
    "reward": Reward,
    "rollout": TransformersRollout,
}


@torch.no_grad()
def _logprobs(
    forward: Any, experience: Experience, micro_batches: Sequence[MicroBatch], temperature: float, device: torch.device
) -> Tensor:
    parts = []
    for rows in micro_batches:
        batch = _padded(experience.sequences, rows, device)
        parts.append(forward(batch.input_BT, batch.index_A, batch.target_A, temperature, "none")[0])
    return _in_order(parts, micro_batches, experience.action_lengths_B)


def _engine(module: torch.nn.Module, settings: RoleSettings, place: Place) -> Any:
    # Here, not above: roles that do not train need no DeepSpeed, whose import takes seconds.
    from camel_ray.ppo.engine import TrainingEngine

    assert settings.optimizer is not None
    return TrainingEngine(
        module, settings.optimizer, zero=settings.zero, bf16=settings.bf16, updates=settings.updates, world=place.world
    )


def _on(values: Tensor | None, like: Tensor) -> Tensor:
    assert values is not None, "the phase that fills this field has not run"
    return values.to(device=like.device, dtype=like.dtype)
