"""Brings the checkpoints of a running stage to remote storage, so that a lost machine costs the steps since the last
one and not the whole attempt.

A thread of the process that drives the stage looks for checkpoints that are complete (their manifest is there) and
uploads the newest. Training is never held up: it neither waits nor knows. One upload runs at a time; what is committed
meanwhile is skipped unless it is the newest when the upload ends. Hard links keep the files of the checkpoint that is
being uploaded when training deletes it. In the remote folder older ones go only after the new one is complete.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from camel_ray.errors import ModelError, StorageUnavailable
from camel_ray.manifest import MANIFEST, read_manifest, verify
from camel_ray.progress import Progress
from camel_ray.runtime.storage import Storage

_NOTES = ".json"
"""Files right in the work directory that belong to every checkpoint, such as the figures of the untrained model."""
_LOOK_SECONDS = 1.0
_PAUSE_SECONDS = 30.0
"""After an upload that failed although it was tried for a while."""


@contextmanager
def checkpoints_kept(
    storage: Storage, work: Path, progress: Progress, is_current: Callable[[], bool]
) -> Iterator[None]:
    """Within it, complete checkpoints of `work` go to remote storage; at its end the newest one is there, too, unless
    the stage has its result and needs none. A no-op on local storage. `is_current`: asked before each upload, which
    does not begin once a newer attempt has.
    """
    if not storage.is_remote:
        yield
        return
    backup = Backup(storage, work, progress, is_current)
    thread = threading.Thread(target=backup.run, name="checkpoint-upload", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        backup.end()
        thread.join()
        backup.look()
        raise
    finally:
        backup.end()
        thread.join()


def restore(storage: Storage, work: Path) -> None:
    """Download the newest checkpoint of a stage, and what goes with it, unless this machine has it, or a newer one."""
    for path in _complete(work / "checkpoints") if storage.is_remote else ():
        if _is_damaged(path):  # a machine that lost power; it must not hide, or replace, the one in the bucket
            shutil.rmtree(path)
    there = storage.finished(work / "checkpoints")
    if not there:
        return
    newest = max(there, key=_step)
    here = max((_step(path) for path in _complete(work / "checkpoints")), default=-1)
    if here <= _step(newest):
        storage.fetch_files(work, _NOTES)
        storage.fetch(newest)


class Backup:
    """Uploads checkpoints below `work`. `run` in a thread, `end` from another; `look` once more when it is over."""

    def __init__(self, storage: Storage, work: Path, progress: Progress, is_current: Callable[[], bool]) -> None:
        self._storage, self._work, self._progress = storage, work, progress
        self._is_current = is_current
        self._over = threading.Event()
        self._done: tuple[Path, str] | None = None
        """The last checkpoint that is in the remote folder, and the digest of its content."""
        self._complaint = ""

    def run(self) -> None:
        """Upload what appears until `end` is called."""
        pause = _LOOK_SECONDS
        while not self._over.wait(pause):
            pause = _LOOK_SECONDS if self.look() else _PAUSE_SECONDS

    def end(self) -> None:
        """Let `run` return when the upload that runs is over."""
        self._over.set()

    def look(self) -> bool:
        """Upload the newest complete checkpoint unless it is there. False if that failed; the user has been told."""
        newest = max(_complete(self._work / "checkpoints"), key=_step, default=None)
        try:
            manifest = None if newest is None else read_manifest(newest)
            if newest is None or manifest is None or self._done == (newest, manifest["digest"]):
                return True
            if not self._is_current():
                raise StorageUnavailable("a newer attempt works there")
            self._upload(newest, list(manifest["files"]))
            self._done, self._complaint = (newest, manifest["digest"]), ""
        except FileNotFoundError:
            return True  # training has deleted it meanwhile: there is a newer one
        except Exception as error:  # whatever a store's library raises, the thread has to stay
            name = newest.name if newest is not None else ""
            complaint = f"{name} is not in {self._storage.uri} yet, training goes on: {error}"
            if complaint.partition(" ")[2] != self._complaint:
                self._complaint = complaint.partition(" ")[2]
                self._progress.note(complaint, level="warning")
            return False
        return True

    def _upload(self, checkpoint: Path, names: list[str]) -> None:
        for note in sorted(self._work.glob(f"*{_NOTES}")):
            self._storage.push(note)
        links = self._work / "uploading"
        shutil.rmtree(links, ignore_errors=True)
        try:
            self._storage.push_as(_linked(checkpoint, links / checkpoint.name, [*names, MANIFEST]), checkpoint)
        finally:
            shutil.rmtree(links, ignore_errors=True)
        self._storage.remove_remotely(checkpoint.parent, keep=checkpoint)
        if self._progress.path.exists():
            self._storage.push(self._progress.path)


def _linked(directory: Path, links: Path, names: list[str]) -> Path:
    """A second directory with the same files, or the first one where the file system has no hard links."""
    for name in names:
        link = links / name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.hardlink_to(directory / name)
        except FileNotFoundError:
            raise
        except OSError:
            return directory
    return links


def _complete(checkpoints: Path) -> list[Path]:
    return [path.parent for path in checkpoints.glob(f"*/{MANIFEST}")]


def _is_damaged(checkpoint: Path) -> bool:
    try:
        return verify(checkpoint) is not None
    except ModelError:
        return True


def _step(checkpoint: Path) -> int:
    """The number at the end of a checkpoint's name: `checkpoint-40`, `step-000040`."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
