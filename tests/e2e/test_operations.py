"""What an administrator does to the operator while pipelines run: they run on, and are looked after again later."""

from __future__ import annotations

import re
import socket
import ssl
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from rig.control_plane import ControlPlane
from rig.helm import NAMESPACE, RELEASE
from rig.images import TRAINER
from rig.operator import leader
from rig.pipelines import Object, Pipelines, pipeline
from rig.release import Release
from rig.training import Training, write_data

MakeVolume = Callable[[str], Path]

STEPS = 3500
"""Of a training that is to end: more than are done before the test has its operator replaced."""
SERVICE = "camel-ray-operator"
METRICS, PROGRESS = 8080, 8443
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/camelpipelines.camel-ray.dev"


@pytest.fixture
def training(pipelines: Pipelines, volume: MakeVolume) -> Training:
    """A training that was not started yet."""
    directory = volume("data")
    write_data(directory)
    return Training(pipelines, directory, "long")


@pytest.fixture
def release(cluster: Release) -> Iterator[Release]:
    """The release of all tests, which is afterwards as it was before."""
    yield cluster
    cluster.install()


def operators(plane: ControlPlane) -> dict[str, Object]:
    """The operator's pods that are not on their way out, by name."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component=operator"
    pods = [pod for pod in plane.request("GET", path)["items"] if "deletionTimestamp" not in pod["metadata"]]
    return {pod["metadata"]["name"]: pod for pod in pods}


def wait_leader(plane: ControlPlane, *, other_than: str = "") -> str:
    """Wait until a replica leads; its pod."""

    def leads() -> str:
        pod = leader(plane).rpartition("-")[0]  # identities are the host name and a random part
        return pod if pod != other_than and pod in operators(plane) else ""

    return str(plane.wait_for(leads, "a leader"))


def taken_reports(plane: ControlPlane) -> int:
    """Reports that all replicas took, by their metrics."""
    count = 0
    for pod in operators(plane).values():
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:{METRICS}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = (sample for family in families for sample in family.samples)
        taken = [s for s in samples if s.name == "camel_ray_progress_reports_total" and s.labels["code"] == "200"]
        count += sum(int(sample.value) for sample in taken)
    return count


def one_attempt(training: Training) -> tuple[str, str]:
    """Identities of the only Job and the only pod that the training ever had."""
    (job,) = training.pipelines.list("jobs", training.name)
    (pod,) = training.pipelines.list("pods", training.name)
    assert training.stage()["attempts"] == 1
    return job["metadata"]["uid"], pod["metadata"]["uid"]


def test_a_training_ends_well_although_the_pod_of_its_operator_was_deleted(
    release: Release, plane: ControlPlane, training: Training
) -> None:
    training.start(steps=STEPS)
    training.wait_steps(20)
    training.wait_progress()
    before, first = one_attempt(training), wait_leader(plane)
    plane.kubectl("-n", NAMESPACE, "delete", "pod", first, "--wait=false")
    second = wait_leader(plane, other_than=first)
    assert second != first and training.stage()["phase"] == "Running"
    training.wait_progress()
    assert training.last_step() < STEPS, "all of this was in the middle"
    (stage,) = training.pipelines.wait_phase(training.name, "Succeeded", seconds=1200)["stages"]
    assert one_attempt(training) == before
    assert (stage["result"]["code"], stage["progress"]["done"], stage["progress"]["total"]) == (0, STEPS, STEPS)
    assert training.steps() == list(range(1, STEPS + 1))


def test_a_training_runs_on_through_an_upgrade_and_an_uninstall_and_is_taken_up_again(
    release: Release, plane: ControlPlane, training: Training
) -> None:
    training.start()
    training.wait_steps(20)
    before = one_attempt(training)
    upgrade(release, plane)
    training.wait_progress()
    assert one_attempt(training) == before

    uid, definition = training.pipelines.get(training.name)["metadata"]["uid"], plane.request("GET", CRD)
    release.uninstall()
    assert not operators(plane)
    training.wait_steps(20)
    assert plane.request("GET", CRD)["metadata"]["uid"] == definition["metadata"]["uid"]
    assert training.pipelines.get(training.name)["metadata"]["uid"] == uid
    assert one_attempt(training) == before

    release.install()
    assert plane.request("GET", CRD)["metadata"]["uid"] == definition["metadata"]["uid"], "it was adopted"
    wait_leader(plane)
    training.wait_steps(20)
    assert one_attempt(training) == before
    assert training.pipelines.phase(training.name) == "Running"
    move_on(training)
    training.pipelines.request(training.name, "cancel - 1")
    (stage,) = training.pipelines.wait_phase(training.name, "Cancelled")["stages"]
    assert [end["outcome"] for end in stage["history"]] == ["Stopped", "Stopped"]


def upgrade(release: Release, plane: ControlPlane) -> None:
    """`helm upgrade` with other values, for which all pods of the operator are replaced."""
    old = set(operators(plane))
    release.install({"operator": {"workers": 8}, "networkPolicy": {"enabled": False}})
    plane.wait_for(lambda: not old & set(operators(plane)), "the end of the old pods")
    assert not old & {wait_leader(plane)}


def move_on(training: Training) -> None:
    """The new operator stops it and starts it again, and hears from it."""
    pipelines = training.pipelines
    pipelines.patch_spec(training.name, suspend=True)
    pipelines.wait_phase(training.name, "Suspended")
    saved = training.checkpoints()[-1]
    assert saved <= training.last_step() <= saved + 1
    pipelines.patch_spec(training.name, suspend=False)
    training.wait_note(f"continues at step {saved}")
    training.wait_steps(5)
    training.wait_progress()


def test_pods_report_over_tls_with_the_certificate_that_the_operator_made(
    cluster: Release, plane: ControlPlane, pipelines: Pipelines
) -> None:
    before = taken_reports(plane)
    text = {"name": "text", "data": {"source": "builtin://python-docs/text", "limit": 20}}
    pipelines.apply(pipeline("told", text, cluster={"image": TRAINER}))
    (stage,) = pipelines.wait_phase("told", "Succeeded")["stages"]
    assert stage["result"]["code"] == 0 and taken_reports(plane) > before
    (pod,) = pipelines.list("pods", "told")
    variables = {v["name"]: v.get("value") for v in pod["spec"]["containers"][0]["env"]}
    host = f"{SERVICE}.{NAMESPACE}.svc"
    assert variables["KUBEFLOW_TRAINER_SERVER_URL"].startswith(f"https://{host}:{PROGRESS}/")

    # Rights of the operator that are of use with real pods only: tests/cluster/test_rbac.py has the others.
    asked = [
        e for e in plane.audit_log() if e["user"].get("username") == f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
    ]
    used = {
        (e["verb"], e["objectRef"]["resource"], e["objectRef"].get("subresource")) for e in asked if "objectRef" in e
    }
    assert {("patch", "camelpipelines", "status"), ("create", "tokenreviews", None)} <= used

    secret = plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/{SERVICE}-tls")["data"]
    bundle = b64decode(secret["ca.crt"]).decode()
    source = f"/api/v1/namespaces/{pipelines.namespace}/configmaps"
    maps = [m["data"] for m in plane.request("GET", source)["items"] if "progress-ca.crt" in m["data"]]
    assert [data["progress-ca.crt"] for data in maps] == [bundle], "what pods trust"

    service = plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/services/{SERVICE}")["spec"]["clusterIP"]
    addresses = [service, *(pod["status"]["podIP"] for pod in operators(plane).values())]
    assert len(addresses) == 3
    context = ssl.create_default_context(cadata=bundle)
    for address in addresses:  # whichever replica answers shows the same
        with (
            socket.create_connection((address, PROGRESS), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
        assert shown == x509.load_pem_x509_certificate(b64decode(secret["tls.crt"]))
        assert shown.issuer == x509.load_pem_x509_certificates(bundle.encode())[0].subject


def test_the_test_of_the_chart_passes(cluster: Release, plane: ControlPlane) -> None:
    said = cluster.helm("test", RELEASE, f"--namespace={NAMESPACE}", "--timeout=240s", "--logs")
    assert re.search(r"^Phase:\s+Succeeded$", said, re.MULTILINE)
    assert f"POD LOGS: {RELEASE}-test" in said  # so the pod stays until the next test
    left = plane.kubectl("-n", NAMESPACE, "get", "camel,roles,serviceaccounts", "-o", "name")
    assert f"{RELEASE}-test" not in left
