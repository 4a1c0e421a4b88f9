"""Models and tokenizers: from a directory, the hub, or a configuration; to a directory.

Everything a user can get wrong about a model is found here, before anything is trained, and said in one sentence.
Weights are read and written as safetensors only: a pickle runs code when it is opened.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from camel_ray.api.model import ModelSpec
from camel_ray.errors import ModelError
from camel_ray.manifest import disk_errors
from camel_ray.models.cpu_linear import speed_up_linear_layers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
"""Accepted by transformers for every model with rotary positions, and moved to another place by the configuration
class.
"""


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory or on the hub, with a padding token (end of text where it has none of its own).

    Raises ModelError if there is none, or if it has neither a padding nor an end-of-text token.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"no tokenizer can be loaded from {source} ({_first_line(error)}); check `tokenizer`"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {source} has neither a padding nor an end-of-text token; add one to it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The model's configuration: built from `config` for this tokenizer, or loaded and overridden by `config`.

    Raises ModelError for an unknown `model_type` or key, an impossible value, and a tokenizer with more tokens than the
    model.
    """
    overrides = dict(spec.config or {})
    if spec.source is None:
        config = _new_config(overrides, tokenizer)
    else:
        config = _saved_config(spec)
        overrides.pop("model_type", None)
        _check_keys(overrides, config)
        config.update(overrides)
    known = int(getattr(config.get_text_config(), "vocab_size", 0))
    if len(tokenizer) > known:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model {spec.source or 'of `config`'} only knows "
            f"{known}; use the tokenizer the model was trained with"
        )
    return config


def context_length(config: PretrainedConfig) -> int | None:
    """Most tokens the model can attend to, or None where its configuration sets no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def check_length(config: PretrainedConfig, length: int, *, field: str) -> None:
    """Raise ModelError if sequences of `length` tokens do not fit the model's context. `field` names what asked for
    them.
    """
    limit = context_length(config)
    if limit is not None and length > limit:
        raise ModelError(
            f"{field} is {length} tokens, but the model's context is {limit} (max_position_embeddings); "
            f"set it to at most {limit}, or use a model with a longer context"
        )


def load_causal_lm(
    spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, seed: int, masked: bool = False
) -> PreTrainedModel:
    """A language model with the weights of `spec.source`, or with fresh ones drawn from `seed`.

    `masked`: one that predicts hidden tokens from both sides. Raises ModelError if it cannot be built or read.
    """
    return _load(AutoModelForMaskedLM if masked else AutoModelForCausalLM, spec, load_config(spec, tokenizer), seed)


def load_reward_model(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """A sequence classifier with one output. From a causal model it takes the backbone and a fresh head drawn from
    `seed`.
    """
    config = load_config(spec, tokenizer)
    config.num_labels = 1
    # The score is read at the last token that is not padding, so the model has to know the padding token.
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return _load(AutoModelForSequenceClassification, spec, config, seed)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights (safetensors), configuration and tokenizer. `state_dict`: the weights, where `model` holds only a
    shard.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            model.save_pretrained(directory, state_dict=None if state_dict is None else dict(state_dict))
        except SafetensorError as error:
            if "No space left" in str(error):
                raise OSError(28, "No space left on device", str(directory)) from error
            raise
        tokenizer.save_pretrained(directory)


def _new_config(keys: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    model_type = keys.pop("model_type", None)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"model.config.model_type {model_type!r} is unknown.{_nearest(str(model_type), CONFIG_MAPPING)}"
        )
    _check_keys(keys, CONFIG_MAPPING[model_type]())
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    try:
        return AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer), **ids, **keys})
    except Exception as error:  # each configuration class validates in its own way
        raise ModelError(f"model.config does not describe a {model_type} model: {_first_line(error)}") from error


def _check_keys(keys: Mapping[str, Any], config: PretrainedConfig) -> None:
    known = {*config.to_dict(), *type(config).attribute_map, *vars(config), *_ROPE_KEYS}
    for key in keys:
        if key not in known:
            raise ModelError(f"model.config.{key}: {config.model_type} has no such setting.{_nearest(key, known)}")


def _saved_config(spec: ModelSpec) -> PretrainedConfig:
    source = str(spec.source)
    try:
        return AutoConfig.from_pretrained(source, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{source} holds no readable model configuration ({_first_line(error)}); check `model`"
        ) from error


def _load(auto_class: Any, spec: ModelSpec, config: PretrainedConfig, seed: int) -> PreTrainedModel:
    options: dict[str, Any] = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    torch.manual_seed(seed)
    try:
        if spec.source is None:
            dtype = _DTYPES.get(spec.dtype, torch.float32)
            return _ready(
                auto_class.from_config(config, dtype=dtype, trust_remote_code=spec.trust_remote_code, **options)
            )
        _check_weights(Path(spec.source))
        with _quiet_loading():
            return _ready(
                auto_class.from_pretrained(
                    spec.source,
                    config=config,
                    revision=spec.revision,
                    trust_remote_code=spec.trust_remote_code,
                    use_safetensors=True,
                    dtype=_DTYPES.get(spec.dtype, "auto"),
                    **options,
                )
            )
    except ModelError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, ImportError, RuntimeError, ZeroDivisionError) as error:
        where = spec.source or "`config`"
        raise ModelError(f"no model can be made from {where}: {_first_line(error)}") from error


def _check_weights(directory: Path) -> None:
    """Refuse a local directory without whole safetensors files; a hub id is left to transformers."""
    if not directory.is_dir():
        return
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.exists():
        try:
            files = sorted({directory / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{index} is not readable ({_first_line(error)}); make or download the model again"
            ) from error
    if not files:
        pickled = next(iter([*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]), None)
        if pickled is not None:
            raise ModelError(f"{pickled} is a pickle, which can run code when opened; convert the model to safetensors")
        raise ModelError(f"{directory} has no model weights (*.safetensors); check `model`")
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is corrupt ({_first_line(error)}); make or download the model again") from error


class _quiet_loading:
    """Hide the load report: a fresh score head and an unused language-model head are what a reward model is made of."""

    def __enter__(self) -> None:
        self._verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._verbosity)


def _ready(model: Any) -> PreTrainedModel:
    assert isinstance(model, PreTrainedModel)
    speed_up_linear_layers(model)
    return model


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def _first_line(error: BaseException) -> str:
    """The first line of a message, with the next one where it only announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(".")
