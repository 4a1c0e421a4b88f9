"""Pods that the API server refuses: what it never takes ends the attempt at once, all else is waited for and shown.

The sentences are those of Kubernetes, as its Job controller and KubeRay pass them on.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from unit.operator.world.operators import Fault
from unit.operator.world.world import World

from camel_ray.api.status import AttemptStatus
from camel_ray.operator import trim
from camel_ray.operator.clock import stamp
from camel_ray.operator.evidence import WORDS, clean
from camel_ray.operator.kube.errors import error_of
from camel_ray.operator.model import AttemptView, Object, Plan
from camel_ray.operator.observe import Observation, observe
from camel_ray.operator.reconcile import reconcile

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
CURRENT = AttemptStatus(number=2, name="p-sft-2", executor="Job", uid="u", created=stamp(NOW))
OWNED = [{"uid": "u"}]

NEVER = [
    'Pod "p-sft-2-x7k2p" is invalid: spec.containers[0].resources.requests: Invalid value: "150Mi": must be less than '
    "or equal to memory limit of 100Mi",
    'Pod "p-sft-2-x7k2p" is invalid: [spec.containers[0].image: Required value, '
    'spec.containers[1].name: Duplicate value: "stage"]',
    'Pod "" is invalid: spec.volumes[0].name: Required value',
    'pods "p-sft-2-x7k2p" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
    '(container "istio-init" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities '
    '(container "istio-init" must not include "NET_ADMIN", "NET_RAW" in securityContext.capabilities.add)',
    'pods "p-sft-2-x7k2p" is forbidden: violates PodSecurity "baseline:v1.31": hostPath volumes (volume "data")',
]
LATER = [
    'pods "p-sft-2-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: '
    "requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8",
    'pods "p-sft-2-x7k2p" is forbidden: failed quota: compute: must specify limits.cpu for: stage',
    'pods "p-sft-2-x7k2p" is forbidden: unable to create new content in namespace team because it is being terminated',
    'pods "p-sft-2-x7k2p" is forbidden: error looking up service account team/trainer: serviceaccount "trainer" not '
    "found",
    'pods "p-sft-2-x7k2p" is forbidden: no PriorityClass with name high was found',
    'pods "p-sft-2-x7k2p" is forbidden: pod rejected: RuntimeClass "nvidia" not found',
    'pods "p-sft-2-x7k2p" is forbidden: maximum memory usage per Container is 64Gi, but limit is 768Gi',
    'pods "p-sft-2-x7k2p" is forbidden: User "system:serviceaccount:kuberay:operator" cannot create resource "pods" in '
    'API group "" in the namespace "team"',
    "pods \"p-sft-2-x7k2p\" is forbidden: ValidatingAdmissionPolicy 'limits' with binding 'limits' denied request: "
    "memory is invalid: no limit",
    'Internal error occurred: failed calling webhook "mpod.kb.io": failed to call webhook: Post '
    '"https://kueue-webhook-service.kueue-system.svc:443/mutate--v1-pod?timeout=10s": context deadline exceeded',
    'admission webhook "validation.gatekeeper.sh" denied the request: [no-latest] Pod "x" is invalid: an image without '
    "a tag",
    'admission webhook "policy.example.com" denied the request: Error creating: Pod "x" is invalid: not by us',
    'admission webhook "validate.kyverno.svc-fail" denied the request: violates PodSecurity "restricted:latest"',
    "the server was unable to return a response in the time allotted, but may still be processing the request",
    "etcdserver: request timed out",
    "",
]


def words_of_job(sentence: str) -> str:
    return f"Error creating: {sentence}"


def job(*messages: str, uid: str = "u", pods: tuple[Object, ...] = (), reason: str = "FailedCreate") -> AttemptView:
    """A Job and events as they come through the cache."""
    about = {"kind": "Job", "namespace": "team", "name": "p-sft-2", "uid": uid, "apiVersion": "batch/v1"}
    kind = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}}
    events = [trim.event({**kind, "reason": reason, "message": text, "involvedObject": about}) for text in messages]
    thing = {"kind": "Job", "metadata": {"name": "p-sft-2", "uid": "u"}, "spec": {}, "status": {}}
    return AttemptView("sft", 2, thing, pods=pods, events=tuple(events))


def rayjob(message: str, *, owner: str = "u", status: str = "True", deployment: str = "Initializing") -> AttemptView:
    failure = {"type": "ReplicaFailure", "status": status, "reason": "FailedCreateHeadPod", "message": message}
    metadata = {"name": "p-sft-2-abcde", "namespace": "team", "ownerReferences": [{"uid": owner}]}
    kind = {"apiVersion": "ray.io/v1", "kind": "RayCluster"}
    cluster = trim.ray_cluster({**kind, "metadata": metadata, "status": {"conditions": [failure]}})
    thing = {"kind": "RayJob", "metadata": {"uid": "u"}, "status": {"jobDeploymentStatus": deployment}}
    return AttemptView("sft", 2, thing, clusters=(cluster,))


def see(view: AttemptView, **more: Any) -> Observation:
    return observe(view, CURRENT.model_copy(update=more), None, NOW)


@pytest.mark.parametrize("sentence", NEVER)
@pytest.mark.parametrize("before", ["", "(combined from similar events): "])
def test_a_pod_that_is_never_taken_ends_a_job_as_the_users_error(sentence: str, before: str) -> None:
    seen = see(job(before + words_of_job(sentence)))
    assert (seen.state, seen.outcome, seen.reason) == ("ended", "UserError", "Refused")
    assert seen.message == f"the API server refuses its pods: {sentence}"


@pytest.mark.parametrize("sentence", NEVER)
@pytest.mark.parametrize(
    "before", ["FailedCreateHeadPod\n", "FailedCreateWorkerPod\n", "Failed to create head Pod a/b, "]
)
def test_a_pod_that_is_never_taken_ends_a_rayjob_as_the_users_error(sentence: str, before: str) -> None:
    seen = see(rayjob(before + sentence))
    assert (seen.state, seen.outcome, seen.reason) == ("ended", "UserError", "Refused")
    assert seen.message == f"the API server refuses its pods: {sentence}"


@pytest.mark.parametrize("sentence", LATER)
def test_what_may_heal_by_itself_is_waited_for_and_shown(sentence: str) -> None:
    seen = see(job(words_of_job(sentence)))
    assert seen.state == "waiting"
    assert seen.message == f"Job p-sft-2: FailedCreate: {words_of_job(sentence)}".rstrip()
    seen = see(rayjob(f"FailedCreateHeadPod\n{sentence}"))
    assert seen.state == "waiting"
    assert seen.message == f"RayCluster p-sft-2-abcde: FailedCreateHeadPod: FailedCreateHeadPod {sentence}".rstrip()


def test_the_sentence_is_cut_and_holds_no_control_characters() -> None:
    seen = see(job(words_of_job(NEVER[0] + "\n\x1b[31m" + "x" * 2000)))
    assert (seen.outcome, len(seen.message), seen.message[-1]) == ("UserError", WORDS, "…")
    assert seen.message.isprintable()


def test_the_newest_event_counts() -> None:
    never, later = words_of_job(NEVER[0]), words_of_job(LATER[0])
    assert see(job(never, later)).state == "waiting"
    assert see(job(later, never)).state == "ended"


def test_a_pod_that_was_taken_after_all_counts_more_than_an_old_event() -> None:
    pod = {"metadata": {"name": "p-sft-2-x7k2p", "ownerReferences": OWNED}, "status": {"phase": "Pending"}}
    assert see(job(words_of_job(NEVER[0]), pods=(pod,))).state == "waiting"
    assert see(job(words_of_job(NEVER[0]), pods=({**pod, "gone": True},))).state == "waiting"
    assert see(job(words_of_job(NEVER[0])), running=stamp(NOW)).state == "waiting"


def test_a_namesake_of_a_deleted_pipeline_ends_nothing() -> None:
    assert see(job(words_of_job(NEVER[0]), uid="of another")).state == "waiting"
    assert see(rayjob(f"FailedCreateHeadPod\n{NEVER[0]}", owner="of another")).state == "waiting"
    pod = {"metadata": {"name": "p-sft-2-old", "ownerReferences": [{"uid": "other"}]}, "status": {"phase": "Pending"}}
    assert see(job(words_of_job(NEVER[0]), pods=(pod,))).state == "ended"


def test_only_a_refusal_that_stands_ends_an_attempt_and_only_one_that_waits() -> None:
    assert see(rayjob(f"FailedCreateHeadPod\n{NEVER[0]}", status="False")).state == "waiting"
    assert see(rayjob(f"FailedCreateWorkerPod\n{NEVER[0]}", deployment="Running")).state == "submitted"
    assert see(rayjob(f"FailedCreateHeadPod\n{NEVER[0]}", deployment="Suspended")).state == "queued"
    assert see(job(words_of_job(NEVER[0]), reason="FailedDelete")).state == "waiting"


@pytest.mark.parametrize("executor", ["Job", "RayJob"])
def test_a_pipeline_whose_pods_are_never_taken_fails_at_once_and_leaves_nothing_that_tries_on(executor: str) -> None:
    world = World(executor=executor, max_retries=2)
    operator = world.operators[0]
    for _ in range(20):
        operator.hear_all()
        world.turn(operator)
        refused = [move for move in world.cluster.moves() if move.label.endswith("never taken")]
        if refused:
            break
        for move in world.cluster.fair_moves()[:1]:
            world.take(move)
    began = world.now
    world.take(refused[0])
    world.settle()
    status = world.checks.status()
    words = 'the API server refuses its pods: Pod "p" is invalid: spec.containers[0].image: Required value'
    assert (status.phase, status.message) == ("Failed", f"stage 'rows' (1 of 2): {words}")
    assert [(e.number, e.outcome, e.reason) for e in status.stages[0].history] == [(1, "UserError", "Refused")]
    assert world.api.all(executor) == []
    assert (world.now - began).total_seconds() < 60  # of the world's own clock


INVALID = (
    'Job.batch "p-rows-1" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value: "4": must be '
    "less than or equal to cpu limit of 2"
)


def not_created(status: int, reason: str, message: str, **spec: Any) -> Plan:
    """What follows when the API server refused the first attempt's Job; `spec` is what the user changes then."""
    world = World(executor="Job")
    operator = world.operators[0]
    world.turn(operator, Fault(step=1, landed=False, crash=False))
    world.api.update("CamelPipeline", "p", {"spec": spec})
    operator.hear_all()
    snapshot = operator._snapshot(world.now)
    assert snapshot is not None
    error = error_of("create jobs ns/p-rows-1", status, {"reason": reason, "message": message})
    return reconcile(replace(snapshot, trouble=clean(error)))


