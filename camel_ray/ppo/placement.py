"""Which roles share a process: from the spec to host groups. Pure; `groups.py` starts what this decides."""

from __future__ import annotations

from dataclasses import dataclass

from camel_ray.api.stages.ppo import PpoStageSpec, RoleName
from camel_ray.errors import SpecError

ROLES: tuple[RoleName, ...] = ("actor", "critic", "reference", "reward", "rollout")


@dataclass(frozen=True)
class GroupPlan:
    """Equal processes, one device each, that host the same roles."""

    roles: tuple[RoleName, ...]
    size: int
    """Processes."""

    @property
    def name(self) -> str:
        """The roles joined: what messages and process titles call the group."""
        return "+".join(self.roles)


@dataclass(frozen=True)
class Placement:
    """Host groups; every role that is needed is in exactly one."""

    groups: tuple[GroupPlan, ...]

    @property
    def hosts(self) -> int:
        """Processes of all groups."""
        return sum(group.size for group in self.groups)

    def group_of(self, role: RoleName) -> GroupPlan:
        """The group that hosts a role. Raises KeyError if none does."""
        for group in self.groups:
            if role in group.roles:
                return group
        raise KeyError(role)

    def shares_actor(self, spec: PpoStageSpec) -> bool:
        """Whether rollout may use the actor's own weights: same processes, and parameters that are not sharded."""
        return "rollout" in self.group_of("actor").roles and zero_stage(spec, "actor") < 3


def needed_roles(spec: PpoStageSpec) -> tuple[RoleName, ...]:
    """The roles a spec really has: a critic only for GAE, a reward role only for a reward model."""
    absent: set[RoleName] = set()
    if spec.advantage != "gae":
        absent.add("critic")
    if spec.reward.model is None:
        absent.add("reward")
    return tuple(role for role in ROLES if role not in absent)


def zero_stage(spec: PpoStageSpec, role: RoleName) -> int:
    """ZeRO stage of a role that trains."""
    own = getattr(spec.roles, role).zero
    return spec.zero if own is None else int(own)


def place(spec: PpoStageSpec, *, workers: int, where: str) -> Placement:
    """Host groups for a spec. `workers` is the stage's own number; `where` names the stage in errors.

    Raises SpecError if a needed role is not placed, or roles placed together ask for different numbers of workers.
    """
    needed = needed_roles(spec)
    match spec.placement:
        case "colocated":
            wanted: list[list[RoleName]] = [list(needed)]
        case "split":
            wanted = [[role] for role in needed]
        case groups:
            wanted = [[role for role in group if role in needed] for group in groups]
    placed = [role for group in wanted for role in group]
    problems = [
        f"{where}: role '{role}' is not placed; add it to one of the groups" for role in needed if role not in placed
    ]
    problems += [
        f"{where}: role '{role}' is placed more than once" for role in sorted(set(placed)) if placed.count(role) > 1
    ]
    plans = []
    for roles in filter(None, wanted):
        sizes = {role: getattr(spec.roles, role).workers or workers for role in roles}
        if len(set(sizes.values())) > 1:
            asked = ", ".join(f"{role} {size}" for role, size in sizes.items())
            problems.append(
                f"{where}.roles: roles that are placed together need the same number of workers ({asked}); set one"
            )
        plans.append(GroupPlan(tuple(roles), next(iter(sizes.values()))))
    if problems:
        raise SpecError(*problems)
    return Placement(tuple(plans))
