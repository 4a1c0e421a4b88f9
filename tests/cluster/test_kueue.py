"""Pipelines that share a quota run one after the other, and the one that waits says what for, in Kueue's own words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from camel_ray.operator.kinds import CAMEL_PIPELINE
from camel_ray.operator.kube.client import Client
from kuberay_standin.launch import KubeRay
from rig import kueue
from rig.control_plane import ControlPlane
from rig.operator import Operator
from rig.pipelines import Pipelines, pipeline
from rig.process import RigError, find_tools

ONE_AT_A_TIME = {"cpu": "1500m", "memory": "6Gi"}
"""Enough for one stage with what the operator asks for by default, not for two."""
STAGE = {"name": "text", "data": {"source": "/data/rows.jsonl"}}


@pytest.fixture(scope="module")
def queues(control_plane: ControlPlane, ray_crds: None) -> Iterator[None]:
    """Kueue manages Jobs and RayJobs that name a queue."""
    try:
        find_tools("kueue")
    except RigError as error:
        pytest.skip(str(error))
    kueue.install(control_plane)
    process = kueue.start_kueue(control_plane, ("batch/job", "ray.io/rayjob"))
    yield
    process.stop()


@pytest.mark.parametrize("executor", ["Job", "RayJob"])
def test_the_second_pipeline_waits_in_kueues_words_and_runs_after_the_first(
    control_plane: ControlPlane,
    namespace: str,
    queues: None,
    operator: Callable[..., Operator],
    kuberay: KubeRay,
    admin: Client,
    executor: str,
) -> None:
    queue = kueue.make_queue(control_plane, namespace, ONE_AT_A_TIME)
    kuberay.rule("first-*", namespace=namespace, seconds=5.0)
    operator()
    mine = Pipelines(control_plane, namespace)
    cluster = {"executor": executor, "queue": queue}
    mine.apply(pipeline("first", STAGE, cluster=cluster))
    mine.wait_stage("first", "text", "Running")
    seen = PhasesOf(admin, namespace, "second")
    mine.apply(pipeline("second", STAGE, cluster=cluster))
    first, second = (mine.wait_phase(name, "Succeeded")["stages"][0] for name in ("first", "second"))
    assert first["ended"] <= second["history"][-1]["ended"]
    said = seen.messages("Queued")
    assert any("insufficient unused quota for" in message for message in said), said
    assert [phase for phase in seen.order() if phase in ("Queued", "Running", "Succeeded")] == [
        "Queued",
        "Running",
        "Succeeded",
    ]


class PhasesOf:
    """Every phase and message the stage of a pipeline goes through, without missing one."""

    def __init__(self, client: Client, namespace: str, name: str) -> None:
        self._seen: list[tuple[str, str]] = []
        _, version = client.list(CAMEL_PIPELINE, namespace)
        watch = client.watch(CAMEL_PIPELINE, namespace, resource_version=version, idle_seconds=60)
        self._thread = threading.Thread(target=self._follow, args=(watch, name))
        self._thread.start()

    def _follow(self, watch: Iterator[dict[str, Any]], name: str) -> None:
        for event in watch:
            status = event["object"].get("status", {})
            if event["object"]["metadata"]["name"] == name and status:
                self._seen += [(stage["phase"], stage.get("message", "")) for stage in status["stages"]]
                if status["phase"] in ("Succeeded", "Failed", "Cancelled"):
                    return

    def order(self) -> list[str]:
        """The phases, each once."""
        self._thread.join(timeout=30)
        return list(dict.fromkeys(phase for phase, _ in self._seen))

    def messages(self, phase: str) -> list[str]:
        """What it said in a phase."""
        self._thread.join(timeout=30)
        return [message for seen, message in self._seen if seen == phase]
