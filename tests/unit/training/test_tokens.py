"""Rows to token ids: what counts for the loss, what is cut, what is dropped."""

import datasets
import pytest

from camel_ray.data.dataset import DataReport, PreparedDataset
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import DataError
from camel_ray.progress import Progress
from camel_ray.training.collate import IGNORED
from camel_ray.training.tokens import TokenRows, answer_rows, pair_rows, text_rows, tokenise

LETTERS = "abcdefghij " * 30


@pytest.fixture(scope="module")
def tokenizer():
    # No merges: one token per byte, so that lengths are known.
    return train_tokenizer([LETTERS], vocab_size=300, min_frequency=10_000)


def prepared(format, train, validation=()):
    rows = [[{"row": "{}", **row} for row in side] for side in (train, validation)]
    sides = [datasets.Dataset.from_list(side or [dict.fromkeys(rows[0][0])]) for side in rows]
    sides[1] = sides[1] if validation else sides[1].select([])
    return PreparedDataset(format, *sides, DataReport(format, [], len(train), len(train), len(validation)))


def made(tmp_path, dataset, rows, name="tokens"):
    return tokenise(tmp_path / name, dataset, rows, stage="chat", progress=Progress(tmp_path / "p.jsonl"))


def test_packed_text_is_one_stream_with_separators(tmp_path, tokenizer):
    texts = ["abc", "d" * 25, "", "efg"]
    dataset = prepared("text", [{"text": text} for text in texts])
    tokens = made(tmp_path, dataset, text_rows(tokenizer, max_length=8, packing=True, overflow="truncate"))
    stream = [i for row in tokens.train["input_ids"] for i in row]
    whole = [
        i for text in texts for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert stream == whole[: len(whole) // 8 * 8]
    assert TokenRows.lengths(tokens.train).tolist() == [8] * (len(whole) // 8)


def test_packing_continues_over_batches_of_documents(tmp_path, tokenizer):
    texts = [LETTERS[: i % 7] for i in range(2500)]
    dataset = prepared("text", [{"text": text} for text in texts])
    tokens = made(tmp_path, dataset, text_rows(tokenizer, max_length=64, packing=True, overflow="truncate"))
    whole = [
        i for text in texts for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    assert [i for row in tokens.train["input_ids"] for i in row] == whole[: len(whole) // 64 * 64]


@pytest.mark.parametrize(("overflow", "lengths", "truncated", "dropped"), [
    ("truncate", [4, 8], 1, {}),
    ("drop", [4], 0, {"longer than maxLength": 1}),
])  # fmt: skip
def test_single_documents_are_cut_or_dropped(tmp_path, tokenizer, overflow, lengths, truncated, dropped):
    dataset = prepared("text", [{"text": "abc"}, {"text": "a" * 30}])
    tokens = made(tmp_path, dataset, text_rows(tokenizer, max_length=8, packing=False, overflow=overflow))
    assert TokenRows.lengths(tokens.train).tolist() == lengths
    assert (tokens.truncated, dict(tokens.dropped)) == (truncated, dropped)


def answers(tokenizer, **changes):
    options = {
        "format": "prompt-completion", "max_length": 200, "overflow": "truncate", "loss_on": "answer", "packing": False
    }  # fmt: skip
    return answer_rows(tokenizer, **{**options, **changes})


def ask(prompt, completion):
    return {"prompt": [{"role": "user", "content": prompt}], "completion": completion}


def test_the_loss_counts_the_answer_and_its_end_only(tmp_path, tokenizer):
    tokens = made(tmp_path, prepared("prompt-completion", [ask("abc", "def")]), answers(tokenizer))
    row = tokens.train[0]
    counted = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(counted) == "def<|im_end|>"
    assert all(label in (IGNORED, i) for label, i in zip(row["labels"], row["input_ids"], strict=True))
    everything = made(
        tmp_path, prepared("prompt-completion", [ask("abc", "def")]), answers(tokenizer, loss_on="all"), "all"
    )
    assert everything.train[0]["labels"] == everything.train[0]["input_ids"] == row["input_ids"]


def test_all_assistant_turns_count(tmp_path, tokenizer):
    turns = [("user", "aa"), ("assistant", "bb"), ("user", "cc"), ("assistant", "dd")]
    messages = [{"role": role, "content": content} for role, content in turns]
    tokens = made(tmp_path, prepared("messages", [{"messages": messages}]), answers(tokenizer, format="messages"))
    counted = [label for label in tokens.train[0]["labels"] if label != IGNORED]
    assert tokenizer.decode(counted) == "bb<|im_end|>dd<|im_end|>"


def test_long_rows_are_cut_or_dropped_and_a_prompt_without_room_always_goes(tmp_path, tokenizer):
    dataset = prepared("prompt-completion", [ask("a", "b"), ask("a", "b" * 99), ask("a" * 99, "b")])
    cut = made(tmp_path, dataset, answers(tokenizer, max_length=64))
    assert (len(cut.train), cut.truncated) == (2, 1)
    assert cut.dropped == {"prompt leaves no room for the answer": 1}
    dropped = made(tmp_path, dataset, answers(tokenizer, max_length=64, overflow="drop"), "drop")
    assert (len(dropped.train), dropped.dropped) == (1, {"longer than maxLength": 2})


def test_packed_conversations_keep_their_lengths_and_labels(tmp_path, tokenizer):
    dataset = prepared("prompt-completion", [ask("a", "b" * n) for n in (3, 30, 8)])
    tokens = made(tmp_path, dataset, answers(tokenizer, max_length=90, packing=True))
    lengths = [n for row in tokens.train for n in row["seq_lengths"]]
    single = made(tmp_path, dataset, answers(tokenizer), "single")
    assert sorted(lengths) == sorted(TokenRows.lengths(single.train).tolist())
    counted = [label for row in tokens.train for label in row["labels"] if label != IGNORED]
    assert sorted(counted) == sorted(label for row in single.train for label in row["labels"] if label != IGNORED)


def pair(prompt, chosen, rejected, row="{}"):
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected, "row": row}


def test_pairs_share_their_prompt_and_keep_kind_and_characters(tmp_path, tokenizer):
    dataset = prepared("preference", [pair("abc", "good", "bad", '{"kind": "swap"}')])
    whole = made(tmp_path, dataset, pair_rows(tokenizer, max_length=99, overflow="truncate", split_prompt=False))
    split = made(
        tmp_path, dataset, pair_rows(tokenizer, max_length=99, overflow="truncate", split_prompt=True), "split"
    )
    row, parts = whole.train[0], split.train[0]
    assert row["chosen_ids"] == parts["prompt_ids"] + parts["chosen_ids"]
    assert row["rejected_ids"] == parts["prompt_ids"] + parts["rejected_ids"]
    assert tokenizer.decode(parts["chosen_ids"]) == "good<|im_end|>"
    assert row["length"] == len(row["chosen_ids"]) + len(row["rejected_ids"])
    assert (row["characters"], row["kind"]) == ([4, 3], "swap")


def test_pairs_that_cannot_be_told_apart_are_dropped(tmp_path, tokenizer):
    rows = [
        pair("a", "x", "y"),
        pair("a", "same", "same"),
        pair("a", "b" * 80 + "c", "b" * 80 + "d"),
        pair("a" * 99, "x", "y"),
    ]
    tokens = made(
        tmp_path,
        prepared("preference", rows),
        pair_rows(tokenizer, max_length=70, overflow="truncate", split_prompt=False),
    )
    assert tokens.dropped == {
        "both answers are the same": 1,
        "both answers are the same up to maxLength": 1,
        "prompt leaves no room for the answer": 1,
    }


def test_nothing_left_is_an_error_that_says_why(tmp_path, tokenizer):
    dataset = prepared("prompt-completion", [ask("a" * 99, "b")])
    with pytest.raises(DataError, match=r"stage 'chat': no row is left to train on \(1 prompt leaves no room"):
        made(tmp_path, dataset, answers(tokenizer, max_length=64))


def test_finished_tokens_are_used_again_and_unfinished_ones_are_not(tmp_path, tokenizer):
    dataset = prepared("prompt-completion", [ask("a", "b")])
    first = made(tmp_path, dataset, answers(tokenizer))

    def never(side, counter):
        raise AssertionError("tokenised twice")

    again = made(tmp_path, dataset, never)
    assert again.train[0] == first.train[0]
    (tmp_path / "tokens" / "manifest.json").unlink()
    with pytest.raises(AssertionError, match="twice"):
        made(tmp_path, dataset, never)
