"""Tokens per second of the `sft` stage against the bare TRL trainer, on the same work in one run, one worker.

    python benchmarks/sft_overhead.py [--quick]

Both sides train the same model on the same rows, with the same batch and micro-batch, the same DeepSpeed
configuration and the same number of threads, in this process. They take turns for several rounds. Steady state is the
time from the end of step WARM to the end of the last step; what comes before is start-up, listed by part. The last
line printed is one JSON object: `overhead` (0.05 = the stage is 5 % slower) and `startup_s` (one stage in a fresh
process, imports included).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from camel_ray.runtime.process import available_cores, prepare_process

STARTED = time.perf_counter()
CORES = available_cores()
prepare_process(cores=CORES)

import torch  # noqa: E402

TORCH = time.perf_counter()
from transformers import PrinterCallback, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

TRL = time.perf_counter()
import datasets  # noqa: E402
import deepspeed  # noqa: E402, F401
import ray.train.torch  # noqa: E402, F401

from camel_ray.api.model import ModelSpec  # noqa: E402
from camel_ray.api.pipeline import CamelPipeline  # noqa: E402
from camel_ray.data.dataset import DataReport, PreparedDataset  # noqa: E402
from camel_ray.data.tokenizer import train_tokenizer  # noqa: E402
from camel_ray.models.load import load_causal_lm, load_tokenizer  # noqa: E402
from camel_ray.progress import Progress  # noqa: E402
from camel_ray.stages import sft  # noqa: E402
from camel_ray.stages.contract import Artifact, ArtifactKind, StageContext  # noqa: E402
from camel_ray.training import loop  # noqa: E402
from camel_ray.training.process import Rank, training_process  # noqa: E402
from camel_ray.training.tokens import load_tokens  # noqa: E402
from camel_ray.training.zero import deepspeed_config  # noqa: E402

PACKAGE = time.perf_counter()
BATCH, LENGTH, WARM = 16, 128, 5
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip


class Steps(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more step is done."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Seconds of the steps after the first WARM ones."""
        return self.ends[-1] - self.ends[WARM - 1]


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    quick = parser.parse_args().quick
    rounds, steps = (3, 25) if quick else (7, 65)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        inputs = make_inputs(root)
        ours: list[float] = []
        bare: list[float] = []
        first: dict[str, float] = {}
        for number in range(rounds):
            # Who goes first changes, so that a machine that slows down is fair to both.
            for side in ("stage", "bare") if number % 2 == 0 else ("bare", "stage"):
                if side == "stage":
                    began = time.perf_counter()
                    watch, metrics = run_stage(root / f"work-{number}", inputs, steps)
                    ours.append(watch.seconds())
                    first = first or startup_parts(began, watch, metrics)
                else:
                    bare.append(run_bare(root / "work-0", inputs, steps).seconds())
            print(
                f"round {number + 1}: stage {ours[-1]:.2f} s, bare TRL {bare[-1]:.2f} s for {steps - WARM} steps",
                flush=True,
            )
    tokens = (steps - WARM) * BATCH * LENGTH
    overhead = statistics.median(o / b for o, b in zip(ours, bare, strict=True)) - 1
    for name, seconds in (("stage", ours), ("bare TRL", bare)):
        print(f"{name}: {tokens / statistics.median(seconds):.0f} tokens/s")
    for part, seconds in first.items():
        print(f"start-up, {part}: {seconds:.2f} s")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "deepspeed", "ray"))
    print(f"Python {platform.python_version()}, {libraries}; {CORES} cores, {os.uname().machine}")
    print(json.dumps({"overhead": round(overhead, 4), "startup_s": round(sum(first.values()), 2)}))


