"""A host group without processes: its roles live here and calls run at once.

For a replay, which wants one process and a debugger, and for measuring the driver alone. The driver cannot tell it
from a `HostGroup`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from camel_ray.ppo.groups import Hosted, Usage
from camel_ray.ppo.placement import GroupPlan


@dataclass(frozen=True)
class Done:
    """Answers that are there already; see `groups.Pending`."""

    answers: list[Any]
    kept: list[Any]

    def wait(self) -> list[Any]:
        """The answers by rank."""
        return self.answers


@dataclass(eq=False)
class LocalGroup:
    """`roles[rank][role]` are the roles of the group's ranks."""

    plan: GroupPlan
    roles: Sequence[Mapping[Hosted, Any]]
    usage: Usage = field(default_factory=Usage)

    def call(
        self,
        role: Hosted,
        method: str,
        by_rank: Callable[[int], tuple[Any, ...]],
        /,
        *,
        keep: bool = False,
        **kw: Any,
    ) -> Done:
        """See `HostGroup.call`."""
        return self._run(range(self.plan.size), role, method, by_rank, keep, kw)

    def call_all(self, role: Hosted, method: str, /, *args: Any, keep: bool = False, **kw: Any) -> Done:
        """See `HostGroup.call_all`."""
        return self._run(range(self.plan.size), role, method, lambda _: args, keep, kw)

    def call_first(self, role: Hosted, method: str, /, *args: Any, keep: bool = False, **kw: Any) -> Done:
        """See `HostGroup.call_first`."""
        return self._run(range(1), role, method, lambda _: args, keep, kw)

    def remember(self, role: Hosted, method: str, *args: Any) -> None:
        """Nothing here is ever replaced."""

    def _run(
        self,
        ranks: range,
        role: Hosted,
        method: str,
        by_rank: Callable[[int], tuple[Any, ...]],
        keep: bool,
        kw: Mapping[str, Any],
    ) -> Done:
        self.usage.calls += len(ranks)
        results = [getattr(self.roles[rank][role], method)(*by_rank(rank), **kw) for rank in ranks]
        if keep:
            return Done([small for small, _ in results], [large for _, large in results])
        return Done(results, [])
