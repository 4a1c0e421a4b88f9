"""What a pipeline needs of devices and memory, from the file alone: no cluster, no network, no weights.

`camel-ray plan` prints it. The figures are those of `ppo/memory.py` and `models/memory.py`; here they are brought
together with what the worker groups of the file offer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camel_ray.api.cluster import ClusterSpec, GroupSpec
from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.api.stages.dpo import DpoStageSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.api.stages.reward import RewardStageSpec
from camel_ray.api.training import TrainingSpec
from camel_ray.errors import SpecError
from camel_ray.models.memory import (
    GIB,
    TrainingState,
    backward_bytes,
    element_bytes,
    logits_bytes,
    zero_state,
)
from camel_ray.models.size import ModelSize
from camel_ray.ppo.advice import advice
from camel_ray.ppo.memory import CONTEXT_BYTES, GroupMemory, RoleMemory, estimate
from camel_ray.ppo.placement import GroupPlan, Placement, place
from camel_ray.runtime.model_chain import ModelChain

DEFAULT_DEVICE_BYTES = 80 * GIB
"""Of a GPU about which the file says nothing."""
_TRAINER_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default, which the trainers of supervised stages keep."""
KINDS = ("weights", "gradients", "optimizer", "average", "communication", "activations", "cache")


@dataclass(frozen=True)
class PlannedGroup:
    """Equal processes of a stage, and what each of them needs."""

    name: str
    hosts: int
    devices: int
    """Of one host."""
    labels: Mapping[str, str]
    on_gpu: bool
    roles: Mapping[str, Mapping[str, int]]
    """By role and kind (see `KINDS`): bytes on one device."""
    context: int
    total: int
    """Most bytes in use on one device."""
    device: int | None
    host: int
    """Host memory of one process: offloaded state, and a model while it is read."""
    change: str
    """What to change; empty where it fits."""


@dataclass(frozen=True)
class PlannedStage:
    """What one stage needs."""

    name: str
    kind: str
    groups: tuple[PlannedGroup, ...]
    models: Mapping[str, int]
    """Parameters by where the model comes from."""
    assumed: tuple[str, ...]
    """What the figures rest on where a configuration could not be read."""
    problems: tuple[str, ...]
    """Sentences about what does not fit; empty if all does."""

    def wire(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "fits": not self.problems,
            "models": dict(self.models),
            "assumed": list(self.assumed),
            "problems": list(self.problems),
            "groups": [
                {
                    "name": group.name,
                    "hosts": group.hosts,
                    "devicesPerHost": group.devices,
                    "labels": dict(group.labels),
                    "gpu": group.on_gpu,
                    "roles": {role: dict(kinds) for role, kinds in group.roles.items()},
                    "contextBytes": group.context,
                    "totalBytes": group.total,
                    "deviceBytes": group.device,
                    "hostBytes": group.host,
                    "change": group.change,
                }
                for group in self.groups
            ],
        }


def plan(
    pipeline: CamelPipeline, *, base_dir: Path, stage: str | None = None, device_bytes: int | None = None
) -> list[PlannedStage]:
    """What the stages that train need (`stage`: only this one). `device_bytes`: memory of a device, where it is other
    than the file says. Raises SpecError for a placement that cannot be, ModelError for a model of unknown size.
    """
    chosen = [s for s in pipeline.spec.stages if stage in (None, s.name)]
    if stage is not None and not chosen:
        raise SpecError(f"there is no stage '{stage}' in {pipeline.metadata.name}; name one of the file")
    chain = ModelChain(pipeline, base_dir)
    planned = []
    for found in chosen:
        if found.ppo is not None:
            planned.append(_ppo(pipeline, found, found.ppo, chain, device_bytes))
        elif isinstance(found.spec, TrainingSpec):
            planned.append(_training(pipeline, found, found.spec, chain, device_bytes))
    if not planned:
        raise SpecError(f"{stage or pipeline.metadata.name} trains nothing, so there is no memory to plan")
    return planned


def device_memory(cluster: ClusterSpec, group: str | None) -> int | None:
    """Bytes of a device of a worker group: from the node selector where that says it (the labels of NVIDIA's GPU
    feature discovery), else 80 GiB for a GPU. None for a CPU.
    """
    found = next((g for g in cluster.groups if g.name == group), None)
    if found is None or not found.gpus:
        return None
    mebibytes = found.node_selector.get("nvidia.com/gpu.memory", "")
    if mebibytes.isdigit():
        return int(mebibytes) * 2**20
    named = re.search(r"(\d+)GB", found.node_selector.get("nvidia.com/gpu.product", ""))
    return int(named[1]) * GIB if named else DEFAULT_DEVICE_BYTES


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity such as `80Gi`, `16000M` or `1e9`. Raises ValueError if it is none."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([KMGTP]i?|k|)", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory, such as 80Gi")
    unit = found[2].upper()
    power = " KMGTP".index(unit[0]) if unit else 0
    return int(float(found[1]) * (1024 if unit.endswith("I") else 1000) ** power)


