"""The machines below a control plane without a kubelet: one played node, and what the containers of its pods do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kuberay_standin import manifests
from kuberay_standin.api import Api, Key, Mirror, Object, key_of
from kuberay_standin.dashboard import Dashboard, Dashboards, PlayedRun, RealRun, Run
from kuberay_standin.kubelet import Hooks, Kubelet, role_of
from kuberay_standin.logs import LogServer
from kuberay_standin.processes import Processes
from kuberay_standin.programs import Played, Program, Running, Submitter
from kuberay_standin.script import Pace, Script


@dataclass(frozen=True)
class Play:
    """How to play them."""

    directory: Path
    """For logs and for what processes need."""
    run_entrypoints: bool
    """Whether entry points and batch Jobs are run as processes, and not played."""
    node: str
    """Name of the Node."""


class Machines:
    """A kubelet, dashboards inside the heads, and programs. Driven by `tick`."""

    def __init__(self, api: Api, mirror: Mirror, script: Script, pace: Pace, play: Play) -> None:
        self._mirror, self._script, self._pace = mirror, script, pace
        self.dashboards = Dashboards()
        self._processes = Processes(api, play.directory) if play.run_entrypoints else None
        hooks = Hooks(self._start, self._ended, self._job_running_since, self._dashboard_lost)
        self._kubelet = Kubelet(api, mirror, script, pace, hooks, play.node)
        self._logs = LogServer(self._kubelet.log, play.directory)

    def start(self) -> None:
        """Register the node."""
        self._logs.start()
        self._kubelet.start(self._logs.port)

    def stop(self) -> None:
        """End all processes and take the node away."""
        self.dashboards.close_all()
        self._kubelet.stop()
        self._logs.stop()

    def tick(self, now: float) -> None:
        """One look at everything."""
        self.dashboards.tick(now)
        self._kubelet.tick(now)

    # What the kubelet asks -----------------------------------------------------------------------------------------

    def _start(self, pod: Object, container: Object, now: float) -> Program:
        behaviour, role = self._kubelet.behaviour(pod), role_of(pod)
        first = container["name"] == pod["spec"]["containers"][0]["name"]
        if role == "submitter" and first:
            return self._submitter(pod, now)
        if role in ("head", "worker"):
            if role == "head" and first:
                self.dashboards.open(_cluster_of(pod), Dashboard(self._launcher(pod, container), behaviour, self._pace))
            shutdown = behaviour.shutdown_seconds
            return Played(shutdown=self._pace.shutdown if shutdown is None else shutdown)
        if self._processes:
            return Running(self._processes.start(pod, container))
        seconds = self._pace.run if behaviour.seconds is None else behaviour.seconds
        return Played(now + seconds, behaviour.exit_code, behaviour.log)

    def _submitter(self, pod: Object, now: float) -> Program:
        namespace = pod["metadata"]["namespace"]
        job = self._mirror.get("rayjobs", namespace, pod["metadata"]["labels"][manifests.CR_NAME])
        status = job["status"] if job else {}
        if job is None or "rayClusterName" not in status:  # deleted or suspended a moment ago
            return Played(shutdown=self._pace.shutdown)
        cluster, behaviour = (namespace, status["rayClusterName"]), self._script.of(*key_of(job))
        entrypoint = job["spec"].get("entrypoint", "")
        return Submitter(self.dashboards, cluster, status["jobId"], entrypoint, behaviour, self._pace, now)

    def _launcher(self, pod: Object, container: Object) -> Callable[[str, str], Run]:
        def launch(job_id: str, entrypoint: str) -> Run:
            if self._processes is None:
                return PlayedRun(self._kubelet.behaviour(pod), self._pace, time.monotonic())
            argv = ["/bin/sh", "-c", entrypoint]
            # No Ray runs in the head for it to join.
            alone = {**container, "env": [e for e in container.get("env", ()) if e["name"] != "RAY_ADDRESS"]}
            return RealRun(self._processes.start(pod, alone, argv, label=f"-{job_id}"))

        return launch

    def _ended(self, pod: Object, container: Object) -> None:
        if role_of(pod) == "head" and container["name"] == pod["spec"]["containers"][0]["name"]:
            self.dashboards.close(_cluster_of(pod))

    def _job_running_since(self, pod: Object) -> float | None:
        cluster = _cluster_of(pod)
        if role_of(pod) == "submitter":
            job = self._mirror.get("rayjobs", cluster[0], pod["metadata"]["labels"].get(manifests.CR_NAME, ""))
            cluster = cluster[0], job["status"].get("rayClusterName", "") if job else ""
        dashboard = self.dashboards.raw(cluster)
        started = [job.started for job in dashboard.jobs.values() if job.started] if dashboard else []
        return min(started, default=None)

    def _dashboard_lost(self, pod: Object) -> None:
        if dashboard := self.dashboards.raw(_cluster_of(pod)):
            dashboard.reachable = False


def _cluster_of(pod: Object) -> Key:
    return pod["metadata"]["namespace"], pod["metadata"].get("labels", {}).get(manifests.CLUSTER, "")
