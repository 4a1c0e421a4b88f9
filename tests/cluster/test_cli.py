"""The cluster commands on a real API server, as a user with the role `edit`; the test plays the operator."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from camel_ray.cli.main import main
from camel_ray.operator.kinds import CAMEL_PIPELINE
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import KubeError
from rig.control_plane import ControlPlane

FILE = """
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: demo}
spec:
  storage: s3://bucket/team
  model: some/model
  stages:
  - name: rows
    data: {source: "s3://bucket/rows.jsonl"}
  - name: chat
    sft: {data: rows}
"""
SECONDS = 60.0

Status = dict[str, Any]
CommandLine = Callable[..., int]


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:  # its own: the API server is restarted
        yield cluster


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def camel_ray(control_plane: ControlPlane, installed: None, namespace: str) -> CommandLine:
    """Runs a command line in the namespace, and returns its exit code."""
    mine = control_plane.service_account(namespace, "user")
    grant = ("create", "rolebinding", "user", "--clusterrole=edit", f"--serviceaccount={namespace}:user")
    control_plane.kubectl("-n", namespace, *grant)

    def run(*arguments: str, kubeconfig: Path = mine) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--kubeconfig", str(kubeconfig), "-n", namespace])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    # aggregation into the role `edit` is done by a controller, a moment after the CRD's roles were made
    control_plane.wait_for(
        lambda: control_plane.kubectl("-n", namespace, "get", "camel", "-o", "name", kubeconfig=mine) == "", "the role"
    )
    return run


def stage(name: str, kind: str, phase: str, **more: Any) -> Status:
    return {"name": name, "kind": kind, "phase": phase, "attempts": 1, "started": "2026-11-23T07:00:00Z", **more}


def write(admin: Client, namespace: str, phase: str, **more: Any) -> None:
    """Write the status as the operator does, until it is there."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            now = admin.get(CAMEL_PIPELINE, "demo", namespace)
            status = {"phase": phase, "observedGeneration": now["metadata"]["generation"], "progress": "1/2", **more}
            admin.replace_status(CAMEL_PIPELINE, {**now, "status": {"message": "because", "attempts": 2, **status}})
            return
        except KubeError:
            assert time.monotonic() < end
            time.sleep(0.1)


def stages(chat: str) -> list[Status]:
    return [stage("rows", "data", "Succeeded"), stage("chat", "sft", chat)]


