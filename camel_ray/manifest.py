"""Directories that exist only as a whole: files first, `manifest.json` with their sizes and digests last.

Artifacts and checkpoints share this form. A directory without a manifest was never finished; one whose files differ
from its manifest is corrupt. Nothing here knows what the files mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from camel_ray.errors import ModelError, StorageUnavailable

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new content, never half of it."""
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_manifest(directory: Path, **fields: Any) -> dict[str, Any]:
    """List all files of `directory` with size and digest, add `fields`, and write the manifest last and atomically.

    Returns the manifest. The digest of the whole (`digest`) covers names and contents of the files, not `fields`.
    """
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp")
    }
    manifest = {**fields, "digest": json_digest({n: f["sha256"] for n, f in files.items()}), "files": files}
    write_atomically(directory / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return manifest


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a directory, or None if it was never finished. Raises ModelError if it is no JSON object."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); delete {directory} and run again") from error
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("files"), Mapping):
        raise ModelError(f"{path} is not a manifest; delete {directory} and run again")
    return dict(manifest)


def verify(directory: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a finished directory, in a sentence, or None.

    Compares names and sizes, and with `contents` the digests too.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return f"{directory} has no {MANIFEST}, so it was never finished"
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if contents and file_digest(path) != entry["sha256"]:
            return f"{path} does not match its SHA-256; its content was changed after it was written"
    return None


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn the operating system's errors about space and access into StorageUnavailable with the path and a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageUnavailable(
                f"no space left for {path}; free some space and run again, finished work is kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StorageUnavailable(f"{path} cannot be written ({error.strerror}); check its permissions") from error
        raise
