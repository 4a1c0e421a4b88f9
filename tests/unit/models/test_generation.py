"""The decode loop against `model.generate` and against plain forward passes."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from camel_ray.models.generation import Generation, generate, sample

STOP, PAD = 1, 2
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [16, 17, 18, 19]]


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=STOP,
        pad_token_id=PAD,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    """Learned positions: wrong position ids of a padded row would show."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=STOP,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


def draw(
    model: PreTrainedModel, prompts: list[list[int]], *, batch_size: int = 8, seed: int = 0, **kwargs: float
) -> list[Generation]:
    settings = {"temperature": 1.0, "max_new_tokens": 20, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    return generate(
        model, prompts, stop_ids=(STOP,), pad_id=PAD, generator=generator, batch_size=batch_size, **settings
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [llama, gpt2])
def test_greedy_equals_transformers_token_for_token(build: object) -> None:
    model = build()  # type: ignore[operator]
    ours = draw(model, PROMPTS, temperature=0.0)
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=PAD,
        )
        assert answer.tokens == theirs[0, len(prompt) :].tolist()
        assert answer.finished == (answer.tokens[-1] == STOP)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_a_full_forward_pass_at_the_temperature(temperature: float) -> None:
    model = llama()
    for prompt, answer in zip(PROMPTS, draw(model, PROMPTS, temperature=temperature, top_k=5), strict=True):
        ids = torch.tensor([[*prompt, *answer.tokens]])
        logprobs = (model(ids).logits[0] / temperature).log_softmax(-1)
        predicted = logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), predicted, rtol=1e-4, atol=1e-5)


def test_answers_do_not_depend_on_how_prompts_are_batched() -> None:
    model = llama()
    prompts = PROMPTS * 4
    together, apart = draw(model, prompts, batch_size=16), draw(model, prompts, batch_size=3)
    assert [a.tokens for a in together] == [a.tokens for a in apart]
    assert len({len(a.tokens) for a in together}) > 3, "answers of different lengths, so that rows left the batch"
    assert any(a.finished for a in together) and all(a.tokens.count(STOP) <= 1 for a in together)


def test_the_same_seed_gives_the_same_answers_and_another_one_others() -> None:
    model = llama()
    assert draw(model, PROMPTS) == draw(model, PROMPTS) != draw(model, PROMPTS, seed=1)


def test_top_k_one_is_greedy_and_small_top_p_too() -> None:
    model = llama()
    greedy = [a.tokens for a in draw(model, PROMPTS, temperature=0.0)]
    assert [a.tokens for a in draw(model, PROMPTS, top_k=1)] == greedy
    assert [a.tokens for a in draw(model, PROMPTS, top_p=1e-6)] == greedy


def test_sampling_follows_the_weights_and_never_takes_a_zero() -> None:
    weights = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0]).expand(100_000, -1)
    drawn = sample(weights, torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    share = torch.bincount(drawn, minlength=6) / 100_000
    torch.testing.assert_close(share, weights[0], rtol=0, atol=0.006)
    assert share[[0, 2, 5]].sum() == 0
    assert sample(weights[:2], torch.tensor([0.0, 1.0 - 2**-24])).tolist() == [1, 4]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        draw(llama(), [[3], []])


def test_the_model_keeps_its_mode() -> None:
    model = llama().train()
    draw(model, PROMPTS, max_new_tokens=1)
    assert model.training
