"""Draws answers from a causal model: a decode loop of our own, for rollouts, evaluation and chat.

Against `model.generate` it knows what reinforcement learning needs: the log-probability of every token it drew,
answers that leave the batch as soon as they end, a cache written in place, and randomness that belongs to a prompt
and not to the batch it happened to be in, so that the same prompts give the same answers however they are batched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from camel_ray.models.cpu_linear import packed_weights

_COMPACT_AT = 7 / 8
"""Share of unfinished rows at which the batch is cut down to them: a cut copies the cache, so not after every
ending."""


@dataclass(frozen=True)
class Generation:
    """One answer."""

    tokens: list[int]
    """Drawn tokens, with the stop token where there is one."""
    logprobs: list[float]
    """Log-probability of each token at the sampling temperature (1 for greedy), before top-p and top-k cut the
    distribution: what a training forward pass computes for the same tokens."""
    finished: bool
    """The answer ended with a stop token rather than at `max_new_tokens`."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    stop_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator | None = None,
    uniforms_BT: Tensor | None = None,
    batch_size: int,
) -> list[Generation]:
    """One answer per prompt, in the order of the prompts.

    `temperature` 0 takes the likeliest token each time. All randomness is one uniform number per prompt and position,
    `uniforms_BT` (prompts, max_new_tokens), or drawn from `generator` (CPU) before anything runs: neither
    `batch_size` nor other prompts change an answer beyond rounding. Raises ValueError for an empty prompt.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty; a model needs at least one token to continue")
    if temperature > 0 and uniforms_BT is None:
        uniforms_BT = torch.rand((len(prompts), max_new_tokens), generator=generator)
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[Generation | None] = [None] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(prompts), batch_size):
            rows = by_length[start : start + batch_size]
            batch = _Batch(
                model,
                [prompts[row] for row in rows],
                stop_ids=stop_ids,
                pad_id=pad_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                uniforms_BT=None if temperature == 0 or uniforms_BT is None else uniforms_BT[rows],
            )
            with packed_weights(model):
                for row, answer in zip(rows, batch.run(), strict=True):
                    answers[row] = answer
    finally:
        model.train(was_training)
    return [answer for answer in answers if answer is not None]


class _Batch:
    """Prompts that are decoded together: left-padded, shrinking as answers end."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        uniforms_BT: Tensor | None,
    ) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        device = model.device
        longest = max(len(prompt) for prompt in prompts)
        self.input_BT = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
        self.mask_BT = torch.zeros((len(prompts), longest + max_new_tokens), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            self.input_BT[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            self.mask_BT[row, longest - len(prompt) :] = 1
        self.padded = any(len(prompt) < longest for prompt in prompts)
        self.input_BT, self.mask_BT = self.input_BT.to(device), self.mask_BT.to(device)
        self.uniforms_BT = None if uniforms_BT is None else uniforms_BT.to(device)
        self.stop_S = torch.tensor(list(stop_ids), dtype=torch.long, device=device)
        self.cache = _preallocated_cache(model, longest + max_new_tokens)
        self.tokens_BT = torch.full((len(prompts), max_new_tokens), pad_id, dtype=torch.long, device=device)
        self.logprobs_BT = torch.zeros((len(prompts), max_new_tokens), device=device)
        self.length_B = torch.full((len(prompts),), max_new_tokens, dtype=torch.long, device=device)
        self.finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)

    def run(self) -> Iterator[Generation]:
        """Decode all rows to their end."""
        rows_L = torch.arange(self.input_BT.shape[0], device=self.input_BT.device)  # rows still in the batch
        past = self.input_BT.shape[1]
        positions_LT = (self.mask_BT[:, :past].cumsum(1) - 1).clamp(min=0)
        input_LT, mask_LT = self.input_BT, self.mask_BT
        for step in range(self.max_new_tokens):
            logits_LV = self._forward(input_LT, mask_LT[:, : past + step], positions_LT)
            token_L, logprob_L = self._draw(
                logits_LV, None if self.uniforms_BT is None else self.uniforms_BT[rows_L, step]
            )
            self.tokens_BT[rows_L, step] = token_L
            self.logprobs_BT[rows_L, step] = logprob_L
            stopped_L = torch.isin(token_L, self.stop_S) & ~self.finished_B[rows_L]
            self.length_B[rows_L[stopped_L]] = step + 1
            self.finished_B[rows_L[stopped_L]] = True
            alive_L = ~self.finished_B[rows_L]
            alive = int(alive_L.sum())
            if alive == 0:
                break
            input_LT, positions_LT = token_L[:, None], positions_LT[:, -1:] + 1
            if alive <= _COMPACT_AT * rows_L.shape[0]:
                keep = alive_L.nonzero().squeeze(1)
                rows_L, mask_LT, input_LT, positions_LT = (t[keep] for t in (rows_L, mask_LT, input_LT, positions_LT))
                self.cache.batch_select_indices(keep)
        tokens, logprobs = self.tokens_BT.tolist(), self.logprobs_BT.tolist()
        for row, (length, finished) in enumerate(zip(self.length_B.tolist(), self.finished_B.tolist(), strict=True)):
            yield Generation(tokens=tokens[row][:length], logprobs=logprobs[row][:length], finished=finished)

    def _forward(self, input_LT: Tensor, mask_LT: Tensor, positions_LT: Tensor) -> Tensor:
        # Without padding there is nothing to mask, and attention may take its fastest path.
        padding: dict[str, Tensor] = {"attention_mask": mask_LT, "position_ids": positions_LT} if self.padded else {}
        output = self.model(input_ids=input_LT, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **padding)
        logits_LV: Tensor = output.logits[:, -1].float()
        return logits_LV

    def _draw(self, logits_LV: Tensor, uniform_L: Tensor | None) -> tuple[Tensor, Tensor]:
        if uniform_L is None:
            token_L = logits_LV.argmax(-1)
            return token_L, logits_LV.gather(1, token_L[:, None])[:, 0] - logits_LV.logsumexp(-1)
        logprobs_LV = (logits_LV / self.temperature).log_softmax(-1)
        token_L = sample(_truncate(logprobs_LV.exp(), top_p=self.top_p, top_k=self.top_k), uniform_L)
        return token_L, logprobs_LV.gather(1, token_L[:, None])[:, 0]


def sample(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draw one index per row in proportion to its weights, by inverting the cumulative sum at a uniform number in [0,
    1), (B,).

    One number per draw keeps the randomness of a row apart from that of others. An index of weight 0 is never drawn.
    """
    cumulative_BV = weights_BV.double().cumsum(-1)
    threshold_B = uniform_B.double() * cumulative_BV[:, -1]
    return torch.searchsorted(cumulative_BV, threshold_B[:, None], right=True)[:, 0]


def _truncate(probabilities_BV: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Set what top-k and then top-p (nucleus, Holtzman et al. 2020) exclude to 0; the rest need not add up to 1."""
    if 0 < top_k < probabilities_BV.shape[1]:
        least_B = probabilities_BV.topk(top_k, dim=-1).values[:, -1:]
        probabilities_BV = probabilities_BV.where(probabilities_BV >= least_B, 0.0)
    if top_p < 1.0:
        sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
        sorted_BV = sorted_BV / sorted_BV.sum(-1, keepdim=True)
        sorted_BV = sorted_BV.where(sorted_BV.cumsum(-1) - sorted_BV < top_p, 0.0)
        probabilities_BV = torch.zeros_like(probabilities_BV).scatter(1, order_BV, sorted_BV)
    return probabilities_BV


def _preallocated_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """The model's cache, with plain attention layers that write in place."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in buffers of full length: the stock layer copies everything for each token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, dim) keys and values; returns views of all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.key_buffer, self.value_buffer = (
                s.new_empty((*s.shape[:2], self.capacity, s.shape[3])) for s in (key_states, value_states)
            )
        end = self.length + key_states.shape[2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows."""
        self.key_buffer, self.value_buffer = (
            _select_rows(b, indices, self.length) for b in (self.key_buffer, self.value_buffer)
        )
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]


def _select_rows(buffer: Tensor, indices: Tensor, length: int) -> Tensor:
    selected = buffer.new_empty((indices.shape[0], *buffer.shape[1:]))
    selected[:, :, :length] = buffer[indices, :, :length]
    return selected
