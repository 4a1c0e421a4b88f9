"""KubeRay's controllers, and below them either a real kubelet or machines that are played; driven from one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kuberay_standin.api import Api, ApiError, Key, Mirror, Object, key_of
from kuberay_standin.job_api import HttpJobApi
from kuberay_standin.machines import Machines, Play
from kuberay_standin.raycluster import RayClusters
from kuberay_standin.rayjob import RayJobs
from kuberay_standin.script import Pace, Script

_RESOURCES = ("rayjobs", "rayclusters", "jobs", "pods")
_TICK_SECONDS = 0.05


class World:
    """Everything there is below the operator under test."""

    def __init__(
        self, kubeconfig: Path, *, namespace: str, script: Path | None, scale: float, play: Play | None
    ) -> None:
        """`play`: how to play machines; None if kubelets run the pods."""
        self._api = Api(kubeconfig)
        self._mirror = Mirror(self._api, _RESOURCES, namespace)
        self._pace = Pace.scaled(scale)
        shared = (Script(script), self._pace)
        self._machines = Machines(self._api, self._mirror, *shared, play) if play else None
        job_api = self._machines.dashboards if self._machines else HttpJobApi(self._api, self._mirror)
        self._clusters = RayClusters(self._api, self._mirror, *shared)
        self._jobs = RayJobs(self._api, self._mirror, job_api, *shared)
        self._due: dict[Key, float] = {}

    def start(self) -> None:
        """Fill the caches, and start the machines if there are any."""
        self._mirror.start()
        if self._machines:
            self._machines.start()

    def stop(self) -> None:
        """End what it runs."""
        self._mirror.stop()
        if self._machines:
            self._machines.stop()
        self._api.close()

    def tick(self) -> None:
        """One pass over everything."""
        changes = self._mirror.changed(_TICK_SECONDS)
        now = time.monotonic()
        if self._machines:
            self._machines.tick(now)
        for cluster in self._mirror.all("rayclusters"):
            _look(self._clusters.reconcile, cluster, now)
        woken = {key for resource, obj in changes if (key := _rayjob_of(resource, obj))}
        for job in self._mirror.all("rayjobs"):
            key = key_of(job)
            if key in woken or now >= self._due.get(key, 0.0):
                self._due[key] = now + self._pace.poll
                _look(self._jobs.reconcile, job, now)


def _look(reconcile: Callable[[Object, float], None], obj: Object, now: float) -> None:
    try:
        reconcile(obj, now)
    except ApiError as error:
        error.tell()


def _rayjob_of(resource: str, obj: Object) -> Key | None:
    """The RayJob that a change is about: itself, or the owner of a RayCluster or submitter."""
    if resource == "rayjobs":
        return key_of(obj)
    for owner in obj["metadata"].get("ownerReferences", ()):
        if owner["kind"] == "RayJob":
            return obj["metadata"]["namespace"], owner["name"]
    return None
