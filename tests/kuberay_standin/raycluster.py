"""RayClusters: their pods, Services and conditions, as KubeRay's second controller keeps them.

It makes what is missing and replaces pods that have ended; a terminating pod counts as present. `state: ready` and the
condition RayClusterProvisioned are never taken back. Pods that the apiserver refuses (quota, Pod Security) show as the
condition ReplicaFailure and as an event on the RayCluster, and are tried again ever more slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from kuberay_standin import manifests, pods
from kuberay_standin.api import Api, ApiError, Mirror, Object, key_of, timestamp
from kuberay_standin.script import Pace, Script


@dataclass
class Retry:
    """When to try refused pods of a cluster again."""

    at: float = 0.0
    delay: float = 1.0


class RayClusters:
    """Reconciles RayClusters."""

    def __init__(self, api: Api, mirror: Mirror, script: Script, pace: Pace) -> None:
        self._api, self._mirror, self._script, self._pace = api, mirror, script, pace
        self._furnished: set[str] = set()
        self._retries: dict[str, Retry] = {}

    def reconcile(self, cluster: Object, now: float) -> None:
        """One look at a RayCluster. Raises ApiError."""
        meta = cluster["metadata"]
        if "deletionTimestamp" in meta:
            return
        if meta["uid"] not in self._furnished:
            self._furnish(cluster)
            self._furnished.add(meta["uid"])
        retry = self._retries.setdefault(meta["uid"], Retry())
        failure: Object | None = None
        if now >= retry.at:
            failure = self._pods(cluster, retry, now)
        self._status(cluster, failure, refused=now < retry.at)

    def _furnish(self, cluster: Object) -> None:
        """What a cluster needs beside pods."""
        name = cluster["metadata"]["name"]
        extras = [("services", manifests.head_service(cluster, f"{name}-head-svc", name))]
        auth = cluster["spec"].get("authOptions", {})
        if auth.get("mode") == "token" and "secretName" not in auth:
            extras.append(("secrets", manifests.auth_secret(cluster)))
        if cluster["spec"].get("enableInTreeAutoscaling"):
            extras += manifests.autoscaler_rights(cluster)
        for resource, obj in extras:
            try:
                self._api.create(resource, obj)
            except ApiError as error:
                if error.status != 409:
                    raise

    def _pods(self, cluster: Object, retry: Retry, now: float) -> Object | None:
        """Make and replace pods; the condition of a refusal."""
        behaviour = self._script.of(key_of(cluster)[0], cluster["metadata"]["labels"][manifests.CR_NAME])
        try:
            heads = self._clear(cluster, "head", "headgroup")
            stays_away = cluster["metadata"].get("annotations", {}).get(manifests.HEAD_STAYS_AWAY) == "true"
            if not heads and not (stays_away and _is(cluster, "RayClusterProvisioned")):
                self._create(cluster, pods.head_pod(cluster, behaviour.head == "unschedulable"), "Head")
            for group in cluster["spec"].get("workerGroupSpecs", ()):
                present = self._named(cluster, group, self._clear(cluster, "worker", group["groupName"]))
                for _ in range(_wanted(group) - len(present)):
                    pod = pods.worker_pod(cluster, group, behaviour.worker == "unschedulable")
                    self._create(cluster, pod, "Worker")
                if not cluster["spec"].get("enableInTreeAutoscaling"):  # else only the autoscaler chooses
                    for pod in islice(present, _wanted(group), None):
                        self._api.delete("pods", pod)
        except _RefusedError as refused:
            retry.at, retry.delay = now + retry.delay * self._pace.scale, min(2 * retry.delay, 300.0)
            reason = f"FailedCreate{refused.what}Pod"
            return {"type": "ReplicaFailure", "status": "True", "reason": reason, "message": str(refused)}
        retry.delay = 1.0
        return None

    def _named(self, cluster: Object, group: Object, present: list[Object]) -> list[Object]:
        """The pods of a group without those that the autoscaler named; these are deleted, and count no more."""
        named = group.get("scaleStrategy", {}).get("workersToDelete", ())
        for pod in present:
            if pod["metadata"]["name"] in named and "deletionTimestamp" not in pod["metadata"]:
                self._api.delete("pods", pod)
                message = f"Deleted pod {'/'.join(key_of(pod))}"
                self._api.event(cluster, "DeletedWorkerPod", message, kind="Normal", source="raycluster-controller")
        return [pod for pod in present if pod["metadata"]["name"] not in named]

    def _clear(self, cluster: Object, node_type: str, group: str) -> list[Object]:
        """The pods of a group that are there; those that have ended are deleted."""
        found = [pod for pod in self._of(cluster, node_type) if pod["metadata"]["labels"][manifests.GROUP] == group]
        for pod in found:
            if _ended(pod) and "deletionTimestamp" not in pod["metadata"]:
                self._api.delete("pods", pod)
                what = "head" if node_type == "head" else "worker"
                message = f"Deleted {what} Pod {'/'.join(key_of(pod))}; Pod status: {pod['status']['phase']}"
                self._api.event(
                    cluster, f"Deleted{what.title()}Pod", message, kind="Normal", source="raycluster-controller"
                )
        return found

    def _create(self, cluster: Object, pod: Object, what: str) -> None:
        where = f"{what.lower()} Pod {'/'.join(key_of(pod))}"
        try:
            self._mirror.put("pods", self._api.create("pods", pod))
        except ApiError as error:
            message = f"Failed to create {where}, {error}"
            self._api.event(cluster, f"FailedToCreate{what}Pod", message, source="raycluster-controller")
            raise _RefusedError(what, message) from error
        self._api.event(cluster, f"Created{what}Pod", f"Created {where}", kind="Normal", source="raycluster-controller")

    def _of(self, cluster: Object, node_type: str) -> list[Object]:
        def mine(pod: Object) -> bool:
            labels = pod["metadata"].get("labels", {})
            owners = {owner["uid"] for owner in pod["metadata"].get("ownerReferences", ())}
            return labels.get(manifests.NODE_TYPE) == node_type and cluster["metadata"]["uid"] in owners

        return [pod for pod in self._mirror.all("pods") if mine(pod)]

    def _status(self, cluster: Object, failure: Object | None, refused: bool) -> None:
        spec, old = cluster["spec"], cluster.get("status", {})
        groups = spec.get("workerGroupSpecs", [])
        heads, workers = self._of(cluster, "head"), self._of(cluster, "worker")
        running = [pod for pod in workers if pod["status"].get("phase") == "Running"]
        ready = [pod for pod in workers if _is(pod, "Ready")]
        desired = sum(_wanted(group) for group in groups)
        complete = len(heads) == 1 and len(workers) == desired and all(_is(pod, "Ready") for pod in (*heads, *workers))
        conditions = [
            _head_condition(heads),
            *(c for c in old.get("conditions", ()) if c["type"] == "RayClusterProvisioned"),
        ]
        if complete and len(conditions) == 1:
            reason = {
                "reason": "AllPodRunningAndReadyFirstTime",
                "message": "All Ray Pods are ready for the first time",
            }
            conditions.append({"type": "RayClusterProvisioned", "status": "True", **reason})
        elif len(conditions) == 1:
            reason = {
                "reason": "RayClusterPodsProvisioning",
                "message": "RayCluster Pods are being provisioned for first time",
            }
            conditions.append({"type": "RayClusterProvisioned", "status": "False", **reason})
        elif complete:
            conditions[1] = {**conditions[1], "status": "True", "reason": "AllPodRunningAndReadyFirstTime"}
            conditions[1]["message"] = "All Ray Pods are ready for the first time"
        if failure is None and refused:  # not tried again yet
            failure = next((c for c in old.get("conditions", ()) if c["type"] == "ReplicaFailure"), None)
        if failure:
            conditions.append(failure)
        status: Object = {
            "desiredWorkerReplicas": desired,
            "minWorkerReplicas": sum(group.get("minReplicas", 0) for group in groups),
            "maxWorkerReplicas": min(sum(group.get("maxReplicas", 0) for group in groups), 2147483647),
            "availableWorkerReplicas": len(running),
            "readyWorkerReplicas": len(ready),
            "endpoints": {"dashboard": "8265", "gcs-server": "6379", "client": "10001", "metrics": "8080"},
            "head": _head_info(cluster, heads),
            "conditions": _stamped(conditions, old.get("conditions", [])),
            "observedGeneration": cluster["metadata"]["generation"],
        }
        if complete or old.get("state") == "ready":
            times = old.get("stateTransitionTimes") or {"ready": timestamp()}
            status |= {"state": "ready", "stateTransitionTimes": times}
        if failure:
            status["reason"] = failure["message"]
        if status != {k: v for k, v in old.items() if k != "lastUpdateTime"}:
            path = self._api.path("rayclusters", *key_of(cluster), "status")
            new = {**cluster, "status": status | {"lastUpdateTime": timestamp()}}
            self._mirror.put("rayclusters", self._api.call("PUT", path, new))


class _RefusedError(Exception):
    """The apiserver did not take a pod."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


