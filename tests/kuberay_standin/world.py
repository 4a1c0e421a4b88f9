"""Joins the controllers, the node and the dashboards, and drives them from one thread."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from kuberay_standin import manifests
from kuberay_standin.api import Api, ApiError, Key, Mirror, Object, key_of
from kuberay_standin.dashboard import Dashboard, Dashboards, PlayedRun, RealRun, Run
from kuberay_standin.kubelet import Hooks, Kubelet, role_of
from kuberay_standin.logs import LogServer
from kuberay_standin.processes import Processes
from kuberay_standin.programs import Played, Program, Running, Submitter
from kuberay_standin.raycluster import RayClusters
from kuberay_standin.rayjob import RayJobs
from kuberay_standin.script import Pace, Script

_RESOURCES = ("rayjobs", "rayclusters", "jobs", "pods")
_TICK_SECONDS = 0.05


class World:
    """Everything there is below the operator under test."""

    def __init__(
        self,
        kubeconfig: Path,
        *,
        namespace: str,
        script: Path | None,
        scale: float,
        directory: Path,
        run_entrypoints: bool,
        node: str,
    ) -> None:
        """`directory`: for what processes need, if entry points and batch Jobs are run as such, and not played."""
        self._api = Api(kubeconfig)
        self._mirror = Mirror(self._api, _RESOURCES, namespace)
        self._pace, self._script = Pace.scaled(scale), Script(script)
        self._dashboards = Dashboards()
        self._processes = Processes(self._api, directory) if run_entrypoints else None
        hooks = Hooks(self._start, self._ended, self._job_running_since, self._dashboard_lost)
        self._kubelet = Kubelet(self._api, self._mirror, self._script, self._pace, hooks, node)
        shared = (self._script, self._pace, self._kubelet.event)
        self._clusters = RayClusters(self._api, self._mirror, *shared)
        self._jobs = RayJobs(self._api, self._mirror, self._dashboards, *shared)
        self._logs = LogServer(self._kubelet.log, directory)
        self._due: dict[Key, float] = {}

    def start(self) -> None:
        """Fill the caches and register the node."""
        self._mirror.start()
        self._logs.start()
        self._kubelet.start(self._logs.port)

    def stop(self) -> None:
        """End all processes and take the node away."""
        self._mirror.stop()
        self._dashboards.close_all()
        self._kubelet.stop()
        self._logs.stop()
        self._api.close()

    def tick(self) -> None:
        """One pass over everything."""
        changes = self._mirror.changed(_TICK_SECONDS)
        now = time.monotonic()
        self._dashboards.tick(now)
        self._kubelet.tick(now)
        for cluster in self._mirror.all("rayclusters"):
            _look(self._clusters.reconcile, cluster, now)
        woken = {key for resource, obj in changes if (key := _rayjob_of(resource, obj))}
        for job in self._mirror.all("rayjobs"):
            key = key_of(job)
            if key in woken or now >= self._due.get(key, 0.0):
                self._due[key] = now + self._pace.poll
                _look(self._jobs.reconcile, job, now)

    # What the kubelet asks -----------------------------------------------------------------------------------------

    def _start(self, pod: Object, container: Object, now: float) -> Program:
        behaviour, role = self._kubelet.behaviour(pod), role_of(pod)
        first = container["name"] == pod["spec"]["containers"][0]["name"]
        if role == "submitter" and first:
            return self._submitter(pod, now)
        if role in ("head", "worker"):
            if role == "head" and first:
                self._dashboards.open(
                    _cluster_of(pod), Dashboard(self._launcher(pod, container), behaviour, self._pace)
                )
            shutdown = behaviour.shutdown_seconds
            return Played(shutdown=self._pace.shutdown if shutdown is None else shutdown)
        if self._processes:
            return Running(self._processes.start(pod, container))
        seconds = self._pace.run if behaviour.seconds is None else behaviour.seconds
        return Played(now + seconds, behaviour.exit_code, behaviour.log)

    def _submitter(self, pod: Object, now: float) -> Program:
        namespace = pod["metadata"]["namespace"]
        job = self._mirror.get("rayjobs", namespace, pod["metadata"]["labels"][manifests.CR_NAME])
        if job is None:  # deleted a moment ago
            return Played(shutdown=self._pace.shutdown)
        status = job["status"]
        cluster, behaviour = (namespace, status["rayClusterName"]), self._script.of(*key_of(job))
        entrypoint = job["spec"].get("entrypoint", "")
        return Submitter(self._dashboards, cluster, status["jobId"], entrypoint, behaviour, self._pace, now)

    def _launcher(self, pod: Object, container: Object) -> Callable[[str, str], Run]:
        def launch(job_id: str, entrypoint: str) -> Run:
            if self._processes is None:
                return PlayedRun(self._kubelet.behaviour(pod), self._pace, time.monotonic())
            argv = ["/bin/sh", "-c", entrypoint]
            return RealRun(self._processes.start(pod, container, argv, label=f"-{job_id}"))

        return launch

    def _ended(self, pod: Object, container: Object) -> None:
        if role_of(pod) == "head" and container["name"] == pod["spec"]["containers"][0]["name"]:
            self._dashboards.close(_cluster_of(pod))

    def _job_running_since(self, pod: Object) -> float | None:
        cluster = _cluster_of(pod)
        if role_of(pod) == "submitter":
            job = self._mirror.get("rayjobs", cluster[0], pod["metadata"]["labels"].get(manifests.CR_NAME, ""))
            cluster = cluster[0], job["status"].get("rayClusterName", "") if job else ""
        dashboard = self._dashboards.raw(cluster)
        started = [job.started for job in dashboard.jobs.values() if job.started] if dashboard else []
        return min(started, default=None)

    def _dashboard_lost(self, pod: Object) -> None:
        if dashboard := self._dashboards.raw(_cluster_of(pod)):
            dashboard.reachable = False


def _look(reconcile: Callable[[Object, float], None], obj: Object, now: float) -> None:
    try:
        reconcile(obj, now)
    except ApiError as error:
        if not error.outdated:
            traceback.print_exc()


def _cluster_of(pod: Object) -> Key:
    return pod["metadata"]["namespace"], pod["metadata"].get("labels", {}).get(manifests.CLUSTER, "")


def _rayjob_of(resource: str, obj: Object) -> Key | None:
    """The RayJob that a change is about: itself, or the owner of a RayCluster or submitter."""
    if resource == "rayjobs":
        return key_of(obj)
    for owner in obj["metadata"].get("ownerReferences", ()):
        if owner["kind"] == "RayJob":
            return obj["metadata"]["namespace"], owner["name"]
    return None
