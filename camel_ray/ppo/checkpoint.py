"""Training state of all roles as one directory that exists only as a whole.

Every rank writes its part under the parameters' own names (`engine_state.py`), so that other numbers of workers and
another ZeRO stage can go on from it; the driver writes what it knows itself, and the manifest with the digests of all
files comes last. There are no random-number states to keep: every draw of a round comes from a generator seeded by the
stage's seed and the round's number, so the round after a resume is the one an unbroken run would have had.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camel_ray.errors import ModelError
from camel_ray.manifest import disk_errors, read_manifest, verify, write_manifest
from camel_ray.progress import Progress

_STATE = "driver.json"


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of one stage: `directory/step-000010`, newest last."""

    directory: Path
    keep: int

    def path(self, step: int) -> Path:
        """Directory of a step's checkpoint."""
        return self.directory / f"step-{step:06d}"

    def write(self, step: int, state: Mapping[str, Any], save_roles: Callable[[Path], None]) -> None:
        """Commit the state after round `step`. `save_roles(path)` makes all ranks write below `path`.

        Older checkpoints beyond `keep` go only after this one is complete.
        """
        path = self.path(step)
        with disk_errors(path):
            shutil.rmtree(path, ignore_errors=True)  # left by an attempt that died while writing
            path.mkdir(parents=True)
            save_roles(path)
            (path / _STATE).write_text(json.dumps(dict(state), indent=1) + "\n", encoding="utf-8")
            write_manifest(path, step=step)
        for old in self._finished()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, progress: Progress, *, before: int | None = None) -> tuple[int, dict[str, Any], Path] | None:
        """Step, driver state and directory of the newest sound checkpoint; unsound ones are removed with a warning.

        With `before`, which is for looking back: of a step before that one, and nothing is removed.
        """
        for path in reversed(self._finished()):
            if before is not None and path.name >= self.path(before).name:
                continue
            problem = self._problem(path)
            if problem is not None:
                progress.note(f"checkpoint {path.name} is not used: {problem}", level="warning")
                if before is None:  # it would count as one of those that are kept
                    shutil.rmtree(path, ignore_errors=True)
                continue
            manifest = read_manifest(path)
            assert manifest is not None
            return int(manifest["step"]), json.loads((path / _STATE).read_text(encoding="utf-8")), path
        return None

    def _finished(self) -> list[Path]:
        return sorted(p for p in self.directory.glob("step-*") if (p / "manifest.json").is_file())

    def _problem(self, path: Path) -> str | None:
        try:
            return verify(path)
        except ModelError as error:
            return str(error)
