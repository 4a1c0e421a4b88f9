"""Commands that only read, beside a run in the same mirror of an object storage: what a run writes is newer there."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml
from s3 import S3

from camel_ray.cli import main as cli
from camel_ray.errors import StorageUnavailable
from camel_ray.manifest import MANIFEST
from camel_ray.progress import Progress, ProgressReader
from camel_ray.runtime import storage as storage_module
from camel_ray.runtime.lock import locked
from camel_ray.runtime.storage import Storage
from camel_ray.runtime.store import StageStore
from camel_ray.stages.contract import ArtifactKind, Output

URI = "s3://team/runs"


@pytest.fixture
def file(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pipeline of one stage, and a mirror of its own for this test."""
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(tmp_path / "cache"))
    document = {
        "apiVersion": "camel-ray.dev/v1alpha1",
        "kind": "CamelPipeline",
        "metadata": {"name": "p"},
        "spec": {"storage": URI, "stages": [{"name": "text", "data": {"source": "a.jsonl"}}]},
    }
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def store() -> StageStore:
    return StageStore(Storage(URI, "p"), "text")


def camel_ray(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 0


@pytest.mark.parametrize("command", ["report", "stages"])
def test_a_reading_command_leaves_the_progress_and_state_of_a_stage_that_runs(
    file: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the bucket are an earlier attempt and the first line of this one."""
    running = store()
    progress = Progress(running.progress_path)
    with running.storage.at_work():
        running.fail(running.begin("digest"), "of the first attempt", 1.0)
        earlier = running.state()
        progress.update("train", 1, 10)
        running.storage.push(running.progress_path)
    with running.storage.at_work():
        state = running.begin("digest")
        running.storage.push(running.progress_path)
        progress.update("train", 2, 10)
        camel_ray(command, "-f", file)
        assert [event["done"] for event in ProgressReader(running.progress_path).new_events()] == [1, 2]
        assert running.state() == state
    assert (earlier.phase, state.attempts) == ("failed", 2)


def test_a_reading_command_does_not_delete_a_stage_that_has_just_begun(s3: S3, file: str) -> None:
    """Before its first file is in the bucket it looks like one that another machine has removed."""
    running = store()
    with running.storage.at_work():
        state = running.begin("digest")
        running.storage.remove_remotely(running.directory)
        camel_ray("report", "-f", file)
        assert running.state() == state


def test_a_reading_command_sees_what_another_machine_has_done_when_nothing_runs_here(
    s3: S3, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    camel_ray("stages", "-f", file)
    assert "would run" in capsys.readouterr().out
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(tmp_path / "another"))
    other = store()
    with other.storage.at_work():
        other.fail(other.begin("digest"), "it had no disk", 1.0)
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(tmp_path / "cache"))
    camel_ray("report", "-f", file)
    assert "it had no disk" in Path(capsys.readouterr().out.strip()).read_text()
    assert store().state().attempts == 1


def test_a_reader_takes_what_a_run_has_made_for_right(s3: S3, file: str) -> None:
    """The run has made the stage once more and is about to upload it: the bucket's manifest is of the old one."""
    running = store()
    with running.storage.at_work():
        for weights in (b"old", b"new"):
            output = running.work / "output/model"
            running.begin("digest")
            output.mkdir(parents=True)
            (output / "weights").write_bytes(weights)
            running.commit(running.state(), [Output(ArtifactKind.MODEL, output)], {}, 1.0)
            if weights == b"old":
                old = s3.content(f"runs/p/stages/text/model/{MANIFEST}")
        s3.client().put_object(Bucket="team", Key=f"runs/p/stages/text/model/{MANIFEST}", Body=old)
        (read,) = store().artifacts(contents=True)
        assert (read.path / "weights").read_bytes() == b"new"
        assert read.digest != json.loads(old)["digest"]


def test_no_run_begins_while_a_reader_brings_the_mirror_up_to_date(s3: S3, file: str) -> None:
    reads, begun = threading.Event(), threading.Event()
    meanwhile: list[bool] = []

    def fail(method: str, path: str) -> None:
        if not reads.is_set():  # the reader's listing; the run's own comes later
            reads.set()
            meanwhile.append(begun.wait(0.5))

    def run() -> None:
        assert reads.wait(60)
        with Storage(URI, "p").at_work():
            begun.set()

    s3.fail = fail
    thread = threading.Thread(target=run)
    thread.start()
    Storage(URI, "p").open()
    thread.join()
    assert meanwhile == [False]
    assert begun.is_set(), "nor was it refused for the reader's sake"


def test_a_reader_that_hangs_is_named(s3: S3, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "_MIRROR_SECONDS", 0.2)
    storage = Storage(URI, "p")
    storage.prepare()
    with (
        locked(storage.root / ".mirror.lock") as ours,
        pytest.raises(StorageUnavailable, match=r"another process has been reading s3://team/runs into .* for 0 s"),
        storage.at_work(),
    ):
        pass
    assert ours
