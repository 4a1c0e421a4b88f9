"""A whole pipeline on a real S3 server: run, lost with its machine, stopped, continued elsewhere, never a secret."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import S3, SECRET, s3_server, use

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import Stopped
from camel_ray.manifest import MANIFEST
from camel_ray.runtime.runner import Runner
from camel_ray.runtime.store import StageStore
from camel_ray.stop import StopRequest

STEPS, EVERY = 600, 20
FIGURES = {"data": "asked", "maxLength": 64, "maxResponseLength": 16}
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server() as server:
        use(server, monkeypatch)
        text = "".join(
            json.dumps({"text": f"the number {i} is followed by the number {i + 1}"}) + "\n" for i in range(300)
        )
        server.client().put_object(Bucket="team", Key="data/text-0.jsonl", Body=text.encode())
        asked = "".join(json.dumps({"prompt": f"{i} and?", "completion": f"{i + 1}"}) + "\n" for i in range(20))
        server.client().put_object(Bucket="team", Key="data/questions.jsonl", Body=asked.encode())
        yield server


def pipeline(steps: int = STEPS, ppo: dict[str, object] | None = None) -> CamelPipeline:
    """From rows to figures, with or without PPO between."""
    pretrain = {
        "data": "text", "model": {"config": LLAMA}, "maxLength": 64, "batchSize": 4, "microBatchSize": 4,
        "steps": steps, "checkpoint": {"everySteps": EVERY},
    }  # fmt: skip
    return CamelPipeline.model_validate(
        {
            "metadata": {"name": "p"},
            "spec": {
                "storage": "s3://team/runs",
                "stages": [
                    {"name": "text", "data": {"source": "s3://team/data/text-*.jsonl", "validation": 0.1}},
                    {"name": "tok", "tokenizer": {"data": "text", "vocabSize": 300}},
                    {"name": "base", "needs": ["text", "tok"], "pretrain": pretrain},
                    {"name": "asked", "data": {"source": "s3://team/data/questions.jsonl"}},
                    *([{"name": "tuned", "needs": ["base", "asked"], "ppo": ppo}] if ppo else []),
                    {"name": "figures", "needs": ["tuned"] if ppo else ["base", "asked"], "evaluate": FIGURES},
                ],
            },
        }
    )


def runner(directory: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Runner:
    """On the machine with this disk."""
    monkeypatch.setenv("CAMEL_RAY_CACHE", str(directory))
    return Runner(pipeline(), base_dir=directory.parent, **options)  # type: ignore[arg-type]


def whole_in_storage(server: S3, below: str) -> set[str]:
    """Directories right below a folder whose manifest is there."""
    names = [name.removeprefix(below).split("/") for name in server.names(below)]
    return {parts[0] for parts in names if parts[1:] == [MANIFEST]}


def test_a_pipeline_lost_stopped_and_continued_on_three_machines(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = "runs/p/stages/base/work/checkpoints/"
    lost_at = _lose_a_machine(s3, tmp_path, checkpoints)
    assert lost_at >= EVERY

    second = runner(tmp_path / "2", monkeypatch)
    assert [(p.name, p.state) for p in _planned(second)] == [
        ("text", "done"), ("tok", "done"), ("base", "interrupted"), ("asked", "upstream"), ("figures", "upstream"),
    ]  # fmt: skip
    store = StageStore(second.storage, "base")
    watcher = threading.Thread(target=_stop_when_saved, args=(store.work, lost_at), daemon=True)
    watcher.start()
    with pytest.raises(Stopped, match="stopped on request; step"):
        second.run()
    watcher.join()
    assert f"continues at step {lost_at}" in store.progress_path.read_text()
    (name,) = whole_in_storage(s3, checkpoints)
    stopped_at = int(name.rpartition("-")[2])
    assert lost_at < stopped_at < STEPS

    third = runner(tmp_path / "3", monkeypatch)
    result = third.run()
    assert (result.ran, result.skipped) == (("base", "asked", "figures"), ("text", "tok"))
    assert f"continues at step {stopped_at}" in StageStore(third.storage, "base").progress_path.read_text()
    assert not s3.names("runs/p/stages/base/work/")

    fourth = runner(tmp_path / "4", monkeypatch)
    s3.requests.clear()
    assert fourth.run().skipped == ("text", "tok", "base", "asked", "figures")
    assert not [path for _, path in s3.requests if path.endswith(("safetensors", "arrow"))]

    fifth = runner(tmp_path / "5", monkeypatch, first="figures")
    assert fifth.run().ran == ("figures",)  # the text that the model was trained on is fetched, though nobody names it
    everything = b"".join(s3.content(name) for name in s3.names("runs/") if name.endswith((".json", ".jsonl", ".html")))
    assert b"report" in everything and SECRET.encode() not in everything


def _lose_a_machine(server: S3, tmp_path: Path, checkpoints: str) -> int:
    """A first run in a process that is killed, with its disk, once storage has a checkpoint. Returns its step."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "1")],
        env={**os.environ, "CAMEL_RAY_CACHE": str(tmp_path / "1"), "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    found: set[str] = set()

    def fail(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(MANIFEST) and "/checkpoint-" in path:
            there.set()

    there = threading.Event()
    server.fail = fail
    with process:
        if not there.wait(1500):
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError((process.communicate()[0] or b"").decode()[-3000:])
        while not found:
            found = whole_in_storage(server, checkpoints)
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
    assert SECRET.encode() not in output
    server.fail = lambda method, path: None
    return max(int(name.rpartition("-")[2]) for name in whole_in_storage(server, checkpoints))


def _planned(made: Runner):  # type: ignore[no-untyped-def]
    made.storage.open()
    return made.plan()


def test_ppo_goes_on_elsewhere_from_its_round_and_is_measured_beside_what_it_started_from(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reward.py").write_text(
        "def reward(prompts, answers, rows):\n    return [float(len(answer)) for answer in answers]\n"
    )
    ppo = {
        "prompts": "asked", "reward": {"function": {"path": str(tmp_path / "reward.py")}}, "steps": 12,
        "promptsPerStep": 4, "evaluationPrompts": 4, "checkpoint": {"everySteps": 2},
        "sampling": {"maxPromptLength": 32, "maxResponseLength": 8},
    }  # fmt: skip
    whole = pipeline(20, ppo)

    monkeypatch.setenv("CAMEL_RAY_CACHE", str(tmp_path / "1"))
    first = Runner(whole, base_dir=tmp_path)
    work = StageStore(first.storage, "tuned").work
    watcher = threading.Thread(target=_stop_when_saved, args=(work, 0), daemon=True)
    watcher.start()
    with pytest.raises(Stopped, match="stopped on request") as stopped:
        first.run()
    watcher.join()
    done = int(re.findall(r"after round (\d+)", str(stopped.value))[0])
    assert 2 <= done < 12
    assert whole_in_storage(s3, "runs/p/stages/tuned/work/checkpoints/") == {f"step-{done:06d}"}

    monkeypatch.setenv("CAMEL_RAY_CACHE", str(tmp_path / "2"))
    second = Runner(whole, base_dir=tmp_path)
    assert second.run().ran == ("tuned", "figures")
    assert f"continues after round {done}" in StageStore(second.storage, "tuned").progress_path.read_text()
    report = json.loads(s3.content("runs/p/stages/figures/report/evaluation.json"))
    assert (report["model"], report["baseline"]) == ("tuned", "base")
    assert {"model", "baseline"} <= report["figures"]["perplexity"].keys()


def _stop_when_saved(work: Path, step: int) -> None:
    """Ask to stop once a checkpoint after `step` is complete. Any will do: each is soon deleted for newer ones."""
    until = time.monotonic() + 1500
    while time.monotonic() < until:
        saved = [path.parent.name for path in work.glob(f"checkpoints/*/{MANIFEST}")]
        if any(int(name.rpartition("-")[2]) > step for name in saved):
            StopRequest(work).ask()
            return
        time.sleep(0.05)  # polling files of the run


if __name__ == "__main__":
    Runner(pipeline(), base_dir=Path(sys.argv[1]).parent).run()
