"""Trains a byte-level BPE tokenizer, and gives chat templates to tokenizers that have none.

Byte-level: any text can be encoded and decodes to itself. The result is a plain fast tokenizer, loadable by
`AutoTokenizer` and by serving engines without code of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import jinja2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.filters import texts
from camel_ray.errors import DataError, ModelError

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)
_BYTES = 256

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, with assistant turns and their end marked for the loss mask."""

PLAIN = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Chat template for loaded tokenizers without one: it needs no token that their model does not know."""


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    min_frequency: int = 2,
    max_length: int = 1_000_000,
    chat_template: str | None = None,
    special_tokens: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016; bytes as in GPT-2) with at most `vocab_size` entries.

    There are fewer if the text has no more pairs seen `min_frequency` times. Raises DataError if there is no text or
    `vocab_size` cannot hold all bytes and special tokens, ModelError if the chat template cannot be used.
    """
    special = list(dict.fromkeys((*SPECIAL_TOKENS, *special_tokens)))
    if vocab_size < _BYTES + len(special):
        raise DataError(
            f"vocabSize {vocab_size} cannot hold {_BYTES} bytes and {len(special)} special tokens; "
            f"set at least {_BYTES + len(special)}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield text

    bpe.train_from_iterator(counted(), trainer)
    if characters == 0:
        raise DataError("there is no text to train a tokenizer on; check `data` of the tokenizer stage")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=special[2:],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    set_chat_template(tokenizer, chat_template or CHATML)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> int:
    """Make `tokens` special, those the tokenizer knows included. Returns how many are new to it."""
    return int(
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
        )
    )


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
    """Set `chat_template`, or, where the tokenizer has none, a default its vocabulary can express.

    Raises ModelError if the template cannot be used, or the default needs an end-of-text token and there is none.
    """
    if chat_template is not None:
        set_chat_template(tokenizer, chat_template)
    elif not tokenizer.chat_template:
        known = tokenizer.get_vocab()
        if TURN_START not in known or TURN_END not in known:
            if tokenizer.eos_token is None:
                raise ModelError(
                    "the tokenizer has neither a chat template nor an end-of-text token; set `chatTemplate`"
                )
            set_chat_template(tokenizer, PLAIN)
        else:
            set_chat_template(tokenizer, CHATML)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
    """Set a chat template after trying it on a conversation. Raises ModelError if it fails or loses what is said."""
    said = ["a question", "the answer"]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], chat_template=chat_template, **tokenizer.special_tokens_map
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ModelError(f"the chat template is not usable ({error}); correct `chatTemplate`") from error
    missing = next((text for text in said if text not in rendered[0]), None)
    if missing is not None:
        raise ModelError("the chat template leaves out what the messages say; it has to render `message['content']`")
    tokenizer.chat_template = chat_template


def training_texts(dataset: PreparedDataset) -> Iterator[str]:
    """All texts of the training side, whatever the format."""
    for row in dataset.train:
        yield from texts(row, dataset.format)


def bytes_per_token(tokenizer: PreTrainedTokenizerBase, sample: Sequence[str]) -> float:
    """UTF-8 bytes of the sample per token: how well the vocabulary fits the text. 0 for an empty sample."""
    encoded = tokenizer(list(sample), add_special_tokens=False, verbose=False)["input_ids"] if sample else []
    tokens = sum(len(ids) for ids in encoded)
    return sum(len(text.encode("utf-8")) for text in sample) / tokens if tokens else 0.0
