"""Failures of the machine are told in our words, whichever library met them. /dev/full is a disk without space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models

from camel_ray.errors import DataError, OutOfMemory, StorageUnavailable
from camel_ray.runtime.process import known_failures


def by_arrow(path: str) -> None:
    """Write as the data stage does."""
    with pa.OSFile(path, "wb") as file:
        file.write(b"x" * 100_000)
        file.flush()


WRITERS: dict[str, Callable[[str], object]] = {
    "python": lambda path: Path(path).write_bytes(b"x" * 100_000),
    "torch": lambda path: torch.save({"weights": torch.zeros(100_000)}, path),
    "tokenizers": lambda path: Tokenizer(models.BPE()).save(path),
    "arrow": by_arrow,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_recognised_whoever_wrote(writer: str, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")  # a link: a writer that renames its file into place must not replace the device
    with pytest.raises(StorageUnavailable, match=r"stage 'base': no space left.*free some"), known_failures("base"):
        WRITERS[writer](str(full))


def test_memory_that_cannot_be_had_is_recognised() -> None:
    with pytest.raises(OutOfMemory, match=r"stage 'base': .*memory ran out; use a smaller"), known_failures("base"):
        torch.empty(1 << 60)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(DataError, match="as it was"), known_failures("base"):
        raise DataError("as it was")
    with pytest.raises(RuntimeError, match="a bug"), known_failures("base"):
        raise RuntimeError("a bug")
