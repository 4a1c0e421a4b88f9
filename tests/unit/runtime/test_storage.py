"""Storage on a real S3 server: what is sent, what is not sent again, and what each kind of trouble is called."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest
from s3 import KEY, S3, SECRET, use, user_with_rights

from camel_ray.errors import SpecError, StorageUnavailable
from camel_ray.manifest import MANIFEST, verify, write_manifest
from camel_ray.progress import Progress, ProgressReader
from camel_ray.runtime import objects
from camel_ray.runtime import storage as storage_module
from camel_ray.runtime.backup import Backup, checkpoints_kept, restore
from camel_ray.runtime.objects import part_bytes
from camel_ray.runtime.storage import Storage
from camel_ray.runtime.store import StageStore
from camel_ray.stages.contract import ArtifactKind, Output

URI = "s3://team/runs"


def alone() -> bool:
    """No newer attempt."""
    return True


def machine(directory: Path, monkeypatch: pytest.MonkeyPatch, uri: str = URI) -> Storage:
    """The storage as a machine with this cache sees it."""
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(directory))
    opened = Storage(uri, "p")
    opened.open()
    return opened


def artifact(storage: Storage, *, weights: bytes = b"w" * 1000, stage: str = "base") -> Path:
    """A finished directory with a large and a small file."""
    directory = storage.root / "stages" / stage / "model"
    (directory / "shards").mkdir(parents=True, exist_ok=True)
    (directory / "shards" / "model.safetensors").write_bytes(weights)
    (directory / "config.json").write_text("{}")
    write_manifest(directory, kind="model")
    return directory


def checkpoint(work: Path, step: int, content: bytes = b"state") -> Path:
    directory = work / "checkpoints" / f"checkpoint-{step}"
    directory.mkdir(parents=True, exist_ok=True)
    for rank in range(3):
        (directory / f"rank{rank}.pt").write_bytes(content + bytes([rank]) * step)
    write_manifest(directory, run="a", step=step)
    return directory


def puts(server: S3) -> list[str]:
    return [path.rpartition("/")[2] for method, path in server.requests if method == "PUT"]


def test_an_artifact_reaches_another_machine_whole(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine(tmp_path / "1", monkeypatch)
    first.push(artifact(first))
    assert s3.names("runs/p/stages") == [
        f"runs/p/stages/base/model/{name}" for name in ("config.json", MANIFEST, "shards/model.safetensors")
    ]
    assert puts(s3)[-1] == MANIFEST  # last, so that half an upload does not count
    second = machine(tmp_path / "2", monkeypatch)
    there = second.root / "stages/base/model"
    assert sorted(p.name for p in there.rglob("*") if p.is_file()) == ["config.json", MANIFEST]  # weights when needed
    second.fetch(there)
    assert verify(there) is None


def test_a_file_of_several_parts_arrives_whole(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MiB are three parts each way."""
    weights = bytes(range(256)) * 4096 * 40
    first = machine(tmp_path / "1", monkeypatch)
    first.push(artifact(first, weights=weights))
    assert puts(s3).count("model.safetensors") == 3
    second = machine(tmp_path / "2", monkeypatch)
    second.fetch(second.root / "stages/base/model")
    assert verify(second.root / "stages/base/model") is None


