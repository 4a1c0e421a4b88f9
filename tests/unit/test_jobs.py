"""The files of jobs/ hold what they promise: their figures, and the form that runs at most once and fails visibly."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.operator.children import children_for, cluster_problems
from camel_ray.operator.model import Attempt, Settings
from camel_ray.operator.quantity import amount, canonical
from camel_ray.operator.rayjob import rayjob_for
from jobs import JOBS, PIPELINES, RAYJOBS, SPEC_KEY, Object, config_map_and_rayjob, pipeline_of
from operator_specs import UID, against_restricted, templates

GPU = "nvidia.com/gpu"
_ROW = re.compile(r"^\| \[`(\S+?)`\]\(\S+\) \| .*? \| `(\w+)` \| `(\S+)` \| (\d+) \| (\d+) \| (.*?) \|$", re.MULTILINE)
"""A row of the table in jobs/README.md: file, executor, stage, pods, GPUs, GiB per GPU by group of processes."""


def attempt(pipeline: CamelPipeline, stage: Stage) -> Attempt:
    return Attempt(pipeline, "team-a", UID, stage, 1, Settings())


def largest_stage(pipeline: CamelPipeline) -> Stage:
    """The stage with most pods; of equal ones the last."""
    stages = pipeline.spec.stages
    return max(reversed(stages), key=lambda stage: machines(children_for(attempt(pipeline, stage))[-1]))


def machines(manifest: Object) -> tuple[int, int]:
    """GPUs and pods of a RayJob or Job when it is as large as it gets."""
    if manifest["kind"] == "Job":
        return _gpus(manifest["spec"]["template"]), 1
    groups = manifest["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
    gpus = sum(group["maxReplicas"] * _gpus(group["template"]) for group in groups)
    return gpus, 2 + sum(group["maxReplicas"] for group in groups)  # head and submitter


def _memory_limit(manifest: Object, group: str) -> float:
    """Bytes that a pod of the worker group may use; a Job has one pod, that of its stage's group."""
    spec = manifest["spec"]
    if manifest["kind"] == "Job":
        template = spec["template"]
    else:
        (template,) = [g["template"] for g in spec["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == group]
    return float(amount(template["spec"]["containers"][0]["resources"]["limits"]["memory"]) or 0)


def _gpus(template: Object) -> int:
    containers = template["spec"]["containers"]
    return sum(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) for c in containers)


def _promised() -> Iterator[Any]:
    text = (JOBS / "README.md").read_text()
    for file, executor, stage, pods, gpus, memory in _ROW.findall(text):
        expected = {} if memory == "-" else {n: float(g) for n, g in re.findall(r"([\w+]+) (\d+\.\d)", memory)}
        yield pytest.param(file, executor, stage, int(pods), int(gpus), expected, id=file)


PROMISED = list(_promised())


def test_the_table_has_every_file() -> None:
    files = sorted(str(path.relative_to(JOBS)) for path in (*RAYJOBS, *PIPELINES))
    assert sorted(row.values[0] for row in PROMISED) == files
    assert len(files) == 12


@pytest.mark.parametrize(("file", "executor", "stage", "pods", "gpus", "memory"), PROMISED)
def test_plan_and_render_give_the_figures_of_the_table(
    file: str, executor: str, stage: str, pods: int, gpus: int, memory: dict[str, float]
) -> None:
    pytest.importorskip("transformers")
    from camel_ray.models.memory import GIB
    from camel_ray.runtime.plan import plan

    pipeline = pipeline_of(JOBS / file)
    spec = next(s for s in pipeline.spec.stages if s.name == stage)
    manifest = children_for(attempt(pipeline, spec))[-1]
    if file.startswith("rayjobs/"):
        manifest = config_map_and_rayjob(JOBS / file)[1]
    assert (manifest["kind"], machines(manifest)) == (executor, (gpus, pods))
    planned = plan(pipeline, base_dir=JOBS)
    assert [stage.problems for stage in planned] == [()] * len(planned)
    (found,) = [one for one in planned if one.name == stage]
    on_gpus = [group for group in found.groups if group.on_gpu]
    assert {group.name: round(group.total / GIB, 1) for group in on_gpus} == (memory if gpus else {})
    assert all(group.device in (80 * GIB, 46068 * 2**20) for group in on_gpus)
    for process in on_gpus:
        (carrier,) = [g for g in pipeline.spec.cluster.groups if g.name in process.labels.values()]
        in_pod = min(process.hosts, carrier.gpus // process.devices)
        assert in_pod * process.host < _memory_limit(manifest, carrier.name)


@pytest.mark.parametrize("path", [*RAYJOBS, *PIPELINES], ids=lambda path: path.name)
def test_nothing_keeps_it_from_running_on_a_cluster(path: Path) -> None:
    pipeline = pipeline_of(path)
    assert cluster_problems(pipeline, Settings()) == []
    assert pipeline.metadata.name == path.stem
    for stage in pipeline.spec.stages:
        for child in children_for(attempt(pipeline, stage)):
            if child["kind"] in ("RayJob", "Job"):
                assert [against_restricted(t["spec"]) for _, t in templates(child)] == [[]] * len(
                    list(templates(child))
                )


@pytest.mark.parametrize("path", [*RAYJOBS, *PIPELINES], ids=lambda path: path.name)
def test_credentials_come_by_the_name_of_a_secret(path: Path) -> None:
    secret = re.compile(r"TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)
    for document in yaml.safe_load_all(path.read_text()):
        for entry in _variables(document):
            value = entry.get("value", "")
            assert not secret.search(entry["name"]) or not value or value.startswith("/"), entry


def _variables(value: Any) -> Iterator[Object]:
    if isinstance(value, dict):
        yield from value.get("env", ())
        for inner in value.values():
            yield from _variables(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _variables(inner)


@pytest.mark.parametrize("path", RAYJOBS, ids=lambda path: path.name)
def test_rayjob_has_the_form_that_the_operator_gives_it(path: Path) -> None:
    """Everything but the command, the machines' sizes and what only the operator has (labels, progress, one stage)."""
    written, pipeline = config_map_and_rayjob(path)[1], pipeline_of(path)
    built = rayjob_for(attempt(pipeline, largest_stage(pipeline)))
    mine, theirs = _form(written), _form(built)
    options = [job["spec"]["rayClusterSpec"].get("autoscalerOptions") for job in (written, built)]
    assert options[0] is options[1] or options[0]["volumeMounts"] == options[1]["volumeMounts"]
    groups = [(spec["rayClusterSpec"]["workerGroupSpecs"], spec) for spec in (mine, theirs)]
    names = [group["groupName"] for group in groups[1][0]]
    # a stage has the groups it uses; a RayJob for all stages has them all
    assert set(names) <= {group["groupName"] for group in groups[0][0]}
    groups[0][1]["rayClusterSpec"]["workerGroupSpecs"] = [g for g in groups[0][0] if g["groupName"] in names]
    assert mine == theirs


_OTHERS = {"entrypoint", "ttlSecondsAfterFinished", "preRunningDeadlineSeconds", "activeDeadlineSeconds"}
_OF_PODS = {"env", "envFrom", "resources", "image", "imagePullPolicy", "volumes", "volumeMounts", "tolerations"}
_ZERO = {"numOfHosts", "priority", "scaleStrategy", "metadata"}
"""What only the operator writes: values that KubeRay would write in its place."""


def _form(rayjob: Object) -> Object:
    spec: Object = {key: value for key, value in rayjob["spec"].items() if key not in _OTHERS}
    stripped: Object = _without(spec, _OF_PODS | _ZERO)
    return stripped


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", RAYJOBS, ids=lambda path: path.name)
def test_rayjob_and_its_pipeline_speak_of_the_same_machines(path: Path) -> None:
    config_map, rayjob = config_map_and_rayjob(path)
    pipeline = pipeline_of(path)
    spec, name = rayjob["spec"], path.stem
    assert (config_map["metadata"]["name"], rayjob["metadata"]["name"]) == (name, name)
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert list(groups) == [group.name for group in pipeline.spec.cluster.groups]
    for group in pipeline.spec.cluster.groups:
        pod = groups[group.name]["template"]["spec"]
        assert pod.get("nodeSelector", {}) == group.node_selector
        assert _gpus(groups[group.name]["template"]) == group.gpus
        assert groups[group.name]["labels"] == {"camel-ray.dev/group": group.name}
        assert group.name in {stage.group for stage in pipeline.spec.stages} | {
            role.group for stage in pipeline.spec.stages if stage.ppo for _, role in stage.ppo.roles
        }
    # storage is a claim that every pod which works mounts, and the pipeline lies where the command looks for it
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for pod in (head, *(group["template"]["spec"] for group in groups.values())):
        (volume,) = [v["name"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert mounts[volume] == pipeline.spec.storage
    (where,) = [m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "pipeline"]
    assert shlex.split(spec["entrypoint"])[-2:] == ["-f", f"{where}/{SPEC_KEY}"]


@pytest.mark.parametrize("path", RAYJOBS, ids=lambda path: path.name)
def test_the_command_is_safe_in_kuberays_shell_and_everything_passes_restricted(path: Path) -> None:
    rayjob = config_map_and_rayjob(path)[1]
    spec, command = rayjob["spec"], rayjob["spec"]["entrypoint"]
    assert shlex.join(shlex.split(command)) == command
    assert not {"runtimeEnvYAML", "metadata", "suspend"} & set(spec)
    assert 1 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    for where, template in templates(rayjob):
        pod = template["spec"]
        if where == "head" and "autoscalerOptions" in spec["rayClusterSpec"]:
            sidecar = {"name": "autoscaler", **spec["rayClusterSpec"]["autoscalerOptions"]}
            pod = {**pod, "containers": [*pod["containers"], sidecar]}
        assert against_restricted(pod) == []
        for kind in ("requests", "limits"):
            for quantity in pod["containers"][0]["resources"].get(kind, {}).values():
                assert canonical(quantity) == quantity  # another form would be stored as another text
        assert (amount(pod["containers"][0]["resources"]["limits"]["memory"]) or 0) >= 2**30
