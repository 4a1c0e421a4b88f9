"""Which worker groups of a pipeline's cluster a stage uses, with how many pods, and which roles run on them.

Pure. `rayjob.py` builds the groups of an attempt's Ray cluster from it, and `problems.py` judges whether they suffice.
Where the roles of `ppo` go is decided in `ppo.placement`; this module asks it and decides nothing of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from camel_ray.api.cluster import GroupSpec
from camel_ray.api.pipeline import CamelPipeline, Stage, WorkersRange
from camel_ray.ppo.placement import needed_roles


@dataclass(frozen=True)
class UsedGroup:
    """A worker group as a stage's Ray cluster has it."""

    spec: GroupSpec
    least: int
    """Pods it has at any time; also the number it starts with."""
    most: int
    """Pods it can grow to."""
    roles: tuple[str, ...] = ()
    """Roles of `ppo` that name the group, or whose stage does."""


def used_groups(pipeline: CamelPipeline, stage: Stage) -> tuple[UsedGroup, ...]:
    """The groups that the stage's cluster needs, in the order of the file.

    A stage, or a role, that names no group may run anywhere: then it is all groups.
    """
    cluster = pipeline.spec.cluster
    roles = _roles(stage)
    wanted = set(roles.values()) if stage.ppo is not None else {stage.group}
    return tuple(
        UsedGroup(
            group,
            *pods(group, autoscaling=cluster.autoscaling.enabled),
            roles=tuple(role for role, name in roles.items() if name == group.name),
        )
        for group in cluster.groups
        if None in wanted or group.name in wanted
    )


def pods(group: GroupSpec, *, autoscaling: bool) -> tuple[int, int]:
    """Least and largest number of pods of a group. One that says nothing has one."""
    if group.replicas is not None:
        return group.replicas, group.replicas
    if group.min_replicas is None and group.max_replicas is None:
        return 1, 1
    least = group.min_replicas or 0
    most = max(least, 1) if group.max_replicas is None else max(least, group.max_replicas)
    return (least, most) if autoscaling else (most, most)


def least_workers(stage: Stage) -> int:
    """Training processes without which the stage does not begin."""
    return stage.workers.min if isinstance(stage.workers, WorkersRange) else stage.workers


def _roles(stage: Stage) -> dict[str, str | None]:
    """The worker group that each role of a `ppo` stage names."""
    if stage.ppo is None:
        return {}
    return {role: getattr(stage.ppo.roles, role).group or stage.group for role in needed_roles(stage.ppo)}