def test_names_in_the_bucket_lead_nowhere_but_into_the_mirror(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write the bucket chooses them."""
    first = machine(tmp_path / "1", monkeypatch)
    first.push(artifact(first))
    outside, client = tmp_path / "outside.json", s3.client()
    for name in (f"/{outside}", f"stages/base/../../../../../{outside.name}"):
        client.put_object(Bucket="team", Key=f"runs/p/{name}", Body=b"{}")
    manifest = "runs/p/stages/base/model/" + MANIFEST
    told = json.loads(s3.content(manifest))
    told["files"] |= {str(outside): {"bytes": 2}, f"../../../../../../{outside.name}": {"bytes": 2}}
    client.put_object(Bucket="team", Key=manifest, Body=json.dumps(told).encode())
    second = machine(tmp_path / "2", monkeypatch)
    second.fetch(second.root / "stages/base/model")
    assert (second.root / "stages/base/model/shards/model.safetensors").read_bytes() == b"w" * 1000
    assert not list(tmp_path.rglob(outside.name))


def test_what_is_there_is_not_sent_again(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = machine(tmp_path, monkeypatch)
    directory = artifact(storage)
    storage.push(directory)
    s3.requests.clear()
    storage.push(directory)
    assert puts(s3) == []
    (directory / "config.json").write_text('{"changed": 1}')
    write_manifest(directory, kind="model")
    storage.push(directory)
    assert puts(s3) == ["config.json", MANIFEST]
    s3.client().delete_object(Bucket="team", Key="runs/p/stages/base/model/shards/model.safetensors")
    s3.requests.clear()
    storage.push(directory)
    assert puts(s3) == ["model.safetensors", MANIFEST]


def test_a_mirror_left_behind_by_another_run_is_brought_up_to_date(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other content has the same names and sizes: only the manifest tells."""
    first = machine(tmp_path / "1", monkeypatch)
    first.push(artifact(first))
    first.push(artifact(first, stage="gone"))
    second = machine(tmp_path / "2", monkeypatch)
    second.remove(second.root / "stages/gone")
    second.push(artifact(second, weights=b"v" * 1000))
    again = machine(tmp_path / "1", monkeypatch)
    again.fetch(again.root / "stages/base/model")
    assert (again.root / "stages/base/model/shards/model.safetensors").read_bytes() == b"v" * 1000
    assert not (again.root / "stages/gone").exists()


def test_a_torn_upload_does_not_count_and_is_repeated(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = machine(tmp_path / "1", monkeypatch)
    directory = artifact(storage)
    storage.push(directory)
    artifact(storage, weights=b"v" * 2000)
    s3.fail = lambda method, path: 503 if method == "PUT" and path.endswith("safetensors") else None
    with pytest.raises(StorageUnavailable, match=r"s3://team/runs cannot be reached \(.*\); run again when it can"):
        storage.push(directory)
    assert not [n for n in s3.names() if n.endswith(MANIFEST)]
    s3.fail = lambda method, path: None
    storage.push(directory)
    second = machine(tmp_path / "2", monkeypatch)
    second.fetch(second.root / "stages/base/model")
    assert verify(second.root / "stages/base/model") is None


@pytest.mark.parametrize("status", [503, 0])
def test_a_server_in_trouble_for_a_while_is_waited_for(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """0 breaks the connection. botocore alone gives up after three tries."""
    storage = machine(tmp_path, monkeypatch)
    directory = artifact(storage)
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 60.0)
    left = [5]

    def fail(method: str, path: str) -> int | None:
        if method != "PUT" or not path.endswith("config.json") or not left[0]:
            return None
        left[0] -= 1
        return status

    s3.fail = fail
    Storage(URI, "p").push(directory)
    assert left == [0]
    assert f"runs/p/stages/base/model/{MANIFEST}" in s3.names()


def test_nobody_there_is_a_fault_that_may_pass(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageUnavailable, match=r"s3://team/runs cannot be reached \(Could not connect"):
        machine(tmp_path, monkeypatch)


def test_a_token_that_has_expired_is_waited_for_though_a_bare_400_is_all_that_is_said(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To HEAD S3 answers without a body, so without its word for what is wrong; an empty folder is asked for so."""
    heads = [3]

    def fail(method: str, path: str) -> str | None:
        if method != "HEAD" or not heads[0]:
            return None
        heads[0] -= 1
        return "ExpiredToken"

    s3.fail = fail
    monkeypatch.setattr(storage_module, "_OPEN_PATIENCE_SECONDS", 60.0)
    machine(tmp_path, monkeypatch)
    assert heads == [0]
    monkeypatch.setattr(storage_module, "_OPEN_PATIENCE_SECONDS", 0.5)
    for method, words in (
        ("HEAD", r"without a reason: most likely the session token of the credentials has expired\)"),
        ("GET", r"ExpiredToken\)"),
    ):
        s3.fail = lambda asked, path, method=method: "ExpiredToken" if asked == method else None
        with pytest.raises(StorageUnavailable, match=rf"s3://team/runs cannot be reached \(.*{words}; run again"):
            machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("answer", [400, "InvalidToken"])
def test_a_request_that_is_refused_for_good_is_not_tried_again(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | str
) -> None:
    s3.fail = lambda method, path: answer
    with pytest.raises(SpecError, match="s3://team/runs refuses"):
        machine(tmp_path, monkeypatch)
    assert len(s3.requests) == 1


def test_wrong_credentials_and_missing_rights_are_for_the_user_to_mend(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = user_with_rights(s3, monkeypatch, ["s3:ListBucket", "s3:GetObject"])
    use(s3, monkeypatch, key=key, secret=secret)
    storage = machine(tmp_path, monkeypatch)
    refused = "spec.storage: s3://team/runs refuses the credentials"
    with pytest.raises(SpecError, match=refused):
        storage.push(artifact(storage))
    for wrong in ((key, "x" * 40), ("AKIANOBODY0000000000", secret)):
        use(s3, monkeypatch, key=wrong[0], secret=wrong[1])
        with pytest.raises(SpecError, match=refused) as caught:
            machine(tmp_path, monkeypatch)
        assert secret not in str(caught.value) and wrong[1] not in str(caught.value)


def test_no_credentials_at_all(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SpecError, match=r"there are no credentials for s3://team/runs .*envFromSecrets"):
        machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://nobody-made-it/runs", r"s3://nobody-made-it/runs does not exist \(.*\); create the bucket"),
        ("s3://No_Bucket!/runs", r"refuses the request \(.*Invalid bucket name.*; check the name"),
        (f"s3://{KEY}:{SECRET}@team/runs", r"^spec\.storage holds credentials, which everybody sees"),
    ],
)
def test_what_the_file_has_wrong_is_told(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        machine(tmp_path, monkeypatch, uri)
    assert SECRET not in str(caught.value)
    buckets = [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]]
    assert buckets == ["team"]  # none is made for a name with a mistake


def test_a_full_disk_here_is_no_fault_of_the_store(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine(tmp_path / "1", monkeypatch)
    first.push(artifact(first))
    second = machine(tmp_path / "2", monkeypatch)
    part = second.root / "stages/base/model/shards/.model.safetensors.part"
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with pytest.raises(StorageUnavailable, match=r"no space left for .*model\.safetensors; free some space"):
        second.fetch(second.root / "stages/base/model")


def test_each_checkpoint_is_there_before_the_one_before_it_goes(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = machine(tmp_path / "1", monkeypatch)
    work, progress = storage.root / "stages/base/work", Progress(storage.root / "stages/base/progress.jsonl")
    backup = Backup(storage, work, progress, alone)
    checkpoint(work, 5)
    (work / "untrained.json").write_text("{}")
    progress.update("train", 5, 10)
    assert backup.look()
    checkpoint(work, 10)
    s3.requests.clear()
    assert backup.look()
    order = [(m, p.split("checkpoints/")[-1]) for m, p in s3.requests if m in ("PUT", "DELETE") and "checkpoints" in p]
    complete = order.index(("PUT", f"checkpoint-10/{MANIFEST}"))
    assert order.index(("DELETE", f"checkpoint-5/{MANIFEST}")) == complete + 1
    assert all(method == "DELETE" for method, _ in order[complete + 1 :])
    assert {n.split("/")[6] for n in s3.names("runs/p/stages/base/work/checkpoints")} == {"checkpoint-10"}
    s3.requests.clear()
    assert backup.look() and not puts(s3)

    second = machine(tmp_path / "2", monkeypatch)
    work = second.root / "stages/base/work"
    restore(second, work)
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["checkpoint-10"]
    assert verify(work / "checkpoints/checkpoint-10") is None
    assert (work / "untrained.json").read_text() == "{}"
    assert len(ProgressReader(second.root / "stages/base/progress.jsonl").new_events()) == 1


def test_a_newer_checkpoint_of_this_machine_is_kept_and_an_older_one_replaced(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = machine(tmp_path, monkeypatch)
    work = storage.root / "stages/base/work"
    checkpoint(work, 5)
    assert Backup(storage, work, Progress(tmp_path / "progress"), alone).look()
    checkpoint(work, 10)
    s3.requests.clear()
    restore(storage, work)
    assert not [path for method, path in s3.requests if method == "GET" and path.endswith(".pt")]
    checkpoint(work, 5, b"other")
    (work / "checkpoints/checkpoint-10" / MANIFEST).unlink()
    restore(storage, work)
    assert (work / "checkpoints/checkpoint-5/rank0.pt").read_bytes().startswith(b"state")


def test_a_checkpoint_that_training_deletes_meanwhile_is_uploaded_all_the_same(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = machine(tmp_path / "1", monkeypatch)
    work = storage.root / "stages/base/work"
    made = checkpoint(work, 5)

    def fail(method: str, path: str) -> int | None:
        if method == "PUT":
            for file in made.glob("*"):
                file.unlink()
        return None

    s3.fail = fail
    assert Backup(storage, work, Progress(tmp_path / "progress"), alone).look()
    second = machine(tmp_path / "2", monkeypatch)
    restore(second, second.root / "stages/base/work")
    assert verify(second.root / "stages/base/work/checkpoints/checkpoint-5") is None
    assert not (work / "uploading").exists()


def test_an_upload_that_fails_is_told_once_and_done_when_the_server_is_back(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = machine(tmp_path, monkeypatch)
    work, progress = storage.root / "work", Progress(storage.root / "progress")
    backup = Backup(storage, work, progress, alone)
    checkpoint(work, 5)
    s3.fail = lambda method, path: 503
    assert not backup.look() and not backup.look()
    (note,) = ProgressReader(progress.path).new_events()
    assert note["message"].startswith("checkpoint-5 is not in s3://team/runs yet, training goes on: ")
    s3.fail = lambda method, path: None
    assert backup.look()
    assert f"runs/p/work/checkpoints/checkpoint-5/{MANIFEST}" in s3.names()


def test_a_checkpoint_that_lost_power_does_not_replace_the_one_in_the_bucket(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = machine(tmp_path, monkeypatch)
    work = storage.root / "stages/base/work"
    checkpoint(work, 5)
    assert Backup(storage, work, Progress(tmp_path / "progress"), alone).look()
    (work / "checkpoints/checkpoint-5/rank0.pt").write_bytes(bytes(10))
    broken = checkpoint(work, 10) / "rank0.pt"
    broken.write_bytes(bytes(broken.stat().st_size))
    restore(storage, work)
    assert [p.name for p in (work / "checkpoints").iterdir()] == ["checkpoint-5"]
    assert verify(work / "checkpoints/checkpoint-5") is None


def test_what_a_mirror_has_of_an_earlier_beginning_of_a_stage_is_dropped(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine(tmp_path / "1", monkeypatch)
    StageStore(first, "base").begin("one")
    checkpoint(first.root / "stages/base/work", 40)
    second = machine(tmp_path / "2", monkeypatch)
    StageStore(second, "base").begin("two")  # its spec was changed there
    first = machine(tmp_path / "1", monkeypatch)
    assert StageStore(first, "base").state().digest == "two"
    assert not (first.root / "stages/base/work").exists()
    again = StageStore(first, "base").begin("two")
    checkpoint(first.root / "stages/base/work", 3)
    assert again.attempts == 2
    machine(tmp_path / "1", monkeypatch)
    assert (first.root / "stages/base/work/checkpoints/checkpoint-3").exists()


def test_an_attempt_that_was_given_up_changes_nothing_of_the_next(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StageStore(machine(tmp_path / "1", monkeypatch), "base")
    cut_off = first.begin("one")
    assert first.is_current(cut_off)
    second = StageStore(machine(tmp_path / "2", monkeypatch), "base")
    state = second.begin("one")
    progress = Progress(tmp_path / "progress")
    checkpoint(second.work, 80)
    assert Backup(second.storage, second.work, progress, partial(second.is_current, state)).look()
    checkpoint(first.work, 50)
    assert not Backup(first.storage, first.work, progress, partial(first.is_current, cut_off)).look()
    with pytest.raises(StorageUnavailable, match="a newer attempt works in s3://team/runs; this one ends"):
        first.interrupt(cut_off, "stopped", 1.0)
    kept = [n.split("/")[6] for n in s3.names("runs/p/stages/base/work/") if n.endswith(MANIFEST)]
    assert kept == ["checkpoint-80"]
    assert json.loads(s3.content("runs/p/stages/base/state.json"))["attempts"] == 2


def test_a_finished_stage_is_done_though_its_checkpoints_cannot_be_deleted(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StageStore(machine(tmp_path, monkeypatch), "base")
    state = store.begin("one")
    checkpoint(store.work, 5)
    assert Backup(store.storage, store.work, Progress(tmp_path / "progress"), alone).look()
    output = store.work / "output/model"
    output.mkdir(parents=True)
    (output / "config.json").write_text("{}")
    s3.fail = lambda method, path: 403 if method == "DELETE" else None
    (made,) = store.commit(state, [Output(ArtifactKind.MODEL, output)], {}, 1.0)
    assert store.state().phase == "done" and made.path.name == "model"
    assert not (store.work / "checkpoints").exists(), "nor do they fill the mirror"


def test_patience_begins_with_the_first_failure(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = machine(tmp_path, monkeypatch)
    (storage.root / "large").write_text("x")
    waited = threading.Event()
    tries: list[str] = []

    def fail(method: str, path: str) -> int | None:
        tries.append(path)
        if len(tries) == 1:
            waited.wait(1.0)  # longer than anybody is patient here: a large file
            return 503
        return None

    s3.fail = fail
    storage.push(storage.root / "large")
    assert s3.names("runs/p/large") == ["runs/p/large"]


def test_a_shard_of_any_size_has_fewer_parts_than_s3_takes() -> None:
    assert part_bytes(5 << 20) == 16 << 20
    for size in (1 << 37, 1 << 40, 5 << 40):
        assert -(-size // part_bytes(size)) <= 10_000


def test_checkpoints_are_uploaded_while_a_stage_runs_and_the_last_one_when_it_stops(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = machine(tmp_path, monkeypatch)
    work = storage.root / "work"
    uploaded = threading.Event()

    def fail(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith("progress"):
            uploaded.set()  # follows the checkpoint
        return None

    s3.fail = fail
    (storage.root / "progress").write_text("")

    def stage() -> None:
        with checkpoints_kept(storage, work, Progress(storage.root / "progress"), alone):
            checkpoint(work, 5)
            assert uploaded.wait(60)
            checkpoint(work, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage()
    assert {n.split("/")[4] for n in s3.names("runs/p/work/checkpoints/") if n.endswith(MANIFEST)} == {"checkpoint-10"}


def test_stores_with_directories_work_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        first = machine(tmp_path / "1", monkeypatch, "memory://shelf/runs")
        first.push(artifact(first))
        second = machine(tmp_path / "2", monkeypatch, "memory://shelf/runs")
        second.fetch(second.root / "stages/base/model")
        assert verify(second.root / "stages/base/model") is None
        assert json.loads((second.root / f"stages/base/model/{MANIFEST}").read_text())["kind"] == "model"
        second.remove(second.root / "stages")
        assert fsspec.filesystem("memory").find("/shelf") == []
    finally:
        fsspec.filesystem("memory").rm("/shelf", recursive=True)
