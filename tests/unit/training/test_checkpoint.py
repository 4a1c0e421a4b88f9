"""Which checkpoint a run continues from."""

import errno
import fcntl
import json
import subprocess
import sys

import pytest

from camel_ray.errors import WorkerLost
from camel_ray.progress import Progress
from camel_ray.training.checkpoint import commit, newest, wait_for_writers, writing


@pytest.fixture
def progress(tmp_path):
    return Progress(tmp_path / "progress.jsonl")


def filled(tmp_path, step, content="state"):
    directory = tmp_path / "checkpoints" / f"checkpoint-{step}"
    (directory / f"global_step{step}").mkdir(parents=True)
    (directory / f"global_step{step}" / "optimizer.pt").write_text(content * 50)
    return directory


def committed(tmp_path, step, *, run="a", keep=10):
    commit(filled(tmp_path, step), run=run, step=step, keep=keep)


def names(tmp_path):
    return sorted(p.name for p in (tmp_path / "checkpoints").iterdir())


def notes(progress):
    if not progress.path.exists():
        return []
    return [json.loads(line) for line in progress.path.read_text().splitlines()]


def test_the_newest_complete_checkpoint_is_used(tmp_path, progress):
    committed(tmp_path, 5)
    committed(tmp_path, 10)
    found = newest(tmp_path / "checkpoints", run="a", progress=progress)
    assert found is not None and found.name == "checkpoint-10"
    assert notes(progress) == []


def test_no_checkpoints_is_a_new_start(tmp_path, progress):
    assert newest(tmp_path / "checkpoints", run="a", progress=progress) is None


def test_a_torn_checkpoint_is_skipped_with_a_note_and_removed(tmp_path, progress):
    committed(tmp_path, 5)
    filled(tmp_path, 10)
    found = newest(tmp_path / "checkpoints", run="a", progress=progress)
    assert found is not None and found.name == "checkpoint-5"
    assert names(tmp_path) == ["checkpoint-5"]
    (note,) = notes(progress)
    assert (
        note["level"] == "info" and "step 10 is not used: the run stopped while it was being written" in note["message"]
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, progress, damage):
    committed(tmp_path, 5)
    committed(tmp_path, 10)
    file = tmp_path / "checkpoints" / "checkpoint-10" / "global_step10" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[17] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    found = newest(tmp_path / "checkpoints", run="a", progress=progress)
    assert found is not None and found.name == "checkpoint-5"
    (note,) = notes(progress)
    assert note["level"] == "warning" and str(file) in note["message"]


def test_a_checkpoint_of_another_run_is_not_used(tmp_path, progress):
    committed(tmp_path, 5, run="another")
    assert newest(tmp_path / "checkpoints", run="a", progress=progress) is None
    (note,) = notes(progress)
    assert "spec, inputs or number of workers changed" in note["message"]


def test_an_unreadable_manifest_is_a_warning_not_an_error(tmp_path, progress):
    committed(tmp_path, 5)
    (tmp_path / "checkpoints" / "checkpoint-5" / "manifest.json").write_text("{")
    assert newest(tmp_path / "checkpoints", run="a", progress=progress) is None
    assert notes(progress)[0]["level"] == "warning"


def test_old_checkpoints_go_only_after_the_new_one_is_complete(tmp_path):
    for step in (5, 10):
        committed(tmp_path, step)
    directory = filled(tmp_path, 15)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15", "checkpoint-5"]
    commit(directory, run="a", step=15, keep=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15"]


def test_a_new_attempt_waits_until_the_writers_of_the_last_are_gone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from camel_ray.training.checkpoint import writing\n"
        "with writing(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"held\n"
        with pytest.raises(WorkerLost, match="earlier attempt still runs"):
            wait_for_writers(tmp_path, seconds=0.0)
        writer.kill()
    wait_for_writers(tmp_path, seconds=0.0)


def test_workers_of_one_run_write_together(tmp_path):
    with writing(tmp_path), writing(tmp_path):
        pass
    wait_for_writers(tmp_path, seconds=0.0)


@pytest.mark.parametrize("locks", [True, False], ids=["NFS", "none"])
def test_network_file_systems_do(tmp_path, monkeypatch, locks):
    real = fcntl.flock

    def flock(file, how):  # https://elixir.bootlin.com/linux/v6.12/source/fs/nfs/nfs4proc.c, nfs4_proc_lock
        if not locks:
            raise OSError(errno.ENOLCK, "No locks available")
        if (how & fcntl.LOCK_SH and not file.readable()) or (how & fcntl.LOCK_EX and not file.writable()):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    wait_for_writers(tmp_path, seconds=1)
    with writing(tmp_path), writing(tmp_path):
        if locks:
            with pytest.raises(WorkerLost):
                wait_for_writers(tmp_path, seconds=0)
        else:
            wait_for_writers(tmp_path, seconds=0)
