"""Rounds on disk: what was learned from, so that the training half of a round can be run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camel_ray.errors import ModelError
from camel_ray.manifest import disk_errors, verify, write_manifest

_ROUND = "round.json"
EXPERIENCE = "experience.safetensors"


@dataclass(frozen=True)
class Round:
    """A recorded round."""

    step: int
    number: int
    """Of its data; see `State.left_out`."""
    kl_coefficient: float
    learned: dict[str, float]
    """What the optimizer steps reported."""
    path: Path

    @property
    def experience(self) -> Path:
        """File with the experience, advantages included."""
        return self.path / EXPERIENCE


@dataclass(frozen=True)
class Recording:
    """The last `keep` rounds of a stage: `directory/step-000010`."""

    directory: Path
    keep: int

    def write(
        self, step: int, number: int, kl_coefficient: float, learned: Mapping[str, float], save: Callable[[Path], None]
    ) -> None:
        """Record a round; `save(path)` writes its experience."""
        path = self._path(step)
        with disk_errors(path):
            shutil.rmtree(path, ignore_errors=True)  # left by a round that was repeated
            path.mkdir(parents=True)
            save(path / EXPERIENCE)
            values: dict[str, Any] = {"number": number, "kl_coefficient": kl_coefficient, "learned": dict(learned)}
            (path / _ROUND).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            write_manifest(path, step=step)
        for old in sorted(self.directory.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def read(self, step: int) -> Round:
        """A recorded round. Raises ModelError if there is none, or if it is damaged."""
        path = self._path(step)
        if not (path / "manifest.json").is_file():
            there = [int(p.name.removeprefix("step-")) for p in sorted(self.directory.glob("step-*"))]
            known = f"rounds {there[0]} to {there[-1]} are" if there else "nothing is"
            raise ModelError(
                f"round {step} is not recorded in {self.directory} ({known}); set ppo.record and run again"
            )
        problem = verify(path)
        if problem is not None:
            raise ModelError(f"the record of round {step} is damaged: {problem}; replay another round")
        values = json.loads((path / _ROUND).read_text(encoding="utf-8"))
        return Round(step, values["number"], values["kl_coefficient"], values["learned"], path)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:06d}"
