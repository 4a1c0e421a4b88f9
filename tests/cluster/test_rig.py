"""The control plane of the tests is a real one, and can be broken in the ways the other tests break it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.control_plane import ControlPlane
from rig.process import RigError

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane(audit=True) as cluster:
        yield cluster


def test_it_is_the_kubernetes_that_the_build_script_names(control_plane: ControlPlane) -> None:
    version = control_plane.request("GET", "/version")["gitVersion"]
    assert f"[kubernetes]=k8s.io/kubernetes@{version} " in (TESTS / "rig/build.sh").read_text()


def test_a_service_account_may_only_do_what_a_role_allows(control_plane: ControlPlane, namespace: str) -> None:
    mine = control_plane.service_account(namespace, "worker")
    with pytest.raises(RigError, match=f'User "system:serviceaccount:{namespace}:worker" cannot list'):
        control_plane.kubectl("-n", namespace, "get", "pods", kubeconfig=mine)
    grant = ("create", "rolebinding", "see", "--clusterrole=view", f"--serviceaccount={namespace}:worker")
    control_plane.kubectl("-n", namespace, *grant)
    seen = control_plane.wait_for(
        lambda: control_plane.kubectl("-n", namespace, "get", "pods", "-o", "name", kubeconfig=mine) == "",
        "the role to take effect",
    )
    assert seen


def test_jobs_get_pods_and_what_is_owned_goes_with_its_owner(control_plane: ControlPlane, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    template = {"restartPolicy": "Never", "containers": [{"name": "work", "image": "none"}]}
    job = {"metadata": {"name": "work"}, "spec": {"template": {"spec": template}}}
    control_plane.request("POST", f"/apis/batch/v1/namespaces/{namespace}/jobs", job)
    items = control_plane.wait_for(lambda: control_plane.request("GET", pods)["items"], "the job's pod")
    assert [item["metadata"]["labels"]["job-name"] for item in items] == ["work"]
    control_plane.request(
        "DELETE", f"/apis/batch/v1/namespaces/{namespace}/jobs/work?propagationPolicy=Background&gracePeriodSeconds=0"
    )
    control_plane.wait_for(lambda: not control_plane.request("GET", pods)["items"], "the pod to be collected")


def test_blocking_an_owners_deletion_needs_the_right_to_update_its_finalizers(
    control_plane: ControlPlane, namespace: str
) -> None:
    mine = control_plane.service_account(namespace, "maker")
    control_plane.kubectl("-n", namespace, "create", "role", "make", "--verb=create", "--resource=configmaps")
    grant = ("create", "rolebinding", "make", "--role=make", f"--serviceaccount={namespace}:maker")
    control_plane.kubectl("-n", namespace, *grant)
    secret = {"metadata": {"name": "owner"}}
    uid = control_plane.request("POST", f"/api/v1/namespaces/{namespace}/secrets", secret)["metadata"]["uid"]
    manifest = f"""
        apiVersion: v1
        kind: ConfigMap
        metadata:
          name: child
          namespace: {namespace}
          ownerReferences: [{{apiVersion: v1, kind: Secret, name: owner, uid: {uid}, blockOwnerDeletion: true}}]
    """
    with pytest.raises(RigError, match="cannot set blockOwnerDeletion"):
        control_plane.kubectl("create", "-f", "-", input=manifest, kubeconfig=mine)


def test_a_short_token_ends_and_a_new_one_in_the_same_file_works(control_plane: ControlPlane, namespace: str) -> None:
    mine = control_plane.service_account(namespace, "worker", seconds=20)
    command = ("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    name = f"system:serviceaccount:{namespace}:worker"
    assert control_plane.kubectl(*command, kubeconfig=mine) == name

    def refused() -> bool:
        try:
            control_plane.kubectl(*command, kubeconfig=mine)
        except RigError as error:
            return "Unauthorized" in str(error)
        return False

    control_plane.wait_for(refused, "the token to end")
    assert control_plane.service_account(namespace, "worker") == mine
    assert control_plane.kubectl(*command, kubeconfig=mine) == name


def test_objects_outlive_a_killed_etcd_and_a_killed_apiserver(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    made = control_plane.request("POST", path, {"metadata": {"name": "kept"}, "data": {"key": "value"}})
    control_plane.restart("etcd")
    assert control_plane.request("GET", f"{path}/kept") == made
    control_plane.restart("kube-apiserver")
    assert control_plane.request("GET", f"{path}/kept") == made


def test_a_watch_from_before_a_compaction_is_gone(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    version = control_plane.request("GET", path)["metadata"]["resourceVersion"]
    for number in range(3):
        control_plane.request("POST", path, {"metadata": {"name": f"later-{number}"}})
    control_plane.compact()
    control_plane.restart("kube-apiserver")
    event = control_plane.request("GET", f"{path}?watch=1&timeoutSeconds=1&resourceVersion={version}")
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_a_stopped_apiserver_does_not_answer_until_it_goes_on(control_plane: ControlPlane) -> None:
    control_plane.signal("kube-apiserver", signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            control_plane.request("GET", "/version", timeout=1)
    finally:
        control_plane.signal("kube-apiserver", signal.SIGCONT)
    control_plane.wait_ready()


def test_the_audit_log_counts_requests_by_user(control_plane: ControlPlane, namespace: str) -> None:
    mine = control_plane.service_account(namespace, "counted")
    for _ in range(3):
        with pytest.raises(RigError, match="forbidden"):
            control_plane.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/secrets/none", kubeconfig=mine)
    name = f"system:serviceaccount:{namespace}:counted"
    events = [event for event in control_plane.audit_log() if event["user"].get("username") == name]
    seen = Counter((event["verb"], event["objectRef"]["resource"], event["responseStatus"]["code"]) for event in events)
    assert seen == {("get", "secrets", 403): 3}


def test_waiting_for_a_process_that_died_shows_the_end_of_its_log(control_plane: ControlPlane, tmp_path: Path) -> None:
    waited_for = tmp_path / "waited-for"
    script = 'while [ ! -e "$0" ]; do sleep 0.05; done; echo last words; exit 3'
    control_plane.spawn("talker", ["sh", "-c", script, str(waited_for)])
    with pytest.raises(RigError, match=r"talker died while waiting for nothing\n--- talker\nlast words"):
        control_plane.wait_for(waited_for.touch, "nothing")
    assert control_plane.component("talker").returncode == 3


def test_everything_ends_with_the_process_that_made_it_even_when_that_is_killed() -> None:
    code = (
        "import sys, time\n"
        "from rig.control_plane import ControlPlane\n"
        "with ControlPlane() as cluster:\n"
        "    names = ('etcd', 'kube-apiserver', 'kube-controller-manager', 'kube-scheduler')\n"
        "    print(cluster.directory, *(cluster.component(name).pid for name in names), flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as maker:
        assert maker.stdout is not None
        directory, *pids = maker.stdout.readline().split()
        assert len(pids) == 4
        assert all(Path(f"/proc/{pid}/ns/pid").exists() for pid in pids)
        maker.kill()
    try:
        # a zombie that nobody reaps still has a /proc entry, but no namespaces
        wait = ["sh", "-c", 'for pid; do while [ -e "/proc/$pid/ns/pid" ]; do sleep 0.05; done; done', "sh", *pids]
        subprocess.run(wait, timeout=60, check=True)
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)
