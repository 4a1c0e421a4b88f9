"""The stand-in runs entry points and batch Jobs as processes of this machine, in the environment of their pods."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuberay_standin.launch import KubeRay
from kuberay_standin.trial import Cluster, Object, batch_job, rayjob
from rig.control_plane import ControlPlane


@pytest.fixture(scope="module")
def kuberay(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    with KubeRay(control_plane, tmp_path_factory.mktemp("kuberay"), pace=0.02, run_entrypoints=True) as process:
        yield process
        assert "Traceback" not in process.log()


PROGRAM = r"""
import json, os, signal, sys, time
from pathlib import Path
out = Path(os.environ["OUT"])
signal.signal(signal.SIGTERM, lambda *_: (out.with_suffix(".term").write_text("SIGTERM"), sys.exit(25)))
names = ("PLAIN", "SECRET", "EXPANDED", "POD", "HOME")
seen = {name: os.environ[name] for name in names}
seen["file"] = Path(os.environ["CONFIG"]).read_text()
seen["token"] = Path(os.environ["TOKEN"]).read_text()
out.write_text(json.dumps(seen))
print("working", flush=True)
time.sleep(float(os.environ.get("SECONDS_TO_RUN", "0")))
sys.exit(int(os.environ.get("CODE", "0")))
"""


CONFIG: Object = {"name": "config", "configMap": {"name": "c"}}
PROGRESS: Object = {"serviceAccountToken": {"path": "token", "audience": "camel-ray.dev"}}


def attempt(name: str, directory: Path, *, more: str = "", **env: str) -> Object:
    """A RayJob that runs the program in `directory`, with a ConfigMap's file, a Secret's value, and a token."""
    (directory / "attempt.py").write_text(PROGRAM)
    values = {
        "OUT": f"{directory}/out",
        "CONFIG": "/etc/attempt/pipeline.json",
        "TOKEN": "/var/run/progress/token",
        **env,
    }
    variables: list[Object] = [{"name": key, "value": value} for key, value in {"PLAIN": "1", **values}.items()]
    variables += [
        {"name": "EXPANDED", "value": "$(PLAIN)$$(PLAIN)"},
        {"name": "HOME", "value": "/tmp"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
    ]
    volumes: list[Object] = [
        CONFIG,
        {"name": "tmp", "emptyDir": {}},
        {"name": "progress", "projected": {"sources": [PROGRESS]}},
        {"name": "data", "hostPath": {"path": str(directory)}},
    ]
    places = {"config": "/etc/attempt", "tmp": "/tmp", "progress": "/var/run/progress", "data": str(directory)}
    mounts = [{"name": name, "mountPath": path} for name, path in places.items()]
    head = {"env": variables, "volumeMounts": mounts}
    job = rayjob(name, workers=0, head=head, entrypoint=f"python {directory}/attempt.py{more}")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"] = volumes
    return job


def _furnish(cluster: Cluster) -> None:
    meta = [
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
        for kind, name in (("ConfigMap", "c"), ("Secret", "s"))
    ]
    objects = [{**meta[0], "data": {"pipeline.json": "{}"}}, {**meta[1], "stringData": {"password": "hush"}}]
    cluster.kubectl("apply", "-f", "-", input="\n---\n".join(map(json.dumps, objects)))


def test_entry_point_runs_in_the_environment_of_the_head(cluster: Cluster, tmp_path: Path) -> None:
    _furnish(cluster)
    cluster.create(attempt("run", tmp_path, more="; false", CODE="11"))
    status = cluster.wait_state("run", ("Failed", "FAILED", "AppFailed"))
    lines = status["message"].splitlines()
    assert lines[0].startswith("Job entrypoint command failed with exit code 11") and lines[1] == "working"
    seen = json.loads((tmp_path / "out").read_text())
    assert (seen["PLAIN"], seen["SECRET"], seen["EXPANDED"], seen["file"]) == ("1", "hush", "1$(PLAIN)", "{}")
    assert seen["HOME"] != "/tmp" and seen["POD"].startswith(status["rayClusterName"])
    claims = json.loads(base64.urlsafe_b64decode(seen["token"].split(".")[1] + "=="))
    assert claims["aud"] == ["camel-ray.dev"]
    assert claims["kubernetes.io"]["pod"]["name"] == seen["POD"]


def test_entry_point_gets_sigterm_when_its_job_is_deleted(cluster: Cluster, tmp_path: Path) -> None:
    _furnish(cluster)
    cluster.create(attempt("stop", tmp_path, SECONDS_TO_RUN="60"))
    cluster.wait((tmp_path / "out").exists, "the entry point to run")
    cluster.kubectl("delete", "rayjob", "stop")
    cluster.wait((tmp_path / "out.term").exists, "its SIGTERM")


def test_entry_point_of_a_suspended_job_is_killed_without_a_word(cluster: Cluster, tmp_path: Path) -> None:
    _furnish(cluster)
    cluster.create(attempt("cut", tmp_path, SECONDS_TO_RUN="60"))
    cluster.wait((tmp_path / "out").exists, "the entry point to run")
    cluster.patch("cut", {"spec": {"suspend": True}})
    cluster.wait(lambda: not cluster.all("pods", "ray.io/cluster"), "the pods to go")
    assert not (tmp_path / "out.term").exists()


def test_log_of_the_submitter_is_that_of_the_entry_point(cluster: Cluster, tmp_path: Path) -> None:
    _furnish(cluster)
    cluster.create(attempt("told", tmp_path, SECONDS_TO_RUN="5"))
    cluster.wait_state("told", ("Running", "RUNNING", ""))
    (pod,) = cluster.all("pods", "ray.io/originated-from-cr-name=told")
    assert cluster.kubectl("logs", "--follow", pod["metadata"]["name"]) == "working\n"
    cluster.wait_state("told", ("Complete", "SUCCEEDED", ""))
    assert cluster.kubectl("logs", "--tail=1", pod["metadata"]["name"]) == "working\n"


def test_missing_config_map_keeps_the_pod_waiting(cluster: Cluster, tmp_path: Path) -> None:
    job = batch_job("mount", command=["true"], volumeMounts=[{"name": "config", "mountPath": "/etc/attempt"}])
    job["spec"]["template"]["spec"]["volumes"] = [CONFIG]
    cluster.kubectl("apply", "-f", "-", input=json.dumps(job))
    event = cluster.wait(lambda: cluster.events("FailedMount"), "the kubelet's word")[0]
    assert event["message"] == 'MountVolume.SetUp failed for volume "config" : configmap "c" not found'
    _furnish(cluster)
    cluster.wait(lambda: cluster.get("job", "mount")["status"].get("succeeded") == 1, "the Job to succeed")


def test_batch_job_runs_its_command_and_tells_its_end(cluster: Cluster, tmp_path: Path) -> None:
    script = 'echo working; printf \'{"code": 12}\' > "$MESSAGE"; exit 12'
    env = [{"name": "MESSAGE", "value": "/dev/termination-log"}]
    cluster.kubectl("apply", "-f", "-", input=json.dumps(batch_job("told", command=["sh", "-c", script], env=env)))
    cluster.wait(lambda: cluster.get("job", "told")["status"].get("failed") == 1, "the Job to fail")
    ended = cluster.all("pods")[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"], ended["reason"]) == (12, '{"code": 12}', "Error")


def test_end_of_the_log_stands_in_for_a_missing_message(cluster: Cluster) -> None:
    job = batch_job(
        "log", command=["sh", "-c", "echo result; exit 1"], terminationMessagePolicy="FallbackToLogsOnError"
    )
    cluster.kubectl("apply", "-f", "-", input=json.dumps(job))
    cluster.wait(lambda: cluster.get("job", "log")["status"].get("failed") == 1, "the Job to fail")
    assert cluster.all("pods")[0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "result"


def test_deleted_batch_job_gets_sigterm(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "term"
    script = f"trap 'touch {out}; exit 0' TERM; touch {out}.started; while true; do sleep 0.05; done"
    cluster.kubectl("apply", "-f", "-", input=json.dumps(batch_job("ended", command=["sh", "-c", script])))
    cluster.wait(out.with_suffix(".started").exists, "the command to run")
    cluster.kubectl("delete", "job", "ended")
    cluster.wait(out.exists, "its SIGTERM")
