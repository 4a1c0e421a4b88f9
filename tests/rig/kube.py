"""What the tests of the Kubernetes runtime share: objects to write, a listener to check, a candidate to kill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.kinds import CONFIG_MAP
from camel_ray.operator.kube.reflector import Reflector

_CANDIDATE = """
import sys, threading
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import from_kubeconfig
from camel_ray.operator.kube.lease import LeaderElection, LeaseLost

kubeconfig, namespace, identity = sys.argv[1:]
client = Client(from_kubeconfig(kubeconfig), manager="test")
election = LeaderElection(client, name="leader", namespace=namespace, identity=identity,
                          lease_seconds=9, renew_seconds=6, retry_seconds=0.3)

def lead(stop):
    print("leads", election.is_leader, flush=True)
    stop.wait()
    print("stopped", election.is_leader, flush=True)

threading.Thread(target=lambda: (sys.stdin.read(), election.stop()), daemon=True).start()
try:
    election.run(lead)
except LeaseLost:
    print("lost", flush=True)
"""


def config_map(namespace: str, name: str, **data: str) -> dict[str, Any]:
    """A ConfigMap that `mirrored` sees."""
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"app": "test"}}, "data": data}


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, for `seconds` at most."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


class Mirror:
    """What a listener makes of `changed` alone; it must end up equal to the store."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.calls = 0

    def __call__(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        self.calls += 1
        either = new or old
        assert either is not None
        name = either["metadata"]["name"]
        assert (old is not None) == (name in self.objects)
        if new is None:
            del self.objects[name]
        else:
            self.objects[name] = new


@contextmanager
def mirrored(client: Client, namespace: str) -> Iterator[tuple[Reflector, Mirror]]:
    """A reflector of the namespace's `config_map`s that has seen them all, and its listener."""
    mirror = Mirror()
    reflector = Reflector(client, CONFIG_MAP, namespaces=[namespace], labels="app=test", changed=mirror)
    reflector.start()
    try:
        wait_until(lambda: reflector.synced)
        yield reflector, mirror
    finally:
        reflector.stop()


def agree(admin: Client, namespace: str, reflector: Reflector, mirror: Mirror) -> bool:
    """Whether server, store and listener hold the same versions of the same objects."""
    listed, _ = admin.list(CONFIG_MAP, namespace, labels="app=test")
    truth = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in listed}
    stored = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in reflector.store.all()}
    told = {name: item["metadata"]["resourceVersion"] for name, item in mirror.objects.items()}
    return truth == stored == told


class Candidate:
    """A process that stands for election; closing its standard input asks it to stop."""

    def __init__(self, kubeconfig: Path, namespace: str, identity: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CANDIDATE, str(kubeconfig), namespace, identity],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()
