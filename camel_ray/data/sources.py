"""Finds the files behind a source and reads them: builtin text, paths, globs, directories, fsspec URIs, hub data sets.

A directory is read as the hub reads one: if file names mark splits (`train.jsonl`, `validation.jsonl`, `test.jsonl`),
only the wanted split is read; else all files are. Order is by name, so the same files always give the same rows.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from camel_ray.data import hub, python_docs
from camel_ray.data.filesystems import open_filesystem, trouble
from camel_ray.data.readers import READERS
from camel_ray.data.rows import Rejected, SourceRow
from camel_ray.errors import CamelError, DataError, StorageUnavailable

Side = Literal["train", "validation"]

BUILTIN = "builtin://"
_HUB = re.compile(r"hf://(?!datasets/)")
_SPLIT_NAMES: dict[str, str] = (
    {"train": "train", "training": "train"}
    | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
    | dict.fromkeys(("test", "eval"), "test")
)
_READABLE = ", ".join(READERS)


@dataclass(frozen=True)
class Source:
    """Where rows come from. Relative paths start at `base_dir`; `subset` and `split` are for hub data sets."""

    uri: str
    base_dir: Path
    subset: str | None = None
    split: str = "train"

    def read(self, side: Side = "train") -> Iterator[SourceRow | Rejected]:
        """Rows of the source, in file and line order.

        `side` chooses the files of a directory whose names mark splits. Raises DataError if there is nothing to read
        or a file is unreadable as a whole, StorageUnavailable if the network fails.
        """
        if self.uri.startswith(BUILTIN):
            yield from python_docs.rows(self.uri)
        elif _HUB.match(self.uri):
            yield from hub.rows(self.uri, subset=self.subset, split=self.split)
        else:
            with _explained(self.uri):
                filesystem, paths = self._files(side)
                for path in paths:
                    yield from _read_file(filesystem, path)

    def has_validation_files(self) -> bool:
        """Whether the source is a directory with files marked as validation split beside files marked as train."""
        if self.uri.startswith(BUILTIN) or _HUB.match(self.uri):
            return False
        with _explained(self.uri):
            filesystem, path = self._locate()
            if "*" in path or not filesystem.isdir(path):
                return False
            marks = {_split_mark(file) for file in _walk(filesystem, path)}
        return {"train", "validation"} <= marks

    def _locate(self) -> tuple[fsspec.AbstractFileSystem, str]:
        if "://" in self.uri or "::" in self.uri:
            return open_filesystem(self.uri, field="source", permanent=DataError)
        return LocalFileSystem(), str(self.base_dir / Path(self.uri).expanduser())

    def _files(self, side: Side) -> tuple[fsspec.AbstractFileSystem, list[str]]:
        filesystem, path = self._locate()
        if not filesystem.exists(path) and any(mark in path for mark in "*?["):
            found = sorted(str(match) for match in filesystem.glob(path))
            if not found:
                raise DataError(f"{self.uri} matches no file; check the pattern (it starts at {self.base_dir})")
            return filesystem, [
                file for file in found if not (_is_hidden(PurePosixPath(file).name) or filesystem.isdir(file))
            ]
        if not filesystem.exists(path):
            raise DataError(f"{self.uri} does not exist (looked at {path}); correct `source`")
        if not filesystem.isdir(path):
            return filesystem, [path]
        files = _walk(filesystem, path)
        if not files:
            raise DataError(
                f"the directory {self.uri} holds no readable file; expected one of {_READABLE} (optionally .gz)"
            )
        marks = {file: _split_mark(file) for file in files}
        if "train" in marks.values():
            files = [file for file in files if marks[file] == side]
        return filesystem, files


def _walk(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Readable files below `path`, hidden ones left out, by name."""
    files = sorted(str(file) for file in filesystem.find(path))
    return [file for file in files if _suffix(file) in READERS and not _is_hidden(file.removeprefix(path.rstrip("/")))]


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(path).parts)


def _suffix(path: str) -> str:
    return PurePosixPath(path.removesuffix(".gz")).suffix.lower()


def _split_mark(path: str) -> str | None:
    """The split a file name such as `train-00001.jsonl` marks, or None."""
    word = re.match(r"[a-zA-Z]*", PurePosixPath(path).name)
    return _SPLIT_NAMES.get(word.group().lower()) if word else None


def _read_file(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[SourceRow | Rejected]:
    reader = READERS.get(_suffix(path))
    if reader is None:
        raise DataError(f"{path} is of no readable type; expected one of {_READABLE} (optionally .gz)")
    with filesystem.open(path, "rb") as file:
        if not path.endswith(".gz"):
            yield from reader(cast(BinaryIO, file), path)
            return
        try:
            with gzip.open(file, "rb") as unpacked:
                yield from reader(cast(BinaryIO, unpacked), path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file ({error}); write or download it again") from error


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn the errors of file systems, local or remote, into one sentence each."""
    try:
        yield
    except CamelError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{uri} does not exist; correct `source`") from error
    except (ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{uri} cannot be opened ({error}); check the URI") from error
    except Exception as error:
        if found := trouble(error, uri, field="source", permanent=DataError):
            raise found from error
        if isinstance(error, PermissionError):
            raise DataError(f"{uri} cannot be read (permission denied); check its permissions") from error
        if isinstance(error, OSError):
            raise StorageUnavailable(f"{uri} cannot be read now ({error}); run again when it is reachable") from error
        raise