def _workers(stage: Stage) -> int:
    return stage.workers if isinstance(stage.workers, int) else stage.workers.min


def _ppo(
    pipeline: CamelPipeline, stage: Stage, spec: PpoStageSpec, chain: ModelChain, device_bytes: int | None
) -> PlannedStage:
    cluster = pipeline.spec.cluster
    sizes = _sizes(stage, spec, chain)

    def placement_of(changed: PpoStageSpec) -> Placement:
        return place(
            changed,
            workers=_workers(stage),
            where=f"stage '{stage.name}', ppo",
            group=stage.group,
            cluster=cluster,
        )

    def memory_of(changed: PpoStageSpec) -> tuple[GroupMemory, ...]:
        placement = placement_of(changed)
        devices = {p: device_bytes or device_memory(cluster, p.worker_group) for p in placement.groups}
        return estimate(changed, placement, sizes, devices=devices)

    groups = []
    for number, memory in enumerate(memory_of(spec)):
        change = advice(spec, memory, lambda changed, number=number: memory_of(changed)[number])  # type: ignore[misc]
        roles: dict[str, dict[str, int]] = {role.role: _kinds(role) for role in memory.roles}
        groups.append(_planned(memory.plan, roles, memory, change))
    placement = placement_of(spec)
    used = {role: sizes[role] for plan in placement.groups for role in plan.roles}
    return _stage(cluster, stage, groups, used)


def _sizes(stage: Stage, spec: PpoStageSpec, chain: ModelChain) -> dict[RoleName, ModelSize]:
    policy = chain.size(stage, spec.model)
    reward = None if spec.reward.model is None else chain.size(stage, spec.reward.model)
    critic = chain.size(stage, spec.critic) if spec.critic is not None else reward or policy
    return {"actor": policy, "critic": critic, "reference": policy, "reward": reward or policy, "rollout": policy}


def _kinds(role: RoleMemory) -> dict[str, int]:
    return {kind: getattr(role, kind) for kind in KINDS}


def _planned(plan: GroupPlan, roles: Mapping[str, Mapping[str, int]], memory: GroupMemory, change: str) -> PlannedGroup:
    return PlannedGroup(
        name=plan.name,
        hosts=plan.size,
        devices=plan.devices,
        labels=plan.labels,
        on_gpu=bool(plan.on_gpu),
        roles=roles,
        context=memory.context,
        total=memory.total,
        device=memory.device,
        host=memory.host,
        change=change,
    )


def _training(
    pipeline: CamelPipeline, stage: Stage, spec: TrainingSpec, chain: ModelChain, device_bytes: int | None
) -> PlannedStage:
    cluster = pipeline.spec.cluster
    size = chain.size(stage, spec.model)
    carrier = next((g for g in cluster.groups if g.name == stage.group), None)
    on_gpu = carrier is not None and carrier.gpus > 0
    device = device_bytes or device_memory(cluster, stage.group)
    ranks = _workers(stage)

    def kinds(changed: TrainingSpec) -> dict[str, dict[str, int]]:
        return _training_kinds(changed, size, ranks=ranks, on_gpu=on_gpu)

    def total(changed: TrainingSpec) -> int:
        return (CONTEXT_BYTES if on_gpu else 0) + sum(sum(parts.values()) for parts in kinds(changed).values())

    change = ""
    if device is not None and total(spec) > device:
        changes: tuple[dict[str, Any], ...] = (
            {"gradient_checkpointing": True},
            {"micro_batch_size": 1},
            {"zero": 3},
            {"zero": 3, "offload": "optimizer"},
            {"zero": 3, "offload": "optimizer", "gradient_checkpointing": True, "micro_batch_size": 1},
            {"zero": 3, "offload": "all", "gradient_checkpointing": True, "micro_batch_size": 1},
        )
        names = {"gradient_checkpointing": "gradientCheckpointing: true", "micro_batch_size": "microBatchSize: 1"}
        enough = next((c for c in changes if total(spec.model_copy(update=c)) <= device), None)
        change = "no setting is enough: use more workers, a smaller model, or larger devices"
        if enough is not None:
            change = "set " + ", ".join(names.get(key, f"{key}: {value}") for key, value in enough.items())
    group = PlannedGroup(
        name=stage.name,
        hosts=ranks,
        devices=1,
        labels={} if stage.group is None else {"group": stage.group},
        on_gpu=on_gpu,
        roles=kinds(spec),
        context=CONTEXT_BYTES if on_gpu else 0,
        total=total(spec),
        device=device,
        host=0,
        change=change,
    )
    return _stage(cluster, stage, [group], {"model": size})


