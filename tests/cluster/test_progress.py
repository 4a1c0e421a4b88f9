"""The progress server with a real API server: tokens of pods, the operator's rights, and the schema of the status."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from camel_ray.operator.kinds import CAMEL_PIPELINE
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import from_kubeconfig
from camel_ray.operator.kube.errors import NotFound
from camel_ray.operator.kube.kinds import POD
from camel_ray.operator.names import attempt_labels
from camel_ray.operator.progress_server import ProgressServer, reviewer
from rig.control_plane import ControlPlane
from rig.operator import NAMESPACE

SPEC = {"storage": "s3://bucket/a", "stages": [{"name": "text", "data": {"source": "hub/data"}}]}


@pytest.fixture
def client(control_plane: ControlPlane, installed: None) -> Iterator[Client]:
    """The operator's, with its own rights."""
    made = Client(from_kubeconfig(str(control_plane.service_account(NAMESPACE, "camel-ray"))), manager="camel-ray")
    yield made
    made.close()


@pytest.fixture
def server(client: Client, admin: Client) -> Iterator[ProgressServer]:
    """Reviews and writes with the operator's rights. Without caches: what they would hold is asked for."""

    def find(kind: Any) -> Callable[[str, str], Any]:
        def get(namespace: str, name: str) -> Any:
            try:
                return admin.get(kind, name, namespace)
            except NotFound:
                return None

        return get

    def write(namespace: str, pipeline: str, patch: list[dict[str, Any]]) -> None:
        client.patch(CAMEL_PIPELINE, pipeline, namespace, patch, subresource="status")

    made = ProgressServer(
        0, review=reviewer(client), find=find(CAMEL_PIPELINE), pods=find(POD), write=write, host="127.0.0.1"
    )
    yield made
    made.close()


@pytest.fixture
def attempt(control_plane: ControlPlane, namespace: str, admin: Client) -> str:
    """Name of the pod of attempt 1 of a running pipeline; no node ever runs it."""
    labels = attempt_labels("llm", "text", 1)
    container = {"name": "stage", "image": "none"}
    admin.create(
        POD, {"metadata": {"name": "p", "namespace": namespace, "labels": labels}, "spec": {"containers": [container]}}
    )
    made = admin.create(CAMEL_PIPELINE, {"metadata": {"name": "llm", "namespace": namespace}, "spec": SPEC})
    current = {"number": 1, "name": "llm-text-1", "executor": "Job", "created": "2026-11-23T07:00:00Z"}
    stage = {"name": "text", "kind": "data", "phase": "Running", "attempts": 1, "current": current}
    status = {"phase": "Running", "stages": [stage]}
    admin.replace_status(CAMEL_PIPELINE, {**made, "status": status})
    return "p"


def token(control_plane: ControlPlane, namespace: str, *, pod: str | None, audience: str) -> str:
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}") if pod else ()
    return control_plane.kubectl(
        "create", "token", "default", f"--namespace={namespace}", f"--audience={audience}", *bound
    ).strip()


def post(server: ProgressServer, namespace: str, token: str, body: Any) -> tuple[int, dict[str, Any]]:
    path = f"/v1/namespaces/{namespace}/pipelines/llm/stages/text/attempts/1"
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_pods_report_reaches_the_status_of_its_pipeline(
    control_plane: ControlPlane, namespace: str, server: ProgressServer, admin: Client, attempt: str
) -> None:
    own = token(control_plane, namespace, pod=attempt, audience="camel-ray.dev")
    metrics = [{"name": "loss", "value": "2.1"}, {"name": "tokens_per_second", "value": "5300"}]
    body = {
        "trainerStatus": {"progressPercentage": 40, "estimatedRemainingSeconds": 9, "metrics": metrics},
        "stage": {"task": "read", "done": 40, "total": 100, "unit": "rows"},
        "result": {
            "code": 0, "message": "done", "metrics": {"rows": 100},
            "artifacts": [{"kind": "dataset", "uri": "s3://bucket/a/llm/stages/text/dataset", "digest": "ab"}],
        },
    }  # fmt: skip
    assert post(server, namespace, own, body) == (200, {"stop": False})
    found: dict[str, Any] = {}

    def written() -> bool:
        found.update(admin.get(CAMEL_PIPELINE, "llm", namespace)["status"])
        return "result" in found["stages"][0]

    control_plane.wait_for(written, "the report to be written")
    (stage,) = found["stages"]
    assert stage["progress"]["metrics"] == {"loss": 2.1, "tokens_per_second": 5300}
    assert {key: stage["progress"][key] for key in ("attempt", "percentage", "remainingSeconds", "done", "total")} == {
        "attempt": 1, "percentage": 40, "remainingSeconds": 9, "done": 40, "total": 100,
    }  # fmt: skip
    assert stage["result"] == {"attempt": 1, **body["result"]}
    assert (found["progress"], found["metrics"]) == ("0/1, 40%", "loss 2.1, 5.3k tokens/s")


def test_other_tokens_of_the_cluster_are_refused(
    control_plane: ControlPlane, namespace: str, server: ProgressServer, admin: Client, attempt: str
) -> None:
    foreign = token(control_plane, namespace, pod=attempt, audience="https://kubernetes.default.svc")
    unbound = token(control_plane, namespace, pod=None, audience="camel-ray.dev")
    container = {"name": "other", "image": "none"}
    admin.create(POD, {"metadata": {"name": "other", "namespace": namespace}, "spec": {"containers": [container]}})
    other = token(control_plane, namespace, pod="other", audience="camel-ray.dev")
    own = token(control_plane, namespace, pod=attempt, audience="camel-ray.dev")
    tokens = {"foreign": foreign, "unbound": unbound, "other": other, "torn": own[:-2], "own": own}
    statuses = {name: post(server, namespace, value, {})[0] for name, value in tokens.items()}
    assert statuses == {"foreign": 401, "unbound": 401, "other": 403, "torn": 401, "own": 200}


def test_an_outdated_attempt_writes_nothing(
    control_plane: ControlPlane, namespace: str, server: ProgressServer, admin: Client, attempt: str
) -> None:
    own = token(control_plane, namespace, pod=attempt, audience="camel-ray.dev")
    found = admin.get(CAMEL_PIPELINE, "llm", namespace)
    found["status"]["stages"][0]["current"]["number"] = 2
    admin.replace_status(CAMEL_PIPELINE, found)
    assert post(server, namespace, own, {"trainerStatus": {"progressPercentage": 1}})[0] == 409


def test_a_token_ends_with_its_pod(
    control_plane: ControlPlane, namespace: str, client: Client, admin: Client, attempt: str
) -> None:
    own = token(control_plane, namespace, pod=attempt, audience="camel-ray.dev")
    review = reviewer(client)
    identity = review(own)
    assert identity is not None
    assert (identity.namespace, identity.pod) == (namespace, attempt)
    admin.delete(POD, attempt, namespace)
    control_plane.wait_for(lambda: review(own) is None, "the token to be refused")
