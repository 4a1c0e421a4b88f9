"""A stage attempt as a pod runs it: a process with an environment, a log, an exit code and signals."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.status import RESULT_MARK
from camel_ray.errors import StorageUnavailable, WorkerLost
from camel_ray.runtime import attempt

SLOW = """
import sys, time
from camel_ray.stages import data
from camel_ray.stop import StopRequest, heeding_stop_requests
from camel_ray.errors import Stopped
def slow(context):
    context.progress.update("read", 1, 10, unit="rows")
    while True:
        time.sleep(0.02)
def careful(context):
    with heeding_stop_requests():
        context.progress.update("read", 1, 10, unit="rows")
        while not StopRequest(context.work).asked or {deaf}:
            time.sleep(0.02)
        raise Stopped("stage 'text': stopped on request; step 1 is saved")
data.run = {run}
from camel_ray.runtime.attempt import main
main()
"""
LOST = """
import os, signal
from camel_ray.stages import data
def run(context):
    with (context.work / "reached").open("a") as file:
        file.write(os.environ["MARK"])
    os.kill(os.getpid(), signal.SIGKILL)
data.run = run
from camel_ray.runtime.attempt import main
main()
"""
BROKEN = """
import os
from camel_ray.stages import data
def run(context):
    raise ValueError("the key " + os.environ["HF_TOKEN"] + " is bad")
data.run = run
from camel_ray.runtime.attempt import main
main()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of an attempt of stage `text`."""
    document = {
        "apiVersion": "camel-ray.dev/v1alpha1",
        "kind": "CamelPipeline",
        "metadata": {"name": "p"},
        "spec": {
            "storage": str(tmp_path / "storage"),
            "stages": [
                {"name": "text", "data": {"source": "a.jsonl"}},
                {"name": "tok", "tokenizer": {"data": "text", "vocabSize": 300}},
            ],
        },
    }
    (tmp_path / "pipeline.json").write_text(json.dumps(document))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"the number {i}"}) + "\n" for i in range(80)))
    return {
        "CAMEL_RAY_PIPELINE_FILE": str(tmp_path / "pipeline.json"),
        "CAMEL_RAY_STAGE": "text",
        "CAMEL_RAY_ATTEMPT": "1",
        "CAMEL_RAY_PIPELINE_UID": "0b5c",
    }


def start(directory: Path, environment: dict[str, str], code: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "camel_ray.runtime.attempt"]
    return subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str, str]:
    """The result in the last line, the log and standard error."""
    out, err = process.communicate(timeout=100)
    last = out.splitlines()[-1]
    assert last.startswith(RESULT_MARK)
    result = json.loads(last.removeprefix(RESULT_MARK))
    assert process.returncode == result["code"]
    return result, out, err


def run(directory: Path, environment: dict[str, str], code: str = "") -> tuple[dict[str, Any], str, str]:
    return end(start(directory, environment, code))


def state(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "storage/p/stages/text/state.json").read_text())
    return found


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_attempt_runs_its_stage_and_names_what_it_made(tmp_path: Path, environment: dict[str, str]) -> None:
    result, _, err = run(tmp_path, environment)
    (artifact,) = result["artifacts"]
    assert (result["code"], result["message"], err) == (0, "stage 'text' is done", "")
    assert artifact["kind"] == "dataset"
    assert artifact["uri"] == str(tmp_path / "storage/p/stages/text/dataset")
    manifest = json.loads((Path(artifact["uri"]) / "manifest.json").read_text())
    assert artifact["digest"] == manifest["digest"]
    assert result["metrics"]["rows_read"] == 80.0
    assert not (tmp_path / "storage/p/stages/tok").exists()


def test_an_attempt_of_a_finished_stage_ends_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    first = run(tmp_path, environment)[0]
    second, log, _ = run(tmp_path, {**environment, "CAMEL_RAY_ATTEMPT": "2"})
    assert second == {**first, "message": "stage 'text' was done already"}
    assert "attempt 2 of stage text" in log
    assert state(tmp_path)["attempts"] == 1


def test_a_fresh_attempt_forgets_its_own_stage_only(tmp_path: Path, environment: dict[str, str]) -> None:
    run(tmp_path, environment)
    for fresh in ("0", "1"):
        result, _, _ = run(tmp_path, {**environment, "CAMEL_RAY_STAGE": "tok", "CAMEL_RAY_FRESH": fresh})
        assert result["message"] == "stage 'tok' is done"
    assert state(tmp_path)["attempts"] == 1


def test_a_fresh_attempt_that_is_started_again_continues_with_its_own_work(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """As when Kueue takes the place of a RayJob away and gives it back, or a Job's pod is replaced."""
    fresh = {"CAMEL_RAY_FRESH": "2", "CAMEL_RAY_ATTEMPT": "2"}
    for mark, variables, reached in (
        ("a", {}, "a"),
        ("b", fresh, "b"),
        ("c", fresh, "bc"),
        ("d", {**fresh, "CAMEL_RAY_ATTEMPT": "3"}, "bcd"),
        ("e", {**fresh, "CAMEL_RAY_ATTEMPT": "4", "CAMEL_RAY_FRESH": "4"}, "e"),
        ("f", {**fresh, "CAMEL_RAY_PIPELINE_UID": "of a later one"}, "f"),
    ):
        process = start(tmp_path, {**environment, **variables, "MARK": mark}, LOST)
        process.communicate(timeout=100)
        assert process.returncode == -signal.SIGKILL
        assert (tmp_path / "storage/p/stages/text/work/reached").read_text() == reached