def _ended(pod: Object) -> bool:
    """Whether Ray will not run in it again: the pod is over, or Ray's container is and stays so."""
    status = pod["status"]
    if status.get("phase") in ("Failed", "Succeeded"):
        return True
    ray = pod["spec"]["containers"][0]["name"]
    over = any(s["name"] == ray and "terminated" in s.get("state", {}) for s in status.get("containerStatuses", ()))
    return over and pod["spec"].get("restartPolicy") == "Never"


def _wanted(group: Object) -> int:
    replicas = max(group.get("replicas", 0), group.get("minReplicas", 0))
    return int(min(replicas, group.get("maxReplicas", 2147483647)) * group.get("numOfHosts", 1))


def _condition(obj: Object, kind: str) -> Object | None:
    return next((c for c in obj.get("status", {}).get("conditions", ()) if c["type"] == kind), None)


def _is(obj: Object, kind: str) -> bool:
    condition = _condition(obj, kind)
    return condition is not None and condition["status"] == "True"


def _head_condition(heads: list[Object]) -> Object:
    found: Object = {
        "type": "HeadPodReady",
        "status": "False",
        "reason": "HeadPodNotFound",
        "message": "Head Pod not found",
    }
    if not heads:
        return found
    ready = _condition(heads[0], "Ready")
    if ready is None:  # not scheduled, so no kubelet has said anything
        return found | {"reason": "Unknown", "message": ""}
    found |= {"status": ready["status"], "message": ready.get("message", "")}
    found["reason"] = ready.get("reason") or ("HeadPodRunningAndReady" if ready["status"] == "True" else "Unknown")
    if found["reason"] == "ContainersNotReady":
        states = [
            s["state"]["waiting"] for s in heads[0]["status"].get("containerStatuses", ()) if "waiting" in s["state"]
        ]
        if states:
            found |= {"reason": states[0]["reason"], "message": states[0].get("message", "")}
    return found


def _head_info(cluster: Object, heads: list[Object]) -> Object:
    info: dict[str, Any] = {"serviceName": f"{cluster['metadata']['name']}-head-svc"}
    if heads:
        info["podName"] = heads[0]["metadata"]["name"]
        if ip := heads[0]["status"].get("podIP"):
            info |= {"podIP": ip, "serviceIP": ip}
    return info


def _stamped(conditions: list[Object], old: list[Object]) -> list[Object]:
    """Conditions with the time of their last change of status."""
    known = {c["type"]: c for c in old}
    same = {kind: c["lastTransitionTime"] for kind, c in known.items()}
    return [
        {**c, "lastTransitionTime": same[c["type"]]}
        if c["type"] in known and known[c["type"]]["status"] == c["status"]
        else {**c, "lastTransitionTime": timestamp()}
        for c in conditions
    ]
