"""A model of values: one number per token, what the rest of the answer is expected to earn. The critic of PPO.

It is the backbone of a causal model with a linear head. Started from a reward model it keeps that model's head,
scaled to the normalised scores PPO sees, so that the value of a finished answer is right from the first step; started
from a language model the head is zero, so that the first values are neutral instead of random.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from camel_ray.api.model import ModelSpec
from camel_ray.models.load import load_causal_lm, load_reward_model

HEAD_FILE = "value_head.safetensors"


class ValueModel(nn.Module):
    """Backbone and head. `forward` gives the values (A,) at chosen positions of a right-padded batch."""

    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, input_BT: Tensor, index_A: Tensor) -> Tensor:
        """`input_BT`: right-padded token ids; `index_A`: positions in the flattened (B*T,) batch. Returns float32
        (A,).
        """
        hidden_BTH = self.backbone(input_ids=input_BT, use_cache=False).last_hidden_state
        hidden_AH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[index_A]
        values_A: Tensor = self.head(hidden_AH)[:, 0].float()
        return values_A

    def save(self, directory: Path) -> None:
        """Write the backbone and the head as safetensors."""
        self.backbone.save_pretrained(directory)
        save_file(
            {name: value.detach().contiguous() for name, value in self.head.state_dict().items()}, directory / HEAD_FILE
        )


def load_value_model(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> ValueModel:
    """A value model from one that was saved, from a reward model, or from a causal language model (see above)."""
    source = spec.source
    if source is not None and (Path(source) / HEAD_FILE).is_file():
        backbone = AutoModel.from_pretrained(source, trust_remote_code=spec.trust_remote_code)
        head = _head(backbone)
        head.load_state_dict(load_file(Path(source) / HEAD_FILE))
        return ValueModel(backbone, head)
    if source is not None and _is_classifier(spec):
        model = load_reward_model(spec, tokenizer, seed=seed)
        head = _head(model.base_model)
        mean, std = (
            getattr(model.config, name, default) for name, default in (("reward_mean", 0.0), ("reward_std", 1.0))
        )
        with torch.no_grad(), _whole(model.score.weight):
            head.weight.copy_(model.score.weight / std)
            head.bias.fill_(-mean / std)
        return ValueModel(model.base_model, head)
    backbone = load_causal_lm(spec, tokenizer, seed=seed).base_model
    return ValueModel(backbone, _head(backbone))


def _head(backbone: PreTrainedModel) -> nn.Linear:
    head = nn.Linear(backbone.config.get_text_config().hidden_size, 1, dtype=backbone.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _whole(parameter: nn.Parameter) -> AbstractContextManager[None]:
    """Gathers a parameter of a model that was loaded in shards for ZeRO-3 (collective)."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    # Whoever loaded it in shards has imported it already.
    import deepspeed

    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters([parameter])
    return gathered


def _is_classifier(spec: ModelSpec) -> bool:
    config = AutoConfig.from_pretrained(spec.source, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
