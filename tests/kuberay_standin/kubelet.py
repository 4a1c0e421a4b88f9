"""One Node, and the pods that the real scheduler binds to it.

It plays a kubelet without containers: pods become ContainerCreating, Running, ready, they end, restart in place, are
evicted, and terminate for their grace period after they were deleted. What their containers do is a program
(programs.py). The Node is large, so what the scheduler refuses is what a script or a test asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kuberay_standin.api import Api, ApiError, Key, Mirror, Object, key_of, timestamp
from kuberay_standin.manifests import CLUSTER, CR_NAME, NODE_TYPE, SUBMITTER
from kuberay_standin.processes import MissingError
from kuberay_standin.programs import Program
from kuberay_standin.script import Behaviour, Disturbed, Pace, Script

JOB = "batch.kubernetes.io/job-name"
_CAPACITY = {"cpu": "64", "memory": "1Ti", "ephemeral-storage": "1Ti", "pods": "10000", "nvidia.com/gpu": "64"}
_PATCH = "application/strategic-merge-patch+json"
_HEARTBEAT_SECONDS = 10.0


@dataclass
class Container:
    """One container of a pod."""

    spec: Object
    program: Program | None = None
    started: float = 0.0
    restarts: int = 0
    waiting: str = "ContainerCreating"
    ended: Object | None = None
    """The `terminated` state of its end."""
    last: Object | None = None
    """That of its previous run."""
    restart_at: float = 0.0
    log: bytes = b""
    """What it wrote, once it has ended."""


@dataclass
class Sandbox:
    """What the kubelet remembers of a pod."""

    seen: float
    containers: list[Container]
    ip: str
    running: float = 0.0
    """Since when its containers run."""
    stopping: float = 0.0
    lost: float = 0.0
    """Since when its node is lost."""
    next_try: float = 0.0
    evicted: bool = False
    written: Object = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """What the rest of the stand-in does about containers."""

    start: Callable[[Object, Object, float], Program]
    """Start a container of a pod. Raises MissingError."""
    ended: Callable[[Object, Object], None]
    """A container of a pod has ended."""
    job_running_since: Callable[[Object], float | None]
    """When the entry point of a Ray pod's cluster began; for other pods not asked."""
    dashboard_lost: Callable[[Object], None]


