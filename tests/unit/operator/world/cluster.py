"""The rest of a cluster as random steps: KubeRay, the Job controller, kubelets, Kueue, garbage collection, the stage.

Every step that reality may take next is a `Move`. Those that lead on by themselves are `fair`: taken often enough, they
bring every attempt to an end. The others are accidents. A `frozen` object takes no step any more, for ever.
The steps are those seen on a real cluster with KubeRay 1.7; what really happened to each attempt is in `runs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from unit.operator.world.api import Api, Obj, is_finished, is_live_pod, owner

from camel_ray.operator.names import ATTEMPT, PIPELINE, QUEUE, STAGE

PIPELINE_NAME = "p"
CODES = (0, 1, 10, 12, 20, 22, 23, 24, 25)


class Move(NamedTuple):
    """One thing that may happen next."""

    label: str
    act: Callable[[], object]
    fair: bool


@dataclass
class Run:
    """What really happened to an attempt's object."""

    stage: str
    number: int
    name: str
    uid: str
    pipeline: str
    """Uid of its pipeline."""
    entered: int = 0
    """How often the stage's process was started."""
    code: int | None = None
    """What it ended with."""
    told: bool = False
    """Whether it reached the progress server with its result."""
    frozen: bool = False
    head_lost: bool = False
    refused: bool = False
    """Whether the API server will never take its pods."""
    requeued: bool = False
    """Kueue took its place away once: it may run twice, as Kueue wants it."""
    before: list[int] = field(default_factory=list)
    """What its process had returned by then."""
    deleted_by: str = ""
    """user or operator."""


