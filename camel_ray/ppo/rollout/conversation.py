"""Conversations with an environment: the policy answers, the environment replies, until one of them has said enough.

Token in, token out: what the policy wrote stays in its context as the tokens it drew. Only the environment's next
message is encoded, with what the chat template puts around it, and appended. Decoding and encoding an answer again may
give other tokens, whose log-probabilities nobody drew. All open conversations take their next turn together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from camel_ray.api.stages.ppo import SamplingSpec
from camel_ray.data.conversations import Message
from camel_ray.data.templates import encode_prompt
from camel_ray.errors import ModelError
from camel_ray.models.generation import Generation
from camel_ray.ppo.environment import Environments, Opening
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.rewards.score import Failure
from camel_ray.ppo.rollout.protocol import RolloutEngine

_ANSWER = "\ufffcanswer\ufffc"
"""Stands for the policy's answers when the template is asked what comes after one."""


@dataclass(frozen=True)
class Conversations:
    """What became of a list of prompts; all in their order."""

    experience: Experience
    """One row per conversation, with a run of action tokens per turn and `turn_rewards_A`. `finished_B`: every answer
    ended by itself. A conversation that failed keeps its turns, if it had any, but not their rewards."""
    messages: list[list[Message]]
    """All that was said, first messages of the prompt included."""
    failures: list[Failure | None]
    """Why the environment of a conversation failed."""
    ends: Counter[str]
    """Conversations by what ended them: `environment`, `turns` (`maxTurns`), `room` (the next prompt would have been
    longer than `maxPromptLength`) or `failure`."""


@dataclass
class _Conversation:
    """One conversation while it goes on."""

    tokens: list[int]
    messages: list[Message]
    actions: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """One per action token."""
    finished: bool = True
    end: str | None = None
    failure: Failure | None = None

    def fail(self, failure: Failure) -> None:
        self.failure, self.end = failure, "failure"
        self.rewards = [0.0] * len(self.rewards)

    def answer(self, generation: Generation, text: str) -> None:
        self._append(generation.tokens, action=True)
        self.logprobs += generation.logprobs
        self.rewards += [0.0] * len(generation.tokens)
        self.messages.append(Message(role="assistant", content=text))
        self.finished &= generation.finished

    def observe(self, tokens: Sequence[int], message: str) -> None:
        self._append(tokens, action=False)
        self.messages.append(Message(role="user", content=message))

    def _append(self, tokens: Sequence[int], *, action: bool) -> None:
        self.tokens += tokens
        self.actions += [action] * len(tokens)


