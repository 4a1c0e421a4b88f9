"""Sources: every kind of file and place gives the same rows."""

from __future__ import annotations

import gzip
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from camel_ray.data import hub
from camel_ray.data.dataset import PreparedDataset
from camel_ray.errors import DataError, StorageUnavailable

ROWS = [{"question": "2 + 2?", "answer": "4"}, {"question": "Größe?\nzwei Zeilen", "answer": 'ein "Wort", groß'}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'question,answer\n2 + 2?,4\n"Größe?\nzwei Zeilen","ein ""Wort"", groß"\n'


def answers(dataset: PreparedDataset) -> list[str]:
    return list(dataset.train["completion"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.JSONL", LINES.encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("blank-lines.jsonl", LINES.replace("\n", "\n\n").encode()),
        ("windows.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("a.jsonl.gz", gzip.compress(LINES.encode())),
        ("array.json", json.dumps(ROWS).encode()),
        ("pretty.json", json.dumps(ROWS, indent=2).encode()),
        ("wrapped.json", json.dumps({"version": "1", "data": ROWS}).encode()),
        ("lines.json", LINES.encode()),
        ("array.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("a.csv", CSV.encode()),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("a.csv.gz", gzip.compress(CSV.encode())),
    ],
)
def test_every_file_type_gives_the_same_rows(prepared: Any, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = prepared(source=name)
    assert dataset.format == "prompt-completion"
    assert answers(dataset) == ["4", 'ein "Wort", groß']
    assert dataset.train[1]["prompt"] == [{"role": "user", "content": "Größe?\nzwei Zeilen"}]
    assert dataset.report.rejected == {}


def test_parquet_gives_the_same_rows(prepared: Any, tmp_path: Path) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert answers(prepared(source="a.parquet")) == ["4", 'ein "Wort", groß']


def test_one_json_object_is_one_row(prepared: Any, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    assert prepared(source="one.json", format="messages").report.rows_train == 1


def test_text_files_become_documents_of_whole_paragraphs(prepared: Any, tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {index}: " + "word " * 150 for index in range(6)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    texts = list(prepared(source="book.txt").train["text"])
    assert len(texts) == 2
    assert [text.count("Paragraph") for text in texts] == [3, 3]
    assert "\n\n".join(texts) == "\n\n".join(paragraphs)


def test_text_without_empty_lines_is_cut_at_line_ends(prepared: Any, tmp_path: Path) -> None:
    lines = [f"line {index} " + "x" * 90 for index in range(100)]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    texts = list(prepared(source="log.txt").train["text"])
    assert len(texts) == 3
    assert "\n".join(texts).split("\n") == lines


def test_directories_globs_and_lists_are_read_in_order_of_name(prepared: Any, jsonl: Any, tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for name, text in (
        ("d/b.jsonl", "second"),
        ("d/a.jsonl", "first"),
        ("d/sub/c.jsonl", "third"),
        ("d/.hidden.jsonl", "no"),
    ):
        jsonl([{"text": text}], name)
    (tmp_path / "d" / "README.md").write_text("not data")
    assert list(prepared(source="d").train["text"]) == ["first", "second", "third"]
    assert list(prepared(source="d/*.jsonl").train["text"]) == ["first", "second"]
    assert list(prepared(source=["d/sub", str(tmp_path / "d" / "a.jsonl")]).train["text"]) == ["third", "first"]


def test_a_directory_with_named_splits_is_read_by_split(prepared: Any, jsonl: Any, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for split in ("train-00001", "train-00002", "validation", "test"):
        jsonl([{"text": split}], f"d/{split}.jsonl")
    (tmp_path / "d" / "labels.json").write_text('["a"]')
    dataset = prepared(source="d", validation=0.5)
    assert list(dataset.train["text"]) == ["train-00001", "train-00002"]
    assert list(dataset.validation["text"]) == ["validation"]
    assert dataset.report.rows_read == 3


def test_fsspec_uris_are_read(prepared: Any, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/train.jsonl", LINES.encode())
    memory.pipe("/bucket/more.csv.gz", gzip.compress(b"question,answer\nq,five\n"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner/a.jsonl", LINES)
    assert answers(prepared(source="memory://bucket/train.jsonl"))[0] == "4"
    assert answers(prepared(source="memory://bucket/*.csv.gz")) == ["five"]
    assert answers(prepared(source="memory://bucket"))[0] == "4"
    assert len(answers(prepared(source=f"zip://inner/a.jsonl::{tmp_path}/a.zip"))) == 2
    assert (
        len(answers(prepared(source=f"file://{tmp_path}/a.zip".replace("file://", "zip://inner/*.jsonl::file://"))))
        == 2
    )


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_files_are_read_and_missing_ones_named(prepared: Any, tmp_path: Path, web: str) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    assert len(answers(prepared(source=f"{web}/a.jsonl"))) == 2
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        prepared(source=f"{web}/none.jsonl")


def test_a_server_that_does_not_answer_may_answer_later(prepared: Any) -> None:
    with pytest.raises((StorageUnavailable, DataError), match=r"127\.0\.0\.1"):
        prepared(source="http://127.0.0.1:9/a.jsonl")


def test_hub_rows_keep_their_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    asked: dict[str, Any] = {}

    def load(name: str, subset: str | None, **options: Any) -> datasets.IterableDataset:
        asked.update(options, name=name, subset=subset)
        return datasets.Dataset.from_dict(
            {"text": ["a", "b"], "label": [1, 0]}, features=features
        ).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(hub.rows("hf://owner/name@v1.0", subset="s", split="test"))
    assert [row.columns["label_name"] for row in rows] == ["pos", "neg"]
    assert asked == {"name": "owner/name", "subset": "s", "split": "test", "revision": "v1.0", "streaming": True}


def test_nothing_is_written_to_the_home_directory(
    prepared: Any, jsonl: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    dataset = prepared(source=jsonl([{"text": "a"}]))
    dataset.save(tmp_path / "saved")
    PreparedDataset.load(tmp_path / "saved")
    assert list(home.rglob("*")) == []
