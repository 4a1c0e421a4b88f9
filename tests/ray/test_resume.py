"""Training that was killed continues where it stopped, to the same weights, alone and with two workers."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.dataset import DataReport, PreparedDataset
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import WorkerLost
from camel_ray.progress import Progress, ProgressReader, curve
from camel_ray.ray_session import shut_down_ray
from camel_ray.stages.contract import Artifact, ArtifactKind, StageContext
from camel_ray.training import launch

STEPS = 24
EVERY = 5
# Dropout draws from the generator that checkpoints have to keep.
GPT2 = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "resid_pdrop": 0.1,
    "attn_pdrop": 0.1, "embd_pdrop": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Artifacts of a data stage and a tokenizer stage."""
    made = tmp_path_factory.mktemp("inputs")
    rng = random.Random(1)
    words = ["red", "green", "blue", "black", "one", "two", "three", "four", "five", "six"]
    rows = [
        {
            "prompt": [{"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(1, 6)))}],
            "completion": " ".join(rng.choices(words, k=rng.randint(1, 9))),
            "row": "{}",
        }
        for _ in range(90)
    ]
    sides = [datasets.Dataset.from_list(side) for side in (rows[:70], rows[70:])]
    report = DataReport("prompt-completion", [], 90, 70, 20)
    PreparedDataset("prompt-completion", *sides, report).save(made / "questions")
    train_tokenizer([row["completion"] for row in rows], vocab_size=300).save_pretrained(made / "tokenizer")
    return made


def train(root: Path, work: Path, zero: int, workers: int, dropout: bool, precision: str = "auto"):
    """One attempt of the stage."""
    config = GPT2 if dropout else GPT2 | {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    member = {
        "data": "questions", "model": {"config": config}, "maxLength": 64, "batchSize": 8, "microBatchSize": 2,
        "zero": zero, "steps": STEPS, "learningRate": 2e-3, "logEverySteps": 2, "checkpoint": {"everySteps": EVERY},
        "precision": precision,
    }  # fmt: skip
    stages = [
        {"name": "questions", "data": {"source": "unused.jsonl"}},
        {"name": "tokenizer", "tokenizer": {"data": "questions"}},
        {"name": "chat", "needs": ["questions", "tokenizer"], "workers": workers, "sft": member},
    ]
    pipeline = CamelPipeline.model_validate({"metadata": {"name": "resume"}, "spec": {"stages": stages}})
    inputs = {
        "questions": Artifact(ArtifactKind.DATASET, "questions", root / "questions", "q"),
        "tokenizer": Artifact(ArtifactKind.TOKENIZER, "tokenizer", root / "tokenizer", "t"),
    }
    work.mkdir(parents=True, exist_ok=True)
    progress = Progress(work / "progress.jsonl")
    stage = pipeline.stage("chat")
    context = StageContext(pipeline, stage, inputs, work, work, progress, 1, 7, workers, workers)
    (output,) = importlib.import_module("camel_ray.stages.sft").run(context)
    return output


def attempt_then_kill(root: Path, work: Path, ready, precision: str = "auto") -> None:
    """An attempt in a process of its own that is killed as soon as `ready()`."""
    command = [sys.executable, __file__, str(root), str(work), precision]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not ready():
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def committed(work: Path, step: int) -> bool:
    return (work / "checkpoints" / f"checkpoint-{step}" / "manifest.json").exists()


def messages(work: Path) -> list[str]:
    return [e["message"] for e in ProgressReader(work / "progress.jsonl").new_events() if e["event"] == "note"]


def test_a_run_killed_at_several_points_ends_with_the_same_bytes(root, tmp_path):
    whole = train(root, tmp_path / "whole", 2, 1, True)
    work = tmp_path / "killed"
    attempt_then_kill(root, work, lambda: list(work.glob("tokens/*/train.arrow")))
    attempt_then_kill(root, work, lambda: (work / "checkpoints" / f"checkpoint-{EVERY}").exists())
    attempt_then_kill(root, work, lambda: committed(work, 2 * EVERY))
    attempt_then_kill(root, work, lambda: list(work.glob("output/model/*.safetensors")))
    resumed = train(root, work, 2, 1, True)
    assert any("continues at step" in message for message in messages(work))
    assert (resumed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    curves = [
        curve(ProgressReader(w / "progress.jsonl").new_events(), "train", "loss") for w in (tmp_path / "whole", work)
    ]
    assert curves[0] == curves[1]
    timing = {"tokens_per_second", "seconds"}
    assert {k: v for k, v in resumed.metrics.items() if k not in timing} == {
        k: v for k, v in whole.metrics.items() if k not in timing
    }


def test_bf16_training_that_was_killed_continues_with_the_losses_of_the_unbroken_run(root, tmp_path):
    train(root, tmp_path / "whole", 2, 1, True, "bf16")
    work = tmp_path / "killed"
    attempt_then_kill(root, work, lambda: committed(work, 2 * EVERY), "bf16")
    train(root, work, 2, 1, True, "bf16")
    assert any("continues at step" in message for message in messages(work))
    whole, resumed = (
        curve(ProgressReader(w / "progress.jsonl").new_events(), "train", "loss") for w in (tmp_path / "whole", work)
    )
    assert [step for step, _ in resumed] == [step for step, _ in whole]
    assert [loss for _, loss in resumed] == pytest.approx([loss for _, loss in whole], abs=1e-2)


def test_a_flipped_byte_in_a_checkpoint_is_noticed_and_an_older_one_used(root, tmp_path):
    whole = train(root, tmp_path / "whole", 2, 1, True)
    work = tmp_path / "damaged"
    attempt_then_kill(root, work, lambda: committed(work, 2 * EVERY))
    newest = max(
        work.glob("checkpoints/checkpoint-*/manifest.json"), key=lambda p: int(p.parent.name.split("-")[1])
    ).parent
    file = next(newest.rglob("*optim_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    resumed = train(root, work, 2, 1, True)
    assert any(str(file) in message and "does not match its SHA-256" in message for message in messages(work))
    assert (resumed.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def two_workers():
    yield
    shut_down_ray()


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_workers_of_which_one_is_killed_give_the_loss_of_one(root, tmp_path, two_workers, zero, monkeypatch):
    """ZeRO really shards: each worker writes its own part of the optimizer's state."""
    import ray

    alone = train(root, tmp_path / "alone", zero, 1, False)
    work = tmp_path / "two"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_worker", dying_worker)
        with pytest.raises(WorkerLost, match="stage 'chat': a training process died; run again"):
            train(root, work, zero, 2, False)
    assert [path.name for path in work.glob("died-at-*")] == [f"died-at-{EVERY}"]
    resumed = train(root, work, zero, 2, False)
    assert any("continues at step" in message for message in messages(work))
    newest = max(work.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert len(list(newest.rglob("*optim_states.pt"))) == 2
    assert resumed.metrics["validation_loss"] == pytest.approx(alone.metrics["validation_loss"], abs=1e-5)
    assert resumed.metrics["tokens"] == alone.metrics["tokens"]
    losses = [
        curve(ProgressReader(w / "progress.jsonl").new_events(), "train", "loss") for w in (tmp_path / "alone", work)
    ]
    for (step, one), (other_step, two) in zip(*losses, strict=True):
        assert step == other_step and two == pytest.approx(one, abs=1e-5)


def dying_worker(config):
    """A training process; the one that completes the first checkpoint is killed right after.

    It kills itself: somebody else might look too late, when training is over.
    """
    from camel_ray.training.callbacks import commit as saving

    whole = saving.commit

    def commit_and_die(directory, *, run, step, keep):
        whole(directory, run=run, step=step, keep=keep)
        (config["plan"].work / f"died-at-{step}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    saving.commit = commit_and_die
    launch._worker(config)


if __name__ == "__main__":
    made = train(Path(sys.argv[1]), Path(sys.argv[2]), 2, 1, True, sys.argv[3])
    (Path(sys.argv[2]) / "metrics.json").write_text(json.dumps(dict(made.metrics)))
