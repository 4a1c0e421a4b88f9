"""Leader election: of all replicas of the operator one works, the others keep their caches warm.

The leader renews a `coordination.k8s.io` Lease; who sees it unchanged for its whole duration, by the own clock, takes
it over. Times of other machines are never compared with ours. A leader that cannot renew gives up before the others
may start, and one that was frozen (SIGSTOP, a suspended machine) notices before its next write, because `is_leader`
looks at the clock and not at a flag. Losing the lease ends `run` with `LeaseLost`: the process shall exit, as nothing
it holds in memory can be trusted any more.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.clock import boot_seconds
from camel_ray.operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from camel_ray.operator.kube.kinds import LEASE

_log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """We led and do not lead any more, without having been asked to stop."""


class LeaderElection:
    """One candidate for one Lease.

    `identity` names this process and no other. The lease holds for `lease_seconds` without renewal; the leader renews
    it each `retry_seconds` and gives up after `renew_seconds` without success.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        namespace: str,
        identity: str,
        lease_seconds: float = 15,
        renew_seconds: float = 10,
        retry_seconds: float = 2,
    ) -> None:
        if not lease_seconds > renew_seconds > retry_seconds > 0:
            raise ValueError("leader election needs lease_seconds > renew_seconds > retry_seconds > 0")
        # A request that hangs must not take the time of the tries after it.
        self._client = client.hurried(max(1.0, (renew_seconds - retry_seconds) / 2))
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._retry_seconds = retry_seconds
        self._asked_to_stop = threading.Event()
        self._ended = threading.Event()
        """Given to `lead`: it shall return."""
        self._left = threading.Event()
        """It returned."""
        self._renewed: float | None = None
        """When the last renewal that succeeded was sent; None if we do not lead."""
        self._lease: dict[str, Any] | None = None
        """The newest version we know of."""
        self._unchanged_since = 0.0
        """When, by our clock, we first saw the renewal that it carries."""

    @property
    def is_leader(self) -> bool:
        """Whether nobody else can lead at this moment. Ask before each write."""
        renewed = self._renewed
        return renewed is not None and boot_seconds() - renewed < self._renew_seconds

    def run(self, lead: Callable[[threading.Event], None]) -> None:
        """Wait for the lease, then call `lead`, which must return soon after its event is set.

        Returns after `stop` or when `lead` returns, with the lease given back. Raises LeaseLost, and what `lead`
        raises. The lease is renewed until `lead` has returned: what it finishes, it finishes as the leader.
        """
        if not self._acquire():
            return
        _log.info("leading as %s", self._identity)
        keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        keeper.start()
        try:
            lead(self._ended)
        finally:
            lost = not self.is_leader
            self._left.set()
            keeper.join()
            self._release()
        if lost:
            raise LeaseLost(f"{self._identity} lost the lease {self._namespace}/{self._name}")

    def stop(self) -> None:
        """End `run`: stop waiting, or stop leading and give the lease back."""
        self._asked_to_stop.set()
        self._ended.set()

    def _acquire(self) -> bool:
        while not self._asked_to_stop.is_set():
            if self._try():
                return True
            # Jitter upwards only: two candidates must not keep step.
            self._asked_to_stop.wait(self._retry_seconds * random.uniform(1.0, 1.2))
        return False

    def _keep(self) -> None:
        """Renew until `lead` returns; make it return when the lease cannot be renewed in time."""
        while self.is_leader:
            if self._left.wait(self._retry_seconds):
                return
            if self.is_leader:
                self._try()
        self._ended.set()

    def _try(self) -> bool:
        """Take or renew the lease once. False if somebody else holds it or the server does not answer."""
        sent = boot_seconds()
        try:
            if self._renewed is None or self._lease is None:
                self._look()
            if self._lease is None:
                self._lease = self._client.create(LEASE, {**self._manifest(), "spec": self._spec({})})
            elif self._ours_to_take():
                self._lease = self._client.replace(
                    LEASE, {**self._lease, "spec": self._spec(self._lease.get("spec") or {})}
                )
            else:
                self._renewed = None
                return False
        except (Conflict, AlreadyExists):
            # Somebody else wrote, and what they wrote decides at the next try. Our last renewal stands until it is old.
            self._lease = None
            return False
        except KubeError as error:
            _log.warning("the lease cannot be renewed: %s", error)
            return False
        self._renewed = sent
        if not self.is_leader:  # the answer came so late that somebody else may have begun
            self._renewed = None
        return self._renewed is not None

    def _look(self) -> None:
        """Read the lease, and note since when it is as it is."""
        try:
            lease: dict[str, Any] | None = self._client.get(LEASE, self._name, self._namespace)
        except NotFound:
            lease = None
        if _renewal(lease) != _renewal(self._lease):
            self._unchanged_since = boot_seconds()
        self._lease = lease

    def _ours_to_take(self) -> bool:
        spec = (self._lease or {}).get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        valid_seconds = float(spec.get("leaseDurationSeconds") or self._lease_seconds)
        return holder in ("", self._identity) or boot_seconds() - self._unchanged_since > valid_seconds

    def _manifest(self) -> dict[str, Any]:
        return {"metadata": {"name": self._name, "namespace": self._namespace}}

    def _spec(self, old: Mapping[str, Any]) -> dict[str, Any]:
        now = _wall_clock()
        ours = old.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._lease_seconds),
            "acquireTime": old["acquireTime"] if ours and old.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if ours or not old else 1),
        }

    def _release(self) -> None:
        """Give the lease back, so that the next one need not wait for its end."""
        leading, self._renewed = self.is_leader, None
        if not leading or self._lease is None:
            return
        spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _wall_clock()}
        try:
            self._client.replace(LEASE, {**self._lease, "spec": spec})
        except KubeError as error:
            _log.warning("the lease could not be given back: %s", error)


def _renewal(lease: Mapping[str, Any] | None) -> object:
    return lease and lease["metadata"]["resourceVersion"]


def _wall_clock() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
