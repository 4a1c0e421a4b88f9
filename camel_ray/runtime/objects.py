"""The folder of a pipeline in a remote store: many files at once, and a server that fails for a while.

Names are relative to the folder, with slashes. Every call may take long and each file is tried again for `patience`
seconds while the store cannot be reached, because an hour of training is worth a minute of waiting. What the user has
to mend (credentials, bucket) is raised at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from camel_ray.data.filesystems import OBJECT_STORES, explained, open_filesystem
from camel_ray.errors import StorageUnavailable
from camel_ray.manifest import disk_errors

T = TypeVar("T")
FIELD = "spec.storage"
PATIENCE_SECONDS = 60.0
_FILES_AT_ONCE = 8
_PART_BYTES = 16 << 20
_MOST_PARTS = 9_000
"""Of one object; S3 takes 10,000."""
_PARTS_AT_ONCE = 4
"""With the two above: at most half a gigabyte of memory, whatever the files' sizes."""


def part_bytes(size: int) -> int:
    """Bytes of each part in which a file of `size` bytes is sent."""
    return max(_PART_BYTES, -(-size // _MOST_PARTS))


def is_inside(name: str) -> bool:
    """Whether a file of this name lies below the directory that it is put into. Who may write a bucket chooses the
    names of its objects, and an absolute one, or one with `..`, would land anywhere on the disk of whoever reads it.
    """
    return not {"", ".", ".."} & set(name.split("/"))


class Objects:
    """A folder behind a URI. Safe to use from several threads."""

    def __init__(self, uri: str, folder: str) -> None:
        self.uri = uri
        self.patience = PATIENCE_SECONDS
        with explained(uri, field=FIELD):
            self._filesystem, path = open_filesystem(uri, field=FIELD)
        self._base = f"{path.rstrip('/')}/{folder}"
        protocol = self._filesystem.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._has_directories = not protocols & OBJECT_STORES
        parts = {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_AT_ONCE}
        self._options: dict[str, Any] = parts if "s3" in protocols else {}

    def listing(self, below: str = "") -> dict[str, int]:
        """Names and sizes in bytes of all files, or of those below a directory. None there is not an error."""
        return self._patiently(partial(self._list, below))

    def upload(self, files: Mapping[str, Path]) -> None:
        """Write local files, `{name: path}`, in no particular order."""
        self._each(lambda name, path, over: self._patiently(partial(self._put, name, path), over), files.items())

    def download(self, files: Mapping[str, Path]) -> None:
        """Read into local files, `{name: path}`, each of which appears only as a whole."""
        self._each(self._fetch, files.items())

    def read(self, name: str) -> bytes | None:
        """The content of a small file, or None if there is none."""
        return self._patiently(partial(self._read, name))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that is not there is no error."""
        self._each(lambda name, over: self._patiently(partial(self._remove, name), over), ((name,) for name in names))

    def _list(self, below: str) -> dict[str, int]:
        path = f"{self._base}/{below}".rstrip("/")
        try:
            found = self._filesystem.find(path, detail=True)
        except FileNotFoundError:
            if not self._has_directories:
                raise  # no bucket: a folder that is empty is no error there
            return {}
        stem = self._base.strip("/") + "/"
        sizes = {
            name.split(stem, 1)[1]: int(entry["size"] or 0)
            for name, entry in found.items()
            if stem in name and not name.endswith("/")
        }
        return {name: size for name, size in sizes.items() if is_inside(name)}

    def _put(self, name: str, path: Path) -> None:
        target = f"{self._base}/{name}"
        if self._has_directories:
            self._filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        options = dict(self._options)
        if options:
            options["chunksize"] = part_bytes(path.stat().st_size)
        self._filesystem.put_file(str(path), target, **options)

    def _fetch(self, name: str, path: Path, over: threading.Event) -> None:
        part = path.with_name(f".{path.name}.part")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._patiently(partial(self._get, name, part), over)
            part.replace(path)

    def _get(self, name: str, part: Path) -> None:
        try:
            self._filesystem.get_file(f"{self._base}/{name}", str(part), **self._options)
        except FileNotFoundError as error:
            if error.filename is not None:
                raise
            raise StorageUnavailable(f"{self.uri}: {name} vanished while it was read; run again") from error

    def _read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._filesystem.cat_file(f"{self._base}/{name}")
        except FileNotFoundError:
            return None
        return content

    def _remove(self, name: str) -> None:
        try:
            self._filesystem.rm_file(f"{self._base}/{name}")
        except FileNotFoundError:
            return

    def _each(self, act: Callable[..., None], items: Iterable[tuple[Any, ...]]) -> None:
        """Do something for many files at once; `act` gets an event for giving up. The first error ends all."""
        over = threading.Event()
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="storage") as pool:
            futures = [pool.submit(act, *item, over) for item in items]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                over.set()
                for future in futures:
                    future.cancel()
                raise

    def _patiently(self, act: Callable[[], T], over: threading.Event | None = None) -> T:
        over, pause = over or threading.Event(), 0.5
        deadline: float | None = None
        while True:
            try:
                with explained(self.uri, field=FIELD):
                    return act()
            except StorageUnavailable:
                # since the first failure: a large file alone takes longer than anybody is patient
                deadline = deadline or time.monotonic() + self.patience
                if time.monotonic() + pause > deadline or over.wait(pause):
                    raise
                pause = min(2 * pause, 10.0)
