"""Rollout with a transformers model and the decode loop of `camel_ray.models.generation`: needs nothing but torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from camel_ray.api.stages.ppo import SamplingSpec
from camel_ray.errors import WorkerLost
from camel_ray.models.generation import Generation, generate
from camel_ray.models.load import load_causal_lm, load_tokenizer
from camel_ray.ppo.settings import Place, RoleSettings

if TYPE_CHECKING:
    from camel_ray.ppo.roles import Actor


class TransformersRollout:
    """Writes answers with a transformers model: the actor's own where it may, else a copy that `load_weights` keeps
    up to date.
    """

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        self.pad_id = load_tokenizer(settings.tokenizer).pad_token_id
        actor = place.roles.get("actor")
        # Sharded parameters are of no use outside the engine.
        self.actor: Actor | None = actor if actor is not None and actor.engine.zero < 3 else None
        if self.actor is None:
            tokenizer = load_tokenizer(settings.tokenizer)
            model = load_causal_lm(settings.model, tokenizer, seed=settings.seed)
            self.model = model.to(device=place.device, dtype=settings.dtype).eval()
        else:
            self.model = self.actor.policy.model
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the weights answers are written with."""
        return self._version if self.actor is None else self.actor.version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        uniforms_BT: Tensor,
        sampling: SamplingSpec,
        stop_ids: Sequence[int],
        *,
        batch_size: int,
    ) -> tuple[list[Generation], int]:
        """Answers to this rank's prompts and the version of the weights that wrote them. `uniforms_BT`: see
        `generate`.
        """
        answers = generate(
            self.model,
            prompts,
            max_new_tokens=sampling.max_response_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_ids=stop_ids,
            pad_id=self.pad_id,
            uniforms_BT=uniforms_BT,
            batch_size=batch_size,
        )
        return answers, self.version

    def load_weights(self, state: Mapping[str, Tensor] | None, version: int) -> None:
        """Take over the actor's weights. Raises WorkerLost if they are not the weights of this model."""
        if state is None:
            raise WorkerLost("role rollout got no weights from rank 0 of role actor; run again to continue")
        missing, unexpected = self.model.load_state_dict(dict(state), strict=False)
        tied = set(self.model.all_tied_weights_keys or ())
        if unexpected or set(missing) - tied:
            wrong = sorted({*unexpected, *(set(missing) - tied)})
            raise WorkerLost(
                f"role rollout got weights of another model (first difference: {wrong[0]}); run again to continue"
            )
        self._version = version