def test_a_stage_made_by_another_version_still_counts_for_the_next(tmp_path: Path, environment: dict[str, str]) -> None:
    run(tmp_path, environment)
    path = tmp_path / "storage/p/stages/text/state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "of another version"}))
    result, _, err = run(tmp_path, {**environment, "CAMEL_RAY_STAGE": "tok"})
    assert (result["code"], err) == (0, "")
    assert state(tmp_path)["attempts"] == 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"CAMEL_RAY_STAGE": ""}, 11, "CAMEL_RAY_STAGE not set; only the operator starts this command"),
        ({"CAMEL_RAY_ATTEMPT": "x"}, 11, "CAMEL_RAY_ATTEMPT is 'x', not a number from 1"),
        ({"CAMEL_RAY_FRESH": "yes"}, 11, "CAMEL_RAY_FRESH is 'yes', not a number"),
        ({"CAMEL_RAY_PIPELINE_FILE": "nowhere.json"}, 11, "nowhere.json: there is no such file"),
        ({"CAMEL_RAY_STAGE": "tik"}, 11, "the pipeline has no such stage"),
        ({"CAMEL_RAY_STAGE": "tok"}, 11, "stage 'text', which it uses, is not done"),
    ],
)
def test_a_wrong_assignment_is_a_user_error(
    tmp_path: Path, environment: dict[str, str], changes: dict[str, str], code: int, words: str
) -> None:
    result, _, err = run(tmp_path, {**environment, **changes})
    assert result["code"] == code
    assert words in result["message"]
    assert err == ""


def test_a_failed_stage_ends_with_the_code_and_sentence_of_its_error(
    tmp_path: Path, environment: dict[str, str], server: Any
) -> None:
    (tmp_path / "a.jsonl").write_text("")
    result, _, err = run(tmp_path, {**environment, "KUBEFLOW_TRAINER_SERVER_URL": server.url})
    assert result["code"] == 12
    assert result["message"] == state(tmp_path)["message"]
    assert server.reports[-1]["result"] == result
    assert (state(tmp_path)["phase"], err) == ("failed", "")


