"""What decides whether a stage has to run again: its spec, its inputs, the files it reads, and the code's version."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.manifest import file_digest, json_digest
from camel_ray.version import __version__

_HASH_LIMIT = 64 << 20


def stage_digest(pipeline: CamelPipeline, stage: Stage, inputs: Mapping[str, str], base_dir: Path) -> str:
    """Digest of everything a stage's result depends on. `inputs`: content digests of the artifacts it may use, by
    stage.
    """
    spec = stage.wire()
    for scheduling in ("needs", "group"):
        spec.pop(scheduling, None)
    return json_digest(
        {
            "stage": spec,
            "seed": pipeline.spec.seed,
            "model": pipeline.spec.wire().get("model"),
            "inputs": dict(inputs),
            "files": dict(sorted(_local_files(spec, base_dir))),
            "version": __version__,
        }
    )


def _local_files(spec: Any, base_dir: Path) -> Iterator[tuple[str, str]]:
    """Fingerprints of the local files a spec names (`source`, `validationSource`, a reward function's `path`)."""
    if isinstance(spec, list):
        for item in spec:
            yield from _local_files(item, base_dir)
    if not isinstance(spec, Mapping):
        return
    for key, value in spec.items():
        if key not in ("source", "validationSource", "path"):
            yield from _local_files(value, base_dir)
            continue
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name.startswith("builtin://"):
                yield name, platform.python_version()
            elif isinstance(name, str) and "://" not in name:
                path = base_dir / Path(name).expanduser()
                files = (
                    [path]
                    if path.is_file()
                    else sorted(p for p in path.rglob("*") if p.is_file())
                    if path.is_dir()
                    else []
                )
                for file in files:
                    stat = file.stat()
                    # Hashing is cheap for the files people edit by hand; beyond that the size and time have to do.
                    mark = file_digest(file) if stat.st_size <= _HASH_LIMIT else f"{stat.st_size}-{stat.st_mtime_ns}"
                    yield str(file.relative_to(path)) + "@" + name, mark