def test_a_job_that_is_invalid_ends_the_attempt_as_the_users_error() -> None:
    plan = not_created(422, "Invalid", INVALID)
    assert plan.status.phase == "Failed"
    (ended,) = plan.status.stages[0].history
    assert (ended.number, ended.outcome, ended.reason) == (1, "UserError", "Refused")
    assert ended.message == f"the API server refuses the Job: {INVALID}"
    assert [gone.name for gone in plan.gone] == ["p-rows-1"]  # the API itself is asked whether it is there


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (403, "Forbidden", 'jobs.batch "p-rows-1" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'),
        (403, "Forbidden", f'admission webhook "policy.example.com" denied the request: {INVALID}'),
        (
            500,
            "InternalError",
            'Internal error occurred: failed calling webhook "mjob.kb.io": context deadline exceeded',
        ),
        (422, "Invalid", 'PersistentVolumeClaim "p-scratch" is invalid: spec.resources[storage]: Invalid value: "0"'),
        (422, "Invalid", INVALID.replace("p-rows-1", "p-rows-0")),
        (409, "Conflict", "the object has been modified"),
    ],
)
def test_what_else_keeps_a_job_from_being_created_is_waited_for(status: int, reason: str, message: str) -> None:
    plan = not_created(status, reason, message)
    assert plan.status.stages[0].phase == "Starting"
    assert plan.status.stages[0].message.startswith("cannot create Job p-rows-1: create jobs ns/p-rows-1 failed with")


def test_a_job_that_was_mended_meanwhile_is_tried_again() -> None:
    plan = not_created(422, "Invalid", INVALID, cluster={"image": "trainer:2"})
    assert (plan.status.stages[0].phase, plan.status.stages[0].attempts) == ("Starting", 1)
