"""Broken data:

each set gives one sentence with place and remedy, each broken row one counted rejection with its place.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from camel_ray.errors import DataError

GOOD = '{"text": "a good row"}\n'


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


PARQUET = parquet([{"text": f"row {index} " * 20} for index in range(2000)])
DEEP = "[" * 100_000 + "]" * 100_000

# name of the file, its content, what the sentence has to say: the place, what is wrong, and the remedy
WHOLE_FILES: list[tuple[str, bytes, str]] = [
    ("empty.jsonl", b"", r"empty\.jsonl is empty; a data set needs at least one row"),
    ("blank.jsonl", b"\n\n \n", r"blank\.jsonl is empty"),
    ("empty.json", b"", r"empty\.json, line 1: not valid JSON .*repair or download"),
    ("none.json", b"[]", r"none\.json is empty"),
    ("empty.csv", b"", r"empty\.csv is empty"),
    ("header-only.csv", b"text,label\n", r"header-only\.csv is empty"),
    ("empty.txt", b"\n\n", r"empty\.txt is empty"),
    (
        "empty.parquet",
        parquet([{"text": "x"}])[:0],
        r"empty\.parquet, row 1: not a whole Parquet file .*write or download it again",
    ),
    ("cut.parquet", PARQUET[: len(PARQUET) // 2], r"cut\.parquet, row 1: not a whole Parquet file .*truncated"),
    ("not-a.parquet", GOOD.encode() * 10, r"not-a\.parquet, row 1: not a whole Parquet file"),
    (
        "flipped.parquet",
        PARQUET[:100] + bytes(400) + PARQUET[500:],
        r"flipped\.parquet, row \d+: not a whole Parquet file",
    ),
    (
        "cut.json",
        b'[{"text": "a"},\n {"text": ',
        r"cut\.json, line 2: not valid JSON .*repair or download the file again",
    ),
    ("number.json", b"42", r"number\.json holds a JSON int; a list of objects is needed"),
    ("deep.json", DEEP.encode(), r"deep\.json: not valid JSON"),
    ("latin1.json", '[{"text":\n "Größe"}]'.encode("latin-1"), r"latin1\.json, line 2: not UTF-8; convert"),
    ("utf16.jsonl", GOOD.encode("utf-16"), r"utf16\.jsonl is UTF-16; convert it to UTF-8 \(iconv"),
    ("utf16.csv", "text\na\n".encode("utf-16"), r"utf16\.csv is UTF-16"),
    (
        "cut.jsonl.gz",
        gzip.compress(GOOD.encode() * 5000)[:60],
        r"cut\.jsonl\.gz is not a whole gzip file .*write or download",
    ),
    ("not-a.jsonl.gz", GOOD.encode(), r"not-a\.jsonl\.gz is not a whole gzip file"),
    (
        "semicolons.csv",
        b"prompt;completion\na;b\n",
        r"semicolons\.csv, line 1: .*not separated by commas; write the file",
    ),
    ("twice.csv", b"text,text\na,b\n", r"twice\.csv, line 1: the column 'text' appears twice; rename"),
    ("quote.csv", b'text,label\nfine,1\n"never closed,2\n', r"quote\.csv, line 3: not valid CSV .*check the quotes"),
    (
        "latin1-header.csv",
        "größe,text\n1,a\n".encode("latin-1"),
        r"latin1-header\.csv, line 1: the header is not UTF-8",
    ),
    ("weights.pkl", b"\x80\x04.", r"weights\.pkl is of no readable type; expected one of \.jsonl, \.json, \.csv"),
    ("page.html", b"<html>", r"page\.html is of no readable type"),
    (
        "html.jsonl",
        b"<html>\n<body>\n",
        r"html\.jsonl: 2 of 2 rows were rejected \(invalid JSON: 2\), for example .*line 1: .*repair",
    ),
    (
        "latin1.jsonl",
        '{"text": "Größe"}\n'.encode("latin-1"),
        r"latin1\.jsonl: 1 of 1 rows .*bad UTF-8.*line 1: byte 13 of the line",
    ),
    (
        "numbers.jsonl",
        b"1\n2\n",
        r"2 of 2 rows were rejected \(not an object: 2\).*line 1: a JSON int instead of an object",
    ),
    (
        "columns.jsonl",
        b'{"x": 1, "y": 2}\n',
        r"columns\.jsonl, line 1: columns x, y do not fit any format .*under `columns`",
    ),
    ("no-columns.jsonl", b"{}\n", r"no-columns\.jsonl, line 1: columns none do not fit any format"),
    (
        "no-rejected.jsonl",
        b'{"prompt": "q", "chosen": "a"}\n',
        r"line 1: .*nearest is 'preference': no column `rejected`",
    ),
    (
        "mixed-labels.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n',
        r"labels are partly names and partly integers",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), WHOLE_FILES, ids=[name for name, _, _ in WHOLE_FILES])
def test_a_broken_file_is_one_sentence(prepared: Any, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        prepared(source=name)
    assert "\n" not in str(error.value)


ASSISTANT, USER = {"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}

# a good row of the format, a broken row, the reason it is counted by, and what the example says
ROWS: list[tuple[dict[str, Any], Any, str, str]] = [
    ({"text": "good"}, {"text": 5}, "wrong type", "`text` is a int instead of a string"),
    ({"text": "good"}, {"text": None}, "missing value", "`text` is null"),
    ({"text": "good"}, {"text": " \n"}, "empty", "`text` is empty"),
    ({"text": "good"}, {"text": "half \ud800 pair"}, "bad UTF-8", "surrogate"),
    ({"text": "good"}, {"title": "x"}, "missing column", "columns title do not fit the format 'text'"),
    ({"text": "good"}, ["text"], "not an object", "a JSON list instead of an object"),
    ({"prompt": "q", "completion": "a"}, {"prompt": "q"}, "missing column", "columns prompt do not fit"),
    ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}, "empty", "`completion` is empty"),
    ({"prompt": "q", "completion": "a"}, {"prompt": [], "completion": "a"}, "empty", "`prompt` has no messages"),
    (
        {"prompt": "q", "completion": "a"},
        {"prompt": [ASSISTANT], "completion": "a"},
        "roles out of order",
        "`prompt[0]` is by assistant",
    ),
    (
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER, ASSISTANT], "completion": "a"},
        "roles out of order",
        "ends with assistant",
    ),
    (
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": [USER]},
        "roles out of order",
        "`completion[0]` is by user",
    ),
    (
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "completion": {"a": 1}},
        "wrong type",
        "`completion` is a dict",
    ),
    ({"messages": [USER, ASSISTANT]}, {"messages": "hello"}, "wrong type", "`messages` is a str instead of a list"),
    ({"messages": [USER, ASSISTANT]}, {"messages": ["hello"]}, "wrong type", "`messages[0]` is a str"),
    (
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, USER]},
        "roles out of order",
        "`messages[1]` is by user where assistant",
    ),
    (
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "wizard", "content": "x"}]},
        "unknown role",
        "has the role 'wizard'",
    ),
    ({"messages": [USER, ASSISTANT]}, {"messages": [{"content": "x"}]}, "unknown role", "has the role None"),
    ({"messages": [USER, ASSISTANT]}, {"messages": [USER]}, "no answer", "has no assistant turn"),
    (
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "system", "content": "s"}]},
        "empty",
        "only a system message",
    ),
    (
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, {"role": "assistant"}]},
        "missing value",
        "`messages[1].content` is null",
    ),
    (
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ASSISTANT]},
        "wrong type",
        "has parts that are not text",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a ", "rejected": "a"},
        "same answers",
        "`chosen` and `rejected` are the same",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": 3},
        "wrong type",
        "`rejected` is a int",
    ),
    (
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "b"}]},
        {"chosen": [USER, ASSISTANT], "rejected": [{"role": "user", "content": "v"}, ASSISTANT]},
        "different prompts",
        "differ before the last answer",
    ),
    (
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "b"}]},
        {"chosen": "a", "rejected": "b"},
        "missing column",
        "the row has no prompt",
    ),
    ({"text": "good", "label": 1}, {"text": "t", "label": -1}, "bad label", "`label` is -1"),
    ({"text": "good", "label": 1}, {"text": "t", "label": 1.5}, "bad label", "`label` is 1.5"),
    ({"text": "good", "label": "x"}, {"text": "t", "label": ""}, "bad label", "`label` is ''"),
]


@pytest.mark.parametrize(("good", "bad", "reason", "detail"), ROWS, ids=[f"{r[2]}: {r[3][:40]}" for r in ROWS])
def test_a_broken_row_is_counted_and_the_others_are_kept(
    prepared: Any, jsonl: Callable[..., str], good: dict[str, Any], bad: Any, reason: str, detail: str
) -> None:
    dataset = prepared(source=jsonl([good, bad]))
    assert (len(dataset.train), dataset.report.rejected) == (1, {reason: 1})
    example = dataset.report.examples[0]
    assert (example.file.rpartition("/")[2], example.line, example.reason) == ("data.jsonl", 2, reason)
    assert detail in example.detail


@pytest.mark.parametrize(
    ("name", "content", "reason", "line", "rows"),
    [
        ("a.jsonl", GOOD.encode() + b'{"text": "cut\n' + GOOD.replace("good", "fine").encode(), "invalid JSON", 2, 2),
        ("a.jsonl", GOOD.encode() + b'{"text": "\xff"}\n', "bad UTF-8", 2, 1),
        ("a.jsonl", GOOD.encode() + DEEP.encode(), "invalid JSON", 2, 1),
        ("a.csv", b"text,n\na,1\nb\nc,3\n", "wrong number of fields", 3, 2),
        ("a.csv", b"text,n\na,1\n\xff,2\n", "bad UTF-8", 3, 1),
        ("a.txt", b"one line\n\xff\xfe\nanother\n", "bad UTF-8", 2, 2),
        ("a.json", b'[{"text": "a"}, 7]', "not an object", 2, 1),
    ],
)
def test_a_broken_line_costs_one_row(
    prepared: Any, tmp_path: Path, name: str, content: bytes, reason: str, line: int, rows: int
) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = prepared(source=name)
    assert (len(dataset.train), dataset.report.rejected) == (rows, {reason: 1})
    assert dataset.report.examples[0].line == line


PLACES: list[tuple[str, str]] = [
    ("nothing.jsonl", r"nothing\.jsonl does not exist \(looked at .*\); correct `source`"),
    ("*.jsonl", r"\*\.jsonl matches no file; check the pattern"),
    ("folder", r"the directory folder holds no readable file; expected one of \.jsonl"),
    ("builtin://python-docs/poems", r"poems is not a builtin data set; there are builtin://python-docs/text"),
    ("builtin://shakespeare", r"shakespeare is not a builtin data set"),
    ("hf://a/b/c/d", r"hf://a/b/c/d is not the address of a hub data set; write hf://owner/name"),
    ("nosuch://bucket/file.jsonl", r"nosuch://bucket/file\.jsonl cannot be opened .*check the URI"),
    ("memory://nothing/here.jsonl", r"memory://nothing/here\.jsonl does not exist"),
    ("zip://a.jsonl::missing.zip", r"zip://a\.jsonl::missing\.zip does not exist"),
    ("zip://a.jsonl::folder/no.zip", r"zip://a\.jsonl::folder/no\.zip cannot be opened \(File is not a zip file\)"),
]


@pytest.mark.parametrize(("source", "message"), PLACES, ids=[source for source, _ in PLACES])
def test_a_place_without_data_is_one_sentence(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("nothing here")
    (tmp_path / "folder" / "no.zip").write_bytes(b"not a zip archive")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        prepared(source=source)
    assert "\n" not in str(error.value)


def test_too_many_rejected_rows_stop_the_stage_and_name_the_worst_reason(prepared: Any, jsonl: Any) -> None:
    source = jsonl([{"text": "good"}, {"text": 1}, {"text": 2}, {"text": ""}])
    with pytest.raises(DataError) as error:
        prepared(source=source)
    message = str(error.value)
    assert message.startswith("data.jsonl: 3 of 4 rows were rejected (wrong type: 2, empty: 1), for example ")
    assert message.endswith("line 2: `text` is a int instead of a string; repair the rows or raise `maxRejected`")
    assert len(prepared(source=source, max_rejected=0.75).train) == 1


def test_filters_that_leave_nothing_say_so(prepared: Any, jsonl: Any) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows were rejected \(too short: 2\).*relax the filters"):
        prepared(source=jsonl([{"text": "a"}, {"text": "b"}]), min_characters=50)


def test_validation_without_rows_or_equal_to_training_is_an_error(prepared: Any, jsonl: Any) -> None:
    train = jsonl([{"text": "a"}])
    with pytest.raises(DataError, match=r"v\.jsonl has no usable validation row; correct `validationSource`"):
        prepared(source=train, validation_source=jsonl([], "v.jsonl"))
    with pytest.raises(DataError, match=r"data\.jsonl has no training row left beside the validation rows"):
        prepared(source=train, validation_source=train)


def test_validation_rows_of_another_format_are_refused(prepared: Any, jsonl: Any) -> None:
    train = jsonl([{"prompt": "q", "completion": "a"}])
    other = jsonl([{"text": "b"}], "v.jsonl")
    with pytest.raises(DataError, match=r"columns prompt, completion|do not fit the format|columns text"):
        prepared(source=train, validation_source=other)


def test_names_of_columns_that_do_not_exist_are_refused(prepared: Any, jsonl: Any) -> None:
    with pytest.raises(DataError, match=r"columns text do not fit the format 'text': no column `body`"):
        prepared(source=jsonl([{"text": "a"}]), columns={"text": "body"}, format="text")


def test_json_with_nan_is_read_as_missing(prepared: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN}\n')
    assert json.loads(prepared(source="a.jsonl").train[0]["row"]) == {"score": None}
