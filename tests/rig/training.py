"""A small training in one real pod (`executor: Job`), as long as a test wants it, and what can be seen from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.progress import ProgressReader
from camel_ray.runtime.runner import Runner
from rig.pipelines import Object, Pipelines, pipeline

FOREVER = 1_000_000
"""More steps than can be done in the meantime."""
STAGE = "base"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
"""A model that trains in milliseconds."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",
}
"""Variables of pods that share two cores and have no network."""


def machine(memory: str, *, request: str = "512Mi") -> Object:
    """A pod of a size that the scheduler finds room for; `memory` is its limit."""
    return {"resources": {"requests": {"cpu": "100m", "memory": request}, "limits": {"memory": memory}}}


def write_data(directory: Path) -> None:
    """What the training reads: rows, and a tokenizer that is made here and now."""
    lines = [{"text": f"row {i} says {i * i} words about camels and rays"} for i in range(200)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    home = pipeline(
        "home",
        {"name": "rows", "data": {"source": str(directory / "rows.jsonl"), "format": "text"}},
        {"name": "words", "tokenizer": {"data": "rows", "vocabSize": 300}},
        storage=str(directory),
    )
    Runner(CamelPipeline.model_validate(home), base_dir=directory).run()


class Training:
    """A pipeline of one training. `directory`: that of the claim `data`, with `write_data` in it."""

    def __init__(self, pipelines: Pipelines, directory: Path, name: str) -> None:
        self.pipelines, self.name = pipelines, name
        self._directory = directory / "storage" / name / "stages" / STAGE

    def start(self, *, steps: int = FOREVER, checkpoint: int = 500) -> None:
        """Apply it. `checkpoint`: steps from one to the next."""
        member = {
            "data": {"source": "/data/rows.jsonl", "format": "text", "validation": 0.1},
            "tokenizer": "/data/home/stages/words/tokenizer",
            "model": {"config": CONFIG},
            "steps": steps,
            "batchSize": 8,
            "maxLength": 32,
            "logEverySteps": 1,
            "checkpoint": {"everySteps": checkpoint},
        }
        cluster = {
            "head": machine("4Gi", request="1Gi"),
            "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
            "volumes": [{"mountPath": "/data", "claim": "data"}],
            "drainTimeoutSeconds": 30,
        }
        manifest = pipeline(self.name, {"name": STAGE, "pretrain": member}, storage="/data/storage", cluster=cluster)
        del manifest["spec"]["cluster"]["image"]  # the one the operator is told to use
        self.pipelines.apply(manifest)

    def stage(self) -> Object:
        """The status of its stage."""
        return self.pipelines.stage(self.name, STAGE)

    def steps(self) -> list[int]:
        """Steps that were done, in the order in which they were, with those that were done again."""
        return [step for event in self._events() if (step := _trained(event))]

    def last_step(self) -> int:
        """The newest step."""
        return self.steps()[-1]

    def checkpoints(self) -> list[int]:
        """Steps that are saved, in their order."""
        found = (self._directory / "work/checkpoints").glob("checkpoint-*/manifest.json")
        return sorted(int(manifest.parent.name.rpartition("-")[2]) for manifest in found)

    def steps_around(self, words: str) -> tuple[list[int], list[int]]:
        """The steps done before and after the first note with these words."""
        events = self._events()
        at = next(i for i, event in enumerate(events) if event["event"] == "note" and words in event["message"])
        before, after = ([step for e in part if (step := _trained(e))] for part in (events[:at], events[at:]))
        return before, after

    def wait_note(self, words: str, seconds: float = 300) -> None:
        """Wait for a note with these words."""
        self.wait(lambda: any(words in note for note in self._notes()), f"the note '{words}'", seconds)

    def wait_steps(self, count: int, seconds: float = 300) -> None:
        """Wait for as many more steps."""
        before = len(self.steps())
        self.wait(lambda: len(self.steps()) >= before + count, f"{count} more steps", seconds)

    def wait_progress(self, seconds: float = 300) -> None:
        """Wait until the status tells of a step that is not done yet."""
        now = self.last_step()
        self.wait(
            lambda: self.stage().get("progress", {}).get("done", 0) > now,
            f"progress beyond step {now} in the status",
            seconds,
        )

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
        """Wait for a condition. If it does not come true, the error tells the status and all notes."""
        try:
            return self.pipelines.wait(condition, what, seconds)
        except Exception as error:
            status = json.dumps(self.pipelines.status(self.name), indent=1)
            raise AssertionError(f"no {what}; {status[:4000]}\n{self._notes()}") from error

    def _notes(self) -> list[str]:
        return [event["message"] for event in self._events() if event["event"] == "note"]

    def _events(self) -> list[Object]:
        return ProgressReader(self._directory / "progress.jsonl").new_events()


def _trained(event: Object) -> int:
    """The step whose loss an event tells, 0 if it tells none."""
    tells = event["event"] == "update" and event["task"] == "train" and "loss" in (event.get("metrics") or {})
    return int(event["done"]) if tells else 0
