"""Prompts: what is asked in which round."""

from __future__ import annotations

import json

import pytest

from camel_ray.api.stages.ppo_reward import AnswerRewardSpec
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import DataError
from camel_ray.ppo.prompts import Prompts, encode_prompts
from camel_ray.ppo.rewards.answer import AnswerCheck
from camel_ray.ppo.rewards.score import Answered

TOKENIZER = train_tokenizer(["a list of words that are read again and again"] * 3, vocab_size=300)


def row(text: str, **extra: object) -> dict[str, object]:
    return {"prompt": [{"role": "user", "content": text}], "row": "{}", **extra}


def encode(rows: list[dict[str, object]], *, max_length: int = 100, limit: int | None = None) -> Prompts:
    return encode_prompts(rows, TOKENIZER, max_length=max_length, seed=0, where="stage 'x', prompts", limit=limit)


def test_every_pass_asks_every_prompt_once_in_an_order_of_its_own() -> None:
    prompts = encode([row(f"w{i}") for i in range(10)])
    asked = [prompt.text for number in range(5) for prompt in prompts.of_round(number, 4)]
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(f"w{i}" for i in range(10))
    assert asked[:10] != asked[10:]


def test_a_round_is_the_same_whenever_it_is_asked_for() -> None:
    prompts = encode([row(f"w{i}") for i in range(7)])
    assert prompts.of_round(3, 5) == prompts.of_round(3, 5) != prompts.of_round(4, 5)


def test_a_round_may_be_larger_than_the_data() -> None:
    asked = [prompt.text for prompt in encode([row("a"), row("b")]).of_round(0, 5)]
    assert len(asked) == 5 and {asked.count("a"), asked.count("b")} == {2, 3}


def test_long_prompts_are_left_out_and_counted() -> None:
    prompts = encode([row("a"), row("a list of words " * 20)], max_length=20)
    assert [prompt.text for prompt in prompts.prompts] == ["a"]
    assert prompts.too_long == 1


def test_only_long_prompts_are_an_error_that_names_the_limit() -> None:
    with pytest.raises(
        DataError, match=r"stage 'x', prompts has no usable prompt \(all 1 are longer than .* = 5 tokens\)"
    ):
        encode([row("a list of words " * 20)], max_length=5)


def test_the_answer_of_a_conversation_is_not_part_of_its_prompt() -> None:
    messages = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    prompt = encode([{"messages": messages, "row": "{}"}]).prompts[0]
    assert prompt.text == "c"
    assert [role for role, _ in prompt.messages] == ["user", "assistant", "user"]
    assert TOKENIZER.decode(prompt.ids).endswith("<|im_start|>assistant\n")


def test_reading_stops_at_the_limit() -> None:
    assert len(encode([row(str(i)) for i in range(9)], limit=4).prompts) == 4


def test_rewards_find_the_datas_own_answer_in_the_row() -> None:
    prompt = encode([row("a", completion="so it is 42") | {"row": '{"level": 3}'}]).prompts[0]
    assert prompt.demonstration == "so it is 42"
    assert json.loads(prompt.row) == {"level": 3, "completion": "so it is 42"}
    assert AnswerCheck(AnswerRewardSpec())([Answered("a", "42.0", prompt.row)]) == [1.0]
    named = encode([row("a", completion="no") | {"row": '{"completion": "column"}'}]).prompts[0]
    assert json.loads(named.row) == {"completion": "column"}
    assert encode([row("a")]).prompts[0].row == "{}"
