"""The trained tokenizer: lossless, repeatable, loadable by anyone, with templates it can express."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from camel_ray.data.tokenizer import (
    CHATML,
    PLAIN,
    SPECIAL_TOKENS,
    add_special_tokens,
    bytes_per_token,
    ensure_chat_template,
    train_tokenizer,
)
from camel_ray.errors import DataError, ModelError

CORPUS = ["Join two or more pathname components, inserting a slash as needed.\n", "Return the sum of all values."] * 10
TOKENIZER = train_tokenizer(CORPUS, vocab_size=300)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_decodes_to_itself(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_the_vocabulary_has_the_wanted_size_and_special_tokens_first() -> None:
    tokenizer = train_tokenizer(CORPUS, vocab_size=300, special_tokens=["<tool>"])
    assert len(tokenizer) == tokenizer.vocab_size == 300
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == [*SPECIAL_TOKENS, "<tool>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert tokenizer("a<tool>b")["input_ids"][1] == 4


def test_it_loads_by_autotokenizer_as_it_was_saved(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CORPUS, vocab_size=300, max_length=512)
    tokenizer.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token, loaded.pad_token, loaded.model_max_length) == ("<|endoftext|>", "<|pad|>", 512)
    assert loaded.chat_template == CHATML
    assert loaded("Join <|im_end|>")["input_ids"] == tokenizer("Join <|im_end|>")["input_ids"]


def test_the_same_text_gives_the_same_tokenizer(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        train_tokenizer(CORPUS, vocab_size=320).save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert files[0] == files[1]


def test_training_shortens_text() -> None:
    assert bytes_per_token(train_tokenizer(CORPUS, vocab_size=340), CORPUS) > bytes_per_token(TOKENIZER, CORPUS) > 1.5
    assert bytes_per_token(TOKENIZER, []) == 0.0
    assert bytes_per_token(TOKENIZER, ["\x00é"]) == pytest.approx(1.0)


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on; check `data`"):
        train_tokenizer([], vocab_size=300)


def test_a_vocabulary_that_cannot_hold_the_special_tokens_is_an_error() -> None:
    with pytest.raises(DataError, match="vocabSize 300 cannot hold 256 bytes and 54 special tokens; set at least 310"):
        train_tokenizer(CORPUS, vocab_size=300, special_tokens=[f"<{i}>" for i in range(50)])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "not usable .*correct `chatTemplate`"),
        ("{{ messages[0].content }}", "leaves out what the messages say"),
        ("{{ nothing.at.all }}", "not usable"),
    ],
)
def test_an_unusable_template_is_an_error(template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        train_tokenizer(CORPUS, vocab_size=300, chat_template=template)


def loaded_tokenizer(*tokens: str, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    names = [*tokens, "<unk>", *([eos] if eos else [])]
    model = WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token=eos)


def test_a_loaded_tokenizer_gets_a_template_its_vocabulary_can_express() -> None:
    plain, chat = loaded_tokenizer(), loaded_tokenizer("<|im_start|>", "<|im_end|>")
    sizes = len(plain), len(chat)
    ensure_chat_template(plain)
    ensure_chat_template(chat)
    assert (plain.chat_template, chat.chat_template) == (PLAIN, CHATML)
    assert (len(plain), len(chat)) == sizes


def test_a_loaded_tokenizer_keeps_its_own_template_unless_another_is_asked_for() -> None:
    tokenizer = loaded_tokenizer()
    ensure_chat_template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    ensure_chat_template(tokenizer)
    assert tokenizer.chat_template == "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_tokenizer_that_cannot_end_a_text_needs_a_template() -> None:
    with pytest.raises(ModelError, match="neither a chat template nor an end-of-text token; set `chatTemplate`"):
        ensure_chat_template(loaded_tokenizer(eos=None))


def test_added_special_tokens_are_counted_and_never_split() -> None:
    tokenizer = train_tokenizer(CORPUS, vocab_size=300)
    assert add_special_tokens(tokenizer, ["<tool>", "<|im_end|>"]) == 1
    assert tokenizer("x<tool>")["input_ids"][-1] == 300
