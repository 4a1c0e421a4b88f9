"""Devices for a placement, before anything is loaded: checked against the cluster's nodes, then reserved.

A host that no node can take would wait in Ray's queue without a word. So the nodes' devices and labels are looked at
first, and a cluster that will not grow refuses the placement in seconds with a table of what is missing. An autoscaled
one is told what is wanted (a Ray placement group per host group, all of them before any host starts) and gets
`limit_seconds` to grow, during which the progress notes name the bundles that are still missing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from camel_ray.errors import RetryableError, SpecError
from camel_ray.ppo.placement import GroupPlan, Placement
from camel_ray.progress import Progress
from camel_ray.ray_session import on_cluster

Resource = Literal["GPU", "CPU"]

_SETTLE_SECONDS = 3.0
"""For nodes of a fixed cluster that are just joining."""
_GLANCE_SECONDS = 0.5


@dataclass(frozen=True)
class Node:
    """A living node of the cluster."""

    labels: Mapping[str, str]
    devices: Mapping[str, int]
    """By resource: GPU and CPU."""

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it carries all of `labels`."""
        return all(self.labels.get(key) == value for key, value in labels.items())


@dataclass(frozen=True)
class Wish:
    """What a host group needs."""

    plan: GroupPlan
    resource: Resource

    @property
    def devices(self) -> int:
        """Of all its hosts."""
        return self.plan.size * self.plan.devices

    def __str__(self) -> str:
        """Such as `4 GPU on camel-ray.dev/group=train`."""
        return f"{self.devices} {self.resource}{_on(self.plan.labels)}"


@dataclass(frozen=True)
class Shortage:
    """A host group that the nodes have no room for."""

    wish: Wish
    there: str
    missing: int
    """Devices."""
    hint: str = ""


class Reservation:
    """Room for the hosts of all groups, until `release`."""

    def __init__(self, wishes: Sequence[Wish], bundles: Mapping[GroupPlan, PlacementGroup]) -> None:
        self._resources: dict[GroupPlan, Resource] = {wish.plan: wish.resource for wish in wishes}
        self._bundles = dict(bundles)

    def options(self, plan: GroupPlan, rank: int) -> dict[str, Any]:
        """Options of `ray.remote` for a host of a group. Also right for a host that replaces a lost one."""
        on_gpu = self._resources[plan] == "GPU"
        options: dict[str, Any] = {"num_gpus": plan.devices if on_gpu else 0, "num_cpus": 0}
        if plan in self._bundles:
            options["num_cpus"] = 0 if on_gpu else plan.devices
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                self._bundles[plan], placement_group_bundle_index=rank
            )
        return options

    def release(self) -> None:
        """Give the devices back. Ends hosts that still use them."""
        while self._bundles:
            _, group = self._bundles.popitem()
            remove_placement_group(group)


def reserve(placement: Placement, *, autoscaling: bool, limit_seconds: float, progress: Progress) -> Reservation:
    """Room for all host groups of a placement. `ray` has to be initialised.

    `autoscaling`: the cluster grows on demand. `limit_seconds`: for it to grow, and for others to free what they use.
    Raises SpecError with a table where a cluster that does not grow lacks devices or labels, and RetryableError where
    the time is up. A Ray of our own on this machine knows no labels; there, hosts without a GPU share the cores.
    """
    if not on_cluster():
        return _on_this_machine(placement)
    wishes = _wishes(placement, _nodes())
    if not autoscaling:
        _refuse_what_cannot_fit(wishes)
    bundles = {wish.plan: _bundles(wish) for wish in wishes}
    reservation = Reservation(wishes, bundles)
    try:
        _wait(wishes, bundles, autoscaling=autoscaling, limit_seconds=limit_seconds, progress=progress)
    except BaseException:
        reservation.release()
        raise
    return reservation


def shortages(wishes: Sequence[Wish], nodes: Sequence[Node]) -> list[Shortage]:
    """The groups that the nodes, all of them idle, have no room for; empty if there is room for all.

    By Hall's theorem: room is there exactly if every set of groups finds enough devices on the nodes that any of them
    may use (hosts with several devices each may fit less often than that: then the wait has a limit). Every shortage
    belongs to the smallest set that shows it.
    """
    found: list[Shortage] = []
    short: list[frozenset[Wish]] = []
    for together in _sets(wishes):
        if any(known <= frozenset(together) for known in short):
            continue
        usable = [node for node in nodes if any(node.has(wish.plan.labels) for wish in together)]
        resource = together[0].resource
        wanted = sum(wish.devices for wish in together)
        room = sum(_room(node, together) for node in usable)
        if room >= wanted:
            continue
        short.append(frozenset(together))
        there = f"{room} {resource} on {len(usable)} node{'' if len(usable) == 1 else 's'}"
        for wish in together:
            others = ", ".join(other.plan.name for other in together if other is not wish)
            hint = f"shared with {others}, together {wanted}" if others else _hint(wish, nodes)
            found.append(Shortage(wish, there, wanted - room, hint))
    return found


