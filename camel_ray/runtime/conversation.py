"""A conversation with a causal language model in this process: what `camel-ray chat` talks to.

It is here and not in `cli` because it needs torch and transformers; the command imports it when it runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from camel_ray.api.model import ModelSpec
from camel_ray.data.conversations import Message
from camel_ray.data.templates import encode_prompt, stop_token_ids
from camel_ray.errors import ModelError
from camel_ray.models.load import context_length, load_causal_lm, load_tokenizer


class Conversation:
    """Turns so far, and the model that answers the next one."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_tokens: int,
        seed: int | None,
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._messages: list[Message] = []
        self._stops = stop_token_ids(tokenizer)
        if seed is not None:
            torch.manual_seed(seed)

    @classmethod
    def load(cls, directory: Path, *, temperature: float, max_tokens: int, seed: int | None) -> Conversation:
        """A conversation with the model in `directory`. Raises ModelError if there is none that can be loaded."""
        tokenizer = load_tokenizer(str(directory))
        model = load_causal_lm(ModelSpec(source=str(directory)), tokenizer, seed=0)
        if torch.cuda.is_available():
            model = model.to("cuda")
        return cls(model, tokenizer, temperature=temperature, max_tokens=max_tokens, seed=seed)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns so far that still fit the context."""
        return tuple(self._messages)

    def reset(self) -> None:
        """Forget all turns."""
        self._messages.clear()

    def answer(self, text: str) -> Iterator[str]:
        """Pieces of the answer to `text` as they are generated. The turn is remembered when the answer is complete.

        The oldest turns are forgotten where the conversation would not fit the model's context. Raises ModelError if
        `text` alone does not.
        """
        self._messages.append(Message(role="user", content=text))
        try:
            prompt, room = self._fit()
        except ModelError:
            self._messages.pop()
            raise
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped = threading.Event()
        worker = threading.Thread(target=self._generate, args=(prompt, room, streamer, stopped), daemon=True)
        worker.start()
        pieces: list[str] = []
        try:
            for piece in streamer:
                pieces.append(piece)
                yield piece
        finally:
            stopped.set()
            worker.join()
            self._messages.append(Message(role="assistant", content="".join(pieces)))

    def _fit(self) -> tuple[list[int], int]:
        """Prompt ids that leave room for an answer, and that room in tokens."""
        limit = context_length(self._model.config)
        while True:
            prompt = encode_prompt(self._tokenizer, self._messages)
            if limit is None or len(prompt) + self._max_tokens <= limit:
                return prompt, self._max_tokens
            if len(self._messages) > 1:
                del self._messages[:2]
            elif len(prompt) < limit:
                return prompt, limit - len(prompt)
            else:
                raise ModelError(
                    f"the message has {len(prompt)} tokens and the model reads {limit}; write a shorter one"
                )

    @torch.no_grad()
    def _generate(self, prompt: list[int], room: int, streamer: TextIteratorStreamer, stopped: threading.Event) -> None:
        ids_BT = torch.tensor([prompt], device=self._model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if self._temperature > 0:
            sampling = {"do_sample": True, "temperature": self._temperature, "top_k": 0}

        def is_stopped(*_: Any) -> torch.Tensor:
            return torch.full((1,), stopped.is_set(), device=self._model.device)

        try:
            self._model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=room,
                eos_token_id=list(self._stops),
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=streamer,
                stopping_criteria=[is_stopped],
                **sampling,
            )
        finally:
            streamer.end()
