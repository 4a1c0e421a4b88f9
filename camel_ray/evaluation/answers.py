"""Held-out questions, the answers a model gives to them, and what a reward model thinks of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from camel_ray.data.conversations import Message
from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.templates import encode_answer, encode_prompt, stop_token_ids
from camel_ray.models.generation import generate
from camel_ray.models.reward import score


@dataclass(frozen=True)
class Question:
    """A prompt, ending with the user, and the answer people gave to it."""

    prompt: Sequence[Message]
    reference: str


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    """Without special tokens and outer white space."""
    tokens: int
    """Tokens drawn, the end-of-turn token included."""
    finished: bool
    """It ended by itself, not at the length limit."""


def questions(dataset: PreparedDataset) -> Iterator[Question]:
    """The validation rows as questions, in their order.

    A conversation asks what its last user turn asked; a preference row's reference is the chosen answer. Conversations
    in which the assistant does not have the last word are passed over. Raises ValueError for text and labelled rows.
    """
    for row in dataset.validation:
        if dataset.format == "prompt-completion":
            yield Question(row["prompt"], row["completion"])
        elif dataset.format == "preference":
            yield Question(row["prompt"], row["chosen"])
        elif dataset.format == "messages":
            *prompt, last = row["messages"]
            if prompt and last["role"] == "assistant":
                yield Question(prompt, last["content"])
        else:
            raise ValueError(f"{dataset.format} rows have no prompts")


def fitting(
    asked: Iterator[Question], tokenizers: Sequence[PreTrainedTokenizerBase], *, limit: int, max_prompt_length: int
) -> tuple[list[Question], int]:
    """The first `limit` questions whose prompts are short enough for every tokenizer, and how many were passed over."""
    chosen: list[Question] = []
    too_long = 0
    for question in asked:
        if len(chosen) == limit:
            break
        if all(len(encode_prompt(tokenizer, question.prompt)) <= max_prompt_length for tokenizer in tokenizers):
            chosen.append(question)
        else:
            too_long += 1
    return chosen, too_long


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    *,
    max_response_length: int,
    temperature: float,
    seed: int,
    batch_size: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """The model's answers in the order of the questions; `report` is called with the number answered so far.

    With a temperature above 0 the randomness belongs to the question: two models given the
    same seed draw with the same numbers.
    """
    prompts = [encode_prompt(tokenizer, question.prompt) for question in asked]
    uniforms_BT = torch.rand((len(prompts), max_response_length), generator=torch.Generator().manual_seed(seed))
    stop_ids = stop_token_ids(tokenizer)
    answers: dict[int, Answer] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        drawn = generate(
            model,
            [prompts[i] for i in rows],
            max_new_tokens=max_response_length,
            temperature=temperature,
            stop_ids=stop_ids,
            pad_id=int(tokenizer.pad_token_id),
            uniforms_BT=uniforms_BT[rows] if temperature > 0 else None,
            batch_size=batch_size,
        )
        for i, generation in zip(rows, drawn, strict=True):
            text = str(tokenizer.decode(generation.tokens, skip_special_tokens=True)).strip()
            answers[i] = Answer(text, len(generation.tokens), generation.finished)
        report(len(answers))
    return [answers[i] for i in range(len(prompts))]


def references(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question]) -> list[Answer]:
    """The reference answers in the form of a model's, measured in its tokens."""
    return [Answer(q.reference, len(encode_answer(tokenizer, q.prompt, q.reference)[1]), True) for q in asked]


def judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    answers: Sequence[Answer],
    *,
    max_length: int,
    batch_tokens: int,
) -> list[float]:
    """The reward model's score of each answer.

    Answers are encoded with the judge's own tokenizer, so models with different tokenizers can be compared. One that
    was cut is judged without an end-of-turn token, as PPO does. What exceeds `max_length` tokens is cut at the end.
    """
    sequences = []
    for question, given in zip(asked, answers, strict=True):
        prompt, said = encode_answer(tokenizer, question.prompt, given.text)
        sequences.append([*prompt, *(said if given.finished else said[:-1])][:max_length])
    return score(model, sequences, pad_id=int(tokenizer.pad_token_id), batch_tokens=batch_tokens)
