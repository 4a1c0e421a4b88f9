"""The policy as training sees it: log-probabilities of given action tokens, from one forward pass.

The language-model head runs on the hidden states that predict an action token only. For a long prompt and a large
vocabulary that is most of the memory of the pass, and the logits of prompt tokens are never used.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from camel_ray.models.adapters import causal_model

Entropy = Literal["none", "value", "gradient"]
"""What a forward pass says about the entropy of the distributions it computed anyway."""

_PROBE_TOLERANCE = 1e-3


class PolicyModule(nn.Module):
    """Wraps a causal model, with or without adapters; parameter names are its own behind the prefix `model.`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        # A model that was loaded in shards (ZeRO-3) answers only after its engine was built.
        sharded = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        self._head_alone = None if sharded else _head_gives_logits(self.causal_model)

    @property
    def causal_model(self) -> PreTrainedModel:
        """The wrapped model without PEFT's wrapper; its layers still apply the adapters."""
        return causal_model(self.model)

    def forward(
        self, input_BT: Tensor, index_A: Tensor, target_A: Tensor, temperature: float, entropy: Entropy
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of `target_A` and the entropy of their distributions, both float32 (A,).

        `input_BT`: right-padded token ids; `index_A`: positions in the flattened (B*T,) batch that predict the targets.
        `temperature` divides the logits, as in sampling. `entropy`: zeros with `none`; with `value` it carries no
        gradient.
        """
        model = self.causal_model
        if self._head_alone is None:
            self._head_alone = _head_gives_logits(model)
        if self._head_alone:
            hidden_BTH = model.base_model(input_ids=input_BT, use_cache=False).last_hidden_state
            logits_AV = model.get_output_embeddings()(hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[index_A])
        else:
            logits_BTV = model(input_ids=input_BT, use_cache=False).logits
            logits_AV = logits_BTV.reshape(-1, logits_BTV.shape[-1])[index_A]
        logits_AV = logits_AV.float()
        if temperature != 1.0:
            logits_AV = logits_AV / temperature
        normaliser_A = logits_AV.logsumexp(-1)
        logprobs_A = logits_AV.gather(1, target_A[:, None])[:, 0] - normaliser_A
        if entropy == "none":
            return logprobs_A, torch.zeros_like(logprobs_A)
        with torch.set_grad_enabled(entropy == "gradient" and torch.is_grad_enabled()):
            # H = log Z - sum(p * logit): needs no second log-softmax over the vocabulary.
            probabilities_AV = (logits_AV - normaliser_A[:, None]).exp()
            entropy_A = normaliser_A - (probabilities_AV * logits_AV).sum(-1)
        return logprobs_A, entropy_A


@torch.no_grad()
def _head_gives_logits(model: PreTrainedModel) -> bool:
    """Whether logits are the output embedding of the last hidden state, with nothing in between (Gemma caps, Granite
    scales).

    Asked of the model itself on a few tokens, because every family names such a step differently.
    """
    head = model.get_output_embeddings()
    if head is None:
        return False
    probe_BT = torch.arange(4, device=model.device)[None] % model.config.get_text_config().vocab_size
    was_training = model.training
    if was_training:
        model.eval()
    direct = head(model.base_model(input_ids=probe_BT, use_cache=False).last_hidden_state)
    logits = model(input_ids=probe_BT, use_cache=False).logits
    if was_training:
        model.train()
    return direct.shape == logits.shape and torch.allclose(direct, logits, rtol=_PROBE_TOLERANCE, atol=_PROBE_TOLERANCE)
