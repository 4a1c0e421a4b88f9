"""The prompts of a stage, tokenised once, in an order that depends on the seed and the round only.

Because the order is a function of the round, a resumed run needs no data position: it asks for its round.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from camel_ray.data.conversations import Message
from camel_ray.data.templates import encode_prompt
from camel_ray.errors import DataError
from camel_ray.ppo.rewards.score import DEMONSTRATION


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    ids: tuple[int, ...]
    """Tokens up to where the answer starts."""
    text: str
    """The last user message."""
    messages: tuple[tuple[str, str], ...]
    """Role and content of all messages."""
    row: str
    """JSON object with the other columns of the source row, and the data's own answer as `completion`."""
    number: int = 0
    """Its place in the file order of the prompts."""
    demonstration: str | None = None
    """The data's own answer, where there is one."""


@dataclass(frozen=True)
class Prompts:
    """Prompts in file order, and how many rows were too long."""

    prompts: tuple[Prompt, ...]
    too_long: int
    seed: int

    def of_round(self, number: int, count: int) -> list[Prompt]:
        """The `count` prompts of round `number` (from 0): pass after pass over all, each in an order of its own."""
        total, start = len(self.prompts), number * count
        passes = range(start // total, (start + count - 1) // total + 1)
        order = [index for number_of_pass in passes for index in self._order(number_of_pass)]
        offset = start - passes[0] * total
        return [self.prompts[index] for index in order[offset : offset + count]]

    def extra(self, number: int, attempt: int, count: int) -> list[Prompt]:
        """At most `count` prompts that stand in for others in round `number` (from 0)."""
        choice = random.Random(f"{self.seed}/{number}/extra/{attempt}")
        return choice.sample(self.prompts, min(count, len(self.prompts)))

    def _order(self, number_of_pass: int) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/{number_of_pass}").shuffle(order)
        return order


def encode_prompts(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    where: str,
    limit: int | None = None,
    first_number: int = 0,
) -> Prompts:
    """Tokenise the prompts of rows (`prompt` or `messages` column); longer ones than `max_length` are left out and
    counted.

    Stops after `limit` prompts. Raises DataError if nothing is left. `where` names the data in the error. Prompts are
    numbered from `first_number`.
    """
    kept: list[Prompt] = []
    too_long = read = 0
    for row in rows:
        if limit is not None and len(kept) == limit:
            break
        messages: list[Message] = _up_to_last_user(row["prompt"] if "prompt" in row else row["messages"])
        if not messages:
            continue
        read += 1
        ids = encode_prompt(tokenizer, messages)
        if len(ids) > max_length:
            too_long += 1
            continue
        spoken = tuple((str(m["role"]), str(m["content"])) for m in messages)
        number, demonstration = first_number + len(kept), _demonstration(row)
        columns = str(row["row"])
        if demonstration is not None:
            columns = json.dumps({DEMONSTRATION: demonstration, **json.loads(columns)})
        kept.append(Prompt(tuple(ids), spoken[-1][1], spoken, columns, number, demonstration))
    if not kept:
        reason = (
            f"all {read} are longer than sampling.maxPromptLength = {max_length} tokens"
            if too_long
            else "there are no rows"
        )
        raise DataError(f"{where} has no usable prompt ({reason}); raise the limit or use other data")
    return Prompts(tuple(kept), too_long, seed)


def _up_to_last_user(messages: Sequence[Mapping[str, str]]) -> list[Message]:
    """Messages up to the last one of the user: what comes after is an answer, which the policy is to write itself."""
    for end in range(len(messages), 0, -1):
        if messages[end - 1]["role"] == "user":
            return [Message(role=m["role"], content=m["content"]) for m in messages[:end]]
    return []


def _demonstration(row: Mapping[str, Any]) -> str | None:
    """The data's own answer to the last user message."""
    for column in ("completion", "chosen"):
        if column in row:
            return str(row[column])
    messages = row.get("messages") or [{"role": "user", "content": ""}]
    return str(messages[-1]["content"]) if messages[-1]["role"] == "assistant" else None
