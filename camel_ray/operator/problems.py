"""What a cluster needs of a pipeline that is valid: sentences about what could only fail there, later and less clearly.

Pure. The reconciler refuses a pipeline with these sentences before anything is created, and `camel-ray render` says
them without a cluster. They are no rules of the schema, because the same file may be fine on a laptop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from camel_ray.api.cluster import LABEL_VALUE, PodSpec, ResourcesSpec
from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.api.rules import CACHE_VARIABLE
from camel_ray.errors import SpecError
from camel_ray.operator.groups import UsedGroup, least_workers, used_groups
from camel_ray.operator.model import Settings
from camel_ray.operator.pods import DEFAULT_MEMORY, GPU
from camel_ray.operator.policy import policy_problems
from camel_ray.operator.quantity import amount
from camel_ray.operator.scratch import cache_directory, has_scratch, is_remote, shares_mirror
from camel_ray.ppo.placement import place

_MODELS = ("model", "reference", "critic", "rewardModel", "baseline", "tokenizer")
"""Fields with a stage, a hub id, or a path, which then begins like one."""
_FREE = ("config", "trainer", "columns")
"""Mappings whose keys are not ours."""
MAX_SPEC_BYTES = 1_000_000
"""What a ConfigMap holds, less some room for the rest of it."""


def cluster_problems(pipeline: CamelPipeline, settings: Settings | None) -> list[str]:
    """One sentence, with the field and the remedy, for each thing that cannot work on a cluster; empty if all can.

    `settings`: those of the operator, whose policy counts; None for somebody who does not know them.
    """
    found = [*_storage(pipeline), *_mirror(pipeline, settings), *_files(pipeline), *_size(pipeline)]
    found += _machines(pipeline)
    if settings is not None:
        found += policy_problems(pipeline.spec.cluster, settings.config)
        found += _autoscaler(pipeline, settings)
    for stage in pipeline.spec.stages:
        found += _placement(pipeline, stage)
    return list(dict.fromkeys(found))


def _storage(pipeline: CamelPipeline) -> Iterator[str]:
    storage = pipeline.spec.storage
    if is_remote(storage):
        return
    path = storage.removeprefix("file://")
    if not path.startswith("/"):
        yield (
            f"spec.storage: '{storage}' is a relative path, and pods share no directory with the one it starts at; "
            "set a URI such as s3://bucket/team, or an absolute path on a claim of spec.cluster.volumes"
        )
        return
    # /tmp is there and can be written, if only as long as a pod: enough for a try
    writable = [v.mount_path for v in pipeline.spec.cluster.volumes if (v.claim or v.memory) and not v.read_only]
    if not any(_inside(path, directory) for directory in ("/tmp", *writable)):
        yield (
            f"spec.storage: '{path}' lies on none of the pods' volumes, and their own disk cannot be written; mount a "
            "claim there (spec.cluster.volumes), or set a URI such as s3://bucket/team"
        )


def _mirror(pipeline: CamelPipeline, settings: Settings | None) -> Iterator[str]:
    """Object storage is worked on through a mirror on disk, which the head and the workers of a stage have to share."""
    if settings is None or not shares_mirror(pipeline) or has_scratch(pipeline, settings.config):
        return
    cache = cache_directory(pipeline, settings.config)
    shared = [v.mount_path for v in pipeline.spec.cluster.volumes if v.claim and not v.read_only]
    if cache is None or not any(_inside(cache, directory) for directory in shared):
        stage = next(stage for stage in pipeline.spec.stages if used_groups(pipeline, stage))
        yield (
            f"spec.storage: stage '{stage.name}' runs on several pods, which have to share the mirror of "
            f"{pipeline.spec.storage}: mount a ReadWriteMany claim (spec.cluster.volumes) and set {CACHE_VARIABLE} to "
            "a path on it (spec.cluster.env); or ask the administrator for stages.scratch of the operator's "
            "configuration, which makes one; or set cluster.executor to Job"
        )


def _files(pipeline: CamelPipeline) -> Iterator[str]:
    """Files that the pipeline's own directory would have. Whoever brings an image may have put them into that."""
    if pipeline.spec.cluster.image:
        return
    spec = pipeline.spec.written()
    for field, path in _relative_paths({"model": spec.get("model"), "stages": spec["stages"]}, "spec", ""):
        yield (
            f"{field}: '{path}' is a relative path, and a pod has no such file; write a URI, an absolute path on a "
            "volume (spec.cluster.volumes), or name an image that has it (spec.cluster.image)"
        )