def table(shortages: Sequence[Shortage], wishes: Sequence[Wish]) -> str:
    """One line per host group: what it wants, what is there, what is missing."""
    by_wish = {shortage.wish: shortage for shortage in shortages}
    rows = [("group", "wanted", "there", "missing")]
    for wish in wishes:
        shortage = by_wish.get(wish)
        if shortage is None:
            rows.append((wish.plan.name, str(wish), "enough", "-"))
        else:
            hint = f" ({shortage.hint})" if shortage.hint else ""
            rows.append((wish.plan.name, str(wish), shortage.there, f"{shortage.missing} {wish.resource}{hint}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


def _sets(wishes: Sequence[Wish]) -> Iterator[tuple[Wish, ...]]:
    """All sets of groups that want the same resource, small ones first; there are at most five groups."""
    for count in range(1, len(wishes) + 1):
        for together in itertools.combinations(wishes, count):
            if len({wish.resource for wish in together}) == 1:
                yield together


def _room(node: Node, together: Sequence[Wish]) -> int:
    """Devices of a node that hosts of these groups can use; what is too small for any host is no room."""
    smallest = min(wish.plan.devices for wish in together if node.has(wish.plan.labels))
    return node.devices.get(together[0].resource, 0) // smallest * smallest


def _hint(wish: Wish, nodes: Sequence[Node]) -> str:
    """Why no node fits, where a label is the reason."""
    for key, value in wish.plan.labels.items():
        if not any(node.labels.get(key) == value for node in nodes):
            others = sorted({node.labels[key] for node in nodes if key in node.labels})
            return f"no node has {key}={value}; " + (f"there is {', '.join(others)}" if others else "none has that key")
    return ""


def _wishes(placement: Placement, nodes: Sequence[Node]) -> list[Wish]:
    wishes = []
    for plan in placement.groups:
        on_gpu = plan.on_gpu
        if on_gpu is None:
            on_gpu = any(node.has(plan.labels) and node.devices.get("GPU", 0) > 0 for node in nodes)
        wishes.append(Wish(plan, "GPU" if on_gpu else "CPU"))
    return wishes


def _on_this_machine(placement: Placement) -> Reservation:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < placement.devices:
        raise SpecError(
            f"the placement has {placement.devices} processes with a GPU each, but this machine has {gpus} GPU"
            f"{'' if gpus == 1 else 's'}; lower `workers`, or place roles together (`placement: colocated`)"
        )
    return Reservation([Wish(plan, "GPU" if gpus else "CPU") for plan in placement.groups], {})


def _nodes() -> list[Node]:
    return [
        Node(
            dict(node.get("Labels") or {}),
            {resource: int(node["Resources"].get(resource, 0)) for resource in ("GPU", "CPU")},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _refuse_what_cannot_fit(wishes: Sequence[Wish]) -> None:
    """Raise SpecError unless the nodes have room, now or as soon as those that are just joining are there."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while lacking := shortages(wishes, nodes := _nodes()):
        if time.monotonic() >= deadline:
            raise SpecError(
                f"the placement does not fit the cluster ({len(nodes)} node{'' if len(nodes) == 1 else 's'}), which "
                "does not grow; lower `workers`, name another `group` or other `labels`, or enlarge the cluster:\n"
                + table(lacking, wishes)
            )
        time.sleep(_GLANCE_SECONDS)


def _bundles(wish: Wish) -> PlacementGroup:
    plan = wish.plan
    return placement_group(
        [{wish.resource: plan.devices} for _ in range(plan.size)],
        strategy="PACK",  # near each other: the ranks of a group talk most among themselves
        bundle_label_selector=[dict(plan.labels) for _ in range(plan.size)] if plan.labels else None,
    )


@dataclass
class _Notes:
    """Says something once, and again only when it changes."""

    progress: Progress
    said: str = field(default="", init=False)

    def say(self, message: str) -> None:
        if message != self.said:
            self.progress.note(message)
            self.said = message


def _wait(
    wishes: Sequence[Wish],
    bundles: Mapping[GroupPlan, PlacementGroup],
    *,
    autoscaling: bool,
    limit_seconds: float,
    progress: Progress,
) -> None:
    deadline = time.monotonic() + limit_seconds
    notes = _Notes(progress)
    while waiting := [wish for wish in wishes if placement_group_table(bundles[wish.plan])["state"] != "CREATED"]:
        lacking = shortages(wishes, _nodes())
        if time.monotonic() >= deadline:
            reason = "the cluster did not grow" if autoscaling and lacking else "devices did not become free"
            raise RetryableError(
                f"{reason} to what the placement needs within {limit_seconds:.0f} s (limits.placementSeconds); look at "
                "the pods of its worker groups, or ask for less:\n" + table(lacking, wishes)
            )
        names = {wish.plan.name for wish in waiting}
        if missing := [_missing(shortage) for shortage in lacking if shortage.wish.plan.name in names]:
            grow = "waiting for the cluster to grow" if autoscaling else "waiting for nodes"
            notes.say(f"{grow}: missing {', '.join(missing)}; at most {limit_seconds:.0f} s")
        else:
            used = ", ".join(f"{wish.plan.name} ({wish})" for wish in waiting)
            # Just granted is no news; what is still there after a glance is.
            if notes.said or time.monotonic() > deadline - limit_seconds + 4 * _GLANCE_SECONDS:
                notes.say(f"waiting for devices that others use or that are starting: {used}")
        time.sleep(_GLANCE_SECONDS)
    if notes.said:
        notes.say("all devices of the placement are reserved")


def _missing(shortage: Shortage) -> str:
    plan = shortage.wish.plan
    count = -(-shortage.missing // plan.devices)
    return f"{count} x {{{shortage.wish.resource}: {plan.devices}}}{_on(plan.labels)} for {plan.name}"


def _on(labels: Mapping[str, str]) -> str:
    return " on " + ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) if labels else ""
