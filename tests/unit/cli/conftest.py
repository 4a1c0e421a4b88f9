"""A small API server and a kubeconfig for it, for the commands that talk to a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from camel_ray.cli.cluster import logs, watching
from pipeline_api import ApiServer


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def kubeconfig(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig for the server, with the namespace `team-a`, where every command finds it."""
    path = tmp_path / "kubeconfig"
    document = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}],
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(watching, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.02)
    return path