def _training_kinds(spec: TrainingSpec, size: ModelSize, *, ranks: int, on_gpu: bool) -> dict[str, dict[str, int]]:
    bf16 = spec.precision == "bf16" or (spec.precision == "auto" and on_gpu)
    element = element_bytes(bf16)
    parameters = size.reward_parameters if isinstance(spec, RewardStageSpec) else size.parameters
    if spec.zero == 0:
        masters = 4 if bf16 else 0
        state = TrainingState(element * parameters, element * parameters, (8 + masters) * parameters, 0, 0)
    else:
        state = zero_state(
            parameters,
            0,
            stage=spec.zero,
            offload=spec.offload,
            bf16=bf16,
            ranks=ranks,
            # At stage 3 the trainer's own choice: the width of the model, squared.
            bucket_elements=size.hidden**2 if spec.zero == 3 else _TRAINER_BUCKET_ELEMENTS,
            gradient_bytes=element,
        )
    pairs = isinstance(spec, RewardStageSpec | DpoStageSpec)
    tokens = spec.micro_batch_size * spec.max_length * (2 if pairs else 1)
    activations = backward_bytes(size, tokens, bf16=bf16, recompute=spec.gradient_checkpointing)
    if not isinstance(spec, RewardStageSpec):
        activations += logits_bytes(size.vocabulary, tokens, bf16=bf16, backward=True)
    found = {"model": {"weights": state.weights, "gradients": state.gradients, "optimizer": state.optimizer}}
    found["model"] |= {"communication": state.communication, "activations": activations}
    if isinstance(spec, DpoStageSpec):
        found["reference"] = {"weights": element * parameters // (ranks if spec.zero == 3 else 1)}
    return found


def _stage(
    cluster: ClusterSpec, stage: Stage, groups: list[PlannedGroup], sizes: Mapping[Any, ModelSize]
) -> PlannedStage:
    problems = [
        f"stage '{stage.name}': {group.name} needs {group.total / GIB:.1f} GiB on a device of "
        f"{group.device / GIB:.0f} GiB; {group.change}"
        for group in groups
        if group.device is not None and group.total > group.device
    ]
    for carrier in cluster.groups:
        here = [g for g in groups if carrier.name in g.labels.values()]
        problems += _crowded(stage, carrier, here)
    distinct = {size.name: size for size in sizes.values()}
    return PlannedStage(
        name=stage.name,
        kind=stage.kind,
        groups=tuple(groups),
        models={name: size.parameters for name, size in distinct.items()},
        assumed=tuple(f"{name}: {size.assumed}" for name, size in distinct.items() if size.assumed),
        problems=tuple(problems),
    )


def _crowded(stage: Stage, carrier: GroupSpec, groups: list[PlannedGroup]) -> list[str]:
    """Sentences about a worker group that has too few devices or too little host memory for what it carries."""
    if not carrier.gpus or not groups:
        return []
    problems = []
    pods = carrier.replicas if carrier.replicas is not None else carrier.max_replicas
    wanted = sum(group.hosts * group.devices for group in groups)
    if pods is not None and wanted > pods * carrier.gpus:
        problems.append(
            f"stage '{stage.name}': {', '.join(group.name for group in groups)} want {wanted} GPUs of worker group "
            f"'{carrier.name}', which has {pods * carrier.gpus} ({pods} pods with {carrier.gpus}); raise its "
            "replicas, or lower `workers`"
        )
    limit = carrier.resources.limits.get("memory") or carrier.resources.requests.get("memory")
    for group in groups:
        in_pod = min(group.hosts, carrier.gpus // group.devices)
        if limit is not None and in_pod * group.host > quantity(limit):
            problems.append(
                f"stage '{stage.name}': {in_pod} processes of {group.name} in a pod of worker group '{carrier.name}' "
                f"need {in_pod * group.host / GIB:.0f} GiB of host memory to load and offload, but its limit is "
                f"{limit}; raise resources.limits.memory"
            )
    return problems
