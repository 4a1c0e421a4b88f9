"""The policy's forward pass against plain logits, for models with and without a step between head and logits."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from camel_ray.ppo.experience import from_answers
from camel_ray.ppo.policy import PolicyModule

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_attention_heads=2, initializer_range=0.3))


def gemma() -> Gemma2ForCausalLM:
    """Caps its logits, so its head alone is not enough."""
    config = Gemma2Config(
        **SMALL, num_attention_heads=2, num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0
    )
    return Gemma2ForCausalLM(config)


@pytest.mark.parametrize(("build", "head_alone"), [(llama, True), (gemma, False)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_and_entropy_equal_those_of_the_logits(
    build: object, head_alone: bool, temperature: float
) -> None:
    torch.manual_seed(0)
    model = build().eval()  # type: ignore[operator]
    policy = PolicyModule(model)
    assert policy._head_alone is head_alone
    prompts, answers = [[3, 4], [5]], [[6, 7, 8], [9]]
    whole = from_answers(prompts, answers, [[0.0] * 3, [0.0]], [True, True], groups=[0, 1], policy_versions=[0, 0])
    batch = whole.sequences.padded([0, 1])
    logprobs, entropy = policy(batch.input_BT, batch.index_A, batch.target_A, temperature, "value")
    wanted_logprobs, wanted_entropy = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        rows = (model(torch.tensor([[*prompt, *answer]])).logits[0] / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        wanted_logprobs.append(rows.gather(1, torch.tensor(answer)[:, None])[:, 0])
        wanted_entropy.append(-(rows.exp() * rows).sum(-1))
    torch.testing.assert_close(logprobs, torch.cat(wanted_logprobs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, torch.cat(wanted_entropy), rtol=1e-4, atol=1e-5)


def test_the_entropy_carries_a_gradient_only_when_asked_to() -> None:
    policy = PolicyModule(llama())
    inputs = torch.tensor([[3, 4, 5]]), torch.tensor([0, 1]), torch.tensor([4, 5])
    assert not policy(*inputs, 1.0, "value")[1].requires_grad
    assert policy(*inputs, 1.0, "gradient")[1].requires_grad
    assert policy(*inputs, 1.0, "none")[1].tolist() == [0.0, 0.0]
