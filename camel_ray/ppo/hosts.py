"""A process that owns one device and hosts one or more roles: the only Ray actor of the engine.

Placement decides which roles share a host; the roles do not know. The class is thin on purpose: everything it does is
one of `join`, `load` and `call`, so that the driver's traffic is the same for every role and its size does not depend
on the model. A second thread answers the question whether the process is alive, also while the first one works.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

    from camel_ray.ppo.settings import RoleSettings

WATCH = "watch"
"""The concurrency group of `activity`."""


@dataclass(frozen=True)
class Activity:
    """What a host is doing."""

    what: str
    """Role and method, or "nothing"."""
    seconds: float
    """Since when."""


class RoleHost:
    """Rank `rank` of a group of `world` hosts. Wrapped with `ray.remote` by `groups.py`."""

    def __init__(self, group: str, rank: int, world: int, threads: int) -> None:
        self._doing, self._since = "its start", time.monotonic()
        # Before torch is imported: several processes that each use all cores make every step many times slower.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        # A waiting OpenMP thread spins by default, which on a machine with more threads than cores stops the others:
        # the same step was seen to take a hundred times longer.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # a few microseconds: no sleep between two small operations
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.group, self.rank, self.world = group, rank, world
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.roles: dict[str, Any] = {}
        self._store: TCPStore | None = None
        self._doing = "nothing"

    @ray.method(concurrency_group=WATCH)
    def activity(self) -> Activity:
        """What the process is doing: an answer shows that it is alive."""
        return Activity(self._doing, time.monotonic() - self._since)

    def whereabouts(self) -> tuple[str, int]:
        """Address of the node, and the process id there."""
        return str(ray.util.get_node_ip_address()), os.getpid()

    def endpoint(self) -> str:
        """host:port on which rank 0 waits for the others, from now on."""
        from camel_ray.ppo.engine import meeting_point

        address = ray.util.get_node_ip_address()
        self._store = meeting_point(address)
        return f"{address}:{self._store.port}"

    def join(self, endpoint: str, timeout_seconds: float) -> None:
        """Form the process group of this host group (collective)."""
        from camel_ray.ppo.engine import join_process_group

        self._begin("joining the process group")
        join_process_group(
            endpoint, rank=self.rank, world=self.world, timeout_seconds=timeout_seconds, store=self._store
        )
        self._doing = "nothing"

    def load(self, role: str, settings: RoleSettings) -> None:
        """Build a role in this process."""
        from camel_ray.ppo.roles import role_class
        from camel_ray.ppo.settings import Place

        self._begin(f"loading {role}")
        place = Place(rank=self.rank, world=self.world, device=self.device, roles=self.roles)
        self.roles[role] = role_class(role)(settings, place)
        self._doing = "nothing"

    def call(self, role: str, method: str, /, *args: Any, **kwargs: Any) -> tuple[Any, float]:
        """Run a method of a role. Returns its result and the seconds it took."""
        start = self._begin(f"{role}.{method}")
        result = getattr(self.roles[role], method)(*args, **kwargs)
        self._doing = "nothing"
        return result, time.monotonic() - start

    def call_keeping(self, role: str, method: str, /, *args: Any, **kwargs: Any) -> tuple[tuple[Any, float], Any]:
        """Like `call`, for a method that returns something small for the driver and something large for other hosts:
        two Ray objects, of which the driver reads the first only.
        """
        (small, large), seconds = self.call(role, method, *args, **kwargs)
        return (small, seconds), large

    def supports_bf16(self) -> bool:
        """Whether the device has bf16 arithmetic worth using: GPUs only."""
        import torch

        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def _begin(self, what: str) -> float:
        self._doing, self._since = what, time.monotonic()
        return self._since

    def free_device_memory(self) -> int | None:
        """Bytes of the device that nothing uses; None for a CPU, whose memory is not the host's own."""
        import torch

        return int(torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else None
