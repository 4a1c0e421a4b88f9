"""How the operator scales: latency to the first child, calls, memory, catch-up and failover, beside JobSet and Trainer.

    python benchmarks/operator_scale.py [--quick] [--objects 1000] [--burst]

All sides run on the same real apiserver (etcd without fsync, loopback) with kwok's nodes, one after the other: a parent
object is created, and the time until its first Job appears is taken. `executor: Job` everywhere, so that the Job
controller, the scheduler and kwok finish the work alike. Every parent has three Jobs, one after the other: three
stages, or three replicated jobs that depend on each other.
The last line printed is one JSON object; speeds are objects per second to their first child, of a burst.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the rig: a real control plane without containers

from operator_sides.cluster import cluster
from operator_sides.load import JOBS, Latencies, create
from operator_sides.sides import CamelRay, JobSet, Side, Trainer

from rig.control_plane import ControlPlane
from rig.process import Process

RATE = 100.0
"""Creations per second of the paced run; a small machine's API server does not keep up with it."""
WARM = 3
"""Objects before all others."""
CALM = 5.0
"""Creations per second that leave the machine idle most of the time: what the operator itself adds."""
FEW = 50
"""Objects of that run."""


def main() -> None:
    """Run all sides and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 objects instead of 1,000")
    parser.add_argument("--objects", type=int, help="objects per run; 10000 takes long on a small machine")
    parser.add_argument("--burst", action="store_true", help="only the burst, not the creations at a rate")
    parser.add_argument("--only", choices=("camel-ray", "jobset", "trainer"), help="one side, without comparisons")
    options = parser.parse_args()
    count = options.objects or (300 if options.quick else 1000)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {count} objects per run")
    figures: dict[str, float] = {}
    with cluster() as plane:
        sides: list[Side] = [CamelRay(), JobSet(), Trainer()]
        bursts: dict[str, Latencies] = {}
        for side in sides:
            if options.only in (None, side.name):
                side.install(plane)
                bursts[side.name] = run(plane, side, count, figures, only_burst=options.burst)
        if "camel-ray" in bursts:
            failover(plane, figures)
            figures["speed"] = bursts["camel-ray"].per_second
        for peer in ("jobset", "trainer"):
            if {"camel-ray", peer} <= bursts.keys():
                figures[f"speed_vs_{peer}"] = bursts["camel-ray"].per_second / bursts[peer].per_second
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


def run(
    plane: ControlPlane, side: Side, count: int, figures: dict[str, float], *, only_burst: bool = False
) -> Latencies:
    """A burst and the paced runs of one side; returns the burst."""
    process = side.start(plane)
    if isinstance(side, CamelRay):
        plane.wait_for(lambda: metric(side, "leader_election_master_status") == 1, "the operator to lead")
        figures["mb_idle"] = memory_mb(process)
    warm(plane, side)
    began = time.perf_counter()
    burst = load(plane, side, "burst", count, None)
    finish(plane, f"{side.name}-burst", count)
    if isinstance(side, CamelRay):
        reconciles = metric(side, "controller_runtime_reconcile_total")
        figures["reconciles_per_s"] = reconciles / (time.perf_counter() - began)
        figures["p99_s_burst"] = burst.quantile(0.99)
    after_burst, made = memory_mb(process), count
    if not only_burst:
        paced = load(plane, side, "paced", count, RATE)
        finish(plane, f"{side.name}-paced", count)
        calm = load(plane, side, "calm", FEW, CALM)
        figures[f"p99_s_calm_{side.name}"] = calm.quantile(0.99)
        made = 2 * count + FEW
        if isinstance(side, CamelRay):
            figures["p50_s_1000"], figures["p99_s_1000"] = paced.median, paced.quantile(0.99)
            # Beside what each pipeline takes there is what the first ones bring once: connections, parsers, tables.
            figures["mb_per_1000_more"] = (memory_mb(process) - after_burst) * 1000 / (made - count)
    if isinstance(side, CamelRay):
        settle(plane, side, (made + WARM) * side.stages)
        account(side, process, made, figures)
        process.stop()
        figures["catch_up_s"], figures["mb_caught_up"] = catch_up(plane, side, made)
    else:
        process.stop()
        if isinstance(side, Trainer):
            side.stop_beside()
    return burst


def load(plane: ControlPlane, side: Side, kind: str, count: int, rate: float | None) -> Latencies:
    """One run of creations, in a namespace of its own."""
    name = f"{side.name}-{kind}"
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    plane.wait_service_account(name)
    found = create(plane, name, side.path, parents(side, count), side.parent_of, rate=rate)
    print(
        f"{side.name:10} {f'{rate:.0f}/s' if rate else kind:6} {found.per_second:7.1f} objects/s to first child, "
        f"p50 {found.median:.3f} s, p99 {found.quantile(0.99):.3f} s, max {found.seconds[-1]:.3f} s",
        flush=True,
    )
    return found


def account(side: CamelRay, process: Process, made: int, figures: dict[str, float]) -> None:
    """What the operator took for `made` pipelines: calls, reconciles and memory."""
    attempts = (made + WARM) * side.stages
    calls, used = requests(side), memory_mb(process)
    figures["api_calls_per_attempt"] = sum(calls.values()) / attempts
    figures["reconciles_per_attempt"] = metric(side, "controller_runtime_reconcile_total") / attempts
    figures["mb_per_1000"] = (used - figures["mb_idle"]) * 1000 / made
    figures["mb_used"], figures["mb_aim"] = used, 100 + 0.01 * made
    print(f"  calls: {calls}; memory {figures['mb_idle']:.0f} MB idle, {used:.0f} MB with {made} pipelines")


def warm(plane: ControlPlane, side: Side) -> None:
    """A few objects through, so that caches are filled and connections open: those of the API server, too, which for up
    to half a minute refuses children of a kind that was just installed.
    """
    name = f"{side.name}-warm"
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    plane.wait_service_account(name)
    create(plane, name, side.path, parents(side, WARM), side.parent_of, rate=None)


def parents(side: Side, count: int) -> list[dict[str, object]]:
    """Objects to create."""
    return [side.parent(f"p{i:05d}") for i in range(count)]


def finish(plane: ControlPlane, namespace: str, parents: int) -> None:
    """Wait until the three Jobs of every parent are done, so that the next run begins on an idle machine."""
    began, done = time.perf_counter(), 0
    while done < 3 * parents:
        if time.perf_counter() - began > 60 + parents:
            raise TimeoutError(f"{3 * parents - done} Jobs of {namespace} are not done")
        time.sleep(max(2.0, parents / 200))  # the answer grows with them
        jobs = plane.request("GET", JOBS.format(namespace), timeout=300)["items"]
        done = sum(job.get("status", {}).get("succeeded", 0) for job in jobs)
    print(f"  all {done} Jobs done {time.perf_counter() - began:.0f} s later", flush=True)


def settle(plane: ControlPlane, side: CamelRay, attempts: int) -> None:
    """Wait until all attempts are over."""
    began = time.perf_counter()
    plane.wait_for(
        lambda: metric(side, "camel_ray_attempts_total") >= attempts and not metric(side, "workqueue_depth"),
        f"{attempts} attempts to end",
        seconds=60 + attempts / 5,
    )
    print(f"  all {attempts} attempts ended {time.perf_counter() - began:.1f} s later")


def catch_up(plane: ControlPlane, side: CamelRay, pipelines: int) -> tuple[float, float]:
    """Seconds from the start of a new operator until it has looked at every pipeline, and its memory then, in MB."""
    began = time.perf_counter()
    process = side.start(plane)
    plane.wait_for(
        lambda: metric(side, "controller_runtime_reconcile_total") >= pipelines and not metric(side, "workqueue_depth"),
        "the new operator to have seen everything",
        seconds=120 + pipelines / 20,
    )
    seconds = time.perf_counter() - began
    memory = memory_mb(process)
    process.stop(graceful=True)
    return seconds, memory


def failover(plane: ControlPlane, figures: dict[str, float]) -> None:
    """Kill the leader of two operators, and time the first child of a pipeline that was created at that moment."""
    first, second = CamelRay(), CamelRay()
    leader = first.start(plane, "first")
    plane.wait_for(lambda: metric(first, "leader_election_master_status") == 1, "the first operator to lead", 60)
    other = second.start(plane, "second")
    plane.wait_for(lambda: ready(second), "the second operator to be ready")
    plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": "failover"}})
    plane.wait_service_account("failover")
    leader.signal(signal.SIGKILL)
    began = time.perf_counter()
    create(plane, "failover", first.path, parents(first, 1), first.parent_of, rate=None)
    figures["failover_s"] = time.perf_counter() - began
    other.stop()


def scrape(side: CamelRay) -> str:
    """The operator's metrics; empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{side.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def metric(side: CamelRay, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", scrape(side), re.MULTILINE))


def requests(side: CamelRay) -> dict[str, int]:
    """Requests to the API server by method, without the watches."""
    rows = re.findall(r"^rest_client_requests_total{(.*)} (\S+)$", scrape(side), re.MULTILINE)
    counted: dict[str, int] = {}
    for labels, value in rows:
        method = re.search(r'method="(\w+)"', labels)
        if method and method[1] != "WATCH":
            counted[method[1]] = counted.get(method[1], 0) + int(float(value))
    return counted


def ready(side: CamelRay) -> bool:
    """Whether the operator has seen everything."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{side.metrics_port}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def memory_mb(process: Process) -> float:
    """Resident memory of a process, in MB."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
