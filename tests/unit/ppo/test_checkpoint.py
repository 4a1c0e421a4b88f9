"""Checkpoints: whole or not there, rotated late, refused when broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from camel_ray.ppo.checkpoint import Checkpoints
from camel_ray.progress import Progress, ProgressReader


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "progress.jsonl")


def shard(path: Path) -> None:
    (path / "actor").mkdir()
    (path / "actor" / "rank0.safetensors").write_bytes(b"weights of " + path.name.encode())


def write(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.write(step, {"step": step, "kl_coefficient": 0.1 * step}, shard)


def test_the_newest_is_found_and_older_ones_beyond_keep_are_gone(checkpoints: Checkpoints, progress: Progress) -> None:
    assert checkpoints.newest(progress) is None
    write(checkpoints, 5, 10, 15)
    step, state, path = checkpoints.newest(progress) or (0, {}, Path())
    assert (step, state["kl_coefficient"], path.name) == (15, 1.5, "step-000015")
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == ["step-000010", "step-000015"]


def test_a_write_that_fails_leaves_the_older_one_in_use(checkpoints: Checkpoints, progress: Progress) -> None:
    write(checkpoints, 5)

    def fail(path: Path) -> None:
        shard(path)
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError):
        checkpoints.write(10, {"step": 10}, fail)
    assert (checkpoints.newest(progress) or (0,))[0] == 5
    write(checkpoints, 10)
    assert (checkpoints.newest(progress) or (0,))[0] == 10


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    checkpoints: Checkpoints, progress: Progress, damage: str
) -> None:
    write(checkpoints, 5, 10)
    file = checkpoints.path(10) / "actor" / "rank0.safetensors"
    content = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "cut":
            file.write_bytes(content[:-1])
        case "remove":
            file.unlink()
        case "manifest":
            (checkpoints.path(10) / "manifest.json").write_text("{")
    assert (checkpoints.newest(progress) or (0,))[0] == 5
    notes: list[dict[str, Any]] = ProgressReader(progress.path).new_events()
    assert [note["level"] for note in notes] == ["warning"]
    assert "checkpoint step-000010 is not used" in notes[0]["message"]


def test_a_damaged_checkpoint_pushes_no_sound_one_out(checkpoints: Checkpoints, progress: Progress) -> None:
    write(checkpoints, 5, 50)
    (checkpoints.path(50) / "actor" / "rank0.safetensors").unlink()
    assert checkpoints.newest(progress, before=60) is not None
    assert checkpoints.path(50).exists(), "a look back removes nothing"
    assert (checkpoints.newest(progress) or (0,))[0] == 5
    write(checkpoints, 6, 7)
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == ["step-000006", "step-000007"]


def test_a_torn_line_of_progress_hides_no_other(progress: Progress) -> None:
    progress.note("before")
    with progress.path.open("a") as file:
        file.write('{"time": 1, "event": "upd{"time": 2, "event": "note"}\n7\n\n')
    progress.note("after")
    assert [event["message"] for event in ProgressReader(progress.path).new_events()] == ["before", "after"]


def test_the_newest_before_a_round_is_found(checkpoints: Checkpoints, progress: Progress) -> None:
    write(checkpoints, 5, 10)
    assert (checkpoints.newest(progress, before=10) or (0,))[0] == 5
    assert (checkpoints.newest(progress, before=11) or (0,))[0] == 10
    assert checkpoints.newest(progress, before=5) is None
