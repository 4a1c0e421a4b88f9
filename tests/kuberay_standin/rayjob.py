"""RayJobs: KubeRay's state machine.

    New -> Initializing -> Running (or Waiting -> Running) -> Complete | Failed [-> Retrying -> New]
    Initializing | Waiting | Running -> Suspending -> Suspended -> New
    anything -> ValidationFailed, for ever

A status is written as a whole, with the resource version it was decided on; a conflict means to look again. Nothing
here looks at pods: KubeRay knows the RayCluster's status, the submitter's Job and what the dashboard says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from copy import deepcopy

from kuberay_standin import manifests
from kuberay_standin.api import Api, ApiError, Mirror, Object, key_of, seconds_of, timestamp
from kuberay_standin.job_api import TERMINAL, JobApi, UnreachableError
from kuberay_standin.script import Pace, Script

_KEPT_WHEN_SUSPENDED = ("startTime", "endTime", "failed", "succeeded")
_SOURCE = "rayjob-controller"
_STAMP_SECONDS = 3.0  # times of the API are whole seconds: shorter waits would end before they began
_CONTROLLER_SECONDS = 30.0  # the Job controller is a real one, and does not know the pace


class RayJobs:
    """Reconciles RayJobs."""

    def __init__(self, api: Api, mirror: Mirror, dashboards: JobApi, script: Script, pace: Pace) -> None:
        self._api, self._mirror, self._dashboards = api, mirror, dashboards
        self._script, self._pace = script, pace
        self._stopped: dict[str, float] = {}

    def reconcile(self, job: Object, now: float) -> None:
        """One look at a RayJob. Raises ApiError."""
        if job["spec"].get("managedBy", "ray.io/kuberay-operator") != "ray.io/kuberay-operator":
            return
        if "deletionTimestamp" in job["metadata"]:
            self._let_go(job, now)
            return
        status = deepcopy(job.get("status", {}))
        state = status.get("jobDeploymentStatus", "")
        behaviour = self._script.of(*key_of(job))
        if state == "ValidationFailed" or (state and state == behaviour.stuck):
            return
        refusal = ("InvalidRayJobSpec", behaviour.invalid) if behaviour.invalid else manifests.invalid(job)
        if refusal:
            reason, sentence = refusal
            self._api.event(job, reason, f"{'/'.join(key_of(job))}: {sentence}", source=_SOURCE)
            status |= {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": sentence}
            self._write(job, status)
            return
        steps: dict[str, Callable[[Object, Object, float], None]] = {
            "": self._new,
            "Initializing": self._initializing,
            "Waiting": self._waiting,
            "Running": self._running,
            "Suspending": self._clearing,
            "Retrying": self._clearing,
            "Suspended": self._suspended,
            "Complete": self._over,
            "Failed": self._over,
        }
        steps[state](job, status, now)
        if status.get("jobDeploymentStatus", "") in ("Complete", "Failed") and state not in ("Complete", "Failed"):
            count = "succeeded" if status["jobDeploymentStatus"] == "Complete" else "failed"
            status[count] = status.get(count, 0) + 1
            status["endTime"] = timestamp()
        self._write(job, status)

    # States, each changing `status` ---------------------------------------------------------------------------------

    def _new(self, job: Object, status: Object, now: float) -> None:
        if manifests.FINALIZER not in job["metadata"].get("finalizers", ()):
            path = self._api.path("rayjobs", *key_of(job))
            job.update(self._api.call("PUT", path, manifests.taken_over(job)))
            self._mirror.put("rayjobs", job)
        name = job["metadata"]["name"]
        status["jobId"] = job["spec"].get("jobId") or f"{name}-{manifests.suffix()}"
        status["rayClusterName"] = f"{name}-{manifests.suffix()}"
        status |= {"jobDeploymentStatus": "Initializing", "startTime": timestamp(), "jobStatus": ""}

    def _initializing(self, job: Object, status: Object, now: float) -> None:
        if self._suspends(job, status) or self._too_late(job, status, before_running=True):
            return
        cluster = self._cluster(job)
        if cluster is None:
            cluster = self._api.create("rayclusters", manifests.ray_cluster(job, status["rayClusterName"]))
            self._mirror.put("rayclusters", cluster)
            message = f"Created RayCluster {'/'.join(key_of(cluster))}"
            self._api.event(job, "CreatedRayCluster", message, kind="Normal", source=_SOURCE)
        status["rayClusterStatus"] = deepcopy(cluster.get("status", {}))
        if cluster.get("status", {}).get("state") != "ready":
            return
        namespace, name = key_of(job)
        status["dashboardURL"] = f"{cluster['metadata']['name']}-head-svc.{namespace}.svc.cluster.local:8265"
        service = manifests.head_service(job, f"{name}-head-svc", cluster["metadata"]["name"])
        self._point_service(service)
        mode = job["spec"].get("submissionMode", "K8sJobMode")
        if mode == "K8sJobMode" and not self._submitter(job):
            nowhere = self._script.of(namespace, name).submitter == "unschedulable"
            submitter = manifests.submitter_job({**job, "status": status}, nowhere)
            try:
                self._mirror.put("jobs", self._api.create("jobs", submitter))
            except ApiError as error:
                message = f"Failed to create new Kubernetes Job {namespace}/{name}: {error}"
                self._api.event(job, "FailedToCreateRayJobSubmitter", message, source=_SOURCE)
                raise
            message = f"Created Kubernetes Job {namespace}/{name}"
            self._api.event(job, "CreatedRayJobSubmitter", message, kind="Normal", source=_SOURCE)
        status["jobDeploymentStatus"] = "Waiting" if mode == "InteractiveMode" else "Running"

    def _waiting(self, job: Object, status: Object, now: float) -> None:
        if self._suspends(job, status) or self._too_late(job, status, before_running=True):
            return
        if job_id := job["spec"].get("jobId"):
            status |= {"jobId": job_id, "jobDeploymentStatus": "Running"}

    def _running(self, job: Object, status: Object, now: float) -> None:
        if self._suspends(job, status) or self._too_late(job, status, before_running=False):
            return
        has_submitter = job["spec"].get("submissionMode", "K8sJobMode") == "K8sJobMode"
        finished: float | None = None
        if has_submitter:
            submitter = self._submitter(job)
            end = _end_of(submitter) if submitter else None
            if end and end["type"] == "Failed":
                status["jobDeploymentStatus"] = "Failed"
                if status.get("jobStatus") == "FAILED":
                    status["reason"] = "AppFailed"
                else:
                    words = f"Reason: {end['reason']}. Message: {end['message']}"
                    status |= {"reason": "SubmissionFailed", "message": f"Job submission has failed. {words}"}
                return
            finished = seconds_of(end["lastTransitionTime"]) if end else None
            if (
                finished
                and time.time() >= finished + max(self._pace.finished, _STAMP_SECONDS)
                and status.get("jobStatus") not in TERMINAL
            ):
                status |= {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed"}
                status["reason"] = "JobDeploymentStatusTransitionGracePeriodExceeded"
                words = f"{timestamp(finished)} but the ray job did not reach terminal state"
                status["message"] = f"The RayJob submitter finished at {words} within {self._pace.finished:g}s"
                return
        where = key_of(job)[0], status["rayClusterName"]
        try:
            ray_job = self._dashboards.job(where, status["jobId"])
            if ray_job is None and not has_submitter:
                self._dashboards.submit(where, status["jobId"], job["spec"]["entrypoint"])
        except UnreachableError:
            since = status.setdefault("jobStatusCheckFailureStartTime", timestamp())
            if time.time() >= seconds_of(since) + self._pace.unreachable:
                status |= {"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}
                status["message"] = f"The Ray dashboard could not be reached for {self._pace.unreachable:g}s"
            return
        status.pop("jobStatusCheckFailureStartTime", None)
        if ray_job is None:
            if finished:
                status |= {"jobDeploymentStatus": "Failed", "reason": "AppFailed"}
                status["message"] = "Submitter completed but Ray job not found in RayCluster."
            return
        info = {"startTime": timestamp(ray_job.started)} if ray_job.started else {}
        if ray_job.ended:
            info["endTime"] = timestamp(ray_job.ended)
        status |= {"jobStatus": ray_job.status, "message": ray_job.message, "rayJobInfo": info}
        if cluster := self._cluster(job):
            status["rayClusterStatus"] = deepcopy(cluster.get("status", {}))
        if ray_job.status not in TERMINAL:
            return
        late = time.time() >= ray_job.ended + max(self._pace.unreachable, _CONTROLLER_SECONDS)
        if finished or not has_submitter or late:
            failed = ray_job.status == "FAILED"
            status["jobDeploymentStatus"] = "Failed" if failed else "Complete"
            if failed:
                status["reason"] = "AppFailed"
            if has_submitter and not finished:
                status["reason"] = "JobDeploymentStatusTransitionGracePeriodExceeded"

    def _clearing(self, job: Object, status: Object, now: float) -> None:
        """Delete RayCluster and submitter; pods may go on terminating when both objects are gone."""
        cluster, submitter = self._cluster(job), self._submitter(job)
        for resource, obj in (("rayclusters", cluster), ("jobs", submitter)):
            if obj and "deletionTimestamp" not in obj["metadata"]:
                self._api.delete(resource, obj)
        if cluster or submitter:
            return
        retrying = status["jobDeploymentStatus"] == "Retrying"
        for name in [name for name in status if name not in _KEPT_WHEN_SUSPENDED]:
            del status[name]
        if not retrying:
            status["jobDeploymentStatus"] = "Suspended"

    def _suspended(self, job: Object, status: Object, now: float) -> None:
        if not job["spec"].get("suspend"):
            status.pop("jobDeploymentStatus")

    def _over(self, job: Object, status: Object, now: float) -> None:
        never_again = status.get("reason") in ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")
        failed = status["jobDeploymentStatus"] == "Failed"
        if failed and not never_again and status.get("failed", 0) < job["spec"].get("backoffLimit", 0) + 1:
            status["jobDeploymentStatus"] = "Retrying"
            return
        ttl = job["spec"].get("ttlSecondsAfterFinished", 0)
        if job["spec"].get("shutdownAfterJobFinishes") and time.time() >= seconds_of(status["endTime"]) + ttl:
            cluster = self._cluster(job)
            if cluster and "deletionTimestamp" not in cluster["metadata"]:
                self._api.delete("rayclusters", cluster)
                message = f"Deleted cluster {'/'.join(key_of(cluster))}"
                self._api.event(job, "DeletedRayCluster", message, kind="Normal", source=_SOURCE)

    # What several states share ---------------------------------------------------------------------------------------

    def _suspends(self, job: Object, status: Object) -> bool:
        if job["spec"].get("suspend"):
            status["jobDeploymentStatus"] = "Suspending"
            return True
        return False

    def _too_late(self, job: Object, status: Object, *, before_running: bool) -> bool:
        limits = [("activeDeadlineSeconds", "DeadlineExceeded")]
        if before_running:
            limits.append(("preRunningDeadlineSeconds", "PreRunningDeadlineExceeded"))
        for name, reason in limits:
            limit = job["spec"].get(name)
            if limit and time.time() >= seconds_of(status["startTime"]) + limit:
                words = f"StartTime: {status['startTime']}. {name[0].upper()}{name[1:]}: {limit}"
                message = f"The RayJob has passed the {name}. {words}"
                status |= {"jobDeploymentStatus": "Failed", "reason": reason, "message": message}
                return True
        return False

    def _let_go(self, job: Object, now: float) -> None:
        """Stop what runs, then drop the finalizer; garbage collection does the rest."""
        meta, status = job["metadata"], job.get("status", {})
        if manifests.FINALIZER not in meta.get("finalizers", ()):
            return
        if meta["uid"] not in self._stopped:
            self._stopped[meta["uid"]] = now
            if status.get("jobStatus", "") not in TERMINAL:
                with contextlib.suppress(UnreachableError):  # then nothing runs
                    self._dashboards.stop(
                        (meta["namespace"], status.get("rayClusterName", "")), status.get("jobId", "")
                    )
        if now < self._stopped[meta["uid"]] + self._script.of(*key_of(job)).finalizer_seconds:
            return
        rest = [f for f in meta["finalizers"] if f != manifests.FINALIZER]
        without = {**job, "metadata": {**meta, "finalizers": rest}}
        try:
            self._api.call("PUT", self._api.path("rayjobs", *key_of(job)), without)
        except ApiError as error:
            if error.status != 404:
                raise

    def _cluster(self, job: Object) -> Object | None:
        name = job.get("status", {}).get("rayClusterName", "")
        return self._mirror.get("rayclusters", key_of(job)[0], name)

    def _submitter(self, job: Object) -> Object | None:
        found = self._mirror.get("jobs", *key_of(job))
        owners = {owner["uid"] for owner in found["metadata"].get("ownerReferences", ())} if found else set()
        return found if job["metadata"]["uid"] in owners else None

    def _point_service(self, service: Object) -> None:
        try:
            self._api.create("services", service)
        except ApiError as error:
            if error.status != 409:
                raise
            path = self._api.path("services", *key_of(service))
            selector = {"spec": {"selector": service["spec"]["selector"]}}
            self._api.call("PATCH", path, selector, kind="application/merge-patch+json")

    def _write(self, job: Object, status: Object) -> None:
        if status != job.get("status", {}):
            path = self._api.path("rayjobs", *key_of(job), "status")
            self._mirror.put("rayjobs", self._api.call("PUT", path, {**job, "status": status}))


def _end_of(submitter: Object) -> Object | None:
    """The condition that a batch Job has ended with."""
    conditions = submitter.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)
