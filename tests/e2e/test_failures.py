"""What goes wrong in a cluster, with real pods: the user sees why, and loses as little as possible."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rig.control_plane import ControlPlane
from rig.node import NAME as NODE
from rig.pipelines import Object, Pipelines, pipeline
from rig.training import Training, write_data

MakeVolume = Callable[[str], Path]

GIBIBYTE = 2**30
ABSENT_IMAGE = "registry.local/camel-ray/nowhere:1"


def data_stage(name: str, *, source: str = "/data/rows.jsonl", **spec: Any) -> Object:
    """A pipeline of one stage that reads rows from the claim `data`."""
    cluster = {"volumes": [{"mountPath": "/data", "claim": "data"}], **spec.pop("cluster", {})}
    manifest = pipeline(name, {"name": "rows", "data": {"source": source}}, storage="/data", cluster=cluster, **spec)
    if "image" not in cluster:
        del manifest["spec"]["cluster"]["image"]  # the one the operator is told to use
    return manifest


def machine(cpu: str = "100m", memory: str = "2Gi") -> Object:
    return {"resources": {"requests": {"cpu": cpu, "memory": "256Mi"}, "limits": {"memory": memory}}}


def test_an_image_that_does_not_exist_and_a_node_that_is_too_small_are_shown(
    pipelines: Pipelines, volume: MakeVolume
) -> None:
    volume("data")
    # Just after the installation the API server refuses pipelines as owners: its admission looks for new kinds now and
    # then only (OwnerReferencesPermissionEnforcement, which few clusters have). Its words are not those looked for.
    pipelines.apply(data_stage("first", cluster={"head": machine(cpu="100")}))
    pipelines.wait(lambda: pipelines.list("pods", "first"), "the first pod of all")
    pipelines.apply(data_stage("nowhere", cluster={"image": ABSENT_IMAGE, "head": machine()}))
    pipelines.apply(data_stage("huge", cluster={"head": machine(cpu="100")}))
    expected = {
        "nowhere": rf"pod nowhere-rows-1-\w+: (ErrImage\w+|ImagePullBackOff): .*{re.escape(ABSENT_IMAGE)}.*",
        "huge": r"pod huge-rows-1-\w+: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu.*",
    }
    for name, words in expected.items():

        def told(name: str = name, words: str = words) -> Object | None:
            found = pipelines.get(name)
            return found if re.search(words, found.get("status", {}).get("message", "")) else None

        found = pipelines.wait(told, f"'{words}' in the status of {name}")
        (stage,) = found["status"]["stages"]
        assert re.fullmatch(words, stage["message"])
        assert (stage["phase"], stage["attempts"], stage.get("failures", 0)) == ("Provisioning", 1, 0)


def test_a_mistake_of_the_user_fails_at_once_and_its_sentence_is_shown(
    pipelines: Pipelines, volume: MakeVolume
) -> None:
    volume("data")
    pipelines.apply(data_stage("typo", source="/data/rowz.jsonl", cluster={"head": machine()}))
    status = pipelines.wait_phase("typo", "Failed")
    sentence = "/data/rowz.jsonl does not exist (looked at /data/rowz.jsonl); correct `source`"
    assert status["message"].endswith(sentence)
    (stage,) = status["stages"]
    assert stage["message"] == stage["result"]["message"]
    assert [(end["number"], end["outcome"]) for end in stage["history"]] == [(1, "UserError")], "no second try"
    pipelines.wait(
        lambda: ("StageFailed", f"stage 'rows': {stage['message']}") in pipelines.events("typo"), "its event"
    )


def test_a_stage_that_takes_more_memory_than_its_pod_has_is_out_of_memory(
    pipelines: Pipelines, volume: MakeVolume
) -> None:
    with (volume("data") / "rows.jsonl").open("wb") as file:
        os.truncate(file.fileno(), 16 * GIBIBYTE)  # a single line of zeros, which take no disk
    pipelines.apply(data_stage("big", cluster={"head": machine(memory="1Gi")}, retry={"maxRetries": 0}))
    status = pipelines.wait_phase("big", "Failed")
    (stage,) = status["stages"]
    (end,) = stage["history"]
    assert (end["outcome"], end["reason"], stage["failures"]) == ("OutOfMemory", "OutOfMemory", 1)
    assert re.match(r"container stage of pod big-rows-1-\w+ exceeded its memory limit", end["message"])
    assert status["message"].endswith("given up after 1 failed attempts (retry.maxRetries 0)")
    (pod,) = pipelines.list("pods", "big")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


@pytest.fixture
def open_node(plane: ControlPlane) -> Iterator[None]:
    """The node takes pods again afterwards."""
    yield
    plane.kubectl("uncordon", NODE)


def test_a_training_outlives_a_drained_node_and_a_pause_and_does_one_step_again_at_most(
    pipelines: Pipelines, plane: ControlPlane, volume: MakeVolume, open_node: None
) -> None:
    directory = volume("data")
    write_data(directory)
    training = Training(pipelines, directory, "long")
    training.start()
    training.wait_steps(20)
    drain(training, plane)
    pause(training)
    pipelines.request("long", "cancel - 1")
    (stage,) = pipelines.wait_phase("long", "Cancelled")["stages"]
    outcomes = [end["outcome"] for end in stage["history"]]
    assert (outcomes, stage["preemptions"], stage.get("failures", 0)) == (["Preemption", "Stopped", "Stopped"], 1, 0)


def drain(training: Training, plane: ControlPlane) -> None:
    """`kubectl drain` of its node: SIGTERM, a checkpoint, and the next attempt as soon as a node takes its pod."""
    plane.kubectl(
        *("drain", NODE, f"--pod-selector=camel-ray.dev/pipeline={training.name}"),
        *("--delete-emptydir-data", "--timeout=180s"),
    )
    saved = training.checkpoints()[-1]
    cordoned = "Unschedulable: 0/1 nodes are available: 1 node(s) were unschedulable"
    training.wait(lambda: cordoned in training.stage()["message"], "word of the cordoned node")
    (end,) = training.stage()["history"]
    assert (end["outcome"], end["reason"], end["message"]) == ("Preemption", "Preempted", "its pod was taken away")
    plane.kubectl("uncordon", NODE)
    goes_on(training, saved)
    assert training.stage()["attempts"] == 2


def pause(training: Training) -> None:
    """`suspend: true` and back: a checkpoint, no pods meanwhile, and on from that very step."""
    pipelines = training.pipelines
    pipelines.patch_spec(training.name, suspend=True)
    status = pipelines.wait_phase(training.name, "Suspended")
    assert status["stages"][0]["message"] == "stopped; it continues when spec.suspend is false"
    assert {pod["status"]["phase"] for pod in pipelines.list("pods", training.name)} <= {"Succeeded", "Failed"}
    saved = training.checkpoints()[-1]
    pipelines.patch_spec(training.name, suspend=False)
    goes_on(training, saved)
    assert training.stage()["attempts"] == 3


def goes_on(training: Training, saved: int) -> None:
    """The next attempt begins where the last checkpoint was made, which is where the last one ended."""
    words = f"continues at step {saved}"
    training.wait_note(words)
    training.wait_steps(5)
    before, after = training.steps_around(words)
    assert saved <= before[-1] <= saved + 1
    assert after[:3] == [saved + 1, saved + 2, saved + 3]
