"""Groups of role hosts as the driver sees them: start, call by rank, and wait with a time limit.

Nothing here waits for ever. What does not answer is named: the roles of the group, the rank, and what it was asked to
do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from camel_ray.api.stages.ppo import RoleName
from camel_ray.errors import CamelError, OutOfMemory, WorkerLost
from camel_ray.ppo.hosts import RoleHost
from camel_ray.ppo.placement import GroupPlan, Placement
from camel_ray.ppo.settings import RoleSettings

START_SECONDS = 600.0
"""Limit for a host to start and load its models."""
CALL_SECONDS = 1800.0
"""Limit for one phase of a round on one host."""


class Pending:
    """Answers on their way from all ranks of a group. `wait` gives them in rank order."""

    def __init__(self, refs: Sequence[Any], group: GroupPlan, what: str, limit_seconds: float) -> None:
        self.refs, self.group, self.what = list(refs), group, what
        self.limit_seconds = limit_seconds
        self.deadline = time.monotonic() + limit_seconds

    def wait(self) -> list[Any]:
        """All answers. Raises WorkerLost for a rank that died or exceeds the limit, or the error a rank raised."""
        try:
            # All at once: a rank that failed is seen while the others still wait for it in a collective.
            remaining = list(self.refs)
            while remaining:
                left = self.deadline - time.monotonic()
                done, remaining = ray.wait(remaining, num_returns=1, timeout=max(left, 0.0))
                if not done:
                    raise GetTimeoutError
                ray.get(done)
            return list(ray.get(self.refs))
        except GetTimeoutError:
            silent = [rank for rank, ref in enumerate(self.refs) if not ray.wait([ref], timeout=0)[0]]
            raise WorkerLost(
                f"{self._who(silent)} did not finish {self.what} within {self.limit_seconds:.0f} s; "
                "run again to continue from the last checkpoint"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, CamelError):
                raise error.cause from error
            if _is_out_of_memory(error.cause):
                raise OutOfMemory(
                    f"{self._who(self._failed())} ran out of memory in {self.what}; lower microBatchTokens, or raise "
                    "zero"
                ) from error
            raise
        except RayActorError as error:
            raise WorkerLost(
                f"{self._who(self._failed())} died in {self.what}; run again to continue from the last checkpoint"
            ) from error

    def _failed(self) -> list[int]:
        failed = []
        for rank, ref in enumerate(self.refs):
            if ray.wait([ref], timeout=0)[0]:
                try:
                    ray.get(ref)
                except Exception:
                    failed.append(rank)
        return failed

    def _who(self, ranks: Sequence[int]) -> str:
        which = ", ".join(map(str, ranks))
        return f"role {self.group.name}, rank {which} of {self.group.size},"


class HostGroup:
    """The hosts of one group."""

    def __init__(self, plan: GroupPlan, *, threads: int, gpus: float) -> None:
        self.plan = plan
        # No CPUs are reserved: a laptop has fewer cores than a split placement has hosts. Threads keep them apart
        # instead.
        remote = ray.remote(num_cpus=0, num_gpus=gpus)(RoleHost)
        self.hosts = [remote.remote(plan.name, rank, plan.size, threads) for rank in range(plan.size)]

    def _all(self, method: str, what: str, limit_seconds: float, *args: Any) -> Pending:
        refs = [getattr(host, method).remote(*args) for host in self.hosts]
        return Pending(refs, self.plan, what, limit_seconds)

    def join(self) -> Pending:
        """Form the process group that trained roles need."""
        endpoint = Pending([self.hosts[0].endpoint.remote()], self.plan, "its start", START_SECONDS).wait()[0]
        return self._all("join", "joining its process group", START_SECONDS, endpoint, CALL_SECONDS)

    def load(self, role: RoleName, settings: RoleSettings) -> Pending:
        """Build a role on all hosts."""
        return self._all("load", f"loading role {role}", START_SECONDS, role, settings)

    def supports_bf16(self) -> bool:
        """Whether all hosts have bf16 arithmetic worth using."""
        return all(self._all("supports_bf16", "its start", START_SECONDS).wait())

    def call(self, role: RoleName, method: str, by_rank: Callable[[int], tuple[Any, ...]], /, **kwargs: Any) -> Pending:
        """Run a role's method on all ranks; `by_rank(rank)` gives the positional arguments of each."""
        refs = [host.call.remote(role, method, *by_rank(rank), **kwargs) for rank, host in enumerate(self.hosts)]
        return Pending(refs, self.plan, f"{role}.{method}", CALL_SECONDS)

    def call_all(self, role: RoleName, method: str, /, *args: Any) -> Pending:
        """Run a role's method on all ranks with the same arguments."""
        return self.call(role, method, lambda _: args)

    def stop(self) -> None:
        """End all processes of the group."""
        for host in self.hosts:
            ray.kill(host)


def start_groups(placement: Placement, *, cores: int) -> dict[RoleName, HostGroup]:
    """Start the hosts of all groups; returns the group of each role. Groups start at the same time."""
    gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= placement.hosts else 0.0
    threads = max(1, cores // placement.hosts)
    groups = {plan: HostGroup(plan, threads=threads, gpus=gpus) for plan in placement.groups}
    return {role: group for plan, group in groups.items() for role in plan.roles}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
