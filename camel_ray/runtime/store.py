"""What is known of each stage in storage: its state, its artifact, and whether both still fit the file.

`state.json` is the stage's memory over attempts; the artifact's manifest is the proof that it is done. A stage counts
as done only if both agree with the digest of today.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from camel_ray.errors import CamelError, ModelError, StorageUnavailable
from camel_ray.manifest import MANIFEST, disk_errors, read_manifest, verify, write_atomically, write_manifest
from camel_ray.runtime.backup import restore
from camel_ray.runtime.storage import Storage
from camel_ray.stages.contract import Artifact, ArtifactKind, Output
from camel_ray.stop import StopRequest
from camel_ray.version import __version__

Phase = Literal["new", "running", "done", "failed", "interrupted"]
"""`interrupted`: it was stopped on request or its machine was taken away, and continues when it runs again."""


@dataclass(frozen=True)
class StageState:
    """The memory of a stage over its attempts."""

    phase: Phase = "new"
    digest: str = ""
    attempts: int = 0
    started: float | None = None
    """Epoch seconds of the first attempt with this digest."""
    finished: float | None = None
    seconds: float = 0.0
    """Run time of all attempts with this digest, as far as they ended by themselves."""
    message: str = ""
    artifacts: tuple[str, ...] = ()
    """Kinds of the artifacts of a finished stage."""
    fresh_for: str = ""
    """What asked for this beginning from nothing (`CAMEL_RAY_FRESH`); asked again by the same, the stage continues."""


class StageStore:
    """State and artifacts of one stage."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage = storage
        self.name = name
        self.directory = storage.root / "stages" / name
        self.work = self.directory / "work"
        self.progress_path = self.directory / "progress.jsonl"

    def state(self) -> StageState:
        """The state in storage; a new one if there is none. Raises ModelError if it is not readable."""
        path = self.directory / "state.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return StageState(**{**data, "artifacts": tuple(data.get("artifacts", ()))})
        except FileNotFoundError:
            return StageState()
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ModelError(f"{path} is not a stage state ({error}); delete it to run the stage again") from error

    def artifacts(self, *, contents: bool) -> list[Artifact]:
        """The artifacts of a finished stage. With `contents`, all files are here and every byte is checked; without,
        what lies in remote storage may be known by its manifest alone. Raises ModelError if one is corrupt.
        """
        found = []
        for kind in self.state().artifacts:
            directory = self.directory / kind
            problem = self._problem(directory, contents=contents)
            manifest = read_manifest(directory)
            if problem or manifest is None:
                raise ModelError(f"{problem}; restore it, or make it again with --from {self.name}")
            found.append(
                Artifact(ArtifactKind(kind), self.name, directory, manifest["digest"], manifest.get("metrics", {}))
            )
        return found

    def _problem(self, directory: Path, *, contents: bool) -> str | None:
        """What is wrong with an artifact. A mirror of remote storage is mended from there first, unless another process
        works in it: it may have made, or be reading, what lies here.
        """
        if not self.storage.is_remote:
            return verify(directory, contents=contents)
        if not contents:
            return None if (directory / MANIFEST).exists() else verify(directory)
        elsewhere = self.storage.run_elsewhere()
        if elsewhere and (directory / MANIFEST).exists() and verify(directory) is None:
            return None
        self.storage.fetch(directory)
        if not elsewhere and verify(directory) is not None:
            shutil.rmtree(directory)
            self.storage.fetch(directory)
        return verify(directory)

    def begin(self, digest: str, *, fresh_for: str = "") -> StageState:
        """Note that an attempt starts. What an earlier spec left behind is removed; work of the same digest is kept.
        `fresh_for`: who asked for a beginning from nothing, for `was_begun_for`.
        """
        state = self.state()
        if state.digest != digest:
            if self.directory.exists():
                self.storage.remove(self.directory)
            state = StageState(digest=digest, started=time.time(), fresh_for=fresh_for)
        else:
            restore(self.storage, self.work)
        shutil.rmtree(self.work / "output", ignore_errors=True)
        with disk_errors(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        StopRequest(self.work).clear()
        state = replace(state, phase="running", attempts=state.attempts + 1, finished=None, message="", artifacts=())
        self._save(state)
        return state

    def commit(
        self, state: StageState, outputs: list[Output], inputs: dict[str, str], seconds: float
    ) -> list[Artifact]:
        """Publish the outputs of a finished attempt, then note that the stage is done."""
        for output in outputs:
            final = self.directory / output.kind.value
            with disk_errors(final):
                write_manifest(
                    output.path,
                    kind=output.kind.value,
                    stage=self.name,
                    stageDigest=state.digest,
                    inputs=inputs,
                    metrics=dict(output.metrics),
                    version=__version__,
                )
                if final.exists():
                    self.storage.remove(final)
                output.path.rename(final)
            self.storage.push(final)
        self._save(
            replace(
                state,
                phase="done",
                finished=time.time(),
                seconds=state.seconds + seconds,
                artifacts=tuple(o.kind.value for o in outputs),
            )
        )
        if self.storage.is_remote:  # there, and on the mirror, a finished stage's checkpoints only cost money
            with suppress(CamelError):
                self.storage.remove_remotely(self.work)
            for left in ("checkpoints", "uploading"):
                shutil.rmtree(self.work / left, ignore_errors=True)
        return self.artifacts(contents=False)

    def fail(self, state: StageState, message: str, seconds: float) -> None:
        """Note that an attempt ended without a result, and why."""
        self._save(
            replace(state, phase="failed", finished=time.time(), seconds=state.seconds + seconds, message=message)
        )

    def interrupt(self, state: StageState, message: str, seconds: float) -> None:
        """Note that an attempt was stopped; the next one continues with its checkpoints, and may run elsewhere."""
        self._save(
            replace(state, phase="interrupted", finished=time.time(), seconds=state.seconds + seconds, message=message)
        )

    def forget(self) -> None:
        """Remove everything of the stage, so that it runs again from nothing."""
        self.storage.remove(self.directory)

    def was_begun_for(self, asker: str) -> bool:
        """Whether what lies here was begun from nothing for this one. It is noted with the first state that follows
        `forget`: killed before that, the stage is forgotten once more, which costs nothing.
        """
        with suppress(ModelError):
            return bool(asker) and self.state().fresh_for == asker
        return False

    def is_current(self, state: StageState) -> bool:
        """Whether no newer attempt has begun in remote storage: this one may be cut off from the cluster, given up by
        it, and still at work.
        """
        there = self.storage.read(self.directory / "state.json")
        try:
            found = json.loads(there) if there else {}
            begun = float(found.get("started") or 0.0)
            return begun <= (state.started or 0.0) and int(found.get("attempts", 0)) <= state.attempts
        except (ValueError, TypeError, AttributeError):
            return True

    def _save(self, state: StageState) -> None:
        if not self.is_current(state):
            raise StorageUnavailable(f"stage '{self.name}': a newer attempt works in {self.storage.uri}; this one ends")
        path = self.directory / "state.json"
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(state), indent=1) + "\n")
        self.storage.push(path)
        if self.progress_path.exists():
            with suppress(CamelError):  # the state says what counts
                self.storage.push(self.progress_path)
