"""From `kubectl apply` to the first training step in a pod, and what the time goes into.

    python benchmarks/first_step.py [--quick] [--rounds 3] [--only Job|RayJob] [--stage KIND] [--before DIRECTORY]

A pipeline of one small stage (pretraining, or with `--stage tokenizer` that) is applied again and again to a cluster of
this machine whose pods really run (tests/rig/node.py: needs root), with the chart's defaults. What the stage reads is
there already. For `executor: RayJob` KubeRay is played (tests/kuberay_standin); Ray, its pods and its job API are real.
Images are on the node, so no pull is in the figures.

`--before`: a folder with an older `camel_ray` package; every other round runs its stages with that one.
Then an image that does not exist, and how long it takes until the status says so. The last line printed is one JSON
object: medians in seconds, by executor, without the first pipeline of all.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the rig

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.images import OPERATOR, TRAINER, build
from rig.node import Node
from rig.pipelines import Object, Pipelines, pipeline
from rig.release import Release
from rig.training import CONFIG, machine, write_data

NAMESPACE = "first-step"
USER = 1000
STAGES: dict[str, Object] = {
    "pretrain": {
        "data": {"source": "/data/rows.jsonl", "format": "text", "validation": 0.1},
        "tokenizer": "/data/home/stages/words/tokenizer",
        "model": {"config": CONFIG},
        "steps": 600,  # some seconds, so that the status is seen before the end
        "batchSize": 8,
        "microBatchSize": 8,
        "maxLength": 32,
        "logEverySteps": 1,
    },
    "tokenizer": {"data": {"source": "/data/rows.jsonl", "format": "text"}, "vocabSize": 300},
}
PHASES = {
    "operator": "until the API server has the Job or RayJob",
    "pods": "KubeRay, scheduler, kubelet: until the first process of the Job's pod or of the head",
    "ray": "until Ray and its job API are up and the stage's process begins (RayJob)",
    "python": "Python, the package, storage: until the stage begins",
    "imports": "libraries, rows: until the first of them is tokenised",
    "training": "model, trainer, training process (RayJob): until it is ready for steps",
    "step": "until the first step is done",
    "told": "until the status on the API server says so",
}
"""What the time goes into, in order."""
_ATTEMPT = [b"-m", b"camel_ray.runtime.attempt"]


def main() -> None:
    """Run all rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("Job", "RayJob"), help="one executor")
    parser.add_argument("--stage", choices=tuple(STAGES), default="pretrain")
    parser.add_argument("--before", type=Path, help="folder with an older camel_ray package, to compare with")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds")
    executors = [options.only] if options.only else ["Job", "RayJob"]
    versions = ["before", "now"] if options.before else ["now"]
    archives = [build(name) for name in ("pause", "operator", "trainer")]
    found: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)  # pods have to get through
        node = stack.enter_context(Node())
        for archive in archives:
            node.import_image(archive)
        Release(node.plane, directory / "helm", operator=OPERATOR, trainer=TRAINER).install()
        if "RayJob" in executors:
            stack.enter_context(KubeRay(node.plane, directory, pace=1.0, real_pods=True))
        data = prepare(node.plane, directory, options.before)
        fresh = measure(node.plane, data, manifest("fresh", "Job", "now", options.stage))  # just after the installation
        for number in range(rounds):
            for executor in executors:
                for version in versions:
                    name = f"{executor.lower()}-{version}-{number}"
                    spans = measure(node.plane, data, manifest(name, executor, version, options.stage))
                    key = executor.lower() + ("_before" if version == "before" else "")
                    found.setdefault(key, []).append(spans)
                    print(f"{name}: " + ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in spans.items()))
        refused = {executor.lower(): round(refusal_shown(node.plane, executor), 2) for executor in executors}
    figures: dict[str, Any] = {key: medians(rounds) for key, rounds in found.items()}
    figures["missing_image_shown"] = refused
    print(json.dumps({**figures, "operator_just_installed": round(fresh["operator"], 2)}))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each phase, and of their sum."""
    return {phase: round(statistics.median(spans[phase] for spans in rounds), 2) for phase in rounds[0]}


def prepare(plane: ControlPlane, directory: Path, before: Path | None) -> Path:
    """A namespace with a claim; rows and a tokenizer lie on it. Returns the directory behind the claim."""
    data = directory / "data"
    data.mkdir()
    write_data(data)
    if before is not None:
        shutil.copytree(before / "camel_ray", data / "before/camel_ray", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(data / "before", quiet=1)
    for path in (data, *data.rglob("*")):
        os.chown(path, USER, USER)
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    plane.wait_service_account(NAMESPACE)
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    bound = {"namespace": NAMESPACE, "name": "data"}
    spec = {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": str(data)}, "claimRef": bound}
    request = {**common, "volumeName": "data", "resources": {"requests": {"storage": "1Gi"}}}
    for kind, body in (("PersistentVolume", spec), ("PersistentVolumeClaim", request)):
        manifest = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "data"}, "spec": body}
        plane.kubectl("-n", NAMESPACE, "apply", "-f", "-", input=json.dumps(manifest))
    return data


def manifest(name: str, executor: str, version: str, kind: str) -> Object:
    """One stage, on one pod (Job) or by a head and a worker (RayJob)."""
    env = [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    env += [{"name": "PYTHONPATH", "value": "/data/before"}] if version == "before" else []
    volumes = [{"mountPath": "/data", "claim": "data"}]
    cluster: Object = {"executor": executor, "head": machine("3Gi"), "env": env, "volumes": volumes}
    stage: Object = {"name": "base", kind: STAGES[kind]}
    if executor == "RayJob":
        cluster["groups"] = [{"name": "train", "replicas": 1, **machine("3Gi")}]
        stage["group"] = "train"
    made = pipeline(name, stage, storage="/data/storage", cluster=cluster)
    del made["spec"]["cluster"]["image"]  # the chart's
    return made


def measure(plane: ControlPlane, data: Path, applied: Object) -> dict[str, float]:
    """One round: seconds of each phase, and from the beginning to the first step."""
    name, cluster = applied["metadata"]["name"], applied["spec"]["cluster"]
    pipelines = Pipelines(plane, NAMESPACE)
    watcher = Watcher(lambda: look(pipelines, name))
    began = time.time()
    pipelines.apply(applied)
    try:
        pipelines.wait_phase(name, "Succeeded", 300)
    finally:
        seen = watcher.stop()
    stage = data / "storage" / name / "stages/base"
    events = progress(stage / "progress.jsonl")
    steps = [event for event in events if event.get("task") == "train"]
    marks = {
        "operator": created(plane, name, cluster["executor"]),
        "pods": seen.get("head", seen["attempt"]),
        "ray": seen["attempt"],
        "python": json.loads((stage / "state.json").read_text())["started"],
        "imports": next(event["time"] for event in events if event.get("task") in ("tokenize", "train")),
        "training": steps[0]["time"],
        "step": next(event["time"] for event in steps if event.get("done")),
        "told": seen.get("told", 0.0),
    }
    assert marks.keys() == PHASES.keys()
    plane.kubectl("-n", NAMESPACE, "delete", "camel", name, "--wait=false")
    plane.wait_for(lambda: not pipelines.list("pods", name), "the pods to go", 90)
    spans: dict[str, float] = {}
    last = began
    for phase, mark in marks.items():
        spans[phase], last = max(0.0, mark - last), max(last, mark)
    spans["first_step"] = marks["step"] - began
    return spans


def refusal_shown(plane: ControlPlane, executor: str) -> float:
    """Seconds from `kubectl apply` until the status says that an image does not exist."""
    applied = manifest(f"{executor.lower()}-nowhere", executor, "now", "tokenizer")
    applied["spec"]["cluster"]["image"] = "registry.local/camel-ray/nowhere:1"
    pipelines, name = Pipelines(plane, NAMESPACE), applied["metadata"]["name"]
    began = time.time()
    pipelines.apply(applied)
    words = re.compile("ErrImage|ImagePullBackOff")
    pipelines.wait(lambda: words.search(pipelines.get(name).get("status", {}).get("message", "")), "the pod's words")
    shown = time.time() - began
    plane.kubectl("-n", NAMESPACE, "delete", "camel", name, "--wait=false")
    return shown


class Watcher:
    """Calls a function ten times a second and keeps when each of the moments it names was: the first answer counts."""

    def __init__(self, look: Callable[[], Mapping[str, float]]) -> None:
        self._look, self._seen, self._over = look, dict[str, float](), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """The moments, seconds since 1970."""
        self._over.set()
        self._thread.join()
        return self._seen

    def _run(self) -> None:
        while not self._over.wait(0.1):
            try:
                now = self._look()
            except (OSError, RuntimeError, KeyError):
                continue
            self._seen = {**now, **self._seen}


def look(pipelines: Pipelines, name: str) -> dict[str, float]:
    """What can be seen now: when processes of its pods began, and whether its status tells of a step."""
    seen: dict[str, float] = {}
    pods = {str(pod["metadata"]["uid"]): pod["metadata"]["labels"] for pod in pipelines.list("pods", name)}
    for began, command, uid in processes(set(pods)):
        if pods[uid].get("ray.io/node-type") == "head":
            seen["head"] = min(began, seen.get("head", began))
        if command[1:3] == _ATTEMPT:
            seen["attempt"] = began
    told = pipelines.stage(name, "base").get("progress", {})
    if told.get("task") == "train" and told.get("done"):
        seen["told"] = time.time()
    return seen


def processes(uids: set[str]) -> list[tuple[float, list[bytes], str]]:
    """Start, command and pod of the processes of some pods; this machine's process table has the node's."""
    if not uids:
        return []
    found = []
    booted = time.time() - float(Path("/proc/uptime").read_text().split()[0])
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            groups = (directory / "cgroup").read_text()
            uid = next((uid for uid in uids if uid in groups), None)
            if uid is None:
                continue
            ticks = int((directory / "stat").read_text().rpartition(")")[2].split()[19])
            command = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0] not in (b"", b"/pause") and b"runc" not in command[0]:
            found.append((booted + ticks / os.sysconf("SC_CLK_TCK"), command, uid))
    return found


def created(plane: ControlPlane, name: str, executor: str) -> float:
    """When the API server had made its Job or RayJob."""
    resource = executor.lower() + "s"
    for event in plane.audit_log():
        about = event.get("objectRef", {})
        made = event["responseStatus"]["code"] == 201 or event["verb"] == "patch"
        if about.get("resource") == resource and str(about.get("name", "")).startswith(f"{name}-base") and made:
            return seconds(event["stageTimestamp"])
    raise RuntimeError(f"no {executor} of {name} in the audit log")


def progress(file: Path) -> list[dict[str, Any]]:
    """The events the stage told."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def seconds(stamp: str) -> float:
    """Of a time stamp of Kubernetes, since 1970; nanoseconds are cut."""
    whole = re.sub(r"(\.\d{6})\d*Z$", r"\1Z", stamp)
    return datetime.fromisoformat(whole).timestamp()


if __name__ == "__main__":
    main()
