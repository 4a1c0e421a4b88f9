"""Perplexity of text under a causal language model (Jelinek et al. 1977), and bits per byte.

Perplexity is per token, so a tokenizer with longer tokens has a higher one; bits per byte compare across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS = 1 << 25
"""Most logits held at once (128 MiB in float32): a forward pass takes as many rows as stay below it."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a corpus and of its rows; natural logarithms. None: a row (or corpus) without a counted token."""

    mean_nll: float | None
    perplexity: float | None
    """exp of the mean over all counted tokens of the corpus."""
    sequence_mean_nll: tuple[float | None, ...]
    sequence_perplexity: tuple[float | None, ...]
    mean_sequence_perplexity: float | None
    """Plain mean over the rows that have tokens."""
    tokens: int


def perplexity(nll: Sequence[Sequence[float]], mask: Sequence[Sequence[int]]) -> Perplexity:
    """Perplexity from the negative log-likelihoods of tokens, in nats. Tokens at mask 0 change nothing.

    `nll[row][token]` and `mask[row][token]` have the same shape; rows may differ in length. Raises ValueError if not.
    """
    kept = [[x for x, m in zip(xs, ms, strict=True) if m] for xs, ms in zip(nll, mask, strict=True)]
    tokens = sum(map(len, kept))
    total = math.fsum(x for row in kept for x in row)
    means = tuple(math.fsum(row) / len(row) if row else None for row in kept)
    rows = tuple(None if m is None else math.exp(m) for m in means)
    present = [p for p in rows if p is not None]
    mean = total / tokens if tokens else None
    return Perplexity(
        mean_nll=mean,
        perplexity=None if mean is None else math.exp(mean),
        sequence_mean_nll=means,
        sequence_perplexity=rows,
        mean_sequence_perplexity=math.fsum(present) / len(present) if present else None,
        tokens=tokens,
    )


@dataclass(frozen=True)
class TextLikelihood:
    """How well a model predicts a text."""

    nll: float
    """Sum of the negative log-likelihoods of all predicted tokens, in nats."""
    tokens: int
    """Predicted tokens."""
    bytes: int
    """UTF-8 bytes of the text those tokens stand for."""

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-likelihood of a token; infinite where that overflows."""
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable between models with different tokenizers."""
        return self.nll / math.log(2) / self.bytes


def text_likelihood(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    max_length: int,
    max_tokens: int,
    batch_size: int,
    report: Callable[[int], None] = lambda tokens: None,
) -> TextLikelihood:
    """Score documents one by one, each after the tokenizer's start (or end-of-text) token, which is not counted.

    Documents longer than `max_length` are cut into windows that overlap in one token, so each token is predicted once.
    The last document is cut so that at most `max_tokens` are predicted. `report` is called with the tokens done so far.
    Raises ValueError if there is no token to predict.
    """
    import torch  # here, so that the report and the pure function above need no torch

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows: list[list[int]] = []
    left, size = max_tokens, 0
    for text in texts:
        if left <= 0:
            break
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > left:
            ids = ids[:left]
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        # Without a start token the first token has no context and is not counted, nor are its bytes.
        stream = ids if start is None else [start, *ids]
        if len(stream) < 2:
            continue
        if start is None:
            text = text[len(tokenizer.decode(ids[:1], clean_up_tokenization_spaces=False)) :]
        rows.extend(_windows(stream, max_length))
        left -= len(stream) - 1
        size += len(text.encode())
    if not rows:
        raise ValueError("the text has no token to predict")

    rows.sort(key=len, reverse=True)  # rows of one batch have nearly one length, and the largest batch comes first
    nll, done = 0.0, 0
    with torch.inference_mode():
        for batch in _batches(rows, batch_size, int(model.config.vocab_size)):
            width = len(batch[0])
            ids_BT = torch.tensor([row + [row[-1]] * (width - len(row)) for row in batch], device=model.device)
            mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=model.device)
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
            nll_BT = torch.nn.functional.cross_entropy(
                logits_BTV.float().transpose(1, 2), ids_BT[:, 1:], reduction="none"
            )
            nll += float((nll_BT.double() * mask_BT[:, 1:]).sum())
            done += sum(len(row) - 1 for row in batch)
            report(done)
    return TextLikelihood(nll, done, size)


def _windows(tokens: list[int], length: int) -> Iterator[list[int]]:
    for start in range(0, len(tokens) - 1, length - 1):
        yield tokens[start : start + length]


def _batches(rows: list[list[int]], batch_size: int, vocab_size: int) -> Iterator[list[list[int]]]:
    start = 0
    while start < len(rows):
        fitting = max(1, _LOGITS // (len(rows[start]) * vocab_size))
        stop = start + min(batch_size, fitting)
        yield rows[start:stop]
        start = stop
