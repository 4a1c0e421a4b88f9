"""Groups of role hosts as the driver sees them: start, call by rank, wait with a time limit, replace what died.

Nothing here waits for ever. A host that died, does not answer or exceeds its limit is named: role, rank, node and what
it was asked to do. A host of a group whose roles only read weights (rollout, reference, reward) is replaced on the
spot and its call sent again, while the other ranks go on. A group that trains is lost as a whole, because its shards
and its place in the round are: `GroupLost` tells the loop, which goes back to the last checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from camel_ray.api.stages.ppo_roles import LimitsSpec, RoleName
from camel_ray.errors import CamelError, OutOfMemory, WorkerLost
from camel_ray.ppo.hosts import WATCH, Activity, RoleHost
from camel_ray.ppo.placement import GroupPlan, Placement
from camel_ray.ppo.settings import RoleSettings
from camel_ray.progress import Progress

Hosted = RoleName | Literal["buffer"]
"""What a host can be asked to do: a role, or to keep the experience of a round together."""
TRAINED: tuple[RoleName, ...] = ("actor", "critic")
_GLANCE_SECONDS = 1.0
"""Between two looks at hosts that have not answered."""


class GroupLost(WorkerLost):
    """A host of a group that trains is gone or silent: its group has to start again from a checkpoint."""


@dataclass
class Losses:
    """Lost processes of a stage, over all groups and restarts."""

    limits: LimitsSpec
    progress: Progress
    count: int = 0

    def add(self, sentence: str) -> None:
        """One more. Raises WorkerLost where the stage has lost enough."""
        self.count += 1
        if self.count > self.limits.restarts:
            raise WorkerLost(
                f"{sentence}, and the stage has replaced {self.limits.restarts} processes already (limits.restarts); "
                "run again to continue from the last checkpoint"
            )
        self.progress.note(f"{sentence}; it is replaced", level="warning")


@dataclass
class Usage:
    """What a group did since the last look."""

    calls: int = 0
    """Remote calls, ranks counted one by one."""
    busy_seconds: float = 0.0
    """Mean over the ranks of the time spent in calls."""


class Answering(Protocol):
    """Answers of the ranks of a group."""

    def wait(self) -> list[Any]:
        """By rank."""
        ...

    @property
    def kept(self) -> list[Any]:
        """References of what the ranks keep for other hosts (calls with `keep`), by rank. Valid after `wait`."""
        ...


class Group(Protocol):
    """What the driver asks of a group; see `HostGroup`."""

    @property
    def plan(self) -> GroupPlan:
        """Roles and size."""
        ...

    usage: Usage

    def call(
        self, role: Hosted, method: str, by_rank: Callable[[int], tuple[Any, ...]], /, *, keep: bool = ..., **kw: Any
    ) -> Answering:
        """Run a role's method on all ranks."""
        ...

    def call_all(self, role: Hosted, method: str, /, *args: Any, keep: bool = ..., **kw: Any) -> Answering:
        """Run a role's method on all ranks with the same arguments."""
        ...

    def call_first(self, role: Hosted, method: str, /, *args: Any, keep: bool = ..., **kw: Any) -> Answering:
        """Run a role's method on rank 0 only."""
        ...

    def remember(self, role: Hosted, method: str, *args: Any) -> None:
        """A call that a host which replaces one has to make up for."""
        ...


