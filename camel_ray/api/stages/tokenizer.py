"""`tokenizer`: train a byte-level BPE on the pipeline's text, or load one."""

from __future__ import annotations

from pydantic import Field

from camel_ray.api.base import Spec
from camel_ray.api.data import DataRef


class TokenizerStageSpec(Spec):
    """Train a byte-level BPE, or load a tokenizer, and give it a chat template. Makes a `tokenizer` artifact."""

    source: str | None = None
    """Directory or hub id of a tokenizer to load. Leave out to train one on `data`."""
    revision: str | None = None
    """Branch, tag or commit of a hub tokenizer."""
    data: DataRef | list[DataRef] | None = None
    """Text to train on: data stages or data sets described in place. Needed unless `source` is set."""
    vocab_size: int = Field(default=2048, ge=300)
    """Entries of the vocabulary, special tokens included. At least 256 bytes and the special tokens have to fit."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair of symbols is merged only if it was seen this often."""
    max_length: int = Field(default=1_000_000, ge=1)
    """Longest input the tokenizer accepts without a warning, in tokens (`model_max_length`)."""
    chat_template: str | None = None
    """Jinja chat template. Default: ChatML, with a mark around assistant turns for the loss mask."""
    special_tokens: list[str] = Field(default_factory=list)
    """Further tokens that are never split."""