def test_a_file_is_created_unchanged_and_configured(
    camel_ray: CommandLine, admin: Client, namespace: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camel_ray("submit", "-f", str(file)) == 0
    write(admin, namespace, "Pending")
    assert camel_ray("submit", "-f", str(file)) == 0
    file.write_text(FILE.replace("rows.jsonl", "more.jsonl"))
    assert camel_ray("submit", "-f", str(file)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"camelpipeline demo {word}" for word in ("created", "unchanged", "configured")]


def test_rules_of_the_api_server_are_said_in_their_own_sentences(
    camel_ray: CommandLine, admin: Client, namespace: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camel_ray("submit", "-f", str(file)) == 0
    write(admin, namespace, "Running", startedStages=["rows"], stages=stages("Running"))
    capsys.readouterr()
    file.write_text(FILE.replace("rows.jsonl", "more.jsonl"))
    assert camel_ray("submit", "-f", str(file)) == 11
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(
        "spec.stages: stage 'rows' has started; its fields cannot be changed: delete the pipeline"
    )


def test_the_table_is_that_of_kubectl(
    camel_ray: CommandLine,
    control_plane: ControlPlane,
    admin: Client,
    namespace: str,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert camel_ray("submit", "-f", str(file)) == 0
    write(admin, namespace, "Running", stage="chat", metrics="loss 2.1", stages=stages("Running"))
    capsys.readouterr()
    assert camel_ray("get", "-o", "wide") == 0
    ours = [line.split() for line in capsys.readouterr().out.splitlines()]
    theirs = [
        line.split() for line in control_plane.kubectl("-n", namespace, "get", "camel", "-o", "wide").splitlines()
    ]
    age = ours[0].index("AGE")
    assert ours[0] == theirs[0]
    assert (ours[1][:age], ours[1][age + 1 :]) == (theirs[1][:age], theirs[1][age + 1 :])


def test_watching_lives_through_a_killed_api_server(
    camel_ray: CommandLine, control_plane: ControlPlane, admin: Client, namespace: str, file: Path
) -> None:
    assert camel_ray("submit", "-f", str(file)) == 0
    write(admin, namespace, "Running", stages=stages("Running"))
    mine = str(control_plane.service_account(namespace, "user"))
    command = [sys.executable, "-m", "camel_ray", "status", "demo", "-w", "--kubeconfig", mine, "-n", namespace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = [watching.stdout.readline().rstrip() for _ in range(3)]
        assert first == ["[1/2] rows (data) Succeeded", "[2/2] chat (sft) Running", "demo Running: because"]
        for phase in ("Backoff", "Provisioning"):
            control_plane.restart("kube-apiserver")
            write(admin, namespace, "Running", stages=stages(phase))
            assert watching.stdout.readline() == f"[2/2] chat (sft) {phase}\n"
        write(admin, namespace, "Succeeded", stages=stages("Succeeded"))
        assert watching.stdout.read() == "[2/2] chat (sft) Succeeded\ndemo Succeeded: because\n"
    assert watching.returncode == 0


def test_suspend_resume_cancel_and_retry_are_what_the_operator_reads(
    camel_ray: CommandLine, admin: Client, namespace: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camel_ray("submit", "-f", str(file)) == 0
    assert camel_ray("suspend", "demo") == 0
    assert admin.get(CAMEL_PIPELINE, "demo", namespace)["spec"]["suspend"] is True
    assert camel_ray("submit", "-f", str(file)) == 0  # the file says nothing about it, so it stays suspended
    assert "it is suspended; `camel-ray resume demo` lets it go on" in capsys.readouterr().err
    assert admin.get(CAMEL_PIPELINE, "demo", namespace)["spec"]["suspend"] is True
    assert camel_ray("resume", "demo") == 0
    assert admin.get(CAMEL_PIPELINE, "demo", namespace)["spec"]["suspend"] is False

    def request() -> str:
        annotations: dict[str, str] = admin.get(CAMEL_PIPELINE, "demo", namespace)["metadata"]["annotations"]
        return annotations["camel-ray.dev/request"]

    assert camel_ray("cancel", "demo") == 0
    assert request().startswith("cancel - ")
    write(admin, namespace, "Cancelled", handledRequest=request(), stages=[stage("rows", "data", "Cancelled")])
    assert camel_ray("cancel", "demo") == 10

    def operator() -> None:
        first = request()
        while request() == first:
            time.sleep(0.05)
        write(admin, namespace, "Running", handledRequest=request(), stages=stages("Running"))

    thread = threading.Thread(target=operator)
    thread.start()
    assert camel_ray("retry", "demo", "--wait") == 0
    thread.join()
    assert request().startswith("retry - ")
    assert camel_ray("retry", "demo") == 10
    assert camel_ray("retry", "demo", "--from", "rows") == 0
    assert request().startswith("retry rows ")


def test_who_may_not_is_told_whom_to_ask(
    camel_ray: CommandLine,
    control_plane: ControlPlane,
    namespace: str,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nobody = control_plane.service_account(namespace, "nobody")
    assert camel_ray("submit", "-f", str(file), kubeconfig=nobody) == 10
    (sentence,) = capsys.readouterr().err.splitlines()
    assert f'User "system:serviceaccount:{namespace}:nobody" cannot get resource "camelpipelines"' in sentence
    assert sentence.endswith(f"ask for the cluster role `edit` (to look only: `view`) in namespace '{namespace}'")


def test_status_is_read_back_as_it_was_written(
    camel_ray: CommandLine, admin: Client, namespace: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camel_ray("submit", "-f", str(file)) == 0
    attempt = {"number": 2, "name": "demo-chat-2", "executor": "RayJob", "created": "2026-11-23T07:01:00Z"}
    progress = {"attempt": 2, "percentage": 40, "metrics": {"loss": 2.5}, "updated": "2026-11-23T07:02:00Z"}
    told = stage("chat", "sft", "Running", current=attempt, progress=progress, preemptions=1)
    write(admin, namespace, "Running", stage="chat", stages=[stage("rows", "data", "Succeeded"), told])
    capsys.readouterr()
    assert camel_ray("status", "demo", "--json") == 0
    seen = json.loads(capsys.readouterr().out)["stages"][1]
    assert (seen["progress"]["metrics"], seen["current"]["name"], seen["preemptions"]) == (
        {"loss": 2.5},
        "demo-chat-2",
        1,
    )
    assert camel_ray("status", "demo") == 0
    assert "40%  loss 2.50" in capsys.readouterr().out
