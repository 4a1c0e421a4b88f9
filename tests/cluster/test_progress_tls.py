"""The progress server's own certificates on a real API server: two replicas, one Secret, clients with what pods get."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from camel_ray.operator.certificates import renewed
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.kinds import CONFIG_MAP, POD, SECRET
from camel_ray.operator.names import attempt_labels
from rig.control_plane import ControlPlane
from rig.operator import ACCOUNT, NAMESPACE, Operator
from rig.pipelines import Pipelines, pipeline

NAME = "test-progress-tls"
HOST = "127.0.0.1"
OPTIONS = (f"--progress-tls-secret={NAME}", f"--progress-url=https://{HOST}:8443")


@pytest.fixture
def secret(control_plane: ControlPlane, installed: None, admin: Client) -> Callable[[], dict[str, Any]]:
    """An empty Secret of which the operator may do what the chart lets it; returns what reads it."""
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": NAME}}
    rules = [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [NAME], "verbs": ["get", "update"]}]
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME}
    binding = {**role, "kind": "RoleBinding", "roleRef": reference, "subjects": [account]}
    manifests = {"apiVersion": "v1", "kind": "List", "items": [{**role, "rules": rules}, binding]}
    control_plane.kubectl("-n", NAMESPACE, "apply", "-f", "-", input=json.dumps(manifests))
    admin.delete(SECRET, NAME, NAMESPACE)
    admin.create(SECRET, {"metadata": {"name": NAME, "namespace": NAMESPACE}})
    return lambda: admin.get(SECRET, NAME, NAMESPACE)


def post(replica: Operator, path: str, token: str, bundle: str, *, newest: ssl.TLSVersion | None = None) -> int:
    """Status of an empty report by a client that trusts `bundle`."""
    context = ssl.create_default_context(cadata=bundle)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if newest is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = context.maximum_version = newest
    connection = http.client.HTTPSConnection(HOST, replica.progress_port, timeout=60, context=context)
    with closing(connection):
        connection.request("POST", path, b"{}", {"Authorization": f"Bearer {token}"})
        return connection.getresponse().status


def test_two_replicas_serve_with_one_secret_and_pods_trust_them(
    control_plane: ControlPlane,
    namespace: str,
    admin: Client,
    secret: Callable[[], dict[str, Any]],
    operator: Callable[..., Operator],
) -> None:
    replicas = [operator("first", *OPTIONS), operator("second", *OPTIONS)]
    kept = secret()
    assert sorted(kept["data"]) == ["ca.crt", "ca.key", "tls.crt", "tls.key"]
    for replica in replicas:
        (line,) = [
            line
            for line in replica.page().splitlines()
            if line.startswith("camel_ray_progress_certificate_expiry_seconds")
        ]
        assert 29.9 * 86400 < float(line.split()[1]) <= 30 * 86400

    Pipelines(control_plane, namespace).apply(pipeline("llm"))
    bundles: list[str] = []

    def given() -> bool:
        maps, _ = admin.list(CONFIG_MAP, namespace)
        bundles[:] = [one["data"]["progress-ca.crt"] for one in maps if "progress-ca.crt" in one.get("data", {})]
        return bool(bundles)

    control_plane.wait_for(given, "the ConfigMap of the first attempt")
    (bundle,) = bundles
    container = {"name": "stage", "image": "none"}
    metadata = {"name": "mine", "namespace": namespace, "labels": attempt_labels("llm", "a", 1)}
    admin.create(POD, {"metadata": metadata, "spec": {"containers": [container]}})
    bound = ("--bound-object-kind=Pod", "--bound-object-name=mine", "--audience=camel-ray.dev")
    token = control_plane.kubectl("create", "token", "default", f"--namespace={namespace}", *bound).strip()
    path = f"/v1/namespaces/{namespace}/pipelines/llm/stages/a/attempts/1"
    for replica in replicas:
        control_plane.wait_for(lambda r=replica: post(r, path, token, bundle) == 200, "the report to be taken")
        foreign, _ = renewed({}, (HOST,), datetime.now(UTC))
        with pytest.raises(ssl.SSLCertVerificationError):
            post(replica, path, token, foreign.bundle)
        with pytest.raises(ssl.SSLError):
            post(replica, path, token, bundle, newest=ssl.TLSVersion.TLSv1_1)
        assert post(replica, path, "none", bundle) == 401
        assert post(replica, path.replace("/llm/", "/other/"), token, bundle) == 403
        assert post(replica, path.replace(namespace, "default"), token, bundle) == 403

    logs = "".join((control_plane.directory / f"log/operator-{r.identity}.log").read_text() for r in replicas)
    assert "PRIVATE" not in logs
    assert not any(kept["data"][key] in logs for key in ("ca.key", "tls.key"))
    assert secret()["metadata"]["resourceVersion"] == kept["metadata"]["resourceVersion"]
