"""Adapters: they start as nothing, can be switched off, and merge into the weights of a model that never had them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from camel_ray.api.stages.ppo_roles import LoraSpec
from camel_ray.errors import ModelError
from camel_ray.models.adapters import adapter_off, add_lora, merged_weights

TOKENS_BT = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1]])


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **sizes)).eval()


def gpt2() -> PreTrainedModel:
    """Ties its head to the embedding and keeps its weights transposed."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=32, n_layer=2, n_head=2)).eval()


def trained(model: PreTrainedModel, spec: LoraSpec | None = None) -> nn.Module:
    """With adapters as training might leave them."""
    adapted: nn.Module = add_lora(model, spec or LoraSpec(rank=4, alpha=8.0), seed=1)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    return adapted


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS_BT).logits
    return result


@pytest.mark.parametrize("build", [llama, gpt2])
def test_new_adapters_change_nothing_and_alone_are_trained(build: Callable[[], PreTrainedModel]) -> None:
    before = logits(build())
    adapted = add_lora(build(), LoraSpec(rank=4), seed=1)
    assert torch.equal(logits(adapted), before)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_the_seed_decides_the_adapters_and_leaves_other_draws_alone() -> None:
    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        model = llama()
        torch.manual_seed(3)
        state = add_lora(model, LoraSpec(rank=2), seed=seed).state_dict()
        return next(value for name, value in state.items() if ".lora_A." in name), torch.rand(2)

    (first, after), (same, _), (other, _) = drawn(1), drawn(1), drawn(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_switched_off_it_is_the_first_model_and_on_again_it_trains_on(build: Callable[[], PreTrainedModel]) -> None:
    adapted = trained(build())
    with_adapters = logits(adapted)
    with adapter_off(adapted):
        torch.testing.assert_close(logits(adapted), logits(build()), rtol=0, atol=0)
    assert torch.equal(logits(adapted), with_adapters)
    assert not torch.allclose(with_adapters, logits(build()), atol=1e-3)
    adapted(input_ids=TOKENS_BT).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_merged_weights_make_a_plain_model_with_the_same_logits(build: Callable[[], PreTrainedModel]) -> None:
    adapted = trained(build())
    live = {name: parameter.detach() for name, parameter in adapted.named_parameters()}
    before = {name: value.clone() for name, value in live.items()}
    merged = {weight.name: weight.of(live) for weight in merged_weights(adapted)}
    plain = build()
    assert merged.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(logits(plain), logits(adapted), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(live[name], before[name]) for name in live)


def test_a_model_without_adapters_is_its_own_merged_model() -> None:
    model = llama()
    weights = merged_weights(model)
    assert [weight.name for weight in weights] == [name for name, _ in model.named_parameters()]
    assert all(weight.parameters == (weight.name,) for weight in weights)


def test_targets_choose_the_layers_and_unknown_ones_are_named() -> None:
    adapted = trained(llama(), LoraSpec(rank=2, targets=["q_proj"]))
    owners = {name.split(".lora_")[0].rpartition(".")[2] for name, p in adapted.named_parameters() if p.requires_grad}
    assert owners == {"q_proj"}
    with pytest.raises(ModelError, match=r"lora\.targets: the model has no layer 'query'; .* q_proj"):
        add_lora(llama(), LoraSpec(targets=["query"]), seed=1)
