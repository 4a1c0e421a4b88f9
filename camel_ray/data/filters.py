"""Keys by which rows are compared, split and put in order.

All are hashes, so nothing depends on the order of the source.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from camel_ray.api.data import DataFormat
from camel_ray.data.conversations import Message

_PARTS: dict[DataFormat, tuple[str, ...]] = {
    "text": ("text",),
    "labelled": ("text",),
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
}


def texts(row: Mapping[str, Any], format: DataFormat) -> list[str]:
    """All texts of a normalised row, in order."""
    found: list[str] = []
    for part in _PARTS[format]:
        value = row[part]
        found.extend([value] if isinstance(value, str) else [message["content"] for message in value])
    return found


def content_key(row: Mapping[str, Any], format: DataFormat) -> bytes:
    """Digest of a row's texts, the same for rows that differ only in case, white space or Unicode form. 16 bytes."""
    return _digest("\x1f".join(_normalised(text) for text in texts(row, format)))


def question_key(row: Mapping[str, Any], format: DataFormat) -> bytes:
    """Digest of what decides on which side of the split a row falls. 16 bytes.

    It is the first user message (or the text, where there is no conversation): all answers to one question, and the
    longer and shorter versions of one dialogue, stay on one side; and the same question falls on the same side in
    another data set.
    """
    if format in ("text", "labelled"):
        return _digest(_normalised(row["text"]))
    turns: Sequence[Message] = row["messages" if format == "messages" else "prompt"]
    return _digest(_normalised(next(turn["content"] for turn in turns if turn["role"] == "user")))


def named_key(name: str) -> bytes:
    """Digest of a `split_key` that a source gives its rows. 16 bytes."""
    return _digest(f"key\x1f{name}")


def held_out(keys: Sequence[bytes], share: float) -> list[bool]:
    """Whether each row belongs to the validation side: it does if its key, as a number in [0, 1), is below `share`.

    Each row is decided by its own key alone, so adding rows moves none. The exception are small data sets where that
    would leave one side empty: then the rows nearest to the limit change sides. A single key cannot be split and is
    all training rows.
    """
    if share <= 0.0 or not keys:
        return [False] * len(keys)
    chosen = {key for key in keys if _fraction(key) < share}
    if not chosen:
        chosen = {min(keys)}
    if len(chosen) == len(set(keys)):
        chosen.discard(max(keys))
    return [key in chosen for key in keys]


def shuffled(keys: Sequence[bytes], seed: int) -> list[int]:
    """Positions in a pseudo-random order that depends on the keys and the seed only."""
    salt = str(seed).encode()
    return sorted(range(len(keys)), key=lambda index: hashlib.blake2b(keys[index], key=salt, digest_size=16).digest())


def _fraction(key: bytes) -> float:
    return int.from_bytes(key[:8], "big") / 2.0**64


def _normalised(text: str) -> str:
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
