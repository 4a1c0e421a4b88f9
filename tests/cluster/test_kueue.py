"""Pipelines that share a quota run one after the other, and the one that waits says what for, in Kueue's own words."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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
CRD = "workloads.kueue.x-k8s.io"
NO_KUEUE = (
    "is suspended and waits for queue 'gpus', but this cluster has no Kueue (Workloads are not served): install Kueue, "
    "or take cluster.queue out"
)


@pytest.fixture(scope="module")
def built() -> Path:
    """The directory of Kueue's manager, with its CRDs below; tests that need it are left out where it is not built."""
    try:
        return find_tools("kueue")["kueue"].parent
    except RigError as error:
        pytest.skip(str(error))


@pytest.fixture
def waiting(
    control_plane: ControlPlane, namespace: str, ray_crds: None, operator: Callable[..., Operator], kuberay: KubeRay
) -> Pipelines:
    """A pipeline of each executor, `job` and `rayjob`, that names a queue where there is no Kueue."""
    operator()
    mine = Pipelines(control_plane, namespace)
    for executor in ("Job", "RayJob"):
        mine.apply(pipeline(executor.lower(), STAGE, cluster={"executor": executor, "queue": "gpus"}))
    for name in ("job", "rayjob"):
        mine.wait_stage(name, "text", "Queued")
    return mine


def wait_message(mine: Pipelines, name: str, words: str) -> None:
    """Wait until the stage of a pipeline says that."""
    mine.wait(lambda: words in mine.stage(name, "text").get("message", ""), f"{name} to say: {words}")


def test_a_queue_without_kueue_says_what_to_do(waiting: Pipelines) -> None:
    wait_message(waiting, "job", NO_KUEUE)
    wait_message(waiting, "rayjob", NO_KUEUE)


def test_a_kueue_that_comes_later_is_heard_of_and_an_old_one_understood(
    control_plane: ControlPlane, built: Path, waiting: Pipelines, tmp_path: Path
) -> None:
    """Without its manager: who it is that writes Workloads does not matter here."""
    crd = yaml.safe_load((built / "manifests/crd/bases/kueue.x-k8s.io_workloads.yaml").read_text())
    for version in crd["spec"]["versions"]:
        version["served"] = version["name"] == "v1beta1"
    file = tmp_path / "crd.yaml"
    file.write_text(json.dumps(crd))
    control_plane.apply_crds(file)
    wait_message(waiting, "job", "is suspended, and waits to be admitted")
    job = waiting.list("jobs", "job")[0]["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job["name"], "uid": job["uid"]}
    workload = {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "Workload",
        "metadata": {"name": "job", "ownerReferences": [owner]},
        "spec": {"podSets": [{"name": "main", "count": 1, "template": {"spec": {"containers": []}}}]},
    }
    waits = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "no quota left in gpus"}
    status = {"conditions": [{**waits, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    waiting.kubectl("create", "-f", "-", input=json.dumps(workload))
    waiting.kubectl(
        *("patch", "workloads.v1beta1.kueue.x-k8s.io", "job", "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": status})),
    )
    wait_message(waiting, "job", "no quota left in gpus")
    control_plane.kubectl("delete", "crd", CRD)
    wait_message(waiting, "job", NO_KUEUE)


@pytest.fixture(scope="module")
def queues(control_plane: ControlPlane, ray_crds: None, built: Path) -> Iterator[None]:
    """Kueue manages Jobs and RayJobs that name a queue."""
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
    kuberay.rule("first-*", namespace=namespace, seconds=30.0)
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
