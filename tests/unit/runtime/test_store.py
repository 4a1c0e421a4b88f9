"""What a stage keeps in remote storage when it is interrupted, for a next attempt on another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from camel_ray.runtime.storage import Storage
from camel_ray.runtime.store import StageStore
from camel_ray.stop import StopRequest


@pytest.fixture
def uri() -> Iterator[str]:
    yield "memory://stopped"
    fsspec.filesystem("memory").rm("/stopped", recursive=True)


def machine(uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> StageStore:
    """The stage as a machine with an empty disk sees it."""
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(cache))
    storage = Storage(uri, "p")
    storage.open()
    return StageStore(storage, "base")


def save(store: StageStore, step: int) -> None:
    directory = store.work / f"checkpoints/checkpoint-{step}"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}")


def test_checkpoints_of_an_interrupted_stage_reach_the_next_machine_and_old_ones_do_not(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine(uri, tmp_path / "1", monkeypatch)
    state = first.begin("digest")
    save(first, 3)
    first.interrupt(state, "stopped on request", 1.0)

    second = machine(uri, tmp_path / "2", monkeypatch)
    assert (second.state().phase, second.state().message) == ("interrupted", "stopped on request")
    state = second.begin("digest")
    assert (second.work / "checkpoints/checkpoint-3/manifest.json").exists()
    (second.work / "checkpoints/checkpoint-3/manifest.json").unlink()
    (second.work / "checkpoints/checkpoint-3").rmdir()
    save(second, 5)
    second.interrupt(state, "stopped on request", 1.0)

    third = machine(uri, tmp_path / "3", monkeypatch)
    third.begin("digest")
    assert [path.parent.name for path in third.work.glob("checkpoints/*/manifest.json")] == ["checkpoint-5"]


def test_a_request_to_stop_is_for_one_attempt(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machine(uri, tmp_path, monkeypatch)
    store.begin("digest")
    request = StopRequest(store.work)
    assert not request.asked
    request.ask()
    request.ask()
    assert request.asked
    store.begin("digest")
    assert not request.asked
