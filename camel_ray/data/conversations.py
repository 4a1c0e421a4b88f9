r"""Brings the conversations people write into one form: `{role, content}` messages, user and assistant in turn.

Understood: OpenAI style (`role`/`content`), ShareGPT (`from`/`value`), content given as a list of text parts, and the
transcripts of Anthropic's HH (`\n\nHuman: ...\n\nAssistant: ...`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypedDict

from camel_ray.data.rows import Unusable


class Message(TypedDict):
    """One turn. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def messages_of(value: Any, field: str) -> list[Message]:
    """The messages in a field, roles and keys normalised and their order checked.

    An optional system message, then user and assistant in turn, beginning with the user. Raises Unusable.
    """
    if not isinstance(value, (list, tuple)):
        raise Unusable("wrong type", f"`{field}` is a {_name(value)} instead of a list of messages")
    if not value:
        raise Unusable("empty", f"`{field}` has no messages")
    messages = [_message(entry, f"{field}[{index}]") for index, entry in enumerate(value)]
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if not turns:
        raise Unusable("empty", f"`{field}` has only a system message")
    for index, turn in enumerate(turns):
        wanted = ("user", "assistant")[index % 2]
        if turn["role"] != wanted:
            position = index + len(messages) - len(turns)
            raise Unusable(
                "roles out of order", f"`{field}[{position}]` is by {turn['role']} where {wanted} should speak"
            )
    return messages


def prompt_of(value: Any, field: str) -> list[Message]:
    """A prompt: a string (one user turn) or messages that end with the user. Raises Unusable."""
    if isinstance(value, str):
        return [Message(role="user", content=text_of(value, field))]
    messages = messages_of(value, field)
    if messages[-1]["role"] != "user":
        raise Unusable("roles out of order", f"`{field}` ends with {messages[-1]['role']} instead of user")
    return messages


def answer_of(value: Any, field: str) -> str:
    """An answer: a string, or a list with one assistant message. Raises Unusable."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise Unusable("wrong type", f"`{field}` has {len(value)} messages where one answer is expected")
        message = _message(value[0], f"{field}[0]")
        if message["role"] != "assistant":
            raise Unusable("roles out of order", f"`{field}[0]` is by {message['role']} instead of assistant")
        return message["content"]
    return text_of(value, field)


def text_of(value: Any, field: str) -> str:
    """A string that is not blank. Raises Unusable."""
    if value is None:
        raise Unusable("missing value", f"`{field}` is null")
    if not isinstance(value, str):
        raise Unusable("wrong type", f"`{field}` is a {_name(value)} instead of a string")
    if not value.strip():
        raise Unusable("empty", f"`{field}` is empty")
    if any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else False:
        raise Unusable("bad UTF-8", f"`{field}` holds half of a surrogate pair")
    return value


def transcript(value: Any) -> list[dict[str, str]] | None:
    r"""The turns of a `\n\nHuman: ...\n\nAssistant: ...` string, or None if it is something else."""
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
        return None
    parts = _TRANSCRIPT.split(value.strip())[1:]
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[role.lower()], "content": content.strip()} for role, content in turns]


def shared_prefix(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """The turns before the two last answers, which have to be the same in both. Raises Unusable."""
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise Unusable("roles out of order", f"`{name}` ends with {messages[-1]['role']} instead of assistant")
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise Unusable("different prompts", "`chosen` and `rejected` differ before the last answer")
    return list(chosen[:-1])


def _message(entry: Any, field: str) -> Message:
    if not isinstance(entry, dict):
        raise Unusable("wrong type", f"`{field}` is a {_name(entry)} instead of an object with role and content")
    role = entry.get("role", entry.get("from"))
    content = entry.get("content", entry.get("value"))
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise Unusable("unknown role", f"`{field}` has the role {role!r}; expected system, user or assistant")
    if isinstance(content, list):
        content = _joined_parts(content, field)
    return Message(role=known, content=text_of(content, f"{field}.content"))


def _joined_parts(parts: list[Any], field: str) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type", "text") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise Unusable("wrong type", f"`{field}.content` has parts that are not text")
    return "".join(str(text) for text in texts)


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
