"""The training engine over two real processes: every ZeRO stage takes the step of one process, and its checkpoints
load everywhere.

All scenarios run once, in three sets of processes (one rank, two ranks, one rank again with what two have written);
the tests look at what the ranks saw.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from camel_ray.ppo.engine import meeting_point

WORKER = Path(__file__).with_name("engine_worker.py")
SHARDED = [
    "0-fp32-none",
    "1-fp32-none",
    "2-fp32-none",
    "3-fp32-none",
    "2-fp32-optimizer",
    "3-fp32-all",
    "0-bf16-none",
    "1-bf16-none",
    "2-bf16-none",
    "3-bf16-none",
    "2-bf16-optimizer",
    "3-bf16-optimizer",
]
FULL = [name for name in SHARDED if "fp32" in name]
Seen = dict[str, Any]


def run(world: int, directory: Path, *scenarios: str) -> list[Seen]:
    store = meeting_point("127.0.0.1")
    endpoint = f"127.0.0.1:{store.port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), endpoint, str(directory), *scenarios],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    for rank, process in enumerate(ranks):
        output, _ = process.communicate(timeout=1500)
        assert process.returncode == 0, f"rank {rank}:\n{output[-4000:]}"
    return [torch.load(directory / f"world{world}-rank{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=320,
        intermediate_size=400,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=2,
        num_labels=1,
    )
    LlamaForCausalLM(config).save_pretrained(path / "policy")
    LlamaForSequenceClassification(config).save_pretrained(path / "reward")
    tokens = Tokenizer(WordLevel({f"t{i}": i for i in range(400)}, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="t2", eos_token="t1", unk_token="t0").save_pretrained(
        path / "policy"
    )
    return path


@pytest.fixture(scope="module")
def one(directory: Path) -> Seen:
    """One rank, nothing sharded: what all others have to agree with."""
    return run(1, directory, "0-fp32-none", "0-bf16-none", "models-3", "3-fp32-all", "2-bf16-optimizer")[0]


@pytest.fixture(scope="module")
def two(directory: Path, one: Seen) -> list[Seen]:
    """Two ranks; each scenario resumes from the checkpoints of all scenarios before."""
    return run(2, directory, *SHARDED, "models-3")


@pytest.fixture(scope="module")
def one_again(directory: Path, two: list[Seen]) -> Seen:
    """One rank that resumes from the checkpoints of two."""
    return run(1, directory, "0-fp32-none", "0-bf16-none")[0]


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance, msg=name)


def reference(one: Seen, scenario: str) -> tuple[Seen, float]:
    """What one rank saw, and how far two may be from it: rounding, which in bf16 is that of the largest weights."""
    bf16 = "bf16" in scenario
    return one["0-bf16-none" if bf16 else "0-fp32-none"], 2.0**-8 if bf16 else 1e-6


def test_the_stage_in_use_is_the_one_that_shards_something(one: Seen, two: list[Seen]) -> None:
    assert {name: seen["zero"] for name, seen in one.items() if name != "models"} == {
        "0-fp32-none": 0,
        "0-bf16-none": 0,
        "3-fp32-all": 3,
        "2-bf16-optimizer": 2,
    }
    stages = {name: two[0][name]["zero"] for name in SHARDED}
    assert stages == {name: 2 if name == "1-bf16-none" else int(name[0]) for name in SHARDED}


@pytest.mark.parametrize("scenario", SHARDED)
def test_every_stage_takes_the_steps_of_one_process(scenario: str, one: Seen, two: list[Seen]) -> None:
    (wanted, tolerance), got = reference(one, scenario), two[0][scenario]
    assert two[1][scenario]["norms"] == got["norms"]
    assert got["norms"] == pytest.approx(wanted["norms"], rel=1e-5)
    assert got["rates"] == wanted["rates"] == pytest.approx([0.0, 0.0025, 0.005, 0.0075])
    for got_step, wanted_step in zip(got["weights"], wanted["weights"], strict=True):
        assert_same(got_step, wanted_step, tolerance)
    assert_same(got["ema"], wanted["ema"], tolerance)
    assert two[1][scenario]["ema"] is None
    assert not torch.equal(got["weights"][0]["second.weight"], got["weights"][-1]["second.weight"])
    assert torch.equal(got["weights"][0]["frozen.weight"], got["weights"][-1]["frozen.weight"])


@pytest.mark.parametrize("scenario", ["3-fp32-all", "2-bf16-optimizer"])
def test_one_rank_may_keep_its_state_on_the_host(scenario: str, one: Seen) -> None:
    wanted, tolerance = reference(one, scenario)
    assert one[scenario]["norms"] == pytest.approx(wanted["norms"], rel=1e-5)
    assert_same(one[scenario]["weights"][-1], wanted["weights"][-1], tolerance)
    assert one[scenario]["same_as_unbroken"]
    assert not any(one[scenario]["changed"])


@pytest.mark.parametrize("scenario", SHARDED)
def test_a_broken_update_is_skipped_by_both_ranks_and_leaves_no_trace(scenario: str, two: list[Seen]) -> None:
    for rank in two:
        seen = rank[scenario]
        assert all(result.skipped for result in seen["broken"])
        reasons = [result.reason for result in seen["broken"]]
        assert reasons[:2] == ["the loss is nan", "the loss is inf"]
        assert reasons[2].endswith("is beyond guard.maxLoss 10000")
        assert reasons[3].endswith("is above guard.maxGradNorm 0.001")
        assert not any(seen["changed"])
        assert seen["rate_after_broken"] == seen["rates"][2]
        assert seen["same_as_unbroken"]
    assert [x.reason for x in two[0][scenario]["broken"]] == [x.reason for x in two[1][scenario]["broken"]]
    assert_same(two[0][scenario]["weights_after_broken"], two[0][scenario]["weights"][-1], 0.0)


@pytest.mark.parametrize("scenario", SHARDED)
def test_a_checkpoint_of_any_layout_resumes_in_any_other(scenario: str, one: Seen, two: list[Seen]) -> None:
    wanted, tolerance = reference(one, scenario)
    seen = two[0][scenario]
    own = f"zero{scenario}-world2"
    assert seen["resumed"].keys() >= {own, f"zero0-{scenario.split('-')[1]}-none-world1"}
    for written, (start, end, average) in seen["resumed"].items():
        exactly = written == own
        assert_same(start, seen["weights"][2] if exactly else wanted["weights"][2], 0.0 if exactly else tolerance)
        assert_same(end, seen["weights"][-1] if exactly else wanted["weights"][-1], 0.0 if exactly else tolerance)
        assert_same(average, seen["ema"] if exactly else wanted["ema"], 0.0 if exactly else tolerance)


@pytest.mark.parametrize("scenario", SHARDED)
def test_one_process_goes_on_from_the_checkpoint_of_two(scenario: str, one: Seen, one_again: Seen) -> None:
    wanted, tolerance = reference(one, scenario)
    resumed = one_again["0-bf16-none" if "bf16" in scenario else "0-fp32-none"]["resumed"]
    start, end, average = resumed[f"zero{scenario}-world2"]
    assert_same(start, wanted["weights"][2], tolerance)
    assert_same(end, wanted["weights"][-1], tolerance)
    assert_same(average, wanted["ema"], tolerance)


def test_both_ranks_write_a_checkpoint_and_none_of_it_twice(directory: Path, two: list[Seen]) -> None:
    files = {path.name for path in (directory / "zero3-fp32-none-world2").iterdir()}
    kinds = ("weights", "exp_avg", "exp_avg_sq", "ema")
    assert files == {
        "engine.json",
        "buffers-00000-000.safetensors",
        *(f"{kind}-{rank:05d}-000.safetensors" for kind in kinds for rank in range(2)),
    }


@pytest.mark.parametrize("scenario", FULL)
def test_the_average_is_that_of_the_weights_after_every_update(scenario: str, two: list[Seen]) -> None:
    first, *later = two[0][scenario]["weights"]
    average = dict(first)
    for weights in later:
        average = {name: 0.9 * value + 0.1 * weights[name] for name, value in average.items()}
    assert_same(two[0][scenario]["ema"], average, 1e-6)


@pytest.mark.parametrize("scenario", SHARDED)
def test_weights_for_a_sync_come_whole_to_the_first_rank_in_parts(scenario: str, two: list[Seen]) -> None:
    parts = two[0][scenario]["parts"]
    joined = {name: value for part in parts for name, value in part.items()}
    assert_same(joined, two[0][scenario]["weights"][-1], 0.0)
    assert all(sum(value.nbytes for value in part.values()) <= 700_000 for part in parts)
    assert two[1][scenario]["parts"] == [{}] * len(parts)


def test_models_are_loaded_in_shards_and_train_as_whole_ones_do(one: Seen, two: list[Seen]) -> None:
    for name, wanted in one["models"].items():
        got = two[0]["models"][name]
        assert got["norms"] == pytest.approx(wanted["norms"], rel=1e-5), name
        for got_A, wanted_A in zip(got["logprobs"], wanted["logprobs"], strict=True):
            torch.testing.assert_close(got_A, wanted_A, rtol=1e-5, atol=1e-5)
        for got_state, wanted_state in zip(got["states"], wanted["states"], strict=True):
            assert_same(got_state, wanted_state, 1e-4)
        assert wanted["held"] > 500_000
        # What a rank held before its engine was built: nothing but the head that a value model adds.
        assert got["held"] == (321 if name == "value" else 0)
    first, off = two[0]["models"]["adapters"]["logprobs"]
    torch.testing.assert_close(first, off, rtol=0, atol=1e-6)
    names = two[0]["models"]["adapters"]["states"][0].keys()
    assert names == two[0]["models"]["policy"]["states"][0].keys()
