"""The policy that is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camel_ray.models.adapters import add_lora, causal_model
from camel_ray.models.load import load_causal_lm, load_tokenizer, save_model
from camel_ray.ppo.batching import MicroBatch
from camel_ray.ppo.engine import TrainingEngine, loading
from camel_ray.ppo.experience import Experience, Sequences
from camel_ray.ppo.kl import estimate_kl
from camel_ray.ppo.losses import PolicyLoss, approximate_kl, policy_loss, token_weights
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.ptx import PtxText
from camel_ray.ppo.roles.forward import on, padded, per_action
from camel_ray.ppo.settings import Batch, Place, PolicySettings, RoleSettings
from camel_ray.ppo.shares import Share, divide


class Actor:
    """The policy that is trained."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        training = settings.training
        assert training is not None
        self.tokenizer = load_tokenizer(settings.tokenizer)
        with loading(settings.model, training, bf16=settings.bf16, world=place.world):
            model: Any = load_causal_lm(settings.model, self.tokenizer, seed=settings.seed)
        if settings.lora is not None:
            model = add_lora(model, settings.lora, seed=settings.seed)
        self.policy = PolicyModule(model.to(device=place.device, dtype=settings.dtype))
        self.engine = TrainingEngine(self.policy, training, bf16=settings.bf16, world=place.world)
        self.place, self.micro_batch_tokens = place, settings.micro_batch_tokens
        self.ptx = settings.ptx
        self.version = 0

    def logprobs(self, experience: Experience, share: Share, *, temperature: float) -> tuple[None, Tensor]:
        """Log-probabilities of this rank's action tokens under the present policy; (A,) is kept for the buffer."""
        sequences = experience.sequences.select(torch.tensor(share.rows, dtype=torch.long))
        return None, per_action(
            lambda batch: self.engine(batch.input_BT, batch.index_A, batch.target_A, temperature, "none")[0],
            sequences,
            share.micro_batches,
            self.engine.device,
        )

    def update(
        self, experience: Experience, share: Share, settings: PolicySettings, batch: Batch, *, kl_coefficient: float
    ) -> dict[str, float]:
        """One optimizer step. A token weighs the same wherever it is computed.

        `kl_coefficient` weighs the KL estimate in the loss (0 where it is in the reward). Returns this rank's share of
        the means over the batch: the driver adds up the ranks.
        """
        own = experience.select(torch.tensor(share.rows, dtype=torch.long))
        weight_A = token_weights(
            own.action_lengths_B, settings.loss_aggregation, tokens=batch.tokens, sequences=batch.sequences
        )
        sums: dict[str, float] = defaultdict(float)

        def loss_of(rows: MicroBatch) -> Tensor:
            inputs = padded(own.sequences, rows, self.engine.device)
            logprobs_A: Tensor
            entropy_A: Tensor
            logprobs_A, entropy_A = self.engine(
                inputs.input_BT,
                inputs.index_A,
                inputs.target_A,
                settings.temperature,
                "gradient" if settings.entropy_coefficient > 0 else "value",
            )
            if not rows:
                return logprobs_A.sum() * 0.0
            part = own.with_(weight_A=weight_A).select(torch.tensor(rows))
            mean_A = on(part.weight_A, logprobs_A)
            old_A, advantages_A = (on(x, logprobs_A) for x in (part.logprobs_A, part.advantages_A))
            result = policy_loss(
                logprobs_A,
                old_A,
                advantages_A,
                clip_low=settings.clip.low,
                clip_high=settings.clip.high,
                dual_clip=settings.clip.dual,
            )
            # Constants: the weight of a token's loss, and how far rollout's policy was from this one.
            weights_A = mean_A if part.importance_A is None else mean_A * on(part.importance_A, logprobs_A)
            policy: Tensor = (result.loss_A * weights_A).sum()
            loss = policy
            if settings.entropy_coefficient > 0:
                loss = loss - settings.entropy_coefficient * (entropy_A * mean_A).sum()
            if kl_coefficient > 0:
                kl_A = estimate_kl(logprobs_A, on(part.reference_logprobs_A, logprobs_A), settings.kl_estimator)
                kl = (kl_A * mean_A).sum()
                loss = loss + kl_coefficient * kl
                sums["kl_loss"] += float(kl.detach())
            found = _figures(result, logprobs_A.detach(), old_A, advantages_A, entropy_A.detach(), tokens=batch.tokens)
            sums["policy_loss"] += float(policy.detach())
            for name, value in found.items():
                sums[name] += value
            return loss

        steps: list[Callable[[], Tensor]] = [partial(loss_of, rows) for rows in share.micro_batches]
        if self.ptx is not None:
            steps += self._ptx_steps(self.ptx, settings.ptx_coefficient, batch.ptx_seed, sums)
        learning_rate = self.engine.learning_rate
        result = self.engine.update(steps)
        world = self.place.world
        return {
            **sums,
            "grad_norm": result.grad_norm / world,
            "learning_rate": learning_rate / world,
            "skipped": float(result.skipped) / world,
        }

    def _ptx_steps(
        self, ptx: PtxText, coefficient: float, seed: int, sums: dict[str, float]
    ) -> list[Callable[[], Tensor]]:
        """Losses of the language model on text: the same choice on all ranks, of which each takes its share."""
        text = ptx.batch(seed)
        shares = divide(text.lengths_B.tolist(), ranks=self.place.world, budget=self.micro_batch_tokens)
        share = shares.by_rank[self.place.rank]
        own: Sequences = text.select(torch.tensor(share.rows, dtype=torch.long))
        tokens = int(text.action_N.sum())
        sums["ptx_loss"] = 0.0

        def loss_of(rows: MicroBatch) -> Tensor:
            inputs = padded(own, rows, self.engine.device)
            logprobs_A, _ = self.engine(inputs.input_BT, inputs.index_A, inputs.target_A, 1.0, "none")
            loss: Tensor = -logprobs_A.sum() / tokens * (1.0 if rows else 0.0)
            sums["ptx_loss"] += float(loss.detach())
            return coefficient * loss

        return [partial(loss_of, rows) for rows in share.micro_batches]

    def set_version(self, version: int) -> None:
        """Number the present weights."""
        self.version = version

    def weights(self) -> tuple[int, dict[str, Tensor]]:
        """All weights under the causal model's own names, kept on rank 0 for rollout, and their bytes (collective)."""
        state = _causal_names(self.engine.full_state() or {})
        return sum(value.numel() * value.element_size() for value in state.values()), state

    def save_model(self, directory: str) -> None:
        """Write the policy (its average, where one is kept) and its tokenizer as a model directory, from rank 0
        (collective).
        """
        state = self.engine.ema_state() if self.engine.averages else self.engine.full_state()
        if state is not None:
            model = causal_model(self.policy.model)
            save_model(model, self.tokenizer, Path(directory), state_dict=_causal_names(state))

    def save(self, directory: str) -> None:
        """Write this rank's part of the training state (collective)."""
        self.engine.save(Path(directory))

    def load(self, directory: str) -> None:
        """Read back what `save` wrote (collective)."""
        self.engine.load(Path(directory))


def _causal_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of `PolicyModule`."""
    return {name.removeprefix("model."): value for name, value in state.items()}


def _figures(
    result: PolicyLoss, logprobs_A: Tensor, old_A: Tensor, advantages_A: Tensor, entropy_A: Tensor, *, tokens: int
) -> dict[str, float]:
    """What a micro-batch adds to the token means of an update.

    `clip_fraction`: tokens whose gradient the clip took away, and the parts of it at the lower limit (negative
    advantage) and the upper one; `approximate_kl`: KL(old || new) by k3.
    """
    kl = approximate_kl(logprobs_A, old_A)["k3"] * logprobs_A.shape[0]
    values = {
        "clip_fraction": result.clip_active_A,
        "clip_fraction_low": result.clip_active_A * (advantages_A < 0),
        "clip_fraction_high": result.clip_active_A * (advantages_A > 0),
        "dual_clip_fraction": result.dual_clip_A,
        "entropy": entropy_A,
        "approximate_kl": kl,
    }
    # One transfer from the device instead of one per figure.
    sums = torch.stack([value_A.detach().sum() for value_A in values.values()]).tolist()
    return {name: value / tokens for name, value in zip(values, sums, strict=True)}