def test_a_bug_ends_with_1_and_its_traceback_without_secrets(tmp_path: Path, environment: dict[str, str]) -> None:
    result, log, err = run(tmp_path, {**environment, "HF_TOKEN": "hf_abcdefgh"}, BROKEN)
    assert result["code"] == 1
    assert result["message"].startswith("bug in camel-ray: ValueError at <string>:5: the key *** is bad")
    assert "Traceback" in err
    assert "hf_abcdefgh" not in log + err


def test_sigterm_interrupts_a_stage_without_checkpoints(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start(tmp_path, environment, SLOW.format(run="slow", deaf=False))
    until((tmp_path / "storage/p/stages/text/progress.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    result, log, _ = end(process)
    assert (result["code"], state(tmp_path)["phase"]) == (25, "interrupted")
    assert "stopping, SIGTERM asks for it" in log


def test_sigterm_lets_a_stage_with_checkpoints_save_first(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start(tmp_path, environment, SLOW.format(run="careful", deaf=False))
    until((tmp_path / "storage/p/stages/text/progress.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    result, _, _ = end(process)
    assert result["message"] == "stage 'text': stopped on request; step 1 is saved"
    assert (result["code"], state(tmp_path)["phase"]) == (25, "interrupted")
    assert state(tmp_path)["message"] == result["message"]
    assert run(tmp_path, environment)[0]["code"] == 0  # the request was for the first attempt only


def test_a_second_signal_ends_at_once(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start(tmp_path, environment, SLOW.format(run="careful", deaf=True))
    until((tmp_path / "storage/p/stages/text/progress.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    until((tmp_path / "storage/p/stages/text/work/stop").exists)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 25
    assert RESULT_MARK not in out


def test_the_servers_word_stops_the_stage(tmp_path: Path, environment: dict[str, str], server: Any) -> None:
    server.stop = True
    environment = {**environment, "KUBEFLOW_TRAINER_SERVER_URL": server.url}
    result, log, _ = run(tmp_path, environment, SLOW.format(run="careful", deaf=False))
    assert result["code"] == 25
    assert "stopping, the operator asks for it" in log
    assert server.reports[-1]["result"] == result


def test_a_locked_storage_is_waited_for_and_then_tried_again_later(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from camel_ray.api.load import load_pipeline
    from camel_ray.runtime.runner import Runner

    (tmp_path / "storage/p").mkdir(parents=True)
    runner = Runner(load_pipeline(environment["CAMEL_RAY_PIPELINE_FILE"]), base_dir=tmp_path, lock_seconds=0.1)
    with (tmp_path / "storage/p/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageUnavailable, match=r"an earlier attempt still holds .*\.lock after 0 s"):
            runner.run()
    assert runner.run().ran == ("text", "tok")


def test_the_termination_log_is_written_where_there_is_one_and_fits(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    wire = {"code": 1, "message": "é" * 1000, "artifacts": [], "metrics": {f"m{i}": 0.1 for i in range(30)}}
    attempt._write_termination_log(path, wire)
    assert not path.exists()
    path.touch()
    attempt._write_termination_log(path, wire)
    assert path.stat().st_size <= 4096
    assert json.loads(path.read_text())["code"] == 1
    small = {**wire, "message": "short"}
    attempt._write_termination_log(path, small)
    assert json.loads(path.read_text()) == small


def test_a_failure_of_the_cluster_is_tried_again_and_a_bug_is_not() -> None:
    import ray.exceptions

    assert attempt._failure(ray.exceptions.RaySystemError("the head is gone")).code == WorkerLost.exit_code
    assert attempt._failure(KeyError("x")).code == 1


def test_passwords_are_not_told_and_paths_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").touch()
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", f"{tmp_path}/token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/K7MDENGbPxRfiCY")  # one in 64 begins like a path
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=a;AccountKey=b")
    text = attempt._without_secrets(
        f"s3://key:word@host/x: see {tmp_path}/token, /K7MDENGbPxRfiCY and AccountName=a;AccountKey=b"
    )
    assert text == f"s3://***@host/x: see {tmp_path}/token, *** and ***"
