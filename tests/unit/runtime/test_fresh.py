"""An attempt that is to start from nothing does so once: taken away and started again, it continues with its own work
and never with what was there before it, whenever it was cut off and whatever its mirror holds.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from s3 import S3

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import CamelError
from camel_ray.manifest import write_manifest
from camel_ray.runtime.runner import Runner
from camel_ray.runtime.store import StageStore
from camel_ray.stages import data
from camel_ray.stages.contract import StageContext

OLD, NEW, NEXT = "uid/1", "uid/2", "uid/3"


class Stage:
    """Stands for the stage `text`: notes which checkpoints it finds, makes the next one, and is taken away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
        self._monkeypatch, self._base = monkeypatch, base
        self.found: list[str] = []
        self.made = ""
        monkeypatch.setattr(data, "run", self._run)

    def _run(self, context: StageContext) -> None:
        self.found = sorted(path.name for path in (context.work / "checkpoints").glob("*"))
        directory = context.work / "checkpoints" / self.made
        directory.mkdir(parents=True)
        (directory / "state.pt").write_text(self.made)
        write_manifest(directory)
        raise KeyboardInterrupt

    def runs(self, machine: str, *, fresh_for: str, makes: str) -> list[str]:
        """An attempt on the machine with this disk. Returns the checkpoints that it found."""
        self.made = makes
        with pytest.raises(KeyboardInterrupt):
            self.runner(machine, fresh_for).run()
        return self.found

    def runner(self, machine: str, fresh_for: str) -> Runner:
        self._monkeypatch.setenv("CAMEL_RAY_CACHE", str(self._base / machine))
        document = {
            "metadata": {"name": "p"},
            "spec": {"storage": "s3://team/runs", "stages": [{"name": "text", "data": {"source": "a.jsonl"}}]},
        }
        pipeline = CamelPipeline.model_validate(document)
        return Runner(pipeline, base_dir=self._base, fresh=True, fresh_for=fresh_for)


@pytest.fixture
def stage(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    """It has begun for attempt 1, which left its fourth checkpoint in the bucket and in the mirror of machine `a`."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    made = Stage(monkeypatch, tmp_path)
    assert made.runs("a", fresh_for=OLD, makes="checkpoint-4") == []
    return made


def test_what_an_attempt_has_made_itself_is_continued_on_any_machine(stage: Stage) -> None:
    assert stage.runs("a", fresh_for=NEW, makes="checkpoint-1") == []
    assert stage.runs("b", fresh_for=NEW, makes="checkpoint-2") == ["checkpoint-1"]
    # The mirror there ends with checkpoint 1, in the bucket is the newest only.
    assert stage.runs("a", fresh_for=NEW, makes="checkpoint-3") == ["checkpoint-1", "checkpoint-2"]
    assert stage.runs("b", fresh_for=NEXT, makes="checkpoint-1") == []
    assert stage.runs("c", fresh_for=NEXT, makes="checkpoint-2") == ["checkpoint-1"]


@pytest.mark.parametrize("again", ["a", "b"])
@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize(
    "cut", [("DELETE", ""), ("DELETE", "state.pt"), ("PUT", "state.json")], ids=["begin", "half", "before the note"]
)
def test_an_attempt_cut_off_while_it_discards_does_so_again(
    s3: S3, stage: Stage, cut: tuple[str, str], first: str, again: str
) -> None:
    """403 ends it at once at that request; `a` has the old checkpoint on its disk, `b` has nothing."""
    s3.fail = lambda method, path: 403 if method == cut[0] and path.endswith(cut[1]) else None
    with pytest.raises(CamelError):
        stage.runner(first, NEW).run()
    s3.fail = lambda method, path: None
    assert stage.runs(again, fresh_for=NEW, makes="checkpoint-1") == []
    assert stage.runs("c", fresh_for=NEW, makes="checkpoint-2") == ["checkpoint-1"]


def test_an_attempt_that_gave_its_place_back_changes_nothing_of_its_second_start(s3: S3, stage: Stage) -> None:
    stage.runs("a", fresh_for=NEW, makes="checkpoint-1")
    store = StageStore(stage.runner("a", NEW).storage, "text")
    first = store.state()
    assert store.is_current(first)
    stage.runs("b", fresh_for=NEW, makes="checkpoint-2")
    assert not store.is_current(first)


def test_a_state_that_cannot_be_read_is_forgotten_with_the_rest(s3: S3, stage: Stage) -> None:
    s3.client().put_object(Bucket="team", Key="runs/p/stages/text/state.json", Body=b"{")
    assert stage.runs("a", fresh_for=NEW, makes="checkpoint-1") == []