def _relative_paths(value: object, field: str, holder: str) -> Iterator[tuple[str, str]]:
    """Field and text of each relative path. `holder`: the key of the mapping or list that `value` stands in."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _FREE:
                yield from _relative_paths(inner, f"{field}.{key}", holder if key == "source" else key)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _relative_paths(item, f"{field}[{number}]", holder)
    elif isinstance(value, str) and "://" not in value and not value.startswith("/"):
        is_file = field.rstrip("0123456789[]").endswith((".source", ".validationSource", ".path"))
        if value.startswith((".", "~")) if holder in _MODELS else is_file:
            yield field, value


def _size(pipeline: CamelPipeline) -> Iterator[str]:
    size = len(json.dumps(pipeline.written(), ensure_ascii=False).encode())
    if size > MAX_SPEC_BYTES:
        yield (
            f"spec: {size} bytes are more than a ConfigMap holds ({MAX_SPEC_BYTES}); move long lists and texts into "
            "files in storage"
        )


def _machines(pipeline: CamelPipeline) -> Iterator[str]:
    """What is wrong with the head and the groups by themselves."""
    cluster = pipeline.spec.cluster
    yield from _machine("spec.cluster.head", cluster.head)
    for number, group in enumerate(cluster.groups):
        where = f"spec.cluster.groups[{number}]"
        yield from _machine(where, group)
        gpus = group.resources.limits.get(GPU)
        if group.gpus and gpus is not None and amount(gpus) != group.gpus:
            yield f"{where}.gpus: {group.gpus} GPUs, but resources.limits say {GPU}: {gpus}; leave one out"
        if group.gpus and "memory" not in {**group.resources.requests, **group.resources.limits}:
            yield (
                f"{where}.resources: {group.gpus} GPUs, but no memory is named, which makes it {DEFAULT_MEMORY}; set "
                "resources.limits.memory (`camel-ray plan` says how much a process takes)"
            )
        ranged = group.min_replicas is not None or group.max_replicas is not None
        if ranged and cluster.executor == "RayJob" and not cluster.autoscaling.enabled:
            yield (
                f"{where}: minReplicas and maxReplicas are for autoscaled groups; set spec.cluster.autoscaling.enabled "
                "to true, or replicas here"
            )


def _machine(where: str, machine: PodSpec) -> Iterator[str]:
    resources = machine.resources
    for field, amounts in (("requests", resources.requests), ("limits", resources.limits)):
        for name, text in amounts.items():
            value = amount(text)
            if value is None or value < 0:
                yield f"{where}.resources.{field}: {name}: '{text}' is no quantity; write it like 4, 500m or 16Gi"
    yield from _over_limit(where, resources)
    for key, label in machine.node_selector.items():
        if not re.fullmatch(LABEL_VALUE, label):
            yield (
                f"{where}.nodeSelector.{key}: no node has the label '{label}': use at most 63 letters, digits, '-', "
                "'_' and '.', with a letter or digit at both ends"
            )
    for number, toleration in enumerate(machine.tolerations):
        at = f"{where}.tolerations[{number}]"
        if toleration.operator == "Exists" and toleration.value is not None:
            yield f"{at}: operator Exists takes any value; delete `value`, or write operator: Equal"
        if toleration.key is None and toleration.operator != "Exists":
            yield f"{at}: without a `key` the operator must be Exists; name the taint's key"
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            yield f"{at}: tolerationSeconds is for effect: NoExecute; write that, or delete it"


def _over_limit(where: str, resources: ResourcesSpec) -> Iterator[str]:
    for name, text in resources.requests.items():
        limit = resources.limits.get(name)
        asked, most = amount(text), None if limit is None else amount(limit)
        if "/" in name and asked != most:
            yield f"{where}.resources: the request {name} of a device has to be its limit too; leave the request out"
        elif asked is not None and most is not None and asked > most:
            yield f"{where}.resources: the request {name}: {text} is above the limit {limit}; raise the limit"
    for name, text in resources.limits.items():
        if "/" in name and (most := amount(text)) is not None and most.denominator != 1:
            yield f"{where}.resources: the limit {name}: {text} of a device has to be a whole number"


def _autoscaler(pipeline: CamelPipeline, settings: Settings) -> Iterator[str]:
    """The autoscaler runs from the administrator's image, because it may start pods; so both need the same Ray."""
    cluster, ours = pipeline.spec.cluster, settings.config.stages.ray_version
    autoscaled = cluster.executor == "RayJob" and cluster.autoscaling.enabled and bool(cluster.groups)
    if autoscaled and cluster.ray_version not in (None, ours):
        yield (
            f"spec.cluster.rayVersion: {cluster.ray_version} is not the Ray {ours} of the operator's own image "
            "(stages.image), in which Ray's autoscaler runs; use an image with that version, or set replicas instead "
            "of autoscaling"
        )


