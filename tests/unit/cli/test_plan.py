"""`camel-ray plan`: devices and memory of a file's stages, with no cluster, no network and no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.load import load_pipeline
from camel_ray.cli import main as cli
from camel_ray.errors import SpecError

pytest.importorskip("transformers")

from camel_ray.models.memory import GIB
from camel_ray.runtime.plan import device_memory, plan, quantity

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "examples/01-quickstart.yaml"
PIPELINES = ROOT / "jobs/pipelines"


def camel_ray(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def changed(tmp_path: Path, example: str, edit: Any) -> Path:
    """An example with a change, as a file."""
    document = yaml.safe_load((PIPELINES / example).read_text())
    edit(document["spec"])
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("name", [f"ppo-{n}.yaml" for n in ("8b-one-node", "70b-split", "8b-mixed")])
def test_the_large_examples_fit_the_devices_they_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("plan", "-f", str(PIPELINES / name)) == 0
    output = capsys.readouterr().out
    assert "fits 80" in output
    assert "does not fit" not in output


def test_table_names_groups_hosts_roles_and_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("plan", "-f", str(PIPELINES / "ppo-70b-split.yaml")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tuned (ppo): meta-llama/Llama-3.1-70B-Instruct 70.0B")
    assert lines[1].split() == [
        *("GROUP", "HOSTS", "ROLE", "WEIGHTS", "GRADS", "OPTIM", "COMM", "ACTIV", "CACHE", "TOTAL", "HOST", "RAM"),
        "VERDICT",
    ]
    assert lines[2].split()[:6] == ["train", "32", "x", "GPU", "actor", "4.1"]
    assert any(line.split()[:4] == ["rollout", "4", "x", "4GPU"] for line in lines)
    assert any("assumed for meta-llama/Llama-3.1-70B-Instruct: size from the name (70B)" in line for line in lines)


def test_json_has_the_figures_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("plan", "-f", str(PIPELINES / "ppo-8b-one-node.yaml"), "--stage", "tuned", "--json") == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    (group,) = stage["groups"]
    assert (stage["name"], stage["fits"], group["hosts"], group["deviceBytes"]) == ("tuned", True, 8, 80 * GIB)
    kinds = [sum(v for k, v in parts.items() if k not in ("activations", "cache")) for parts in group["roles"].values()]
    working = [parts["activations"] + parts["cache"] for parts in group["roles"].values()]
    assert group["totalBytes"] == group["contextBytes"] + sum(kinds) + max(working)


def test_what_does_not_fit_ends_with_11_and_a_change_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path, "ppo-8b-one-node.yaml", lambda spec: spec["stages"][2]["ppo"].pop("offload"))
    assert camel_ray("plan", "-f", str(path), "--stage", "tuned") == 11
    captured = capsys.readouterr()
    assert "does not fit 80" in captured.out
    assert captured.err.startswith("stage 'tuned': actor+critic+reference+reward+rollout needs 9")
    assert "GiB on a device of 80 GiB; set " in captured.err

    def follow(spec: Any) -> None:
        ppo = spec["stages"][2]["ppo"]
        ppo.pop("offload")
        ppo["microBatchTokens"] = 2048
        ppo["roles"] = {"actor": {"offload": "optimizer"}}

    assert "microBatchTokens: 2048, roles.actor.offload: optimizer" in captured.err
    assert camel_ray("plan", "-f", str(changed(tmp_path, "ppo-8b-one-node.yaml", follow)), "--stage", "tuned") == 0


def test_device_memory_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    example = str(PIPELINES / "ppo-8b-one-node.yaml")
    assert camel_ray("plan", "-f", example, "--stage", "tuned", "--device-memory", "40Gi") == 11
    assert "on a device of 40 GiB" in capsys.readouterr().err
    assert camel_ray("plan", "-f", example, "--device-memory", "much") == 2
    assert "--device-memory: 'much' is no amount of memory" in capsys.readouterr().err


def test_a_worker_group_with_too_few_devices_or_too_little_host_memory_is_named(tmp_path: Path) -> None:
    def edit(spec: Any) -> None:
        spec["cluster"]["groups"][0] |= {"gpus": 4, "resources": {"limits": {"memory": "64Gi"}}}

    pipeline = load_pipeline(str(changed(tmp_path, "ppo-8b-one-node.yaml", edit)))
    (stage,) = plan(pipeline, base_dir=tmp_path, stage="tuned")
    few, little = stage.problems
    assert "want 8 GPUs of worker group 'gpu', which has 4 (1 pods with 4); raise its replicas" in few
    assert "4 processes of actor+critic+reference+reward+rollout in a pod of worker group 'gpu' need 17" in little


def test_the_model_of_a_stage_is_followed_through_earlier_stages_to_its_configuration(tmp_path: Path) -> None:
    pipeline = load_pipeline(str(QUICKSTART))
    stages = {stage.name: stage for stage in plan(pipeline, base_dir=tmp_path)}
    assert list(stages) == ["base", "chat", "judge", "tuned"]
    # base is built from scratch for a tokenizer of 2048 entries; all others start from it, through one another
    assert stages["base"].models == stages["tuned"].models == {"from scratch": 1_115_264}
    tuned = stages["tuned"].groups[0]
    assert (tuned.on_gpu, tuned.device, tuned.total < GIB) == (False, None, True)
    assert not stages["tuned"].assumed


def test_a_stage_that_is_not_there_or_trains_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    example = str(QUICKSTART)
    assert camel_ray("plan", "-f", example, "--stage", "tunde") == 11
    assert "there is no stage 'tunde'" in capsys.readouterr().err
    with pytest.raises(SpecError, match="text trains nothing"):
        plan(load_pipeline(example), base_dir=QUICKSTART.parent, stage="text")


def test_device_memory_comes_from_the_labels_of_the_nodes() -> None:
    def group(**selector: str) -> int | None:
        fields = {"name": "g", "replicas": 1, "gpus": 1, "nodeSelector": selector}
        return device_memory(ClusterSpec.model_validate({"groups": [fields]}), "g")

    assert group() == 80 * GIB
    assert group(**{"nvidia.com/gpu.memory": "81559"}) == 81559 * 2**20
    assert group(**{"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}) == 40 * GIB
    assert device_memory(ClusterSpec(), "g") is None


@pytest.mark.parametrize(
    ("text", "count"), [("80Gi", 80 * GIB), ("1500M", 1_500_000_000), ("64k", 64_000), ("1e9", 10**9), ("0.5Ti", 2**39)]
)
def test_quantities_are_those_of_kubernetes(text: str, count: int) -> None:
    assert quantity(text) == count
