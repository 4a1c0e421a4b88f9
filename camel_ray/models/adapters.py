"""Low-rank adapters (Hu et al. 2022) of a causal model: added, switched off for the reference, merged for all others.

Only training knows about adapters. What leaves it (a weight sync, a saved model) is the causal model under its own
names, merged one weight at a time, so that the live model never changes and never exists twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from camel_ray.api.stages.ppo_roles import LoraSpec
from camel_ray.errors import ModelError

_ADAPTER = "default"
"""PEFT's name of a model's first adapter."""
_INSIDE = "base_model.model."
"""Where PEFT puts the causal model within its own."""


def add_lora(model: PreTrainedModel, spec: LoraSpec, *, seed: int) -> Any:
    """The model with adapters (a `peft.PeftModel`) that change nothing yet; all other parameters are frozen.

    Raises ModelError if `spec.targets` names layers the model does not have.
    """
    # Only pipelines with `lora` pay for the import.
    from peft import LoraConfig, get_peft_model

    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(spec.targets or ()) - {name.rpartition(".")[2] for name, _ in model.named_modules()})
    if unknown:
        raise ModelError(
            f"lora.targets: the model has no layer {unknown[0]!r}; its linear layers are {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=spec.targets or "all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def causal_model(model: Any) -> PreTrainedModel:
    """The causal model inside adapters (its linear layers still apply them), or the model itself."""
    inner = model.get_base_model() if _is_adapted(model) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


@contextmanager
def adapter_off(module: nn.Module) -> Iterator[None]:
    """Within it, all adapters below `module` are switched off: the model is the one it was before they were added."""
    layers: list[Any] = [layer for layer in module.modules() if _is_lora(layer)]
    # PEFT's own switch also freezes the adapters' parameters for the time, which optimizers that hook gradients see.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@dataclass(frozen=True)
class MergedWeight:
    """A weight of the model without adapters, and the parameters of the model with adapters it is made of."""

    name: str
    """In the model without adapters."""
    parameters: tuple[str, ...]
    """Names in the model with adapters: the weight alone, or the weight, A and B."""
    scale: float = 1.0
    """Of the adapter: alpha / rank."""
    transposed: bool = False
    """Whether the layer keeps its weight as (in, out)."""

    def of(self, values: Mapping[str, Tensor]) -> Tensor:
        """W + scale * B A, computed in fp32 and of the weight's type; W itself where there is no adapter."""
        weight, *adapter = (values[name] for name in self.parameters)
        if not adapter:
            return weight
        down_RI, up_OR = (part.float() for part in adapter)
        change = up_OR @ down_RI
        return (weight.float() + self.scale * (change.T if self.transposed else change)).to(weight.dtype)


def merged_weights(module: nn.Module) -> list[MergedWeight]:
    """How to make every parameter of `module` as if it had no adapters. Without adapters: the parameters themselves.

    Names below a `PeftModel` are the causal model's, behind the same prefix as the PeftModel's own.
    """
    wrapped = [prefix for prefix, child in module.named_modules() if _is_adapted(child)]
    lora = {prefix: layer for prefix, layer in module.named_modules() if _is_lora(layer)}
    result = []
    for name, _ in module.named_parameters():
        owner, _, last = name.rpartition(".base_layer.")
        if ".lora_A." in name or ".lora_B." in name:
            continue
        own = _without_wrapper(name.replace(".base_layer.", "."), wrapped)
        if last == "weight" and owner in lora:
            layer = lora[owner]
            adapter = tuple(f"{owner}.{part}.{_ADAPTER}.weight" for part in ("lora_A", "lora_B"))
            scale = float(layer.scaling[_ADAPTER])
            result.append(MergedWeight(own, (name, *adapter), scale, bool(getattr(layer, "fan_in_fan_out", False))))
        else:
            result.append(MergedWeight(own, (name,)))
    return result


def _without_wrapper(name: str, wrapped: list[str]) -> str:
    for prefix in wrapped:
        start = f"{prefix}.{_INSIDE}" if prefix else _INSIDE
        if name.startswith(start):
            return name.replace(_INSIDE, "", 1) if not prefix else f"{prefix}.{name[len(start) :]}"
    return name


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "peft_config") and hasattr(module, "get_base_model")


def _is_lora(module: Any) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")
