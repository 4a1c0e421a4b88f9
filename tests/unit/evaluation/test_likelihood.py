"""Likelihood of text and answers of a real, tiny model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from camel_ray.data.templates import encode_answer
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.evaluation.answers import Answer, Question, answer, fitting, judge, references
from camel_ray.evaluation.perplexity import text_likelihood

TEXTS = ["the camel walks to the well", "a ray of light", "", "the camel drinks " * 8, "ünï → code"]
SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LIMITS: dict[str, Any] = {"max_length": 16, "max_tokens": 10_000, "batch_size": 4}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS * 4, vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SIZE)
    return LlamaForCausalLM(config).eval()


def token_by_token(model: LlamaForCausalLM, tokenizer: Any, texts: Sequence[str], max_length: int) -> list[float]:
    """Negative log-likelihood of each token, each from a forward pass of its own over its window."""
    found = []
    for text in texts:
        stream = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        for i in range(1, len(stream)):
            start = (i - 1) // (max_length - 1) * (max_length - 1)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([stream[start:i]])).logits[0, -1]
            found.append(-float(logits.log_softmax(-1)[stream[i]]))
    return found


def test_every_token_is_predicted_once_from_its_window(model: LlamaForCausalLM, tokenizer: Any) -> None:
    expected = token_by_token(model, tokenizer, TEXTS, 16)
    got = text_likelihood(model, tokenizer, TEXTS, **LIMITS)
    assert got.tokens == len(expected)
    assert got.nll == pytest.approx(sum(expected), rel=1e-5)
    assert got.perplexity == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)
    assert got.bytes == sum(len(t.encode()) for t in TEXTS)
    assert got.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / got.bytes, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_batch_size_changes_nothing(model: LlamaForCausalLM, tokenizer: Any, batch_size: int) -> None:
    wanted = text_likelihood(model, tokenizer, TEXTS, **LIMITS)
    got = text_likelihood(model, tokenizer, TEXTS, **{**LIMITS, "batch_size": batch_size})
    assert (got.tokens, got.bytes) == (wanted.tokens, wanted.bytes)
    assert got.nll == pytest.approx(wanted.nll, rel=1e-5)


def test_the_text_is_cut_at_the_token_limit(model: LlamaForCausalLM, tokenizer: Any) -> None:
    reported: list[int] = []
    got = text_likelihood(model, tokenizer, TEXTS, **{**LIMITS, "max_tokens": 12}, report=reported.append)
    assert got.tokens == reported[-1] == 12
    assert 0 < got.bytes < sum(len(t.encode()) for t in TEXTS)


def test_text_without_tokens_is_refused(model: LlamaForCausalLM, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no token"):
        text_likelihood(model, tokenizer, [""], **LIMITS)


def asked(*prompts: str) -> list[Question]:
    return [Question([{"role": "user", "content": p}], "the camel drinks") for p in prompts]


def test_answers_come_in_the_order_of_the_questions_whatever_the_batches(
    model: LlamaForCausalLM, tokenizer: Any
) -> None:
    questions = asked("a ray of light and a camel", "well", "the camel walks", "a")
    options: dict[str, Any] = {"max_response_length": 6, "temperature": 1.0, "seed": 5}
    one_by_one = answer(model, tokenizer, questions, batch_size=1, **options)
    together = answer(model, tokenizer, questions, batch_size=4, **options)
    assert together == one_by_one
    assert all(1 <= a.tokens <= 6 for a in together)
    assert answer(model, tokenizer, questions, batch_size=4, **{**options, "seed": 6}) != together


def test_prompts_that_are_too_long_are_passed_over_and_counted(tokenizer: Any) -> None:
    questions = asked("a", "the camel walks to the well " * 9, "well", "light")
    chosen, too_long = fitting(iter(questions), [tokenizer], limit=2, max_prompt_length=40)
    assert [q.prompt[0]["content"] for q in chosen] == ["a", "well"]
    assert too_long == 1


def test_the_judge_reads_prompt_and_answer_and_no_end_of_turn_after_a_cut_answer(tokenizer: Any) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id, **SIZE
    )
    judging = LlamaForSequenceClassification(config).eval()
    questions = asked("a camel", "a ray")
    given = [Answer("the well", 3, True), Answer("the well", 3, False)]
    got = judge(judging, tokenizer, questions, given, max_length=64, batch_tokens=256)
    for question, one, score in zip(questions, given, got, strict=True):
        prompt, said = encode_answer(tokenizer, question.prompt, one.text)
        ids = [*prompt, *(said if one.finished else said[:-1])]
        with torch.inference_mode():
            assert score == pytest.approx(float(judging(input_ids=torch.tensor([ids])).logits[0, 0]), abs=1e-5)
    assert references(tokenizer, questions)[0].text == "the camel drinks"
