"""Rows of a prepared data set to token ids on disk, once per stage.

The trainers' own preparation is skipped: here the loss mask comes from the project's chat templates, rows that cannot
be trained on are counted by reason instead of vanishing, and the result is an Arrow file that all workers map into
memory.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import trl
from transformers import PreTrainedTokenizerBase

from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.packing import pack_documents
from camel_ray.data.templates import encode_answer, encode_conversation
from camel_ray.errors import DataError
from camel_ray.manifest import disk_errors, verify, write_manifest
from camel_ray.progress import Progress
from camel_ray.training.collate import IGNORED

Overflow = Literal["truncate", "drop"]
Row = dict[str, Any]
Encode = Callable[[Mapping[str, Any]], Row | str]
"""A source row to columns of token ids, or to the reason why it is dropped."""
RowMaker = Callable[[datasets.Dataset, "TokenCounter"], Iterator[Row]]
"""Turns one side of a data set into rows of token ids, counting what it leaves out."""

_BATCH = 1000
_IDS = pa.list_(pa.int32())
_TYPES: Mapping[str, pa.DataType] = {"length": pa.int32(), "characters": pa.list_(pa.int32()), "kind": pa.string()}
_SIDES = ("train", "validation")


@dataclass(frozen=True)
class TokenRows:
    """Tokenised rows of both sides, and what was left out or cut, by reason."""

    train: datasets.Dataset
    validation: datasets.Dataset
    dropped: Mapping[str, int]
    truncated: int

    @staticmethod
    def lengths(side: datasets.Dataset) -> npt.NDArray[np.int64]:
        """Tokens of each row (of both sequences together, for pairs)."""
        return np.asarray(side.data.column("length").to_numpy(), dtype=np.int64)


def load_tokens(directory: Path) -> TokenRows:
    """Map tokenised rows into memory."""
    info = json.loads((directory / "info.json").read_text(encoding="utf-8"))
    train, validation = (datasets.Dataset.from_file(str(directory / f"{side}.arrow")) for side in _SIDES)
    return TokenRows(train, validation, info["dropped"], info["truncated"])


def tokenise(directory: Path, dataset: PreparedDataset, rows: RowMaker, *, stage: str, progress: Progress) -> TokenRows:
    """Fill `directory` with the token rows of both sides, unless an earlier attempt did. `rows` turns a side into rows.

    Raises DataError if nothing is left to train on, StorageUnavailable if the disk is full.
    """
    if directory.exists() and verify(directory, contents=False) is None:
        return load_tokens(directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    counter = TokenCounter(progress, total=len(dataset.train) + len(dataset.validation))
    with disk_errors(directory):
        for side in _SIDES:
            _write(directory / f"{side}.arrow", rows(getattr(dataset, side), counter))
        info = {"dropped": dict(counter.dropped), "truncated": counter.truncated}
        (directory / "info.json").write_text(json.dumps(info), encoding="utf-8")
    progress.finish("tokenize")
    tokens = load_tokens(directory)
    if len(tokens.train) == 0:
        reasons = ", ".join(f"{n} {reason}" for reason, n in counter.dropped.items()) or "the data set is empty"
        raise DataError(
            f"stage '{stage}': no row is left to train on ({reasons}); raise maxLength, or give it other data"
        )
    write_manifest(directory)
    return tokens


class TokenCounter:
    """Counts rows while they are tokenised."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self.dropped: Counter[str] = Counter()
        self.truncated = 0
        self._progress, self._total, self._done = progress, total, 0

    def batch(self, rows: int) -> None:
        """`rows` more source rows are done."""
        self._done += rows
        self._progress.update("tokenize", self._done, self._total, unit="rows")

    def each(self, side: datasets.Dataset, encode: Encode) -> Iterator[Row]:
        """The rows of `side` that `encode` keeps."""
        for batch in side.iter(_BATCH):
            size = len(next(iter(batch.values())))
            for i in range(size):
                row = encode({name: values[i] for name, values in batch.items()})
                if isinstance(row, str):
                    self.dropped[row] += 1
                else:
                    self.truncated += bool(row.pop("truncated", False))
                    yield row
            self.batch(size)


