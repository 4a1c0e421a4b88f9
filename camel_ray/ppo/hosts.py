"""A process that owns one device and hosts one or more roles: the only Ray actor of the engine.

Placement decides which roles share a host; the roles do not know. The class is thin on purpose: everything it does is
one of `join`, `load` and `call`, so that the driver's traffic is the same for every role and its size does not depend
on the model.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camel_ray.ppo.settings import RoleSettings


class RoleHost:
    """Rank `rank` of a group of `world` hosts. Wrapped with `ray.remote` by `groups.py`."""

    def __init__(self, group: str, rank: int, world: int, threads: int) -> None:
        # Before torch is imported: several processes that each use all cores make every step many times slower.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        # A waiting OpenMP thread spins by default, which on a machine with more threads than cores stops the others:
        # the same step was seen to take a hundred times longer.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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

    def endpoint(self) -> str:
        """host:port on which rank 0 waits for the others."""
        import ray

        address = ray.util.get_node_ip_address()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
            return f"{address}:{probe.getsockname()[1]}"

    def join(self, endpoint: str, timeout_seconds: float) -> None:
        """Form the process group of this host group (collective)."""
        from camel_ray.ppo.engine import join_process_group

        join_process_group(endpoint, rank=self.rank, world=self.world, timeout_seconds=timeout_seconds)

    def load(self, role: str, settings: RoleSettings) -> None:
        """Build a role in this process."""
        from camel_ray.ppo.roles import ROLE_CLASSES
        from camel_ray.ppo.settings import Place

        place = Place(rank=self.rank, world=self.world, device=self.device, roles=self.roles)
        self.roles[role] = ROLE_CLASSES[role](settings, place)

    def call(self, role: str, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a method of a role."""
        return getattr(self.roles[role], method)(*args, **kwargs)

    def device_name(self) -> str:
        """Type of the device: cpu or cuda."""
        return self.device.type

    def supports_bf16(self) -> bool:
        """Whether the device has bf16 arithmetic worth using: GPUs only."""
        import torch

        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()
