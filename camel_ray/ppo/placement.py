"""Which roles share a process, how many processes there are, and on which nodes: from the spec to host groups.

Pure. `reservation.py` finds the devices for what this decides, `memory.py` says what it needs on each of them, and
`groups.py` starts the processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import RoleName, RoleSpec
from camel_ray.errors import SpecError
from camel_ray.ray_session import GROUP_LABEL

ROLES: tuple[RoleName, ...] = ("actor", "critic", "reference", "reward", "rollout")


@dataclass(frozen=True)
class GroupPlan:
    """Equal processes that host the same roles."""

    roles: tuple[RoleName, ...]
    size: int
    """Processes."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Ray node labels that the nodes of the processes must have."""
    devices: int = 1
    """Devices of one process: more than one only for a vllm engine that splits its model."""
    on_gpu: bool | None = None
    """Whether the devices are GPUs. None: no worker group says so, and the nodes decide."""

    @property
    def name(self) -> str:
        """The roles joined: what messages and process titles call the group."""
        return "+".join(self.roles)

    @property
    def worker_group(self) -> str | None:
        """The worker group of `cluster.groups` that carries it."""
        return self.labels.get(GROUP_LABEL)


@dataclass(frozen=True)
class Placement:
    """Host groups; every role that is needed is in exactly one."""

    groups: tuple[GroupPlan, ...]

    @property
    def hosts(self) -> int:
        """Processes of all groups."""
        return sum(group.size for group in self.groups)

    @property
    def devices(self) -> int:
        """Devices of all groups."""
        return sum(group.size * group.devices for group in self.groups)

    def group_of(self, role: RoleName) -> GroupPlan:
        """The group that hosts a role. Raises KeyError if none does."""
        for group in self.groups:
            if role in group.roles:
                return group
        raise KeyError(role)

    def shares_actor(self, spec: PpoStageSpec) -> bool:
        """Whether rollout uses the actor's own weights: same processes, parameters that are whole, and an engine that
        takes them as they are.
        """
        group, fields = self.group_of("actor"), settings_of(spec, "actor")
        near = "rollout" in group.roles and spec.rollout.engine == "transformers"
        # Stage 3 or not is the same in all precisions.
        return near and effective_zero(fields.zero, fields.offload, bf16=False, ranks=group.size) < 3

    def reference_is_actor(self, spec: PpoStageSpec) -> bool:
        """Whether the reference is the actor with its adapter off, and has no weights of its own."""
        return spec.lora is not None and "reference" in self.group_of("actor").roles


@dataclass(frozen=True)
class RoleFields:
    """Fields of a role after the stage's defaults were filled in."""

    zero: int
    offload: str
    precision: str


def settings_of(spec: PpoStageSpec, role: RoleName) -> RoleFields:
    """What holds for a role: its own field where it is set, else the stage's."""
    own: RoleSpec = getattr(spec.roles, role)
    return RoleFields(
        zero=spec.zero if own.zero is None else own.zero,
        offload=own.offload or spec.offload,
        precision=own.precision or spec.precision,
    )


def effective_zero(zero: int, offload: str, *, bf16: bool, ranks: int) -> int:
    """ZeRO stage that the engine really uses: 0 where a higher one shards nothing; offload needs 2 or 3; and stage 1
    would sum micro-batches in bf16.
    """
    if offload == "none" and ranks == 1:
        return 0
    if offload != "none":
        return 3 if offload == "all" else max(2, zero)
    return 2 if bf16 and zero == 1 else zero


def needed_roles(spec: PpoStageSpec) -> tuple[RoleName, ...]:
    """The roles a spec really has: a critic only for GAE, a reward role only for a reward model, a reference only where
    there is a KL penalty.
    """
    absent: set[RoleName] = set()
    if spec.advantage != "gae":
        absent.add("critic")
    if spec.reward.model is None:
        absent.add("reward")
    if spec.kl.controller == "none":
        absent.add("reference")
    return tuple(role for role in ROLES if role not in absent)