class Kubelet:
    """Plays the pods bound to its node."""

    def __init__(self, api: Api, mirror: Mirror, script: Script, pace: Pace, hooks: Hooks, node: str) -> None:
        self._api, self._mirror, self._script, self._pace, self._hooks, self._node = (
            api,
            mirror,
            script,
            pace,
            hooks,
            node,
        )
        self._sandboxes: dict[str, Sandbox] = {}
        self._fired: set[tuple[Key, int]] = set()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="node-lease", daemon=True)
        self._ips = itertools.count(2)

    def start(self, log_port: int) -> None:
        """Register the node and keep it alive. `log_port`: where its containers' logs are served."""
        labels = {"kubernetes.io/hostname": self._node, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        try:
            self._api.create(
                "nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._node, "labels": labels}}
            )
        except ApiError as error:
            if error.status != 409:
                raise
        now = timestamp()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played"}
        ready |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
        status = {"capacity": _CAPACITY, "allocatable": _CAPACITY, "conditions": [ready]}
        status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": log_port}}
        status["addresses"] = [{"type": "InternalIP", "address": "127.0.0.1"}]
        self._api.call("PATCH", self._api.path("nodes", "", self._node, "status"), {"status": status}, kind=_PATCH)
        taints = {"spec": {"taints": None}}  # the node controller would take not-ready away too, a little later
        self._api.call("PATCH", self._api.path("nodes", "", self._node), taints, kind="application/merge-patch+json")
        self._heart.start()

    def stop(self) -> None:
        """End everything that runs, and take the node away."""
        self._stop.set()
        for sandbox in self._sandboxes.values():
            for container in sandbox.containers:
                if container.program:
                    container.program.kill()
        with contextlib.suppress(ApiError):  # the apiserver may have ended first
            if node := self._api.get("nodes", "", self._node):
                self._api.delete("nodes", node)

    def tick(self, now: float) -> None:
        """One look at every pod of the node."""
        pods = [pod for pod in self._mirror.all("pods") if pod["spec"].get("nodeName") == self._node]
        for pod in pods:
            try:
                self._tick(pod, now)
            except ApiError as error:
                error.tell()
        for uid in self._sandboxes.keys() - {pod["metadata"]["uid"] for pod in pods}:
            self._end_all(None, self._sandboxes.pop(uid))

    def log(self, namespace: str, pod: str, container: str) -> tuple[bytes, bool] | None:
        """What a container has written so far, and whether that is all. May be called from another thread."""
        found = self._mirror.get("pods", namespace, pod)
        sandbox = self._sandboxes.get(found["metadata"]["uid"]) if found else None
        for candidate in sandbox.containers if sandbox else ():
            if candidate.spec["name"] == container:
                program = candidate.program
                return (program.log(), False) if program else (candidate.log, candidate.ended is not None)
        return None

    def behaviour(self, pod: Object) -> Behaviour:
        """What the script says about the RayJob or Job of a pod."""
        return self._script.of(pod["metadata"]["namespace"], self._owner(pod))

    def _owner(self, pod: Object) -> str:
        labels = pod["metadata"].get("labels", {})
        cluster = self._mirror.get("rayclusters", pod["metadata"]["namespace"], labels.get(CLUSTER, ""))
        if cluster:
            labels = cluster["metadata"].get("labels", {})
        return str(labels.get(CR_NAME) or labels.get(JOB) or pod["metadata"]["name"])

    def _tick(self, pod: Object, now: float) -> None:
        uid = pod["metadata"]["uid"]
        if pod["status"].get("phase") in ("Succeeded", "Failed"):
            if "deletionTimestamp" in pod["metadata"]:
                self._api.delete("pods", pod, grace=0)
            return
        if uid not in self._sandboxes:
            containers = [Container(spec) for spec in pod["spec"]["containers"]]
            number = next(self._ips)
            address = f"10.201.{number // 250 % 250}.{number % 250 + 2}"
            self._sandboxes[uid] = Sandbox(now, containers, pod["status"].get("podIP", address))
        sandbox = self._sandboxes[uid]
        if "deletionTimestamp" in pod["metadata"] and not sandbox.stopping:
            sandbox.stopping = now
            for container in sandbox.containers:
                if container.program:
                    container.program.terminate(now)
        if sandbox.running and not sandbox.lost:
            self._run(pod, sandbox, now)
        elif not sandbox.running and not sandbox.stopping:
            self._prepare(pod, sandbox, now)
        if sandbox.stopping:
            self._stop_pod(pod, sandbox, now)
        elif not sandbox.lost and not sandbox.evicted:
            self._finish(pod, sandbox, now)

    def _prepare(self, pod: Object, sandbox: Sandbox, now: float) -> None:
        behaviour, role = self.behaviour(pod), role_of(pod)
        if role in ("head", "worker", "submitter") and getattr(behaviour, role) == "image-pull":
            late = now >= sandbox.seen + self._pace.restart
            reason = "ImagePullBackOff" if late else "ErrImagePull"
            if sandbox.containers[0].waiting != reason:
                image = sandbox.containers[0].spec["image"]
                self._api.event(
                    pod, "Failed", f'Failed to pull image "{image}": rpc error: code = NotFound: {image}: not found'
                )
            for container in sandbox.containers:
                container.waiting = reason
        elif now >= sandbox.seen + self._pace.container and now >= sandbox.next_try:
            try:
                for container in sandbox.containers:
                    if container.program is None:
                        self._start(pod, container, now)
                sandbox.running = now
            except MissingError as error:
                sandbox.next_try = now + self._pace.restart
                self._api.event(pod, error.reason, str(error))
                if error.reason == "Failed":
                    container.waiting = "CreateContainerConfigError"

    def _start(self, pod: Object, container: Container, now: float) -> None:
        container.program = self._hooks.start(pod, container.spec, now)
        container.started, container.ended, container.restart_at = now, None, 0.0

    def _run(self, pod: Object, sandbox: Sandbox, now: float) -> None:
        policy = pod["spec"].get("restartPolicy", "Always")
        for container in sandbox.containers:
            if container.program and (code := container.program.poll(now)) is not None:
                message = container.program.message(container.spec.get("terminationMessagePolicy", "File"))
                self._end(pod, container, code, "Completed" if code == 0 else "Error", message)
            restarts = policy == "Always" or (policy == "OnFailure" and container.ended and container.ended["exitCode"])
            if container.ended and restarts and not sandbox.stopping:
                container.restart_at = container.restart_at or now + self._pace.restart
                if now >= container.restart_at:
                    container.last, container.restarts = container.ended, container.restarts + 1
                    self._start(pod, container, now)
        if not sandbox.stopping:
            self._disturb(pod, sandbox, now)

    def _end(self, pod: Object | None, container: Container, code: int, reason: str, message: str = "") -> None:
        end: Object = {"exitCode": code, "reason": reason, "finishedAt": timestamp()}
        container.log = container.program.log() if container.program else b""
        container.ended = end | {"startedAt": timestamp(container.started)} | ({"message": message} if message else {})
        container.program = None
        if pod:
            self._hooks.ended(pod, container.spec)

    def _end_all(self, pod: Object | None, sandbox: Sandbox, reason: str = "Error") -> None:
        for container in sandbox.containers:
            if container.program:
                container.program.kill()
                self._end(pod, container, 137, reason)

    def _finish(self, pod: Object, sandbox: Sandbox, now: float) -> None:
        """Write what changed, and the end if every container is done for good."""
        policy = pod["spec"].get("restartPolicy", "Always")
        codes = [c.ended["exitCode"] for c in sandbox.containers if c.ended]
        done = len(codes) == len(sandbox.containers) and (
            policy == "Never" or (policy == "OnFailure" and not any(codes))
        )
        phase = ("Failed" if any(codes) else "Succeeded") if done else "Running" if sandbox.running else "Pending"
        self._write(pod, sandbox, self._status(pod, sandbox, phase, now))

    def _stop_pod(self, pod: Object, sandbox: Sandbox, now: float) -> None:
        if sandbox.lost and now < sandbox.lost + self._pace.lost:
            return
        running = [c for c in sandbox.containers if c.program]
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 30))
        grace *= 1.0 if any(c.program and c.program.real for c in running) else self._pace.scale
        if running and now < sandbox.stopping + grace:
            return
        self._end_all(pod, sandbox)
        codes = [c.ended["exitCode"] for c in sandbox.containers if c.ended]
        phase = "Succeeded" if codes and not any(codes) else "Failed"
        self._write(pod, sandbox, self._status(pod, sandbox, phase, now))
        self._api.delete("pods", pod, grace=0)

    def _status(self, pod: Object, sandbox: Sandbox, phase: str, now: float) -> Object:
        delay = {"head": self._pace.head, "worker": self._pace.worker}.get(role_of(pod), 0.0)
        ready = phase == "Running" and all(c.program and now >= c.started + delay for c in sandbox.containers)
        # Null removes what an earlier patch wrote.
        reason = {"reason": None if ready else "PodCompleted" if phase == "Succeeded" else "ContainersNotReady"}
        conditions = [
            {"type": "PodReadyToStartContainers", "status": "True" if sandbox.running else "False"},
            {"type": "Initialized", "status": "True"},
            *({"type": kind, "status": str(ready), **reason} for kind in ("ContainersReady", "Ready")),
        ]
        statuses = [_container_status(c, bool(c.program) and ready) for c in sandbox.containers]
        status: Object = {"phase": phase, "conditions": conditions, "containerStatuses": statuses}
        status |= {"hostIP": "127.0.0.1", "startTime": timestamp(sandbox.seen)}
        if sandbox.running:
            status |= {"podIP": sandbox.ip, "podIPs": [{"ip": sandbox.ip}]}
        return status

    def _write(self, pod: Object, sandbox: Sandbox, status: Object, **more: object) -> None:
        status |= more
        if status == sandbox.written:
            return
        since = {c["type"]: c for c in pod["status"].get("conditions", ())}
        stamped = [
            {**c, "lastTransitionTime": since[c["type"]]["lastTransitionTime"]}
            if c["type"] in since and since[c["type"]]["status"] == c["status"]
            else {**c, "lastTransitionTime": timestamp()}
            for c in status["conditions"]
        ]
        self.patch_status(pod, {**status, "conditions": stamped})
        sandbox.written = status

    def patch_status(self, pod: Object, status: Object) -> None:
        """Merge into a pod's status."""
        path = self._api.path("pods", *key_of(pod), "status")
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        self._mirror.put("pods", self._api.call("PATCH", path, body, kind=_PATCH))

    def _disturb(self, pod: Object, sandbox: Sandbox, now: float) -> None:
        role = role_of(pod)
        since = self._hooks.job_running_since(pod) if role != "pod" else sandbox.running
        for number, event in enumerate(self.behaviour(pod).events):
            key = (pod["metadata"]["namespace"], self._owner(pod)), number
            if event.pod == role and since and now >= since + event.after and key not in self._fired:
                self._fired.add(key)
                self._happen(pod, sandbox, event, now)

    def _happen(self, pod: Object, sandbox: Sandbox, event: Disturbed, now: float) -> None:
        if event.do == "dashboard-lost":
            self._hooks.dashboard_lost(pod)
        elif event.do in ("kill", "oom"):
            container = sandbox.containers[0]
            if container.program:
                container.program.kill()
                self._end(pod, container, 137, "OOMKilled" if event.do == "oom" else "Error")
        elif event.do == "evict":
            self._end_all(pod, sandbox)
            message = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi."
            status = self._status(pod, sandbox, "Failed", now)
            status["conditions"].append(disrupted("TerminationByKubelet", message))
            sandbox.evicted = True
            self._write(pod, sandbox, status, reason="Evicted", message=message)
            self._api.event(pod, "Evicted", message)
        elif event.do == "preempt":
            message = "default-scheduler: preempting to accommodate a higher priority pod"
            self.patch_status(pod, {"conditions": [_now(disrupted("PreemptionByScheduler", message))]})
            self._api.event(pod, "Preempted", "Preempted by a pod on node " + self._node, source="default-scheduler")
            self._api.delete("pods", pod)
        elif event.do == "drain":
            meta = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
            self._api.call("POST", self._api.path("pods", *key_of(pod), "eviction"), body)
        elif event.do == "node-lost":
            sandbox.lost = now
            self._end_all(pod, sandbox)
            message = "Taint manager: deleting due to NoExecute taint"
            unready = {"type": "Ready", "status": "False", "reason": "NodeLost"}
            conditions = [_now(unready), _now(disrupted("DeletionByTaintManager", message))]
            self.patch_status(pod, {"conditions": conditions})
            self._api.delete("pods", pod)
        else:
            self._api.delete("pods", pod)

    def _beat(self) -> None:
        namespace = "kube-node-lease"
        path = self._api.path("leases", namespace)
        spec: Object = {"holderIdentity": self._node, "leaseDurationSeconds": 40}
        while not self._stop.is_set():
            spec["renewTime"] = timestamp().replace("Z", ".000000Z")
            lease = {"metadata": {"name": self._node, "namespace": namespace}, "spec": spec}
            try:
                try:
                    merge = "application/merge-patch+json"
                    self._api.call("PATCH", f"{path}/{self._node}", {"spec": spec}, kind=merge)
                except ApiError as error:
                    if error.status != 404:
                        raise
                    self._api.call("POST", path, lease)
            except ApiError:
                pass  # the next beat tries again; the node controller waits for 40 s
            self._stop.wait(_HEARTBEAT_SECONDS)


def role_of(pod: Object) -> str:
    """`head`, `worker`, `submitter`, or `pod` for one without Ray."""
    if pod["spec"]["containers"][0]["name"] == SUBMITTER:
        return "submitter"
    return str(pod["metadata"].get("labels", {}).get(NODE_TYPE, "pod"))


def disrupted(reason: str, message: str) -> Object:
    """The condition of a pod that somebody else ends."""
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


def _now(condition: Object) -> Object:
    return {**condition, "lastTransitionTime": timestamp()}


def _container_status(container: Container, ready: bool) -> Object:
    state: Object = {"waiting": {"reason": container.waiting}}
    if container.program:
        state = {"running": {"startedAt": timestamp(container.started)}}
    elif container.ended:
        state = {"terminated": container.ended}
    elif container.waiting in ("ErrImagePull", "ImagePullBackOff"):
        state["waiting"]["message"] = f'Back-off pulling image "{container.spec["image"]}"'
    status: Object = {"name": container.spec["name"], "image": container.spec["image"], "imageID": "", "state": state}
    status |= {"ready": ready, "started": bool(container.program), "restartCount": container.restarts}
    return status | ({"lastState": {"terminated": container.last}} if container.last else {})
