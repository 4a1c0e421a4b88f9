"""Where a pipeline's files live, on a disk or behind any fsspec URI, with the same layout in both.

    <storage>/<pipeline>/
      pipeline.json, environment.json the spec of the last run, and what it ran on
      report.html
      stages/<name>/
        state.json                    attempts, digest, times: see store.py
        progress.jsonl                events of all attempts
        work/                         checkpoints, logs, caches: survives attempts
        <artifact kind>/              a finished artifact, manifest.json last

Stages always work on a local directory. With a remote storage that is a mirror below the cache directory: `push`
uploads a directory (its manifest last, so a torn upload is never taken for a finished one), `pull` downloads what is
missing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fsspec

from camel_ray.errors import SpecError, StorageUnavailable
from camel_ray.manifest import MANIFEST, disk_errors, json_digest


def cache_dir() -> Path:
    """Directory for things that can be made again: $CAMEL_RAY_CACHE, or ~/.cache/camel-ray."""
    return Path(os.environ.get("CAMEL_RAY_CACHE") or Path.home() / ".cache" / "camel-ray")


class Storage:
    """The folder of one pipeline. `root` is where its files are on local disk."""

    def __init__(self, uri: str, pipeline: str) -> None:
        self.uri = uri
        self._remote: tuple[fsspec.AbstractFileSystem, str] | None = None
        if "://" in uri and not uri.startswith("file://"):
            try:
                filesystem, path = fsspec.core.url_to_fs(uri)
            except (ValueError, ImportError) as error:
                raise SpecError(
                    f"spec.storage: {uri} cannot be opened ({error}); check the URI and its extra"
                ) from error
            self._remote = (filesystem, f"{path.rstrip('/')}/{pipeline}")
            self.root = cache_dir() / "storage" / json_digest(uri)[:16] / pipeline
        else:
            self.root = Path(uri.removeprefix("file://")).expanduser().resolve() / pipeline

    @property
    def is_remote(self) -> bool:
        """Whether `root` is only a mirror of the real place."""
        return self._remote is not None

    def open(self) -> None:
        """Make sure the folder can be written, and mirror the small files of a remote one."""
        with disk_errors(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise SpecError(f"spec.storage: {self.root} cannot be made because a file stands in its way") from error
            probe = self.root / ".write-probe"
            probe.touch()
            probe.unlink()
        if self._remote is not None:
            filesystem, base = self._remote
            for name in self._listing(base):
                if name.endswith((".json", ".jsonl", ".html")):
                    self._download(filesystem, f"{base}/{name}", self.root / name)

    def push(self, path: Path) -> None:
        """Upload a file or directory below `root`; a no-op on local storage. Raises StorageUnavailable."""
        if self._remote is None:
            return
        filesystem, base = self._remote
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        try:
            for file in sorted(files, key=lambda p: p.name == MANIFEST):
                target = f"{base}/{file.relative_to(self.root).as_posix()}"
                filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                filesystem.put_file(str(file), target)
        except OSError as error:
            raise StorageUnavailable(
                f"{self.uri} cannot be written ({error}); run again when it can, work is kept"
            ) from error

    def mirror(self, path: Path) -> None:
        """Upload a directory below `root`, then delete what the remote one has besides; a no-op on local storage."""
        self.push(path)
        if self._remote is None:
            return
        filesystem, base = self._remote
        target = f"{base}/{path.relative_to(self.root).as_posix()}"
        for name in self._listing(target):
            if not (path / name).exists():
                filesystem.rm_file(f"{target}/{name}")

    def pull(self, path: Path) -> None:
        """Download the files of a directory below `root` that are missing here; a no-op on local storage."""
        if self._remote is None:
            return
        filesystem, base = self._remote
        relative = path.relative_to(self.root).as_posix()
        for name in self._listing(f"{base}/{relative}"):
            if not (path / name).exists():
                self._download(filesystem, f"{base}/{relative}/{name}", path / name)

    def remove(self, path: Path) -> None:
        """Delete a directory below `root`, here and remotely."""
        shutil.rmtree(path, ignore_errors=True)
        if self._remote is not None:
            filesystem, base = self._remote
            target = f"{base}/{path.relative_to(self.root).as_posix()}"
            if filesystem.exists(target):
                filesystem.rm(target, recursive=True)

    def _listing(self, base: str) -> list[str]:
        assert self._remote is not None
        filesystem = self._remote[0]
        try:
            filesystem.invalidate_cache()
            found: list[str] = filesystem.find(base) if filesystem.exists(base) else []
        except OSError as error:
            raise StorageUnavailable(
                f"{self.uri} cannot be read ({error}); check the address and the credentials"
            ) from error
        stem = base.strip("/") + "/"
        return [name.split(stem, 1)[1] for name in found if stem in name]

    def _download(self, filesystem: fsspec.AbstractFileSystem, source: str, target: Path) -> None:
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            try:
                filesystem.get_file(source, str(part))
            except FileNotFoundError as error:
                raise StorageUnavailable(f"{self.uri}: {source} vanished while it was read; run again") from error
            part.replace(target)
