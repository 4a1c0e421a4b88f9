"""Locks between processes that work in the same folder. They go with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from camel_ray.manifest import disk_errors

_GLANCE_SECONDS = 0.1


@contextmanager
def locked(path: Path, *, seconds: float = 0.0) -> Iterator[bool]:
    """Within it this process holds the lock of a file, which is made; False if another one still has it after
    `seconds`.
    """
    with disk_errors(path):
        file = path.open("w")
    with file:
        deadline = time.monotonic() + seconds
        while not (ours := _take(file)) and time.monotonic() < deadline:
            time.sleep(_GLANCE_SECONDS)  # flock knows waiting for ever and not at all, no time limit
        yield ours


def _take(file: TextIO) -> bool:
    """Take the lock if it is free. A file system that has no locks is no reason not to run: on a cluster the operator
    sees to it that there is one attempt at a time.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    return True
