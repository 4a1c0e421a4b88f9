"""Chat templates: the ids of a prompt, the answer's tokens, and the loss mask are exact for every template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from camel_ray.data.templates import encode_answer, encode_conversation, encode_prompt, stop_token_ids
from camel_ray.data.tokenizer import CHATML, PLAIN, train_tokenizer
from camel_ray.errors import ModelError

CORPUS = [
    "What does os.path.join do? Join two or more pathname components.\n",
    "user assistant system Return the value.",
] * 20

# Templates as they are met on the hub, in their manner: marks or none, a preamble, trimmed content, no token at the
# end of a turn.
CHATML_UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
MARK_WITHOUT_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{%- generation -%}{{ m['content'] }}{%- endgeneration -%}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ '### ' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "chatml without marks": CHATML_UNMARKED,
    "plain": PLAIN,
    "headers": HEADERS,
    "mark without end": MARK_WITHOUT_END,
    "no end of turn": NO_END,
}


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS, vocab_size=400)


@pytest.fixture(params=TEMPLATES)
def tokenizer(request: Any, base: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    base.chat_template = TEMPLATES[request.param]
    return base


def turns(*contents: str, system: str | None = None) -> list[Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + messages


def said(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[int]) -> str:
    return str(tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]))


def test_chatml_gives_the_text_everyone_knows(base: PreTrainedTokenizerFast) -> None:
    base.chat_template = CHATML
    ids, mask = encode_conversation(base, turns("Hi", "Yo", system="Be brief."))
    assert base.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    )
    assert said(base, ids, mask) == "Yo<|im_end|>"
    assert base.decode(encode_prompt(base, turns("Hi"))) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_only_assistant_turns_and_their_end_are_in_the_mask(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, mask = encode_conversation(tokenizer, turns("one", "two", "three", "four"))
    assert len(ids) == len(mask)
    text = said(tokenizer, ids, mask)
    for token in ("<|im_end|>", "<|endoftext|>"):
        text = text.replace(token, "|")
    assert text.replace(" ", "").replace("\n", "|").strip("|").split("|") == ["two", "four"]


def test_prompt_and_answer_are_the_beginning_of_the_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = turns("What does it do?", "It joins.", "And then?", system="Help.")
    prompt, answer = encode_answer(tokenizer, messages, "Return the value.")
    ids, mask = encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": "Return the value."}])
    assert prompt == encode_prompt(tokenizer, messages)
    assert ids[: len(prompt) + len(answer)] == prompt + answer
    assert mask[len(prompt) : len(prompt) + len(answer)] == [1] * len(answer)


def test_an_answer_ends_with_a_stop_token_and_has_no_other(tokenizer: PreTrainedTokenizerFast) -> None:
    _, answer = encode_answer(tokenizer, turns("q"), "Return two values.")
    stops = stop_token_ids(tokenizer)
    assert answer[-1] in stops
    assert not set(answer[:-1]) & set(stops)


def test_stop_tokens_are_end_of_text_and_end_of_turn(base: PreTrainedTokenizerFast) -> None:
    base.chat_template = CHATML
    assert base.convert_ids_to_tokens(list(stop_token_ids(base))) == ["<|endoftext|>", "<|im_end|>"]
    base.chat_template = PLAIN
    assert base.convert_ids_to_tokens(list(stop_token_ids(base))) == ["<|endoftext|>"]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda t: "<|" not in t)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=3, max_size=5).filter(lambda t: len(t) % 2 == 1), texts)
def test_any_text_survives_and_the_prompt_is_a_prefix(contents: list[str], answer: str) -> None:
    tokenizer = _CHATML_TOKENIZER
    prompt, ids = encode_answer(tokenizer, turns(*contents), answer)
    assert prompt == encode_prompt(tokenizer, turns(*contents))
    assert tokenizer.decode(ids) == answer + "<|im_end|>"
    all_ids, mask = encode_conversation(tokenizer, turns(*contents, answer))
    assert said(tokenizer, all_ids, mask) == "".join(f"{turn}<|im_end|>" for turn in [*contents, answer][1::2])


_CHATML_TOKENIZER = train_tokenizer(CORPUS, vocab_size=300)


def test_a_generation_prompt_that_training_text_lacks_is_left_out_of_the_answer(base: PreTrainedTokenizerFast) -> None:
    base.chat_template = THINKING
    for text in ("done", "<thanks>"):  # the second begins like the prompt's <think>
        prompt, answer = encode_answer(base, turns("q"), text)
        assert base.decode(prompt).endswith("<|im_start|>assistant\n")
        assert base.decode(answer) == f"{text}<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_remedy(base: PreTrainedTokenizerFast) -> None:
    base.chat_template = FORGETFUL
    encode_conversation(base, turns("a", "b"))
    with pytest.raises(
        ModelError, match=r"renders message 2 differently when others follow.*mark assistant turns .*generation"
    ):
        encode_conversation(base, turns("a", "b", "c", "d"))


def test_a_tokenizer_without_template_is_refused(base: PreTrainedTokenizerFast) -> None:
    base.chat_template = None
    with pytest.raises(ModelError, match="has no chat template; make it with a tokenizer stage"):
        encode_prompt(base, turns("q"))


def test_a_template_that_refuses_messages_says_why(base: PreTrainedTokenizerFast) -> None:
    base.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + HEADERS
    )
    with pytest.raises(ModelError, match="no system role"):
        encode_prompt(base, turns("q", system="s"))
