"""Bytes that a model needs on a device, by formula: state while training, activations, and the cache of decoding.

State follows the ZeRO paper (Rajbhandari et al. 2020, section 3.1: weights, gradients, fp32 master weights and two
moments of AdamW, divided by the ranks from stages 1, 2 and 3 on). Activations follow the counting of Korthikanti et al.
2022, done again for a decoder as it is built today: gated feed-forward block, root-mean-square norms computed in fp32,
grouped-query attention that keeps no score matrix. The tests compare both with what torch and DeepSpeed really hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from camel_ray.models.size import ModelSize

GIB = 2**30
FP32 = 4
MOMENTS = 8
"""AdamW's two moments, both fp32, per parameter."""
_LIVE_PARAMETERS = 1_050_000_000
"""Most parameters that ZeRO-3 has gathered at one time: DeepSpeed's stage3_max_live_parameters and
stage3_prefetch_bucket_size, which we leave as they are."""


def element_bytes(bf16: bool) -> int:
    """Bytes of a weight."""
    return 2 if bf16 else 4


@dataclass(frozen=True)
class TrainingState:
    """What one rank holds between two updates, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    """Moments and, where they are not the weights themselves, fp32 master weights."""
    communication: int
    """Buckets that gradients are reduced in and, at ZeRO-3, parameters that are gathered for use."""
    host: int
    """In the memory of the machine instead of the device."""


def flat_state(trained: int, frozen: int, *, bf16: bool) -> TrainingState:
    """Nothing sharded: whole weights, gradients (bf16 ones are summed in fp32), masters and moments on every rank.

    `trained`, `frozen`: parameters with and without a gradient.
    """
    element = element_bytes(bf16)
    return TrainingState(
        weights=element * (trained + frozen),
        gradients=(element + FP32 if bf16 else FP32) * trained,
        optimizer=(MOMENTS + FP32 if bf16 else MOMENTS) * trained,
        communication=0,
        host=0,
    )


def zero_state(
    trained: int,
    frozen: int,
    *,
    stage: int,
    offload: str,
    bf16: bool,
    ranks: int,
    bucket_elements: int,
    gradient_bytes: int = FP32,
) -> TrainingState:
    """DeepSpeed's ZeRO at stage 1 to 3. `gradient_bytes`: per gradient that is kept, and per element of a bucket."""
    element = element_bytes(bf16)
    weights = element * (trained + frozen) // (ranks if stage == 3 else 1)
    gradients = gradient_bytes * trained // (ranks if stage >= 2 else 1)
    optimizer = (FP32 + MOMENTS) * trained // ranks
    buckets = gradient_bytes * min(bucket_elements, trained + frozen)
    gathered = element * min(_LIVE_PARAMETERS, trained + frozen) if stage == 3 else 0
    host = 0
    if offload != "none":
        # The master weights' gradients go along, as fp32.
        host, gradients, optimizer = optimizer + FP32 * trained // ranks, 0, 0
    if offload == "all":
        host, weights = host + weights, 0
    return TrainingState(weights, gradients, optimizer, buckets + gathered, host)


def layer_bytes(size: ModelSize, *, bf16: bool) -> int:
    """What one layer keeps of one token for the backward pass."""
    element = element_bytes(bf16)
    inner, narrow = size.heads * size.head_dim, size.kv_heads * size.head_dim
    # Per norm: its fp32 input, the normalised value, and the result, which the next linear layers keep. Attention:
    # queries, output, keys, values. Feed-forward: gate before and after its activation, up, and their product.
    kept = 4 * size.hidden + 2 * inner + 2 * narrow + 4 * size.intermediate
    return element * kept + 2 * FP32 * size.hidden + FP32 * (size.heads + 2)


def backward_bytes(size: ModelSize, tokens: int, *, bf16: bool, recompute: bool) -> int:
    """Activations of the backbone that the backward pass of `tokens` tokens needs. `recompute`: only the input of each
    layer is kept, and one layer at a time is computed again (gradient checkpointing).
    """
    layer = layer_bytes(size, bf16=bf16)
    final_norm = (element_bytes(bf16) + FP32) * size.hidden
    if recompute:
        return tokens * (size.layers * element_bytes(bf16) * size.hidden + layer + final_norm)
    return tokens * (size.layers * layer + final_norm)


def forward_bytes(size: ModelSize, tokens: int, *, bf16: bool) -> int:
    """Working memory of a forward pass without gradients: at most what one layer would have kept."""
    return tokens * (layer_bytes(size, bf16=bf16) + element_bytes(bf16) * size.hidden)


def logits_bytes(vocabulary: int, tokens: int, *, bf16: bool, backward: bool) -> int:
    """Logits of `tokens` positions: as the head gives them, in fp32, divided by the temperature; and for the backward
    pass two gradients of that size.
    """
    copies = FP32 * (4 if backward else 2) + (element_bytes(bf16) if bf16 else 0)
    return tokens * vocabulary * copies


def cache_bytes(size: ModelSize, tokens: int, *, bf16: bool) -> int:
    """Keys and values of `tokens` tokens in all layers."""
    return tokens * 2 * size.layers * size.kv_heads * size.head_dim * element_bytes(bf16)
