"""The cluster commands against an HTTP server: what they send, print and end with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.cli.main import main
from pipeline_api import PIPELINES, ApiServer, Object, status

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
REQUEST = "camel-ray.dev/request"

pytestmark = pytest.mark.usefixtures("kubeconfig")


def camel_ray(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def pipeline(phase: str = "Running", *, annotations: dict[str, str] | None = None, **told: Any) -> Object:
    """A pipeline of two stages as the operator writes it: `rows` done, `chat` in `phase`."""
    stages = [
        {"name": "rows", "kind": "data", "phase": "Succeeded", "attempts": 1, "started": "2026-11-23T07:00:00Z"},
        {"name": "chat", "kind": "sft", "phase": phase, "attempts": 1, "started": "2026-11-23T07:01:00Z"},
    ]
    metadata = {"name": "demo", "namespace": "team-a", "annotations": annotations or {}}
    said = {
        "phase": phase,
        "stage": "chat",
        "progress": "1/2",
        "attempts": 2,
        "observedGeneration": 1,
        "stages": stages,
    }
    return {
        "apiVersion": "camel-ray.dev/v1alpha1",
        "kind": "CamelPipeline",
        "metadata": metadata,
        "spec": {"stages": [], "suspend": False},
        "status": {**said, **told},
    }


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "demo.yaml"
    path.write_text(FILE)
    return str(path)


def test_submit_applies_what_the_file_sets_and_says_what_that_did(
    api: ApiServer, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert camel_ray("submit", "-f", file) == 0
    method, path, body = api.requests[-1]
    assert (method, path.partition("?")[0]) == (
        "PATCH",
        "/apis/camel-ray.dev/v1alpha1/namespaces/team-a/camelpipelines/demo",
    )
    assert "fieldManager=camel-ray-cli" in path
    assert body["spec"]["stages"][1] == {"name": "chat", "sft": {"data": "rows"}}  # no defaults
    assert camel_ray("submit", "-f", file) == 0
    Path(file).write_text(FILE.replace("rows.jsonl", "more.jsonl"))
    assert camel_ray("submit", "-f", file) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"camelpipeline demo {w}" for w in ("created", "unchanged", "configured")
    ]


def test_submit_checks_the_file_before_it_asks_the_cluster(
    api: ApiServer, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text(FILE.replace("data: rows", "data: row"))
    assert camel_ray("submit", "-f", file) == 11
    Path(file).write_text(FILE.replace("s3://bucket/team", "./runs"))
    assert camel_ray("submit", "-f", file) == 11
    assert "spec.storage: './runs' is a relative path" in capsys.readouterr().err
    assert api.requests == []


def test_submit_does_not_guess_between_two_namespaces(
    api: ApiServer, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text(FILE.replace("{name: demo}", "{name: demo, namespace: team-b}"))
    assert camel_ray("submit", "-f", file, "-n", "team-c") == 10
    assert "says `namespace: team-b` and the command says --namespace team-c" in capsys.readouterr().err
    assert camel_ray("submit", "-f", file) == 0
    assert api.get(PIPELINES, "team-b", "demo")["metadata"]["namespace"] == "team-b"


def test_what_the_api_server_refuses_is_said_in_its_rules_words(
    api: ApiServer, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    causes = [
        {"field": "spec.stages[1]", "message": 'Invalid value: "object": name exactly one of data, sft'},
        {"field": "spec", "message": "Forbidden: spec.storage cannot change once a stage has started"},
    ]
    api.failures.append(("fieldManager", 422, status(422, "Invalid", "long", causes=causes)))
    assert camel_ray("submit", "-f", file) == 11
    assert capsys.readouterr().err.splitlines() == [
        "spec.stages[1]: name exactly one of data, sft",
        "spec: spec.storage cannot change once a stage has started",
    ]


@pytest.mark.parametrize(
    ("code", "reason", "message", "exit_code", "said"),
    [
        (404, "", "404 page not found", 10, "the cluster does not know CamelPipelines; install the operator"),
        (401, "Unauthorized", "Unauthorized", 10, "does not accept your login; log in again"),
        (
            403,
            "Forbidden",
            "no list for you",
            10,
            "ask for the cluster role `edit` (to look only: `view`) in namespace 'team-a'",
        ),
    ],
)
def test_refusals_say_what_to_do(
    api: ApiServer,
    capsys: pytest.CaptureFixture[str],
    code: int,
    reason: str,
    message: str,
    exit_code: int,
    said: str,
) -> None:
    api.failures += [("camelpipelines", code, status(code, reason, message))] * 2  # a 401 is tried again
    assert camel_ray("get") == exit_code
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_without_a_cluster_or_a_kubeconfig_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubeconfig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert camel_ray("get") == 10
    assert capsys.readouterr().err.startswith("There is no kubeconfig at")
    document = yaml.safe_load(kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    kubeconfig.write_text(yaml.safe_dump(document))
    monkeypatch.setattr("camel_ray.operator.kube.client._TRIES", 1)
    assert camel_ray("get", "--kubeconfig", str(kubeconfig)) == 20
    assert capsys.readouterr().err.startswith("http://127.0.0.1:1 cannot be reached")
    assert camel_ray("get", "--kubeconfig", str(kubeconfig), "--context", "other") == 10
    assert "'other'" in capsys.readouterr().err


def test_get_prints_the_columns_of_kubectl(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert camel_ray("get") == 0
    assert capsys.readouterr().err == "there are no pipelines in namespace 'team-a'\n"
    api.put(PIPELINES, pipeline(progress="1/2, 40%", metrics="loss 2.1", message="stage 'chat' (2 of 2): runs\nx"))
    other = pipeline("Succeeded", stage="", progress="2/2")
    api.put(PIPELINES, {**other, "metadata": {"name": "zulu", "namespace": "team-b"}})
    assert camel_ray("get", "-o", "wide") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "PHASE", "STAGE", "PROGRESS", "ATTEMPTS", "AGE", "METRICS", "MESSAGE"]
    assert row.startswith("demo   Running   chat    1/2, 40%   2 ")
    assert row.endswith("   loss 2.1   stage 'chat' (2 of 2): runs x")
    assert camel_ray("get", "-A") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["NAMESPACE", "NAME", "PHASE"],
        ["team-a", "demo", "Running"],
        ["team-b", "zulu", "Succeeded"],
    ]
    assert camel_ray("get", "demo", "-o", "name") == 0
    assert capsys.readouterr().out == "camelpipeline.camel-ray.dev/demo\n"
    assert camel_ray("get", "-o", "json") == 0
    assert [item["metadata"]["name"] for item in json.loads(capsys.readouterr().out)["items"]] == ["demo"]
    assert camel_ray("get", "demo", "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out)["status"]["progress"] == "1/2, 40%"
    assert camel_ray("get", "none") == 10
    assert capsys.readouterr().err.startswith("there is no pipeline 'none' in namespace 'team-a'")


def test_status_prints_a_tree_or_json(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(PIPELINES, pipeline(message="stage 'chat' (2 of 2): runs"))
    assert camel_ray("status", "demo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("● demo  Running  1/2") and lines[1] == "  stage 'chat' (2 of 2): runs"
    assert lines[2].startswith("  ✓ rows  data  Succeeded") and lines[3].startswith("  ● chat  sft   Running")
    assert camel_ray("status", "demo", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["namespace"], told["stages"][1]["phase"]) == ("demo", "team-a", "Running")


def test_watching_survives_lost_watches_and_ends_with_the_pipeline(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api.failures += [
        ("watch=1", 410, status(410, "Expired", "too old resource version")),
        ("watch=1", 500, status(500, "InternalError", "etcdserver: leader changed")),
        ("watch=1", 429, status(429, "TooManyRequests", "slow down")),
    ]
    api.put(PIPELINES, pipeline())

    def goes_on() -> None:
        api.wait_for_request("watch=1", count=4)
        told = pipeline()["status"]["stages"]
        told[1] |= {
            "current": {"number": 1, "name": "demo-chat-1", "executor": "Job", "created": "2026-11-23T07:01:00Z"},
            "progress": {"attempt": 1, "percentage": 47, "task": "train", "done": 47, "total": 100, "unit": "steps"},
        }
        api.put(PIPELINES, pipeline(stages=told, annotations={"end-watch": ""}))
        api.put(PIPELINES, pipeline("Succeeded", message="all 2 stages are done", stage="", progress="2/2"))

    thread = in_background(goes_on)
    assert camel_ray("status", "demo", "-w") == 0
    thread.join()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "[1/2] rows (data) Succeeded",
        "[2/2] chat (sft) Running",
        "demo Running",
        "[2/2] chat (sft) 47%, train 47/100 steps",
        "[2/2] chat (sft) Succeeded",
        "demo Succeeded: all 2 stages are done",
    ]
    assert err.count("trying again") == 1


def test_watching_ends_with_the_class_of_the_failure(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    failed = pipeline("Failed", message="stage 'chat' (2 of 2): no rows")["status"]["stages"]
    ended = {"number": 1, "name": "x", "started": "2026-11-23T07:01:00Z", "ended": "2026-11-23T07:02:00Z"}
    failed[1] |= {"history": [{**ended, "outcome": "UserError"}], "result": {"attempt": 1, "code": 12}}
    api.put(PIPELINES, pipeline("Failed", stages=failed))
    assert camel_ray("status", "demo", "-w") == 12
    api.put(PIPELINES, pipeline("Cancelled"))
    assert camel_ray("status", "demo", "-w", "--json") == 130
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["phase"] == "Cancelled"


def test_watching_says_when_the_pipeline_is_deleted(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(PIPELINES, pipeline())

    def deletes() -> None:
        api.wait_for_request("watch=1")
        api.remove(PIPELINES, "team-a", "demo")

    thread = in_background(deletes)
    assert camel_ray("status", "demo", "-w") == 10
    thread.join()
    assert capsys.readouterr().err == "pipeline 'demo' was deleted; what it made is still in its storage\n"


def test_an_old_end_does_not_count_after_a_new_submission(api: ApiServer, file: str) -> None:
    old = pipeline("Failed")
    old["metadata"]["generation"] = 2  # the operator has only seen 1
    api.put(PIPELINES, old)

    def operator_looks() -> None:
        api.wait_for_request("watch=1")
        api.put(PIPELINES, {**old, "status": pipeline("Succeeded", observedGeneration=2)["status"]})

    thread = in_background(operator_looks)
    assert camel_ray("submit", "-f", file, "-w") == 0
    thread.join()


def test_suspend_and_resume_set_the_field_and_wait_for_the_operator(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(PIPELINES, pipeline())

    def operator_stops() -> None:
        api.wait_for_request("watch=1")
        suspended = pipeline("Suspended")
        api.put(PIPELINES, {**suspended, "spec": {"suspend": True}})

    thread = in_background(operator_stops)
    assert camel_ray("suspend", "demo", "--wait") == 0
    thread.join()
    assert camel_ray("suspend", "demo") == 0
    assert camel_ray("resume", "demo") == 0
    assert api.get(PIPELINES, "team-a", "demo")["spec"]["suspend"] is False
    assert camel_ray("resume", "demo") == 0
    assert capsys.readouterr().out.splitlines() == [
        "camelpipeline demo stops after its checkpoint",
        "camelpipeline demo is Suspended",
        "camelpipeline demo is suspended already",
        "camelpipeline demo goes on",
        "camelpipeline demo is not suspended",
    ]


def test_cancel_and_retry_write_a_request_with_a_fresh_token(api: ApiServer) -> None:
    api.put(PIPELINES, pipeline())
    assert camel_ray("cancel", "demo") == 0
    first = api.get(PIPELINES, "team-a", "demo")["metadata"]["annotations"][REQUEST]
    assert camel_ray("cancel", "demo") == 0
    second = api.get(PIPELINES, "team-a", "demo")["metadata"]["annotations"][REQUEST]
    assert first.split()[:2] == second.split()[:2] == ["cancel", "-"] and first != second
    assert camel_ray("retry", "demo", "--from", "rows") == 0
    assert api.get(PIPELINES, "team-a", "demo")["metadata"]["annotations"][REQUEST].startswith("retry rows ")
    api.put(PIPELINES, pipeline("Failed"))

    def operator_handles() -> None:
        api.wait_for_request("watch=1")
        value = api.get(PIPELINES, "team-a", "demo")["metadata"]["annotations"][REQUEST]
        api.put(PIPELINES, pipeline("Running", annotations={REQUEST: value}, handledRequest=value))

    thread = in_background(operator_handles)
    assert camel_ray("retry", "demo", "--wait") == 0
    thread.join()
    assert api.get(PIPELINES, "team-a", "demo")["metadata"]["annotations"][REQUEST].startswith("retry - ")


@pytest.mark.parametrize(
    ("phase", "command", "said"),
    [
        ("Succeeded", ("suspend", "demo"), "pipeline 'demo' has ended (Succeeded): there is nothing to suspend"),
        ("Failed", ("cancel", "demo"), "pipeline 'demo' has ended (Failed): there is nothing to cancel"),
        (
            "Running",
            ("retry", "demo"),
            "pipeline 'demo' is Running and nothing of it has failed; `camel-ray retry demo",
        ),
        ("Succeeded", ("retry", "demo"), "all stages of pipeline 'demo' are done; `camel-ray retry demo --from STAGE`"),
        (
            "Running",
            ("retry", "demo", "--from", "x"),
            "--from x: pipeline 'demo' has no such stage; there are rows, chat",
        ),
        ("Waiting", ("retry", "demo", "--from", "chat"), "--from chat: stage 'chat' has not run yet; it will when"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    api: ApiServer, capsys: pytest.CaptureFixture[str], phase: str, command: tuple[str, ...], said: str
) -> None:
    known = pipeline(phase)
    known["status"]["phase"] = "Running" if phase == "Waiting" else phase
    api.put(PIPELINES, known)
    assert camel_ray(*command) == 10
    assert capsys.readouterr().err.startswith(said)
    assert [method for method, _, _ in api.requests] == ["GET"]


def test_on_a_terminal_the_tree_is_drawn_again_and_ctrl_c_leaves_the_pipeline_alone(
    api: ApiServer, kubeconfig: Path
) -> None:
    api.put(PIPELINES, pipeline(message="stage 'chat' (2 of 2): waits for an image"))
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "camel_ray", "status", "demo", "-w", "--kubeconfig", str(kubeconfig)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=subprocess.PIPE, text=True, env=environment
    ) as watching:
        os.close(follower)
        screen = b""
        while b"waits for an image" not in screen:
            screen += os.read(leader, 4096)
        api.put(PIPELINES, pipeline(message="stage 'chat' (2 of 2): pulls it"))
        while b"pulls it" not in screen:
            screen += os.read(leader, 4096)
        watching.send_signal(signal.SIGINT)
        drained = threading.Thread(target=_drain, args=(leader,))
        drained.start()
        _, error = watching.communicate(timeout=300)
    drained.join()
    os.close(leader)
    assert watching.returncode == 130
    assert error == "the pipeline goes on; `camel-ray status demo -n team-a -w` shows it again\n"
    assert api.get(PIPELINES, "team-a", "demo")["status"]["phase"] == "Running"


def _drain(leader: int) -> None:
    """Read a terminal until its last writer is gone."""
    try:
        while os.read(leader, 4096):
            pass
    except OSError:  # Linux says the end that way
        pass


def test_the_commands_cost_other_commands_nothing() -> None:
    heavy = ("kubernetes", "urllib3", "orjson", "prometheus_client", "camel_ray.api.status")
    code = f"import camel_ray.cli.main, sys; print(*(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