def place(
    spec: PpoStageSpec, *, workers: int, where: str, group: str | None = None, cluster: ClusterSpec | None = None
) -> Placement:
    """Host groups for a spec.

    `workers` and `group` are the stage's own, the defaults of roles that set none; `where` names the stage in errors;
    `cluster` says which worker groups have GPUs. Raises SpecError if a needed role is not placed, if roles that are
    placed together disagree about their processes, or if an engine needs processes of its own.
    """
    needed = needed_roles(spec)
    match spec.placement:
        case "colocated":
            wanted: list[list[RoleName]] = [list(needed)]
        case "split":
            wanted = [[role] for role in needed]
        case groups:
            wanted = [[role for role in together if role in needed] for together in groups]
    wanted = [roles for roles in wanted if roles]
    problems = [*_misplaced(needed, wanted, where), *_not_apart(spec, wanted, where)]
    plans = []
    for roles in wanted:
        problems += _disagreements(spec, roles, workers=workers, group=group, where=where)
        first: RoleSpec = getattr(spec.roles, roles[0])
        worker_group = first.group or group
        labels = dict(first.labels)
        if worker_group is not None:
            labels[GROUP_LABEL] = worker_group
        plans.append(
            GroupPlan(
                tuple(roles),
                first.workers or workers,
                labels=labels,
                devices=spec.rollout.tensor_parallel if roles == ["rollout"] and spec.rollout.engine == "vllm" else 1,
                on_gpu=_has_gpus(cluster, worker_group),
            )
        )
    if problems:
        raise SpecError(*problems)
    return Placement(tuple(plans))


def _misplaced(needed: tuple[RoleName, ...], wanted: list[list[RoleName]], where: str) -> list[str]:
    placed = [role for roles in wanted for role in roles]
    return [
        f"{where}.placement: role '{role}' is not placed; add it to one of the groups"
        for role in needed
        if role not in placed
    ] + [
        f"{where}.placement: role '{role}' is placed more than once; leave it in one group"
        for role in sorted(set(placed))
        if placed.count(role) > 1
    ]


def _not_apart(spec: PpoStageSpec, wanted: list[list[RoleName]], where: str) -> list[str]:
    """Rollout beside other roles, although something needs it alone."""
    beside = next((roles for roles in wanted if "rollout" in roles and len(roles) > 1), None)
    if beside is None:
        return []
    others = ", ".join(role for role in beside if role != "rollout")
    reasons = [
        field
        for field, needs in (
            ("rollout.engine: vllm", spec.rollout.engine == "vllm"),
            ("rollout.staleness: 1", spec.rollout.staleness > 0),
        )
        if needs
    ]
    return [
        f"{where}.{reason} needs rollout in processes of its own, but it is placed with {others}; "
        "use placement: split, or a group [rollout]"
        for reason in reasons
    ]


def _disagreements(
    spec: PpoStageSpec, roles: list[RoleName], *, workers: int, group: str | None, where: str
) -> list[str]:
    """Sentences about roles of one group that ask for different processes."""
    own: dict[RoleName, RoleSpec] = {role: getattr(spec.roles, role) for role in roles}
    asked: dict[str, dict[RoleName, object]] = {
        "number of workers": {role: fields.workers or workers for role, fields in own.items()},
        "group": {role: fields.group or group or "none" for role, fields in own.items()},
        "labels": {role: fields.labels for role, fields in own.items()},
    }
    return [
        f"{where}.roles: roles that are placed together need the same {what} "
        f"({', '.join(f'{role} {value}' for role, value in values.items())}); give them the same, or place them apart"
        for what, values in asked.items()
        if any(value != values[roles[0]] for value in values.values())
    ]


def _has_gpus(cluster: ClusterSpec | None, worker_group: str | None) -> bool | None:
    for found in cluster.groups if cluster is not None else ():
        if found.name == worker_group:
            return found.gpus > 0
    return None