class HostGroup:
    """The hosts of one group. `options(rank)`: Ray options that put a host where it belongs."""

    def __init__(
        self, plan: GroupPlan, *, options: Callable[[int], Mapping[str, Any]], threads: int, losses: Losses
    ) -> None:
        self.plan, self.losses, self.limits = plan, losses, losses.limits
        self.usage = Usage()
        self._options, self._threads = options, threads
        self._loaded: dict[Hosted, RoleSettings] = {}
        self._remembered: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.hosts = [_Host(self._start(rank)) for rank in range(plan.size)]

    @property
    def trains(self) -> bool:
        """Whether a role of the group has state that a checkpoint keeps."""
        return any(role in TRAINED for role in self.plan.roles)

    def _start(self, rank: int) -> Any:
        remote = ray.remote(**self._options(rank), concurrency_groups={WATCH: 1})(RoleHost)
        return remote.remote(self.plan.name, rank, self.plan.size, self._threads)

    def settle(self) -> None:
        """Wait until all hosts run, and form the process group that trained roles need."""
        places = self._all("whereabouts", "its start").wait()
        for host, (node, pid) in zip(self.hosts, places, strict=True):
            host.node, host.pid = node, pid
        if self.trains:
            endpoint = self._pending({0: _asks("endpoint")}, "its start").wait()[0]
            self._all("join", "joining its process group", endpoint, self.limits.call_seconds).wait()

    def load(self, role: Hosted, settings: RoleSettings) -> Pending:
        """Build a role on all hosts; a host that replaces one builds it too."""
        self._loaded[role] = settings
        return self._all("load", f"loading role {role}", role, settings)

    def remember(self, role: Hosted, method: str, *args: Any) -> None:
        """A call that a host which replaces one has to make up for, such as the last weights."""
        self._remembered[role, method] = args

    def supports_bf16(self) -> bool:
        """Whether all hosts have bf16 arithmetic worth using."""
        return all(self._all("supports_bf16", "its start").wait())

    def free_device_memory(self) -> int | None:
        """Bytes free on the fullest device; None where roles run on CPUs."""
        found = [free for free in self._all("free_device_memory", "its start").wait() if free is not None]
        return min(found, default=None)

    def call(
        self,
        role: Hosted,
        method: str,
        by_rank: Callable[[int], tuple[Any, ...]],
        /,
        *,
        keep: bool = False,
        **kw: Any,
    ) -> Pending:
        """Run a role's method on all ranks; `by_rank(rank)` gives the positional arguments of each.

        With `keep` the method returns a pair: the first half comes with `wait`, the second stays in Ray's object store
        as `kept`.
        """
        self.usage.calls += self.plan.size
        sends = {
            rank: _asks(_method(keep), role, method, *by_rank(rank), returns=1 + keep, **kw)
            for rank in range(self.plan.size)
        }
        return Pending(self, sends, f"{role}.{method}", self.limits.call_seconds, timed=True)

    def call_all(self, role: Hosted, method: str, /, *args: Any, keep: bool = False, **kw: Any) -> Pending:
        """Run a role's method on all ranks with the same arguments."""
        return self.call(role, method, lambda _: args, keep=keep, **kw)

    def call_first(self, role: Hosted, method: str, /, *args: Any, keep: bool = False, **kw: Any) -> Pending:
        """Run a role's method on rank 0 only."""
        self.usage.calls += 1
        send = _asks(_method(keep), role, method, *args, returns=1 + keep, **kw)
        return Pending(self, {0: send}, f"{role}.{method}", self.limits.call_seconds, timed=True)

    def replace(self, rank: int) -> None:
        """A new host for a dead or silent one, with its roles and what `remember` was told."""
        self.hosts[rank].kill()
        self.hosts[rank] = host = _Host(self._start(rank))
        host.node, host.pid = self._pending({rank: _asks("whereabouts")}, "its start").wait()[0]
        for name, settings in self._loaded.items():
            self._pending({rank: _asks("load", name, settings)}, f"loading role {name}").wait()
        for (role, method), args in self._remembered.items():
            self._pending({rank: _asks("call", role, method, *args)}, f"{role}.{method}").wait()

    def restart(self) -> None:
        """Stop all hosts and start new ones; `settle` and `load` have to follow."""
        self.stop()
        self._remembered.clear()
        self.hosts = [_Host(self._start(rank)) for rank in range(self.plan.size)]

    def reload(self) -> list[Pending]:
        """Build again all roles that were built before, on hosts that `restart` started."""
        return [self.load(role, settings) for role, settings in self._loaded.items()]

    def stop(self) -> None:
        """End all processes of the group."""
        for host in self.hosts:
            host.kill()

    def name_of(self, rank: int) -> str:
        """What messages call a host."""
        host = self.hosts[rank]
        where = f" on node {host.node} (process {host.pid})" if host.node else ""
        return f"role {self.plan.name}, rank {rank} of {self.plan.size}{where},"

    def _all(self, method: str, what: str, *args: Any) -> Pending:
        return self._pending(dict.fromkeys(range(self.plan.size), _asks(method, *args)), what)

    def _pending(self, sends: dict[int, Callable[[_Host], Any]], what: str) -> Pending:
        return Pending(self, sends, what, self.limits.start_seconds, timed=False)


