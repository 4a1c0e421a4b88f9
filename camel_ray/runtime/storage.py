"""Where a pipeline's files live, on a disk or behind any fsspec URI, with the same layout in both.

    <storage>/<pipeline>/
      pipeline.json, environment.json the spec of the last run, and what it ran on
      report.html
      stages/<name>/
        state.json                    attempts, digest, times: see store.py
        progress.jsonl                events of all attempts
        work/                         checkpoints, logs, caches: survives attempts
        <artifact kind>/              a finished artifact, manifest.json last

Stages always work on a local directory. With a remote storage that is a mirror below the cache directory, and the
remote folder is the truth: `open` brings the mirror's small files up to date, `fetch` a finished directory, `push`
uploads a file or a finished directory. There a manifest comes last and goes first, as on a disk, so a torn upload is
never taken for a finished one; what the other side has already, by its manifest, is not sent again.

While a run works in a mirror, what it is about to upload is newer there than in the bucket. So one run works at a time
(`.lock`), and whoever only reads leaves the mirror of a run as it is. `.mirror.lock` is held while small files come
from the bucket: two processes never do that at once, and no run begins in the middle of it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from camel_ray.errors import SpecError, StorageUnavailable
from camel_ray.manifest import MANIFEST, disk_errors, json_digest
from camel_ray.runtime.lock import locked
from camel_ray.runtime.objects import Objects, is_inside

_OPEN_PATIENCE_SECONDS = 10.0
"""For the first words with a store: nothing is lost yet, and somebody may wait for an answer."""
_GLANCE_SECONDS = 0.5
_MIRROR_SECONDS = 60.0
"""How long to wait for another process that brings the mirror up to date."""
_SMALL = (".json", ".jsonl", ".html")


def cache_dir() -> Path:
    """Directory for things that can be made again: $CAMEL_RAY_CACHE, or ~/.cache/camel-ray."""
    return Path(os.environ.get("CAMEL_RAY_CACHE") or Path.home() / ".cache" / "camel-ray")


class Storage:
    """The folder of one pipeline. `root` is where its files are on local disk."""

    def __init__(self, uri: str, pipeline: str) -> None:
        self.uri = uri
        self._objects: Objects | None = None
        self._at_work = False
        if "://" in uri and not uri.startswith("file://"):
            self._objects = Objects(uri, pipeline)
            self.root = cache_dir() / "storage" / json_digest(uri.rstrip("/"))[:16] / pipeline
        else:
            self.root = Path(uri.removeprefix("file://")).expanduser().resolve() / pipeline

    @property
    def is_remote(self) -> bool:
        """Whether `root` is only a mirror of the real place."""
        return self._objects is not None

    def open(self) -> None:
        """Make it ready to be read: `prepare`, and `refresh` unless a run works in the mirror."""
        self.prepare()
        if self.is_remote:
            with self._mirror_locked():
                if not self._is_taken():
                    self.refresh()

    @contextmanager
    def at_work(self, *, seconds: float = 0.0) -> Iterator[None]:
        """Within it this process is the only run in `root`, which is up to date when it begins.

        `seconds`: how long to wait for another one. Raises StorageUnavailable if it is still there then, SpecError if
        there is nothing to wait for.
        """
        self.prepare()
        path, deadline = self.root / ".lock", time.monotonic() + seconds
        with ExitStack() as run:
            while True:
                with self._mirror_locked(seconds):
                    if run.enter_context(locked(path)):
                        self.refresh()
                        break
                run.close()
                if time.monotonic() >= deadline:
                    if seconds:
                        raise StorageUnavailable(
                            f"an earlier attempt still holds {path} after {seconds:.0f} s; look for its pods"
                        )
                    raise SpecError(f"another run works in {self.root}; wait for it, or use another --storage")
                time.sleep(_GLANCE_SECONDS)
            self._at_work = True
            try:
                yield
            finally:
                self._at_work = False

    def prepare(self) -> None:
        """Make sure that `root` can be used. Raises SpecError or StorageUnavailable if not."""
        with disk_errors(self.root):
            try:
                self.root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise SpecError(f"spec.storage: {self.root} cannot be made because a file stands in its way") from error
            probe = self.root / ".write-probe"
            probe.touch()
            probe.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Bring the mirror of a remote folder up to date, except for large files; a no-op on local storage.

        Raises SpecError if the URI, the bucket or the credentials are wrong, StorageUnavailable if nobody answers.
        """
        if self._objects is None:
            return
        patience, self._objects.patience = self._objects.patience, _OPEN_PATIENCE_SECONDS
        try:
            names = [n for n in self._objects.listing() if n.endswith(_SMALL) and n.split("/")[2:3] != ["work"]]
            self._forget_strangers(names)
            manifests = [n for n in names if n.endswith(f"/{MANIFEST}")]
            states = [n for n in names if n.split("/")[2:] == ["state.json"]]
            # Other files of a directory belong to its manifest: where that has changed, none of them is worth anything.
            fresh = self.root / ".fresh"
            self._objects.download({name: fresh / name for name in (*manifests, *states)})
            for name in states:
                # Nor is what lies here of a stage that somebody began anew elsewhere, its checkpoints included.
                if _beginning(self.root / name) != _beginning(fresh / name):
                    shutil.rmtree((self.root / name).parent, ignore_errors=True)
            for name in manifests:
                if not _same(self.root / name, fresh / name):
                    shutil.rmtree((self.root / name).parent, ignore_errors=True)
            shutil.rmtree(fresh, ignore_errors=True)
            self._objects.download({name: self.root / name for name in names})
        finally:
            self._objects.patience = patience

    def run_elsewhere(self) -> bool:
        """Whether another process runs the pipeline in this mirror: what lies here may be newer than in the bucket."""
        if self._at_work or not self.is_remote:
            return False
        with self._mirror_locked():
            return self._is_taken()

    def push(self, path: Path) -> None:
        """Upload a file, or a directory with a manifest; a no-op on local storage. Raises StorageUnavailable."""
        if self._objects is None:
            return
        if path.is_file():
            self._objects.upload({self._name(path): path})
        else:
            self.push_as(path, path)

    def push_as(self, directory: Path, place: Path) -> None:
        """Upload a directory with a manifest as if it lay at `place`. What is there already is not sent again."""
        if self._objects is None:
            return
        below = self._name(place)
        there = self._objects.listing(below)
        text = (directory / MANIFEST).read_bytes()
        files: Mapping[str, Any] = json.loads(text)["files"]
        known: dict[str, Any] = {}
        if f"{below}/{MANIFEST}" in there:
            theirs = self._objects.read(f"{below}/{MANIFEST}") or b"{}"
            known = _files_of(theirs)
            if theirs == text and all(there.get(f"{below}/{n}") == e["bytes"] for n, e in files.items()):
                return
            self._objects.delete([f"{below}/{MANIFEST}"])
        missing = [n for n, e in files.items() if known.get(n) != e or there.get(f"{below}/{n}") != e["bytes"]]
        self._objects.upload({f"{below}/{n}": directory / n for n in missing})
        self._objects.upload({f"{below}/{MANIFEST}": directory / MANIFEST})
        kept = {f"{below}/{n}" for n in (*files, MANIFEST)}
        self._objects.delete(there.keys() - kept)

    def fetch(self, directory: Path) -> None:
        """Download what is missing here of a directory with a manifest; a no-op on local storage."""
        if self._objects is None:
            return
        below = self._name(directory)
        text = self._objects.read(f"{below}/{MANIFEST}")
        if text is None:
            return
        if not _holds(directory / MANIFEST, text):
            shutil.rmtree(directory, ignore_errors=True)
        wanted = {
            name: entry
            for name, entry in _files_of(text).items()
            if not (directory / name).is_file() or (directory / name).stat().st_size != entry["bytes"]
        }
        self._objects.download({f"{below}/{name}": directory / name for name in wanted})
        self._objects.download({f"{below}/{MANIFEST}": directory / MANIFEST})

    def fetch_files(self, directory: Path, suffix: str) -> None:
        """Download the files right in a directory whose names end so; a no-op on local storage."""
        if self._objects is None:
            return
        below = f"{self._name(directory)}/"
        names = [n for n in self._objects.listing(below) if n.endswith(suffix) and "/" not in n.removeprefix(below)]
        self._objects.download({name: self.root / name for name in names})

    def read(self, path: Path) -> bytes | None:
        """What a small file holds in the remote folder; None if it is not there, or on local storage."""
        return None if self._objects is None else self._objects.read(self._name(path))

    def finished(self, parent: Path) -> list[Path]:
        """Directories right below `parent` that have a manifest in the remote folder; none on local storage."""
        if self._objects is None:
            return []
        below = self._name(parent)
        names = (name.removeprefix(f"{below}/").split("/") for name in self._objects.listing(below))
        return [parent / parts[0] for parts in names if parts[1:] == [MANIFEST]]

    def remove(self, path: Path) -> None:
        """Delete a directory below `root`, here and remotely."""
        shutil.rmtree(path, ignore_errors=True)
        self.remove_remotely(path)

    def remove_remotely(self, path: Path, *, keep: Path | None = None) -> None:
        """Delete a directory, except for `keep` in it, from the remote folder; a no-op on local storage."""
        if self._objects is None:
            return
        below = self._name(path)
        kept = f"{self._name(keep)}/" if keep is not None else None
        names = [n for n in self._objects.listing(below) if kept is None or not n.startswith(kept)]
        # What proves that the others count goes first: a deletion that is cut short leaves nothing half.
        proofs = [name for name in names if name.endswith((f"/{MANIFEST}", "/state.json"))]
        self._objects.delete(proofs)
        self._objects.delete(set(names) - set(proofs))

    def _is_taken(self) -> bool:
        """Whether a run works here. Only with the mirror's lock: a run that begins must not meet the one who looks."""
        with locked(self.root / ".lock") as free:
            return not free

    @contextmanager
    def _mirror_locked(self, seconds: float = 0.0) -> Iterator[None]:
        """Within it nobody else brings small files from the bucket, and no run begins. Without a mirror there is
        nothing to lock. `seconds`: wait at least so long.
        """
        if not self.is_remote:
            yield
            return
        seconds = max(seconds, _MIRROR_SECONDS)
        with locked(self.root / ".mirror.lock", seconds=seconds) as ours:
            if not ours:
                raise StorageUnavailable(
                    f"another process has been reading {self.uri} into {self.root} for {seconds:.0f} s; end it, or run "
                    "again when it is over"
                )
            yield

    def _forget_strangers(self, names: list[str]) -> None:
        """Delete the mirror of stages that another machine has removed."""
        known = {name.split("/")[1] for name in names if name.startswith("stages/")}
        for directory in self.root.glob("stages/*"):
            if directory.name not in known:
                shutil.rmtree(directory, ignore_errors=True)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _files_of(manifest: bytes) -> dict[str, Any]:
    try:
        files = json.loads(manifest).get("files", {})
    except (ValueError, AttributeError):
        return {}
    return {name: entry for name, entry in dict(files).items() if is_inside(name)}


def _beginning(state: Path) -> tuple[Any, Any] | None:
    """What tells one beginning of a stage from another: its digest and when it was."""
    try:
        found = json.loads(state.read_bytes())
        return found["digest"], found["started"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()