class Cluster:
    """All that happens beside the operator."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.runs: dict[str, Run] = {}
        self._names = 0

    def appeared(self, obj: Obj) -> None:
        """An attempt's object was created."""
        labels, uid = obj["metadata"]["labels"], obj["metadata"]["uid"]
        self.runs[uid] = Run(labels[STAGE], int(labels[ATTEMPT]), obj["metadata"]["name"], uid, owner(obj) or "")
        if obj["metadata"]["labels"].get(QUEUE):
            self._workload(obj, admitted=False)

    def moves(self) -> list[Move]:
        """What may happen next."""
        found: list[Move] = []
        for obj in list(self.api.objects.values()):
            match obj["kind"]:
                case "RayJob":
                    found += self._of_rayjob(obj)
                case "Job":
                    found += self._of_job(obj)
                case "Pod":
                    found += self._of_pod(obj)
                case "RayCluster" | "Workload" | "ConfigMap" | "PodDisruptionBudget" | "NetworkPolicy":
                    found += self._garbage(obj)
        for run in self.runs.values():
            found += self._of_process(run)
        return found

    def fair_moves(self) -> list[Move]:
        """What happens next if nothing goes wrong."""
        return [move for move in self.moves() if move.fair]

    # KubeRay

    def _of_rayjob(self, job: Obj) -> Iterator[Move]:
        name, status = job["metadata"]["name"], job.get("status", {})
        run = self.runs[job["metadata"]["uid"]]
        cluster = self._cluster_of(job)
        state, ray = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")

        def to(label: str, *, fair: bool = True, **new: str) -> Move:
            return Move(f"{name} {label}", partial(self._rayjob, name, **new), fair)

        def move(label: str, act: Callable[[], object], *, fair: bool = True) -> Move:
            return Move(f"{name} {label}", act, fair)

        yield from self._garbage(job)
        if "deletionTimestamp" in job["metadata"]:
            yield move("finalizer removed", partial(self.api.drop, "RayJob", name))
            return
        if run.frozen:
            return
        if not is_finished(job):
            yield move("stays as it is for ever", partial(setattr, run, "frozen", True), fair=False)
        failed = {"jobDeploymentStatus": "Failed"}
        if job["spec"].get("suspend"):
            if state == "Suspended":
                yield move("admitted by Kueue", partial(self._admit, job))
            elif state == "Suspending":
                yield to("suspended", jobDeploymentStatus="Suspended")
                yield move("loses its RayCluster", partial(self._drop_cluster, job))
            else:
                yield to("suspending", jobDeploymentStatus="Suspending", jobStatus="", message="", reason="")
            return
        match state:
            case "":
                yield move("taken up", partial(self._take_up, job))
                yield to("refused", fair=False, jobDeploymentStatus="ValidationFailed", reason="ValidationFailed")
            case "Suspended" | "Suspending":
                yield move("new again", partial(self._rayjob, name, jobDeploymentStatus=""))
            case "Initializing":
                pods = self._pods_of(cluster["metadata"]["uid"]) if cluster else []
                if cluster is None:
                    yield move("gets a RayCluster", partial(self._make_cluster, job))
                elif not pods and not run.refused:
                    yield move("gets its pods", partial(self._make_pods, job, cluster))
                    yield move("head refused", partial(self._warn, cluster, "FailedToCreateHeadPod"), fair=False)
                    yield move("head never taken", partial(self._refuse, cluster, run), fair=False)
                elif any(p["status"]["phase"] == "Running" and p["metadata"]["labels"]["role"] == "head" for p in pods):
                    yield move("submits", partial(self._submit, job))
                for reason in ("PreRunningDeadlineExceeded", "DeadlineExceeded"):
                    yield to(reason, fair=False, **failed, reason=reason)
            case "Running":
                yield from self._of_running(job, run, ray, to)
            case "Complete" | "Failed" if cluster is not None:
                yield move("loses its RayCluster", partial(self._drop_cluster, job))

    def _of_running(self, job: Obj, run: Run, ray: str, to: Callable[..., Move]) -> Iterator[Move]:
        failed = {"jobDeploymentStatus": "Failed"}
        queued = bool(job["metadata"]["labels"].get(QUEUE))
        if queued:
            yield Move(f"{run.name} place taken away by Kueue", partial(self._take_place, job, run), False)
        if run.head_lost and ray not in ("SUCCEEDED", "FAILED", "STOPPED"):
            yield to("head lost", **failed, reason="SubmissionFailed", message="Job submission has failed.")
            return
        match ray:
            case "" if any(pod["status"]["phase"] == "Running" for pod in self._submitters(run)):
                yield to("pending", jobStatus="PENDING")
            case "PENDING" if self._head(run) is not None:
                yield Move(f"{run.name} process starts", partial(self._enter, run), True)
            case "RUNNING" if run.code == -15:
                yield to("stopped", jobStatus="STOPPED")
            case "RUNNING" if run.code is not None:
                yield to("ray job ended", jobStatus="SUCCEEDED" if run.code == 0 else "FAILED")
            case "RUNNING":
                yield Move(f"{run.name} stopped from outside", partial(setattr, run, "code", -15), False)
                yield to("dashboard silent", fair=False, **failed, reason="JobStatusCheckTimeoutExceeded")
                yield to("too long", fair=False, **failed, reason="DeadlineExceeded")
            case "SUCCEEDED" | "STOPPED":
                text = self._log(run)
                if not self._submitters(run):
                    yield to("complete", jobDeploymentStatus="Complete", message=text)
                late = "JobDeploymentStatusTransitionGracePeriodExceeded"
                yield to("complete, submitter alive", fair=False, jobDeploymentStatus="Complete", reason=late)
            case "FAILED" if not self._submitters(run):
                code = run.code or 1
                text = f"Job entrypoint command failed with exit code {code}, last available logs: "
                yield to("failed", **failed, reason="AppFailed", message=text + self._log(run))
                yield to("failed, log lost", fair=False, **failed, reason="AppFailed", message=text)

    def _submitters(self, run: Run) -> list[Obj]:
        return [p for p in self._pods_of(run.uid) if p["metadata"]["labels"]["role"] == "submitter" and is_live_pod(p)]

    def _rayjob(self, name: str, **new: str) -> None:
        self.api.update("RayJob", name, {"status": new})

    def _take_up(self, job: Obj) -> None:
        name = job["metadata"]["name"]
        self.api.update("RayJob", name, {"metadata": {"finalizers": ["ray.io/rayjob-finalizer"]}})
        self._rayjob(name, jobDeploymentStatus="Initializing", startTime="2026-01-01T00:00:00Z")

    def _make_cluster(self, job: Obj) -> None:
        self._create("RayCluster", job, job["metadata"]["labels"], {})

    def _make_pods(self, job: Obj, cluster: Obj) -> None:
        for role in ("head", "worker"):
            self._pod(cluster, role, job["metadata"]["labels"])

    def _submit(self, job: Obj) -> None:
        self._rayjob(job["metadata"]["name"], jobDeploymentStatus="Running", jobStatus="")
        self._pod(job, "submitter", job["metadata"]["labels"])

    def _enter(self, run: Run) -> None:
        run.entered += 1
        if run.requeued:
            run.before += [] if run.code is None else [run.code]
            run.code = None
        self._rayjob(run.name, jobStatus="RUNNING")

    def _drop_cluster(self, job: Obj) -> None:
        for obj in self.api.all("RayCluster"):
            if owner(obj) == job["metadata"]["uid"]:
                self.api.drop("RayCluster", obj["metadata"]["name"])

    def _cluster_of(self, job: Obj) -> Obj | None:
        return next((c for c in self.api.all("RayCluster") if owner(c) == job["metadata"]["uid"]), None)

    # Jobs

    def _of_job(self, job: Obj) -> Iterator[Move]:
        name, run = job["metadata"]["name"], self.runs[job["metadata"]["uid"]]
        pods = self._pods_of(run.uid)
        yield from self._garbage(job)
        if run.frozen or is_finished(job):
            return
        yield Move(f"{name} stays as it is for ever", partial(setattr, run, "frozen", True), False)
        if job["spec"].get("suspend"):
            yield Move(f"{name} admitted by Kueue", partial(self._admit, job), True)
            return
        ended = [p for p in pods if not is_live_pod(p)]
        if ended:
            yield Move(f"{name} ends", partial(self._end_job, job, ended[0]), True)
        elif run.refused:
            return
        elif not pods and run.entered == 0 and not run.head_lost:
            yield Move(f"{name} gets its pod", partial(self._pod, job, "job", job["metadata"]["labels"]), True)
            yield Move(f"{name} pod refused", partial(self._warn, job, "FailedCreate"), False)
            yield Move(f"{name} pod never taken", partial(self._refuse, job, run), False)
        elif not pods:
            yield Move(f"{name} pod lost", partial(self._end_job, job, None), True)
        else:
            yield Move(f"{name} too long", partial(self._conditions, job, "Failed", "DeadlineExceeded", ""), False)

    def _end_job(self, job: Obj, pod: Obj | None) -> None:
        run = self.runs[job["metadata"]["uid"]]
        if pod is None:
            self._conditions(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif pod["status"]["phase"] == "Succeeded":
            self._conditions(job, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        elif any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions", ())):
            words = "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 0"
            self._conditions(job, "Failed", "PodFailurePolicy", words)
        else:
            words = f"Container stage for pod ns/p failed with exit code {run.code} matching FailJob rule at index 1"
            self._conditions(job, "Failed", "PodFailurePolicy", words)

    def _conditions(self, job: Obj, kind: str, reason: str, message: str) -> None:
        for pod in self._pods_of(job["metadata"]["uid"]):
            if is_live_pod(pod):
                self._delete_pod(pod)
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.api.update("Job", job["metadata"]["name"], {"status": {"conditions": [condition]}})

    # Kueue

    def _workload(self, job: Obj, *, admitted: bool) -> None:
        words = {"type": "QuotaReserved", "status": "True" if admitted else "False", "message": "insufficient quota"}
        name = f"workload-{job['metadata']['name']}"
        if self.api.get("Workload", name) is None:
            self._create("Workload", job, {}, {}, name)
        self.api.update("Workload", name, {"status": {"conditions": [words]}})

    def _admit(self, job: Obj) -> None:
        self._workload(job, admitted=True)
        self.api.update(job["kind"], job["metadata"]["name"], {"spec": {"suspend": None}})

    def _take_place(self, job: Obj, run: Run) -> None:
        run.requeued, run.head_lost = True, False
        self._workload(job, admitted=False)
        self.api.update(job["kind"], run.name, {"spec": {"suspend": True}})

    # Kubelets and the garbage collector

    def _of_pod(self, pod: Obj) -> Iterator[Move]:
        name, labels, phase = pod["metadata"]["name"], pod["metadata"]["labels"], pod["status"]["phase"]
        run = self._run_of(pod)

        def to(label: str, status: Obj, *, fair: bool = False, died: int | None = None, leaves: bool = False) -> Move:
            return Move(f"{name} {label}", partial(self._pod_status, pod, run, status, died, leaves), fair)

        yield from self._garbage(pod)
        if "deletionTimestamp" in pod["metadata"]:
            yield Move(f"{name} ends", partial(self._pod_ends, pod, run), True)
            return
        if run is not None and run.frozen:
            return
        main = labels["role"] in ("head", "job")
        if phase == "Pending":
            yield to("runs", {"phase": "Running", "containerStatuses": [], "conditions": []}, fair=True)
            held = {"name": "x", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
            yield to("cannot pull", {"containerStatuses": [held]})
            full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
            yield to("finds no node", {"conditions": [full]})
        elif phase == "Running" and labels["role"] == "submitter":
            job = self.api.get("RayJob", run.name) if run else None
            status = (job or {}).get("status", {})
            ended = status.get("jobStatus") in ("SUCCEEDED", "FAILED", "STOPPED")
            if ended or status.get("jobDeploymentStatus") in ("Complete", "Failed"):
                yield to("is done", {"phase": "Succeeded" if ended else "Failed"}, fair=True)
        elif phase == "Running":
            killed = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
            container = {"name": "stage" if labels["role"] == "job" else "ray-head"}
            died = 137 if main else None
            if labels["role"] == "job":
                yield to("OOM", {"phase": "Failed", "containerStatuses": [{**container, "state": killed}]}, died=died)
            else:
                yield to("OOM", {"containerStatuses": [{**container, "lastState": killed}]}, died=died)
            away = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drain"}
            yield to("preempted", {"conditions": [away]}, leaves=True)
            yield to("evicted", {"phase": "Failed", "reason": "Evicted", "message": "node was low"}, died=died)
            yield to("deleted by somebody", {}, leaves=True)

    def _pod_status(self, pod: Obj, run: Run | None, status: Obj, died: int | None, leaves: bool) -> None:
        self.api.update("Pod", pod["metadata"]["name"], {"status": status})
        if status.get("phase") == "Running" and pod["metadata"]["labels"]["role"] == "job" and run is not None:
            run.entered += 1
        if died is not None and run is not None:
            self._killed(run, died)
        if leaves:
            self._delete_pod(pod)

    def _pod_ends(self, pod: Obj, run: Run | None) -> None:
        main = pod["metadata"]["labels"]["role"] in ("head", "job")
        if main and run is not None:
            self._killed(run, 143)
        self.api.drop("Pod", pod["metadata"]["name"])

    def _killed(self, run: Run, code: int) -> None:
        run.head_lost = True
        if run.code is None and run.entered:
            run.code = code

    def _delete_pod(self, pod: Obj) -> None:
        self.api.delete("Pod", pod["metadata"]["name"])

    def _garbage(self, obj: Obj) -> Iterator[Move]:
        alive = {o["metadata"]["uid"] for o in self.api.objects.values()}
        if owner(obj) not in alive and "deletionTimestamp" not in obj["metadata"]:
            name = obj["metadata"]["name"]
            yield Move(f"{name} is garbage", partial(self.api.delete, obj["kind"], name), True)

    # The stage's process

    def _of_process(self, run: Run) -> Iterator[Move]:
        head = self._head(run)
        status = self._stage_status(run)
        current = (status or {}).get("current") or {}
        asked = current.get("number") == run.number and current.get("stop")
        if head is None or not run.entered or head["status"]["phase"] != "Running":
            return
        if run.code is None and not run.frozen:
            if current.get("number") == run.number:
                yield Move(
                    f"{run.name} reports progress", partial(self._report, run, "progress", {"percentage": 40}), False
                )
            if asked and (status or {}).get("progress", {}).get("attempt") == run.number:
                yield Move(f"{run.name} obeys", partial(self._ends, run, head, 25), True)
            yield Move(f"{run.name} succeeds", partial(self._ends, run, head, 0), True)
            for code in CODES:
                yield Move(f"{run.name} ends with {code}", partial(self._ends, run, head, code), False)
            if "deletionTimestamp" in head["metadata"] and head["metadata"]["labels"]["role"] == "job":
                yield Move(f"{run.name} saves on SIGTERM", partial(self._ends, run, head, 25), False)

    def _ends(self, run: Run, head: Obj, code: int) -> None:
        run.code = code
        run.told = self._choose_told(run)
        if run.told and (self._stage_status(run) or {}).get("attempts") == run.number:
            self._report(run, "result", {"code": code, "message": f"ended with {code}"})
        if head["metadata"]["labels"]["role"] == "job":
            told = {"terminated": {"exitCode": code, "message": json.dumps({"code": code, "message": "so"})}}
            container = {"name": "stage", "state": told}
            phase = "Failed" if code else "Succeeded"
            self.api.update(
                "Pod", head["metadata"]["name"], {"status": {"phase": phase, "containerStatuses": [container]}}
            )

    def _choose_told(self, run: Run) -> bool:
        return (run.number + (run.code or 0) + len(self.runs)) % 2 == 0

    def _log(self, run: Run) -> str:
        return f'step 3\ncamel-ray-result: {{"code": {run.code}, "message": "ended with {run.code}"}}\n'

    def _report(self, run: Run, part: str, value: Obj) -> None:
        pipeline = self.api.get("CamelPipeline", PIPELINE_NAME)
        if pipeline is None or pipeline["metadata"]["uid"] != run.pipeline:
            return
        stages = [
            {**s, part: {**value, "attempt": run.number}} if s["name"] == run.stage else s
            for s in pipeline["status"]["stages"]
        ]
        self.api.update("CamelPipeline", PIPELINE_NAME, {"status": {"stages": stages}})

    def _stage_status(self, run: Run) -> Obj | None:
        pipeline = self.api.get("CamelPipeline", PIPELINE_NAME)
        stages = (pipeline or {}).get("status", {}).get("stages", ())
        return next((s for s in stages if s["name"] == run.stage), None)

    # Making things

    def _head(self, run: Run) -> Obj | None:
        """The pod in which the stage's process runs."""
        for pod in self.api.all("Pod"):
            if pod["metadata"]["labels"]["role"] in ("head", "job") and self._run_of(pod) is run:
                return pod
        return None

    def _run_of(self, pod: Obj) -> Run | None:
        return self.runs.get(pod["metadata"]["labels"]["run"])

    def _pods_of(self, uid: str) -> list[Obj]:
        return [p for p in self.api.all("Pod") if owner(p) == uid]

    def _pod(self, parent: Obj, role: str, labels: Obj) -> None:
        run = owner(parent) if parent["kind"] == "RayCluster" else parent["metadata"]["uid"]
        mine = {k: labels[k] for k in (PIPELINE, STAGE, ATTEMPT)}
        self._create("Pod", parent, {**mine, "role": role, "run": run}, {"phase": "Pending"})

    def _create(self, kind: str, parent: Obj, labels: Obj, status: Obj, name: str = "") -> None:
        self._names += 1
        reference: dict[str, Any] = {"kind": parent["kind"], "uid": parent["metadata"]["uid"], "controller": True}
        name = name or f"{parent['metadata']['name']}-{kind.lower()}-{self._names}"
        metadata = {"name": name, "namespace": "ns", "labels": dict(labels), "ownerReferences": [reference]}
        self.api.create({"kind": kind, "metadata": metadata, "status": status})

    def _refuse(self, about: Obj, run: Run) -> None:
        run.refused = True
        words = 'Pod "p" is invalid: spec.containers[0].image: Required value'
        if about["kind"] == "Job":
            self._warn(about, "FailedCreate", f"Error creating: {words}")
        else:
            failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateHeadPod"}
            failure["message"] = f"FailedCreateHeadPod\n{words}"
            self.api.update("RayCluster", about["metadata"]["name"], {"status": {"conditions": [failure]}})

    def _warn(self, about: Obj, reason: str, message: str = "exceeded quota") -> None:
        self._names += 1
        metadata = about["metadata"]
        subject = {"kind": about["kind"], "name": metadata["name"], "namespace": "ns", "uid": metadata["uid"]}
        event = {"involvedObject": subject, "reason": reason, "message": message}
        self.api.create({"kind": "Event", "metadata": {"name": f"event-{self._names}", "namespace": "ns"}, **event})