def make_inputs(root: Path) -> dict[str, Artifact]:
    """Rows of exactly LENGTH tokens (so that both sides do the same work whatever their batches) and a tokenizer."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokenizer = train_tokenizer([letters], vocab_size=300, min_frequency=10**6)
    around = len(
        tokenizer.apply_chat_template([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}])[
            "input_ids"
        ]
    )
    half = (LENGTH - around + 1) // 2
    rows = [
        {
            "prompt": [{"role": "user", "content": "".join(rng.choices(letters, k=half))}],
            "completion": "".join(rng.choices(letters, k=LENGTH - half)),
            "row": "{}",
        }
        for _ in range(1100)
    ]
    sides = [datasets.Dataset.from_list(side) for side in (rows[:1084], rows[1084:])]
    PreparedDataset("prompt-completion", *sides, DataReport("prompt-completion", [], 1100, 1084, 16)).save(
        root / "rows"
    )
    tokenizer.save_pretrained(root / "tokenizer")
    return {
        "rows": Artifact(ArtifactKind.DATASET, "rows", root / "rows", "rows"),
        "tokenizer": Artifact(ArtifactKind.TOKENIZER, "tokenizer", root / "tokenizer", "tokenizer"),
    }


def run_stage(work: Path, inputs: dict[str, Artifact], steps: int) -> tuple[Steps, dict[str, Any]]:
    """The stage as `camel-ray run` runs it."""
    member = {
        "data": "rows", "model": {"config": CONFIG}, "maxLength": LENGTH, "batchSize": BATCH, "microBatchSize": BATCH,
        "steps": steps, "learningRate": 1e-3, "zero": 2, "checkpoint": {"everySteps": 1000},
    }  # fmt: skip
    stages = [
        {"name": "rows", "data": {"source": "unused.jsonl"}},
        {"name": "tokenizer", "tokenizer": {"data": "rows"}},
        {"name": "chat", "needs": ["rows", "tokenizer"], "sft": member},
    ]
    pipeline = CamelPipeline.model_validate({"metadata": {"name": "benchmark"}, "spec": {"stages": stages}})
    work.mkdir()
    progress = Progress(work / "progress.jsonl")
    with watched() as watch:
        (output,) = sft.run(
            StageContext(pipeline, pipeline.stage("chat"), inputs, work, work, progress, 1, 0, 1, CORES)
        )
    return watch, dict(output.metrics)


@contextmanager
def watched() -> Iterator[Steps]:
    """Adds the step clock to the stage's own callbacks."""
    watch, add = Steps(), loop._add_callbacks

    def with_watch(trainer: Any, *rest: Any) -> None:
        add(trainer, *rest)
        trainer.add_callback(watch)

    loop._add_callbacks = with_watch
    try:
        yield watch
    finally:
        loop._add_callbacks = add


def run_bare(work: Path, inputs: dict[str, Artifact], steps: int) -> Steps:
    """TRL's SFTTrainer as one would write it by hand, on the rows the stage has tokenised."""
    rows = load_tokens(next(work.glob("tokens/*"))).train.select_columns(["input_ids", "labels"])
    with training_process(Rank(0, 0, 1), threads=CORES, environment={}):
        tokenizer = load_tokenizer(str(inputs["tokenizer"].path))
        model = load_causal_lm(ModelSpec(config=CONFIG), tokenizer, seed=0)
        watch = Steps()
        with tempfile.TemporaryDirectory() as directory:
            arguments = SFTConfig(
                output_dir=directory,
                deepspeed=deepspeed_config(
                    stage=2,
                    offload="none",
                    precision="fp32",
                    batch_size=BATCH,
                    micro_batch_size=BATCH,
                    workers=1,
                    max_grad_norm=1.0,
                ),
                accelerator_config={"use_configured_state": True},
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                per_device_train_batch_size=BATCH,
                max_steps=steps,
                learning_rate=1e-3,
                adam_beta2=0.95,
                optim="adamw_torch",
                lr_scheduler_type="cosine",
                gradient_checkpointing=False,
                logging_steps=5,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = SFTTrainer(
                model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[watch]
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    return watch


def startup_parts(began: float, watch: Steps, metrics: dict[str, Any]) -> dict[str, float]:
    """What the first stage of a process spends before it trains at full speed."""
    seconds = metrics["seconds"]
    step = watch.seconds() / (len(watch.ends) - WARM)
    before = watch.ends[0] - began - step
    return {
        "import torch": TORCH - STARTED,
        "import transformers and TRL": TRL - TORCH,
        "import Ray Train, DeepSpeed and the package": PACKAGE - TRL,
        "build model, data and trainer": seconds["build"],
        "tokenise, wrap the model, validate it untrained": before - seconds["build"],
        "slow first steps": max(0.0, watch.ends[WARM - 1] - watch.ends[0] - (WARM - 1) * step),
    }


if __name__ == "__main__":
    main()
