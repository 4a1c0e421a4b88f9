"""How large a model is, without its weights: what a memory estimate has to know before anything is loaded.

The configuration is enough: the model is built on torch's meta device, which holds shapes and no numbers, so the
counts are exact. Nothing is downloaded. For a hub model that this machine has never seen, the size in its name
("Llama-3-8B") and the usual shapes of models of that size have to do; such figures say that they are assumed.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from camel_ray.api.model import ModelSpec
from camel_ray.errors import ModelError


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts and shapes of a causal (or masked) language model."""

    name: str
    """Where it comes from, for tables."""
    backbone: int
    """Parameters without the language-model head; embeddings included."""
    head: int
    """Parameters of the head that are not the embedding's: 0 where the two are tied."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the feed-forward block that one token passes through, all its experts together."""
    vocabulary: int
    linear_features: Mapping[str, int]
    """By name of a linear layer of the backbone (`q_proj`, ...): the sum over its copies of inputs + outputs, which an
    adapter of rank r multiplies by r."""
    assumed: str = ""
    """What the figures rest on where no configuration could be read; empty where they are exact."""

    @property
    def parameters(self) -> int:
        """Of the language model; tied weights count once."""
        return self.backbone + self.head

    @property
    def value_parameters(self) -> int:
        """Of a critic: backbone and a linear head with bias."""
        return self.backbone + self.hidden + 1

    @property
    def reward_parameters(self) -> int:
        """Of a reward model: backbone and a linear head without bias."""
        return self.backbone + self.hidden

    def adapter_parameters(self, rank: int, targets: list[str] | None) -> int:
        """Of low-rank adapters on `targets`, by default on all linear layers but the head."""
        names = self.linear_features if targets is None else targets
        return rank * sum(self.linear_features.get(name, 0) for name in names)


def model_size(spec: ModelSpec, *, vocabulary: int | None = None, masked: bool = False) -> ModelSize:
    """Size of a model from `config`, a directory, the hub cache of this machine, or the size in its name.

    `vocabulary`: tokens of the tokenizer, for a model built from scratch. Raises ModelError where nothing tells.
    """
    if spec.source is None:
        return _exact(_new_config(spec, vocabulary), spec, "from scratch", masked)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(
                spec.source, revision=spec.revision, trust_remote_code=spec.trust_remote_code, local_files_only=True
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        size = _size_in_name(spec.source)
        if size is None:
            raise ModelError(
                f"the size of model {spec.source} is not known: its configuration is not on this machine and its name "
                "does not tell; download its config.json, or give the directory it is in"
            ) from error
        return size
    config.update({key: value for key, value in (spec.config or {}).items() if key != "model_type"})
    return _exact(config, spec, spec.source, masked)


def _new_config(spec: ModelSpec, vocabulary: int | None) -> PretrainedConfig:
    keys = dict(spec.config or {})
    model_type = keys.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"model.config.model_type {model_type!r} is unknown; give the type of a transformers model")
    if vocabulary is not None:
        keys.setdefault("vocab_size", vocabulary)
    try:
        return AutoConfig.for_model(model_type, **keys)
    except Exception as error:  # each configuration class validates in its own way
        raise ModelError(f"model.config does not describe a {model_type} model: {error}") from error


def _exact(config: PretrainedConfig, spec: ModelSpec, name: str, masked: bool) -> ModelSize:
    auto_class = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    try:
        with torch.device("meta"), _quiet():
            model = auto_class.from_config(config, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # whatever the model's own code raises for shapes that do not fit
        raise ModelError(f"no model can be built from the configuration of {name}: {error}") from error
    model.tie_weights()
    own = {id(p): p.numel() for p in model.base_model.parameters()}
    everything = {id(p): p.numel() for p in model.parameters()}
    features: dict[str, int] = defaultdict(int)
    for path, module in model.base_model.named_modules():
        if isinstance(module, nn.Linear):
            features[path.rpartition(".")[2]] += module.in_features + module.out_features
        elif isinstance(module, Conv1D):
            features[path.rpartition(".")[2]] += sum(module.weight.shape)
    text: Any = config.get_text_config()
    heads = int(text.num_attention_heads)
    hidden = int(text.hidden_size)
    return ModelSize(
        name=name,
        backbone=sum(own.values()),
        head=sum(everything.values()) - sum(own.values()),
        layers=int(text.num_hidden_layers),
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        intermediate=_intermediate(text, hidden),
        vocabulary=int(text.vocab_size),
        linear_features=dict(features),
    )


def _intermediate(text: Any, hidden: int) -> int:
    """Feed-forward width per token. Mixtures of experts count the experts a token is sent to."""
    width = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    experts = getattr(text, "num_experts_per_tok", None)
    if isinstance(experts, int) and experts > 0:
        width = experts * (getattr(text, "moe_intermediate_size", None) or width)
    return int(width)


_SHAPES = (
    # parameters in billions: layers, hidden, heads, key-value heads, head size, feed-forward, vocabulary, tied
    (0.14, 30, 576, 9, 3, 64, 1536, 49152, True),
    (0.5, 24, 896, 14, 2, 64, 4864, 151936, True),
    (1.2, 16, 2048, 32, 8, 64, 8192, 128256, True),
    (3.2, 28, 3072, 24, 8, 128, 8192, 128256, True),
    (7.2, 32, 4096, 32, 8, 128, 14336, 32768, False),
    (8.0, 32, 4096, 32, 8, 128, 14336, 128256, False),
    (14.8, 48, 5120, 40, 8, 128, 13824, 152064, False),
    (32.8, 64, 5120, 40, 8, 128, 27648, 152064, False),
    (70.6, 80, 8192, 64, 8, 128, 28672, 128256, False),
    (405.9, 126, 16384, 128, 8, 128, 53248, 128256, False),
)
"""Shapes of published decoders with grouped-query attention and a gated feed-forward block (SmolLM2, Qwen 2.5, Llama
3, Mistral 7B), from their configuration files."""
_NAMED = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![A-Za-z0-9])", re.IGNORECASE)


def _size_in_name(source: str) -> ModelSize | None:
    found = _NAMED.search(source.rpartition("/")[2])
    if found is None:
        return None
    experts = int(found[1]) if found[1] else 1
    billions = float(found[2]) * (1.0 if found[3].lower() == "b" else 1e-3)
    _, layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, tied = min(
        _SHAPES, key=lambda shape: abs(math.log(shape[0] / billions))
    )
    inner, narrow = heads * head_dim, kv_heads * head_dim
    features = {
        **dict.fromkeys(("q_proj", "o_proj"), layers * (hidden + inner)),
        **dict.fromkeys(("k_proj", "v_proj"), layers * (hidden + narrow)),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), layers * (hidden + intermediate)),
    }
    head = 0 if tied else vocabulary * hidden
    # "8x7B": the feed-forward blocks are there several times, all else once; two experts see each token.
    total = round(billions * 1e9) + (experts - 1) * 3 * layers * hidden * intermediate
    return ModelSize(
        name=source,
        backbone=total - head,
        head=head,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate * min(experts, 2),
        vocabulary=vocabulary,
        linear_features=features,
        assumed=f"size from the name ({found[0]}), shapes of a usual model of that size",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No advice on how to use a model that is only counted."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
