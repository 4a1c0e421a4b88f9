"""The reward model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from camel_ray.data.conversations import Message
from camel_ray.data.templates import encode_answer
from camel_ray.models.load import load_reward_model, load_tokenizer
from camel_ray.models.reward import score
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.settings import Place, RoleSettings
from camel_ray.ppo.shares import Share


class Reward:
    """A sequence classifier with one output, normalised as its configuration says."""

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        self.tokenizer = load_tokenizer(settings.tokenizer)
        model = load_reward_model(settings.model, self.tokenizer, seed=settings.seed)
        self.model = model.to(device=place.device, dtype=settings.dtype).eval()
        self.batch_tokens = settings.micro_batch_tokens

    def scores(self, experience: Experience, share: Share) -> list[float]:
        """Score of each of this rank's answers, whose tokens are the reward model's own."""
        own = experience.sequences.select(torch.tensor(share.rows, dtype=torch.long))
        return self._scores([part.tolist() for part in torch.split(own.tokens_N, own.lengths_B.tolist())])

    def scores_of_texts(self, conversations: Sequence[tuple[Sequence[tuple[str, str]], str]]) -> list[float]:
        """Score of conversations (role and content of each message, and the answer), through the reward model's own
        template and tokenizer.
        """
        sequences = []
        for messages, answer in conversations:
            prompt_ids, answer_ids = encode_answer(
                self.tokenizer, [Message(role=role, content=content) for role, content in messages], answer
            )
            sequences.append([*prompt_ids, *answer_ids])
        return self._scores(sequences)

    def _scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        if not sequences:
            return []
        return score(self.model, sequences, pad_id=self.tokenizer.pad_token_id, batch_tokens=self.batch_tokens)
