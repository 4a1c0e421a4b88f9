"""A ppo stage small enough for exact comparisons: a two-layer Llama, and a handful of answers per round.

Fixtures for the folders that import them in their conftest.py. What imports ray is imported in the functions: this file
is read before `tests/conftest.py` has given Ray its secret, which Ray reads when it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.models.load import save_model
from camel_ray.progress import Progress, ProgressReader, curve
from camel_ray.ray_session import ensure_ray, shut_down_ray
from camel_ray.stages.contract import StageContext

SENTENCE = "what does the function do it returns a new list of all items in order and removes every value"
WORDS = SENTENCE.split()
VOWELS = """
def reward(prompts, answers, rows):
    return [4 * sum(c in "aeiou" for c in a) / max(len(a), 1) for a in answers]
"""


@dataclass(frozen=True)
class PpoStage:
    """Runs the stage in directories below `root`, on models and data in `assets`."""

    assets: Path

    def context(
        self, work: Path, *, workers: int = 1, cluster: dict[str, Any] | None = None, **fields: Any
    ) -> StageContext:
        ppo = {
            "prompts": {"source": str(self.assets / "prompts.jsonl"), "validation": 0.2},
            "reward": {"function": {"path": "vowels.py"}, "model": str(self.assets / "reward-model")},
            "model": str(self.assets / "policy"),
            "steps": 2,
            "promptsPerStep": 5,
            "evaluationPrompts": 4,
            "microBatchTokens": 120,
            "sampling": {"maxResponseLength": 10, "maxPromptLength": 40},
            "actorOptimizer": {"learningRate": 1e-3},
            "criticOptimizer": {"learningRate": 1e-3},
            **fields,
        }
        stage = {"name": "tune", "workers": workers, "ppo": ppo}
        spec = {"stages": [stage], **({} if cluster is None else {"cluster": cluster})}
        pipeline = CamelPipeline.model_validate({"metadata": {"name": "test"}, "spec": spec})
        work.mkdir(parents=True, exist_ok=True)
        return StageContext(
            pipeline=pipeline,
            stage=pipeline.spec.stages[0],
            inputs={},
            work=work,
            base_dir=self.assets,
            progress=Progress(work / "progress.jsonl"),
            attempt=1,
            seed=7,
            workers=workers,
            cores=2,
        )

    def metrics(self, work: Path, **fields: Any) -> dict[str, Any]:
        from camel_ray.stages.ppo import run

        return dict(run(self.context(work, **fields))[0].metrics)

    def weights(self, work: Path, **fields: Any) -> dict[str, torch.Tensor]:
        from camel_ray.stages.ppo import run

        output = run(self.context(work, **fields))[0]
        return load_file(output.path / "model.safetensors")

    @staticmethod
    def curve(work: Path, metric: str) -> list[float]:
        return [value for _, value in curve(ProgressReader(work / "progress.jsonl").new_events(), "ppo", metric)]

    @staticmethod
    def notes(work: Path) -> list[str]:
        events = ProgressReader(work / "progress.jsonl").new_events()
        return [event["message"] for event in events if event["event"] == "note"]


@pytest.fixture(scope="session")
def ppo(tmp_path_factory: pytest.TempPathFactory) -> PpoStage:
    """A policy, a reward model with the same tokenizer, prompts and a reward function."""
    root = tmp_path_factory.mktemp("assets")
    texts = [" ".join(WORDS[(i * 7 + k * 3) % len(WORDS)] for k in range(12)) for i in range(100)]
    tokenizer = train_tokenizer(texts, vocab_size=330)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,  # two heads of 32, the smallest that vLLM takes on a CPU
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(LlamaConfig(**shape)), tokenizer, root / "policy")
    reward = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1, reward_mean=0.1, reward_std=2.0))
    save_model(reward, tokenizer, root / "reward-model")
    rows = [
        {"prompt": "what does " + " ".join(WORDS[i % 20 : i % 20 + 2 + i % 3]) + f" {i}", "completion": "a list"}
        for i in range(60)
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (root / "vowels.py").write_text(VOWELS)
    return PpoStage(root)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ensure_ray(cores=2)
    yield
    shut_down_ray()


@pytest.fixture(scope="session")
def plain(ppo: PpoStage, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """One host, all roles, ZeRO-2: what everything else is compared with."""
    ensure_ray(cores=2)
    work = tmp_path_factory.mktemp("plain")
    return work, ppo.weights(work)


def _assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="session")
def assert_same() -> Any:
    return _assert_same
