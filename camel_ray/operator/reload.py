"""The operator's configuration file, read again when it changes.

An administrator who tightens the policy in a ConfigMap expects it to count, and nothing restarts the operator for that:
a kubelet swaps the files of the volume, within a minute or so. So the file is looked at every few seconds, by its
content, as links, times and inodes all change without one. What is broken is named once and changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from camel_ray.api.operator_config import OperatorConfig, load_operator_config
from camel_ray.errors import SpecError

_LOOK_SECONDS = 2.0

log = logging.getLogger("camel_ray.operator")


class ConfigFile:
    """The configuration in force. Without a path it is all defaults, for ever.

    Raises SpecError if the file is broken when the operator starts.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._content = self._read()
        self.config = load_operator_config(path) if path else OperatorConfig()
        """A new object after each change, so whoever keeps what follows from it can tell."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, changed: Callable[[], None]) -> None:
        """Look for changes from now on, in a thread of its own, which calls `changed` after each."""
        if self._path is not None:
            arguments = (self._path, changed)
            self._thread = threading.Thread(target=self._run, args=arguments, name="configuration", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, path: Path, changed: Callable[[], None]) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            content = self._read()
            if content == self._content:
                continue
            self._content = content
            try:
                self.config = load_operator_config(path)
            except SpecError as error:
                for problem in error.problems:
                    log.error("%s", problem)
                log.error("%s is broken; the configuration from before stays in force", path)
            except Exception:
                log.exception("bug: %s cannot be read; the configuration from before stays in force", path)
            else:
                log.info("%s has changed, and is in force from now on", path)
                changed()

    def _read(self) -> bytes | None:
        """What is in the file; None where it cannot be read, which is one more content."""
        try:
            return self._path.read_bytes() if self._path else None
        except OSError:
            return None
