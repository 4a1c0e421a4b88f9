"""A small front door for data tests: write files, prepare them, look at what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.data import DataSpec
from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.prepare import prepare
from camel_ray.progress import Progress

Prepare = Callable[..., PreparedDataset]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepare:
    """`prepared(source=..., ...)`:

    the data set of a spec, paths starting in `tmp_path`; keeps file order unless asked otherwise.
    """

    def run(seed: int = 0, **fields: Any) -> PreparedDataset:
        spec = DataSpec.model_validate({"shuffle": False, "validation": 0.0, **fields})
        return prepare(spec, base_dir=tmp_path, seed=seed, progress=Progress(tmp_path / "progress.jsonl"))

    return run


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    """`jsonl(rows, name="data.jsonl")`: writes rows as JSON Lines and returns the file's name."""

    def write(rows: list[Any], name: str = "data.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    return write
