"""From messages to token ids, with the answer's tokens known exactly.

A rendered conversation is cut where an assistant turn begins and ends, and each piece is tokenised on its own. So a
token never straddles the border, the loss mask is exact, and the ids of a prompt are the same whether a model is
trained on what follows or generates it. Turns are found by the template's `{% generation %}` marks, or, in a template
without them, by rendering the conversation with and without each turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from camel_ray.data.conversations import Message
from camel_ray.errors import ModelError

_PROBE = "\ufffc"
"""A text that no generation prompt begins with."""
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation that ends with the user, up to and including the generation prompt.

    Raises ModelError if the tokenizer has no chat template or the template refuses the messages.
    """
    return list(chain.from_iterable(ids for ids, _ in _segments(tokenizer, messages, generation_prompt=True)))


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str
) -> tuple[list[int], list[int]]:
    """Ids of a prompt, as `encode_prompt` gives them, and of its answer, which ends with the end-of-turn token.

    Raises ModelError as `encode_prompt` does.
    """
    segments = list(_segments(tokenizer, [*messages, Message(role="assistant", content=answer)]))
    last = max(index for index, (_, by_assistant) in enumerate(segments) if by_assistant)
    return list(chain.from_iterable(ids for ids, _ in segments[:last])), segments[last][0]


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and a mask of the same length: 1 for what the assistant says, end-of-turn tokens included.

    Raises ModelError as `encode_prompt` does.
    """
    ids: list[int] = []
    mask: list[int] = []
    for segment, by_assistant in _segments(tokenizer, messages):
        ids += segment
        mask += [int(by_assistant)] * len(segment)
    return ids, mask


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end an answer: the end-of-text token, and the token that ends an assistant turn in the chat template."""
    stops = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template:
        _, answer = encode_answer(tokenizer, [Message(role="user", content="a")], "b")
        special = _special_ids(tokenizer)
        stops += [token for token in answer[-1:] if token in special and token not in stops]
    if not stops:
        raise ModelError("the tokenizer has no end-of-text token and its chat template ends no turn; set `eos_token`")
    return tuple(stops)


def _segments(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool = False
) -> Iterator[tuple[list[int], bool]]:
    """Token ids piece by piece, and whether the assistant says the piece."""
    text, turns = _rendered(tokenizer, messages, generation_prompt)
    special = _special_ids(tokenizer)
    start = 0
    for index, (begin, end) in enumerate(turns):
        yield _ids(tokenizer, text[start:begin]), False
        ids = _ids(tokenizer, text[begin:end])
        closing = max((i for i, token in enumerate(ids) if token in special), default=None)
        last = index == len(turns) - 1 and not generation_prompt
        if closing is not None:
            yield ids[: closing + 1], True
            if ids[closing + 1 :]:  # what separates turns, such as a line end, is not for the assistant to say
                yield ids[closing + 1 :], False
        elif last and tokenizer.eos_token_id is not None:
            # The template ends no turn, so the model has to learn the end of an answer here.
            yield [*ids, int(tokenizer.eos_token_id)], True
        else:
            yield ids, True
        start = end
    yield _ids(tokenizer, text[start:]), False


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation_prompt: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and begin and end of each assistant turn in it, in characters."""
    template = _template(tokenizer)
    if _GENERATION_MARK.search(template):
        return _render(tokenizer, template, messages, generation_prompt, marks=True)
    text = _plain(tokenizer, template, messages, generation_prompt)
    turns: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _plain(tokenizer, template, messages[:index], True)
        after = _plain(tokenizer, template, messages[: index + 1], False)
        begin = _shared(before, after)
        if begin < len(before):  # the generation prompt has more than the turn; an answer may begin like it by chance
            other = Message(role="assistant", content=_PROBE)
            begin = min(begin, _shared(before, _plain(tokenizer, template, [*messages[:index], other], False)))
        without_prompt = _plain(tokenizer, template, messages[:index], False)
        if begin < len(without_prompt) or not text.startswith(after[:begin]) or after[begin:].strip() == "":
            raise ModelError(
                f"the chat template renders message {index + 1} differently when others follow, so the answer's tokens "
                "are unknown; mark assistant turns in it with {% generation %} ... {% endgeneration %}"
            )
        turns.append((begin, _shared(text, after)))
    return text, turns


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template; make it with a tokenizer stage, which adds one")
    return str(tokenizer.get_chat_template())


def _plain(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: Sequence[Message], generation_prompt: bool
) -> str:
    return _render(tokenizer, template, messages, generation_prompt, marks=False)[0]


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Message],
    generation_prompt: bool,
    *,
    marks: bool,
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text, and with `marks` what the template's generation marks enclose."""
    if not messages:
        return "", []
    try:
        texts, marked = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=template,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(f"the chat template cannot render a conversation ({error}); correct `chatTemplate`") from error
    text = str(texts[0])
    turns = [_with_end_of_turn(tokenizer, text, begin, end) for begin, end in (marked[0] if marks else [])]
    return text, turns


def _shared(first: str, second: str) -> int:
    """Number of characters with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def _with_end_of_turn(tokenizer: PreTrainedTokenizerBase, text: str, begin: int, end: int) -> tuple[int, int]:
    """A marked turn, extended by the special token behind it if the mark leaves that out: ending has to be learnt."""
    names = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(text[begin:end].rstrip().endswith(name) for name in names):
        following = next((name for name in names if text.startswith(name, end)), "")
        end += len(following)
    return begin, end


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: a long document is no mistake, what is too long is cut or dropped by the stage.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
