"""What a stage keeps in remote storage when it is interrupted, for a next attempt on another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from camel_ray.errors import ModelError
from camel_ray.manifest import write_manifest
from camel_ray.runtime.storage import Storage
from camel_ray.runtime.store import StageStore
from camel_ray.stages.contract import ArtifactKind, Output
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


def test_checkpoints_of_an_interrupted_stage_reach_the_next_machine_until_the_stage_is_done(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine(uri, tmp_path / "1", monkeypatch)
    state = first.begin("digest")
    made = first.work / "checkpoints/checkpoint-3"
    made.mkdir(parents=True)
    (made / "rank0.pt").write_text("state")
    write_manifest(made, step=3)
    first.storage.push(made)
    first.interrupt(state, "stopped on request", 1.0)

    second = machine(uri, tmp_path / "2", monkeypatch)
    assert (second.state().phase, second.state().message) == ("interrupted", "stopped on request")
    state = second.begin("digest")
    assert (second.work / "checkpoints/checkpoint-3/rank0.pt").read_text() == "state"
    output = second.work / "output/model"
    output.mkdir(parents=True)
    (output / "weights").write_text("w")
    (artifact,) = second.commit(state, [Output(ArtifactKind.MODEL, output)], {}, 1.0)
    assert not [name for name in fsspec.filesystem("memory").find("/stopped") if "work" in name.split("/")]

    third = machine(uri, tmp_path / "3", monkeypatch)
    (known,) = third.artifacts(contents=False)
    assert known.digest == artifact.digest and not (known.path / "weights").exists()
    (known,) = third.artifacts(contents=True)
    (known.path / "weights").write_text("x")  # a mirror is mended from the real place
    third.artifacts(contents=True)
    assert (known.path / "weights").read_text() == "w"


def test_what_is_corrupt_in_the_real_place_is_told(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine(uri, tmp_path / "1", monkeypatch)
    state = first.begin("digest")
    output = first.work / "output/model"
    output.mkdir(parents=True)
    (output / "weights").write_text("w")
    first.commit(state, [Output(ArtifactKind.MODEL, output)], {}, 1.0)
    fsspec.filesystem("memory").pipe_file("/stopped/p/stages/base/model/weights", b"x")
    with pytest.raises(
        ModelError, match=r"weights does not match its SHA-256.*restore it, or make it again with --from"
    ):
        machine(uri, tmp_path / "2", monkeypatch).artifacts(contents=True)


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