@dataclass
class _Host:
    """One Ray actor, and what is known of its health."""

    actor: Any
    node: str = ""
    pid: int = 0
    doing: Activity | None = None
    """Its last sign of life."""
    asked: Any = None
    """The question for a sign of life that has no answer yet."""
    asked_at: float = 0.0

    def silent_for(self) -> float:
        """Seconds for which the host owes an answer; asks anew when it does not. Raises RayActorError if it is dead."""
        if self.asked is not None and ray.wait([self.asked], timeout=0)[0]:
            self.doing, self.asked = ray.get(self.asked), None
        if self.asked is None:
            self.asked, self.asked_at = self.actor.activity.remote(), time.monotonic()
        return time.monotonic() - self.asked_at

    def kill(self) -> None:
        """End the process; harmless if it is gone."""
        with contextlib.suppress(Exception):
            ray.kill(self.actor)


@dataclass
class Pending:
    """Answers on their way from ranks of a group."""

    group: HostGroup
    sends: dict[int, Callable[[_Host], Any]]
    """By rank: how to ask."""
    what: str
    limit_seconds: float
    timed: bool
    """Answers are pairs of a result and the seconds it took."""
    _refs: dict[int, Any] = field(init=False)
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.limit_seconds
        self._refs = {rank: send(self.group.hosts[rank]) for rank, send in self.sends.items()}

    @property
    def refs(self) -> list[Any]:
        """Ray references of the answers, by rank."""
        return [ref[0] if isinstance(ref, list) else ref for ref in self._refs.values()]

    @property
    def kept(self) -> list[Any]:
        """References of what the ranks keep for other hosts (calls with `keep`), by rank. Valid after `wait`."""
        return [ref[1] for ref in self._refs.values()]

    def wait(self) -> list[Any]:
        """All answers by rank.

        Raises the CamelError a rank raised, OutOfMemory, WorkerLost where too many processes were lost, or GroupLost
        for a group that trains.
        """
        answers: dict[int, Any] = {}
        while len(answers) < len(self._refs):
            # All at once: a rank that failed is seen while the others still wait for it in a collective.
            open_ranks = [rank for rank in self._refs if rank not in answers]
            waiting = {self._first(rank): rank for rank in open_ranks}
            ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=self._next_look(), fetch_local=False)
            for ref in ready:
                rank = waiting[ref]
                try:
                    answers[rank] = ray.get(ref)
                except RayActorError as error:
                    self._lost(rank, f"died in {self.what}", error)
                except ObjectLostError as error:
                    raise GroupLost(
                        f"{self.group.name_of(rank)} could not start {self.what}, because what it needs was on a node "
                        "that is gone; run again to continue from the last checkpoint"
                    ) from error
                except RayTaskError as error:
                    self._failed(rank, error, answers)
            if not ready:
                self._look_at([rank for rank in open_ranks if rank not in answers])
        if self.timed:
            self.group.usage.busy_seconds += sum(seconds for _, seconds in answers.values()) / self.group.plan.size
            return [answers[rank][0] for rank in self._refs]
        return [answers[rank] for rank in self._refs]

    def _first(self, rank: int) -> Any:
        ref = self._refs[rank]
        return ref[0] if isinstance(ref, list) else ref

    def _next_look(self) -> float:
        return max(0.0, min(_GLANCE_SECONDS, self._deadline - time.monotonic()))

    def _look_at(self, ranks: Sequence[int]) -> None:
        """Ask the hosts that have not answered for a sign of life; those beyond a limit are lost."""
        late = time.monotonic() >= self._deadline
        silent = []
        for rank in ranks:
            try:
                quiet = self.group.hosts[rank].silent_for()
            except RayActorError as error:
                self._lost(rank, f"died in {self.what}", error)
                continue
            # A process that is starting cannot answer yet: the limit of the call is for that.
            if self.group.hosts[rank].node and quiet > self.group.limits.silent_seconds:
                silent.append((rank, f"gave no sign of life for {quiet:.0f} s in {self.what}"))
        if late and not silent:
            others = f", nor did rank {', '.join(map(str, ranks[1:]))}" if self.group.trains and ranks[1:] else ""
            late_by = f"did not finish {self.what} within {self.limit_seconds:.0f} s{others}"
            silent = [(rank, late_by) for rank in ranks]
        for rank, how in silent:
            doing = self.group.hosts[rank].doing
            last = f" (last seen in {doing.what}, {doing.seconds:.0f} s)" if doing is not None else ""
            self._lost(rank, how + last, None)

    def _lost(self, rank: int, how: str, error: Exception | None) -> None:
        sentence = f"{self.group.name_of(rank)} {how}"
        self.group.losses.add(sentence)
        if self.group.trains:
            raise GroupLost(f"{sentence}; run again to continue from the last checkpoint") from error
        self.group.replace(rank)
        self._deadline = time.monotonic() + self.limit_seconds
        self._refs[rank] = self.sends[rank](self.group.hosts[rank])

    def _failed(self, rank: int, error: RayTaskError, answers: Mapping[int, Any]) -> None:
        """An exception in a rank: the user's, ours, or the echo of another rank's death in a collective."""
        if isinstance(error.cause, CamelError):
            raise error.cause or error from error
        if _is_out_of_memory(error.cause):
            raise OutOfMemory(
                f"{self.group.name_of(rank)} ran out of memory in {self.what}; lower microBatchTokens, or raise zero"
            ) from error
        others = [other for other in self._refs if other != rank and other not in answers]
        until = time.monotonic() + 10 * _GLANCE_SECONDS
        while self.group.trains and others and time.monotonic() < until:
            for other in others:
                try:
                    self.group.hosts[other].silent_for()
                except RayActorError as death:
                    self._lost(other, f"died in {self.what}", death)
            time.sleep(_GLANCE_SECONDS / 4)
        # The exception itself, whose message a user can read; Ray's has the remote traceback, for --debug.
        raise error.cause or error from error