def text_rows(tokenizer: PreTrainedTokenizerBase, *, max_length: int, packing: bool, overflow: Overflow) -> RowMaker:
    """Documents, each followed by the end-of-text token; with `packing` one stream cut into rows of `max_length`."""
    separator = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id

    def documents(side: datasets.Dataset, counter: TokenCounter) -> Iterator[list[list[int]]]:
        for batch in side.iter(_BATCH):
            # verbose=False: a document longer than the tokenizer's limit is cut below.
            options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            yield tokenizer(batch["text"], **options)["input_ids"]
            counter.batch(len(batch["text"]))

    def packed(side: datasets.Dataset, counter: TokenCounter) -> Iterator[Row]:
        carry: list[int] = []
        for batch in documents(side, counter):
            batch[0] = carry + batch[0]
            for row in pack_documents(batch, max_length, separator):
                yield {"input_ids": row, "length": max_length}
            rest = (sum(map(len, batch)) + len(batch)) % max_length
            carry = _last_tokens(batch, separator, rest)

    def single(side: datasets.Dataset, counter: TokenCounter) -> Iterator[Row]:
        for ids in chain.from_iterable(documents(side, counter)):
            if len(ids) + 1 > max_length and overflow == "drop":
                counter.dropped["longer than maxLength"] += 1
                continue
            counter.truncated += len(ids) + 1 > max_length
            ids = [*ids, separator][:max_length]
            yield {"input_ids": ids, "length": len(ids)}

    return packed if packing else single


def answer_rows(
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: str,
    max_length: int,
    overflow: Overflow,
    loss_on: str,
    packing: bool,
) -> RowMaker:
    """Conversations with labels on the answers (`loss_on: answer`) or on everything (`all`).

    With `packing` a row holds several conversations (best fit), whose lengths are in `seq_lengths`.
    """

    def encode(row: Mapping[str, Any]) -> Row | str:
        if format == "messages":
            ids, answer_mask = encode_conversation(tokenizer, row["messages"])
        else:
            prompt, answer = encode_answer(tokenizer, row["prompt"], row["completion"])
            ids, answer_mask = [*prompt, *answer], [0] * len(prompt) + [1] * len(answer)
        truncated = len(ids) > max_length
        if truncated and overflow == "drop":
            return "longer than maxLength"
        ids, answer_mask = ids[:max_length], answer_mask[:max_length]
        # The first token is never predicted, so an answer there counts for nothing.
        if not any(answer_mask[1:]):
            return "prompt leaves no room for the answer" if truncated else "no answer"
        labels = ids if loss_on == "all" else [t if m else IGNORED for t, m in zip(ids, answer_mask, strict=True)]
        return {"input_ids": ids, "labels": labels, "length": len(ids), "truncated": truncated}

    def packed(side: datasets.Dataset, counter: TokenCounter) -> Iterator[Row]:
        rows = datasets.Dataset.from_list([*counter.each(side, encode)] or [{"input_ids": [], "labels": []}])
        columns = rows.select_columns(["input_ids", "labels"])
        for row in trl.pack_dataset(columns, max_length, "bfd") if len(side) else []:
            yield {**row, "length": len(row["input_ids"])}

    return packed if packing else lambda side, counter: counter.each(side, encode)


def pair_rows(
    tokenizer: PreTrainedTokenizerBase, *, max_length: int, overflow: Overflow, split_prompt: bool
) -> RowMaker:
    """Preference pairs: whole sequences `chosen_ids`, `rejected_ids`, or with `split_prompt` answers beside
    `prompt_ids`.

    Each row keeps the characters of both answers and the source row's `kind`, for the breakdown of a reward model's
    accuracy.
    """

    def encode(row: Mapping[str, Any]) -> Row | str:
        prompt, chosen = encode_answer(tokenizer, row["prompt"], row["chosen"])
        _, rejected = encode_answer(tokenizer, row["prompt"], row["rejected"])
        room = max_length - len(prompt)
        if room < 1:
            return "prompt leaves no room for the answer"
        truncated = max(len(chosen), len(rejected)) > room
        if truncated and overflow == "drop":
            return "longer than maxLength"
        chosen, rejected = chosen[:room], rejected[:room]
        if chosen == rejected:
            return "both answers are the same" + (" up to maxLength" if truncated else "")
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        if not split_prompt:
            ids = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        return {
            **ids,
            "length": 2 * len(prompt) + len(chosen) + len(rejected),
            "characters": [len(row["chosen"]), len(row["rejected"])],
            "kind": _kind(row["row"]),
            "truncated": truncated,
        }

    return lambda side, counter: counter.each(side, encode)


def _last_tokens(documents: Sequence[list[int]], separator: int, count: int) -> list[int]:
    """The last `count` tokens of the documents, each of which ends with `separator`."""
    tail: list[int] = []
    for document in reversed(documents):
        if len(tail) >= count:
            break
        tail = [*document, separator, *tail]
    return tail[len(tail) - count :]


def _kind(row: str | None) -> str | None:
    value = json.loads(row).get("kind") if row else None
    return value if isinstance(value, str) else None


def _write(path: Path, rows: Iterable[Row]) -> None:
    """One Arrow stream; its columns are those of the first row."""
    iterator = iter(rows)
    first = next(iterator, None)
    schema = pa.schema([(name, _TYPES.get(name, _IDS)) for name in first or {"input_ids": [], "length": 0}])
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        batch = [] if first is None else [first]
        for row in iterator:
            batch.append(row)
            if len(batch) == _BATCH:
                stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            stream.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
