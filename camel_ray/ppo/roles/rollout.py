"""The process that writes answers, with one of the engines of `camel_ray.ppo.rollout`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from camel_ray.data.conversations import Message
from camel_ray.models.generation import Generation
from camel_ray.models.load import load_tokenizer
from camel_ray.ppo.environment import Environments
from camel_ray.ppo.experience import Experience, Index, from_answers
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.rollout.conversation import converse
from camel_ray.ppo.rollout.protocol import RolloutEngine
from camel_ray.ppo.rollout.transformers import TransformersEngine
from camel_ray.ppo.settings import Place, RoleSettings
from camel_ray.ppo.shares import Share


class Rollout:
    """Writes answers and stamps them with the version of the weights that wrote them."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        assert settings.rollout is not None
        self.settings = settings.rollout
        self.tokenizer = load_tokenizer(settings.tokenizer)
        self.engine = _engine(settings, place)
        self.actor = place.roles.get("actor") if getattr(self.engine, "shares_actor", False) else None
        self.environments = None if self.settings.environment is None else Environments(self.settings.environment)
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the weights answers are written with."""
        return self._version if self.actor is None else int(self.actor.version)

    def generate(
        self, prompts: Sequence[Prompt], groups: Sequence[int], seeds: Sequence[int], *, texts: bool
    ) -> tuple[Index, Experience]:
        """Answers to this rank's prompts: what the driver has to know of them (with the answers' text if `texts`), and
        the experience they begin.
        """
        if self.environments is not None:
            talks = converse(
                self.engine,
                self.environments,
                self.tokenizer,
                prompts,
                seeds,
                sampling=self.settings.sampling,
                stop_ids=self.settings.stop_ids,
                max_turns=self.environments.settings.max_turns,
                groups=groups,
                policy_version=self.version,
            )
            index = talks.experience.index([_last_answer(said) for said in talks.messages] if texts else None)
            failures = [None if failure is None else (failure.reason, str(failure)) for failure in talks.failures]
            return replace(index, failures=failures), talks.experience
        answers = self.engine.generate(
            [prompt.ids for prompt in prompts], seeds, max_new_tokens=self.settings.sampling.max_response_length
        )
        experience = from_answers(
            [prompt.ids for prompt in prompts],
            [answer.tokens for answer in answers],
            [answer.logprobs for answer in answers],
            [answer.finished for answer in answers],
            groups=groups,
            policy_versions=[self.version] * len(answers),
        )
        return experience.index([self._text(answer) for answer in answers] if texts else None), experience

    def logprobs(self, experience: Experience, share: Share) -> Tensor:
        """Log-probabilities of a few answers under the weights rollout has now, (A,): the check of a weight sync."""
        return self.engine.logprobs(experience.sequences.select(torch.tensor(share.rows, dtype=torch.long)))

    def load_weights(self, version: int, state: Mapping[str, Tensor]) -> None:
        """Take over the actor's weights. Raises WorkerLost if they are not the weights of this model."""
        self.engine.load_weights([state])
        self._version = version

    def _text(self, answer: Generation) -> str:
        ids = answer.tokens[:-1] if answer.finished else answer.tokens
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _last_answer(messages: Sequence[Message]) -> str:
    return next((str(m["content"]) for m in reversed(messages) if m["role"] == "assistant"), "")


def _engine(settings: RoleSettings, place: Place) -> RolloutEngine:
    assert settings.rollout is not None
    if settings.rollout.spec.engine == "vllm":
        # Here, not above: it is an extra that most installations do not have.
        from camel_ray.ppo.rollout.vllm import VllmEngine

        return VllmEngine(settings, place)
    return TransformersEngine(settings, place)
