"""Checkpoints that exist only as a whole, and which of them a run may continue from.

A checkpoint is a directory `checkpoint-<step>` that the trainer fills from all workers. Its manifest comes last, when
every worker is done, and says which run it belongs to; an older checkpoint is deleted only after that. Whatever has no
manifest, or does not match it, is skipped with a note and removed, so that later files never mix with its own.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from camel_ray.errors import ModelError, WorkerLost
from camel_ray.manifest import read_manifest, verify, write_manifest
from camel_ray.progress import Progress

_PREFIX = "checkpoint-"
_LOCK = "writers.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Of file systems without locks: there the operator alone sees to it that there is one attempt at a time."""
Problem = tuple[str, Literal["info", "warning"]]
"""Why a checkpoint is not used, and whether the user should worry."""


@contextmanager
def writing(work: Path) -> Iterator[None]:
    """Held by every training process while it may write checkpoints; the kernel lets go when a process dies."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("a+") as lock:  # NFS shares only what is open for reading
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


def wait_for_writers(work: Path, *, seconds: float) -> None:
    """Wait until no process of an earlier attempt can write here: workers outlive a killed driver for a moment.

    Raises WorkerLost if one is still there after `seconds`.
    """
    work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with (work / _LOCK).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() > deadline:
                    raise WorkerLost(
                        f"a training process of an earlier attempt still runs in {work}; end it, then run again"
                    ) from None
                time.sleep(0.1)  # flock knows waiting for ever and not at all, no time limit


def commit(directory: Path, *, run: str, step: int, keep: int) -> None:
    """Declare a filled checkpoint complete, then delete all but the newest `keep` complete ones.

    `run`: digest of everything the weights depend on. Raises StorageUnavailable if the manifest cannot be written.
    """
    write_manifest(directory, run=run, step=step)
    complete = [d for _, d in _directories(directory.parent) if (d / "manifest.json").exists()]
    for old in complete[keep:]:
        # The manifest goes first: a deletion that is cut short leaves an unfinished checkpoint, not a corrupt one.
        (old / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(old)


def newest(checkpoints: Path, *, run: str, progress: Progress) -> Path | None:
    """The newest intact checkpoint of `run`, or None. What cannot be used is removed, with a note for the user."""
    found: Path | None = None
    for step, directory in _directories(checkpoints):
        problem = _problem(directory, run) if found is None else _unfinished(directory)
        if problem is None:
            found = found or directory
            continue
        reason, level = problem
        progress.note(f"checkpoint of step {step} is not used: {reason}", level=level)
        shutil.rmtree(directory)
    return found


def _problem(directory: Path, run: str) -> Problem | None:
    if unfinished := _unfinished(directory):
        return unfinished
    try:
        manifest = read_manifest(directory)
        wrong = verify(directory)
    except ModelError as error:
        return str(error), "warning"
    if wrong is not None:
        return wrong, "warning"
    if manifest is None or manifest.get("run") != run:
        return "the stage's spec, inputs or number of workers changed since it was written", "warning"
    return None


def _unfinished(directory: Path) -> Problem | None:
    if (directory / "manifest.json").exists():
        return None
    return "the run stopped while it was being written", "info"


def _directories(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, directory) of all checkpoints, newest first."""
    found = []
    for path in checkpoints.glob(f"{_PREFIX}*"):
        step = path.name.removeprefix(_PREFIX)
        if path.is_dir() and step.isdigit():
            found.append((int(step), path))
    return sorted(found, reverse=True)
