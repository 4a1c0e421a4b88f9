"""The local runner with the two stages that need no training: what is skipped, what runs again, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import CamelError, DataError, ModelError, SpecError, StorageUnavailable
from camel_ray.runtime.runner import Runner


def rows(path: Path, texts: list[str]) -> None:
    """Write a text data set."""
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A directory with a small data set."""
    rows(tmp_path / "a.jsonl", [f"the number {i} is followed by the number {i + 1}" for i in range(80)])
    return tmp_path


def pipeline(storage: Path | str, *, vocab: int = 300, min_characters: int = 1, seed: int = 0) -> CamelPipeline:
    """A data and a tokenizer stage."""
    return CamelPipeline.model_validate(
        {
            "metadata": {"name": "p"},
            "spec": {
                "storage": str(storage),
                "seed": seed,
                "stages": [
                    {"name": "text", "data": {"source": "a.jsonl", "minCharacters": min_characters}},
                    {"name": "tok", "tokenizer": {"data": "text", "vocabSize": vocab}},
                ],
            },
        }
    )


def test_a_second_run_does_nothing(base: Path) -> None:
    first = Runner(pipeline(base / "s"), base_dir=base).run()
    assert first.ran == ("text", "tok")
    second = Runner(pipeline(base / "s"), base_dir=base).run()
    assert (second.ran, second.skipped) == ((), ("text", "tok"))
    assert second.report.read_text().startswith("<!doctype html>")


def test_a_changed_spec_runs_that_stage_only(base: Path) -> None:
    Runner(pipeline(base / "s"), base_dir=base).run()
    changed = Runner(pipeline(base / "s", vocab=310), base_dir=base)
    assert [(p.name, p.state) for p in changed.plan()] == [("text", "done"), ("tok", "changed")]
    assert changed.run().ran == ("tok",)


def test_a_change_that_leaves_an_artifact_the_same_stops_there(base: Path) -> None:
    """minCharacters 2 drops nothing, so the rows are the same and the tokenizer need not be trained again."""
    Runner(pipeline(base / "s"), base_dir=base).run()
    changed = Runner(pipeline(base / "s", min_characters=2), base_dir=base)
    assert [(p.name, p.state) for p in changed.plan()] == [("text", "changed"), ("tok", "upstream")]
    assert changed.run().ran == ("text",)


def test_a_changed_source_file_runs_everything_that_uses_it(base: Path) -> None:
    Runner(pipeline(base / "s"), base_dir=base).run()
    rows(base / "a.jsonl", [f"another text with the number {i}" for i in range(80)])
    assert Runner(pipeline(base / "s"), base_dir=base).run().ran == ("text", "tok")


def test_from_runs_a_stage_and_what_follows_again(base: Path) -> None:
    Runner(pipeline(base / "s"), base_dir=base).run()
    assert Runner(pipeline(base / "s"), base_dir=base, first="tok").run().ran == ("tok",)
    with pytest.raises(SpecError, match=r"--from tik: the pipeline has no such stage; it has text, tok"):
        Runner(pipeline(base / "s"), base_dir=base, first="tik")


def test_only_refuses_to_run_on_what_is_not_there(base: Path) -> None:
    with pytest.raises(SpecError, match="stage 'text', which it uses, is not done"):
        Runner(pipeline(base / "s"), base_dir=base, only="tok").run()


def test_a_flipped_byte_in_an_artifact_is_refused_by_the_stage_that_uses_it(base: Path) -> None:
    Runner(pipeline(base / "s"), base_dir=base, only="text").run()
    victim = next((base / "s/p/stages/text/dataset").glob("train*"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ModelError, match=r"does not match its SHA-256.*--from text"):
        Runner(pipeline(base / "s"), base_dir=base).run()


def test_a_failed_stage_says_why_in_its_state_and_runs_again(base: Path) -> None:
    (base / "a.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        Runner(pipeline(base / "s"), base_dir=base).run()
    plan = Runner(pipeline(base / "s"), base_dir=base).plan()[0]
    assert plan.state == "interrupted"
    assert str(caught.value) in plan.reason
    rows(base / "a.jsonl", [f"the number {i} and more" for i in range(80)])
    assert Runner(pipeline(base / "s"), base_dir=base).run().ran == ("text", "tok")


def test_a_second_run_at_the_same_time_is_refused(base: Path) -> None:
    import fcntl

    (base / "s" / "p").mkdir(parents=True)
    with (base / "s" / "p" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SpecError, match="another run works in"):
            Runner(pipeline(base / "s"), base_dir=base).run()


@pytest.mark.parametrize(
    ("storage", "kind", "words"),
    [
        ("a.jsonl/below", CamelError, "a file stands in its way"),
        ("nosuchscheme://x", SpecError, "spec.storage: nosuchscheme://x cannot be opened"),
    ],
)
def test_storage_that_cannot_be_used_is_named(base: Path, storage: str, kind: type[CamelError], words: str) -> None:
    uri = storage if "://" in storage else str(base / storage)
    with pytest.raises(kind, match=words):
        Runner(pipeline(uri), base_dir=base).run()


def test_a_full_disk_is_told_and_loses_nothing(base: Path) -> None:
    """/dev/full stands for a full disk: every write to it fails with ENOSPC."""
    Runner(pipeline(base / "s"), base_dir=base, only="text").run()
    progress = base / "s/p/stages/tok/progress.jsonl"
    progress.parent.mkdir(parents=True)
    progress.symlink_to("/dev/full")
    state = json.loads((base / "s/p/stages/text/state.json").read_text())
    runner = Runner(pipeline(base / "s"), base_dir=base)
    digest = runner._digest(1, {"text": _artifact(runner, "text")})
    (progress.parent / "state.json").write_text(json.dumps({"phase": "failed", "digest": digest, "attempts": 1}))
    with pytest.raises(StorageUnavailable, match=r"no space left for .*progress\.jsonl; free some space and run again"):
        runner.run()
    assert json.loads((base / "s/p/stages/text/state.json").read_text()) == state
    progress.unlink()
    assert Runner(pipeline(base / "s"), base_dir=base).run().ran == ("tok",)


def _artifact(runner: Runner, name: str):  # type: ignore[no-untyped-def]
    from camel_ray.runtime.store import StageStore

    return StageStore(runner.storage, name).artifacts(contents=False)[0]


def test_remote_storage_gives_the_same_artifacts_to_another_machine(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An in-memory file system is the remote; a second, empty cache directory is the other machine."""
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(base / "machine-1"))
    first = Runner(pipeline("memory://bucket/team"), base_dir=base)
    assert first.run().ran == ("text", "tok")
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(base / "machine-2"))
    second = Runner(pipeline("memory://bucket/team", vocab=310), base_dir=base)
    assert second.run().ran == ("tok",)
    assert (second.storage.root / "stages/text/dataset/manifest.json").is_file()
    third = Runner(pipeline("memory://bucket/team", vocab=310), base_dir=base)
    assert third.run().skipped == ("text", "tok")
