"""Formats: found from the columns, whatever people call them, and brought into one form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from camel_ray.errors import DataError

U, A, S = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
Q = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("row", "format", "expected"),
    [
        ({"text": "t"}, "text", {"text": "t"}),
        ({"content": "t", "url": "u"}, "text", {"text": "t", "row": '{"url": "u"}'}),
        ({"prompt": "q", "completion": "a"}, "prompt-completion", {"prompt": Q, "completion": "a"}),
        ({"Question": "q", "Answer": "a"}, "prompt-completion", {"prompt": Q, "row": '{"Answer": "a"}'}),
        ({"instruction": "q", "input": "", "output": "a"}, "prompt-completion", {"prompt": Q}),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            "prompt-completion",
            {"prompt": [{"role": "user", "content": "q\n\ni"}]},
        ),
        ({"query": "q", "response": "a"}, "prompt-completion", {"completion": "a"}),
        ({"prompt": [S, U], "completion": [A]}, "prompt-completion", {"prompt": [S, U], "completion": "a"}),
        ({"messages": [S, U, A]}, "messages", {"messages": [S, U, A]}),
        ({"messages": [U, A, U]}, "messages", {"messages": [U, A]}),
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
            "messages",
            {"messages": [U, A]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, A]},
            "messages",
            {"messages": [U, A]},
        ),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", {"prompt": Q, "chosen": "a", "rejected": "b"}),
        (
            {"prompt": [S, U], "chosen": "a", "rejected": "b"},
            "preference",
            {"prompt": [S, U], "chosen": "a", "rejected": "b"},
        ),
        (
            {"chosen": [U, A], "rejected": [U, {"role": "assistant", "content": "b"}]},
            "preference",
            {"prompt": [U], "chosen": "a", "rejected": "b"},
        ),
        (
            {"prompt": "u", "chosen": [A], "rejected": [{"role": "assistant", "content": "b"}]},
            "preference",
            {"prompt": [U], "chosen": "a", "rejected": "b"},
        ),
        (
            {"chosen": "\n\nHuman: u\n\nAssistant: a", "rejected": "\n\nHuman: u\n\nAssistant: b"},
            "preference",
            {"prompt": [U], "chosen": "a", "rejected": "b"},
        ),
        ({"text": "t", "label": 0, "label_name": "neg"}, "labelled", {"label": 0, "label_name": "neg"}),
        ({"sentence": "t", "category": "sports"}, "labelled", {"label": 0, "label_name": "sports"}),
    ],
)
def test_the_format_is_found_and_the_row_normalised(
    prepared: Any, jsonl: Any, row: dict[str, Any], format: str, expected: dict[str, Any]
) -> None:
    dataset = prepared(source=jsonl([row]))
    assert dataset.format == format
    assert {name: dataset.train[0][name] for name in expected} == expected


def test_columns_override_the_usual_names(prepared: Any, jsonl: Any) -> None:
    source = jsonl([{"text": "ignored", "frage": "q", "antwort": "a", "prompt": "x"}])
    dataset = prepared(source=source, columns={"prompt": "frage", "completion": "antwort"})
    assert dataset.format == "prompt-completion"
    assert dataset.train[0]["prompt"] == Q
    assert json.loads(dataset.train[0]["row"]) == {"text": "ignored", "prompt": "x", "antwort": "a"}


def test_a_wanted_format_wins_over_the_detected_one(prepared: Any, jsonl: Any) -> None:
    dataset = prepared(source=jsonl([{"text": "t", "label": 1}]), format="text")
    assert dataset.format == "text"
    assert dataset.train.column_names == ["text", "row"]


def test_named_labels_are_numbered_in_sorted_order_over_both_sides(prepared: Any, jsonl: Any) -> None:
    train = jsonl([{"text": "1", "label": "dog"}, {"text": "2", "label": "cat"}])
    dataset = prepared(source=train, validation_source=jsonl([{"text": "3", "label": "ant"}], "v.jsonl"))
    assert (dataset.train["label"][:], dataset.validation["label"][:]) == ([2, 1], [0])
    assert dataset.report.labels == ["ant", "cat", "dog"]


def test_labels_of_a_csv_that_are_all_integers_keep_their_value(prepared: Any, tmp_path: Any) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,10\nb,9\n")
    assert prepared(source="a.csv").train["label"][:] == [10, 9]


def test_most_of_the_first_rows_decide_on_the_format(prepared: Any, jsonl: Any) -> None:
    rows = [{"text": "odd one"}, *({"prompt": f"q{i}", "completion": "a"} for i in range(4))]
    dataset = prepared(source=jsonl(rows))
    assert dataset.format == "prompt-completion"
    assert dataset.report.rejected == {"missing column": 1}


def test_the_other_columns_are_kept_as_json(prepared: Any, tmp_path: Any) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet

    row = {"text": "t", "when": datetime.date(2024, 2, 29), "score": float("nan"), "blob": b"abc", "tags": ["a", 1.5]}
    row["tags"] = ["a", "b"]
    pa.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    kept = json.loads(prepared(source="a.parquet").train[0]["row"])
    assert kept == {"when": "2024-02-29", "score": None, "blob": "3 bytes", "tags": ["a", "b"]}


def test_no_fitting_format_names_the_columns_and_the_nearest_format(prepared: Any, jsonl: Any) -> None:
    with pytest.raises(DataError) as error:
        prepared(source=jsonl([{"prompt": "q", "chosen": "a", "score": 1}]))
    message = str(error.value)
    assert "data.jsonl, line 1: columns chosen, prompt, score do not fit any format" in message
    assert "no column `rejected`" in message
    assert "preference: chosen, rejected" in message
    assert "`columns`" in message