def converse(
    engine: RolloutEngine,
    environments: Environments,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    sampling: SamplingSpec,
    stop_ids: Sequence[int],
    max_turns: int,
    groups: Sequence[int],
    policy_version: int,
) -> Conversations:
    """One conversation per prompt. The environment's first message takes the place of the prompt's last one.

    To the engine each turn is a prompt of at most `sampling.max_prompt_length` tokens with all that was said, answered
    with at most `sampling.max_response_length`: a conversation whose next prompt is longer ends, so no row is longer
    than that of a single turn may be. `seeds`: one number per prompt, from which those of its turns and of its
    environment follow, so a conversation does not depend on the others. Raises ModelError if the chat template has no
    place for another user message.
    """
    openings = [
        Opening(prompt.text, prompt.row, _seed(seed, "environment"))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    rows = [
        _opened(prompt, first, tokenizer, longest=sampling.max_prompt_length)
        for prompt, first in zip(prompts, environments.reset(openings), strict=True)
    ]
    for turn in range(max_turns):
        talking = [number for number, row in enumerate(rows) if row.end is None]
        if not talking:
            break
        answers = engine.generate(
            [rows[number].tokens for number in talking],
            [_seed(seeds[number], f"turn/{turn}") for number in talking],
            max_new_tokens=sampling.max_response_length,
        )
        texts = [_text(tokenizer, answer) for answer in answers]
        replies = environments.step(dict(zip(talking, texts, strict=True)))
        for number, answer, text in zip(talking, answers, texts, strict=True):
            row, reply = rows[number], replies[number]
            row.answer(answer, text)
            if isinstance(reply, Failure):
                row.fail(reply)
                continue
            row.rewards[-1] = reply.reward
            if reply.done or turn == max_turns - 1:
                row.end = "environment" if reply.done else "turns"
                continue
            between = encode_between(tokenizer, row.messages, reply.message, stop_ids=stop_ids, ended=answer.finished)
            if len(row.tokens) + len(between) > sampling.max_prompt_length:
                row.end = "room"
            else:
                row.observe(between, reply.message)
    environments.end()
    return Conversations(
        _experience(rows, groups, policy_version),
        [row.messages for row in rows],
        [row.failure for row in rows],
        Counter(str(row.end) for row in rows),
    )


def encode_between(
    tokenizer: PreTrainedTokenizerBase,
    said: Sequence[Message],
    message: str,
    *,
    stop_ids: Sequence[int],
    ended: bool,
) -> list[int]:
    """Tokens from the end of the last answer of `said` to the start of the answer to the user's next `message`.

    `ended`: the answer has its stop token. An answer that was cut gets the template's, as a token that the policy did
    not write. Raises ModelError if the template leaves the answer or the message out.
    """
    # The text after an answer does not depend on what earlier answers said, and theirs could confuse the search.
    messages = [dict(m) if m["role"] != "assistant" else {"role": "assistant", "content": _ANSWER} for m in said] + [
        {"role": "user", "content": message}
    ]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    _, found, after = text.rpartition(_ANSWER)
    start = after.find(message.strip())
    if not found or start < 0:
        raise ModelError(
            "the chat template leaves out what is said in a conversation of several turns; correct `chatTemplate`, or "
            "take `environment` out"
        )
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(list(stop_ids))]
    closing = min((after.index(s, 0, start) + len(s) for s in stops if s in after[:start]), default=0)
    parts = (after[closing:],) if ended else (after[:closing], after[closing:])
    return [token for part in parts if part for token in tokenizer(part, add_special_tokens=False)["input_ids"]]


def _opened(prompt: Prompt, first: str | Failure, tokenizer: PreTrainedTokenizerBase, *, longest: int) -> _Conversation:
    messages = [Message(role=role, content=content) for role, content in prompt.messages]
    ids = list(prompt.ids)
    if isinstance(first, str) and first != prompt.text:
        messages[-1] = Message(role="user", content=first)
        ids = encode_prompt(tokenizer, messages)
    if len(ids) > longest:
        first = Failure("first message too long", f"{len(ids)} tokens, and sampling.maxPromptLength is {longest}")
        messages, ids = [Message(role=role, content=content) for role, content in prompt.messages], list(prompt.ids)
    conversation = _Conversation([], messages[:-1])
    conversation.observe(ids, messages[-1]["content"])
    if isinstance(first, Failure):
        conversation.fail(first)
    return conversation


def _experience(rows: Sequence[_Conversation], groups: Sequence[int], policy_version: int) -> Experience:
    return Experience(
        tokens_N=torch.tensor([token for row in rows for token in row.tokens], dtype=torch.long),
        lengths_B=torch.tensor([len(row.tokens) for row in rows], dtype=torch.long),
        action_N=torch.tensor([action for row in rows for action in row.actions], dtype=torch.bool),
        rollout_logprobs_A=torch.tensor([value for row in rows for value in row.logprobs], dtype=torch.float32),
        finished_B=torch.tensor([row.finished for row in rows], dtype=torch.bool),
        groups_B=torch.tensor(list(groups), dtype=torch.long),
        policy_version_B=torch.full((len(rows),), policy_version, dtype=torch.long),
        turn_rewards_A=torch.tensor([value for row in rows for value in row.rewards], dtype=torch.float32),
    )


def _text(tokenizer: PreTrainedTokenizerBase, answer: Generation) -> str:
    ids = answer.tokens[:-1] if answer.finished else answer.tokens
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: a digest, so that neighbouring seeds and turns have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:7], "big")