def _asks(name: str, *args: Any, returns: int = 1, **kw: Any) -> Callable[[_Host], Any]:
    """How to call a method of a host, whichever host it will be."""
    return lambda host: getattr(host.actor, name).options(num_returns=returns).remote(*args, **kw)


def _method(keep: bool) -> str:
    return "call_keeping" if keep else "call"


def start_groups(
    placement: Placement,
    *,
    options: Callable[[GroupPlan, int], Mapping[str, Any]],
    cores: int,
    losses: Losses,
) -> dict[RoleName, HostGroup]:
    """Start the hosts of all groups at the same time; returns the group of each role."""
    threads = max(1, cores // placement.hosts)
    groups = {
        plan: HostGroup(plan, options=partial(options, plan), threads=threads, losses=losses)
        for plan in placement.groups
    }
    return {role: group for plan, group in groups.items() for role in plan.roles}


def restart_trained(groups: Mapping[RoleName, HostGroup]) -> None:
    """Start the processes of all roles that train again, with the weights the stage began with."""
    trained = {groups[role] for role in TRAINED if role in groups}
    for group in trained:
        group.restart()
    for group in trained:
        group.settle()
    for answers in [answers for group in trained for answers in group.reload()]:
        answers.wait()


def load_roles(groups: Mapping[RoleName, HostGroup], settings: Mapping[RoleName, RoleSettings]) -> None:
    """Build all roles, groups side by side, in the order of `settings`: the actor before rollout that may share it."""
    pending = [groups[role].load(role, own) for role, own in settings.items()]
    pending.append(groups["actor"].load("buffer", settings["actor"]))
    for answers in pending:
        answers.wait()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