def _placement(pipeline: CamelPipeline, stage: Stage) -> Iterator[str]:
    """What is wrong with where a stage is to run."""
    cluster = pipeline.spec.cluster
    try:
        wanted = _devices(pipeline, stage)
    except SpecError as error:
        yield from error.problems
        return
    if cluster.executor == "Job":
        yield from _one_pod(pipeline, stage, wanted)
        return
    used = used_groups(pipeline, stage)
    for group in used:
        if group.most == 0 and (group.spec.name in wanted or not any(other.most for other in used)):
            yield f"stage '{stage.name}': worker group '{group.spec.name}' has no pods; raise its replicas"
    for name, devices in wanted.items():
        there = [group for group in used if name in (None, group.spec.name)]
        gpus = sum(group.most * group.spec.gpus for group in there)
        # how many processes a pod without GPUs takes is for Ray to say; so it is beside pods that have none
        if there and all(group.spec.gpus for group in there) and 0 < gpus < devices:
            yield (
                f"stage '{stage.name}': wants {devices} GPUs, but {_called(there)} {gpus}; lower `workers`, or raise "
                "the replicas"
            )


def _one_pod(pipeline: CamelPipeline, stage: Stage, wanted: Mapping[str | None, int]) -> Iterator[str]:
    """What does not fit into the one pod of `executor: Job`."""
    named = sorted(name for name in wanted if name is not None)
    if len(named) > 1 or (named and named[0] != stage.group):
        yield (
            f"stage '{stage.name}': its roles run on the worker groups {' and '.join(named)}, but executor: Job gives "
            "a stage one pod, of its own group; use executor: RayJob, or leave out the groups of the roles"
        )
        return
    for group in pipeline.spec.cluster.groups:
        devices = sum(wanted.values())
        if group.name == stage.group and group.gpus and devices > group.gpus:
            yield (
                f"stage '{stage.name}': wants {devices} GPUs, but executor: Job gives a stage one pod, and one of "
                f"group '{group.name}' has {group.gpus}; use executor: RayJob, or lower `workers`"
            )


def _devices(pipeline: CamelPipeline, stage: Stage) -> dict[str | None, int]:
    """Devices the stage asks of each worker group; None: of any. Raises SpecError for a placement that cannot be."""
    if stage.ppo is None:
        return {stage.group: least_workers(stage)}
    wanted: dict[str | None, int] = {}
    where = f"stage '{stage.name}', ppo"
    placement = place(
        stage.ppo, workers=least_workers(stage), where=where, group=stage.group, cluster=pipeline.spec.cluster
    )
    for plan in placement.groups:
        wanted[plan.worker_group] = wanted.get(plan.worker_group, 0) + plan.size * plan.devices
    return wanted


def _called(groups: list[UsedGroup]) -> str:
    names = " and ".join(f"'{group.spec.name}'" for group in groups)
    return f"worker group {names} has" if len(groups) == 1 else f"worker groups {names} have"


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")
