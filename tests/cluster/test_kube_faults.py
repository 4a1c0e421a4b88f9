"""What the Kubernetes runtime does when the API server is killed, frozen, forgetful, or not who it should be."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import Config
from camel_ray.operator.kube.errors import Gone, KubeError, Unreachable
from camel_ray.operator.kube.kinds import CONFIG_MAP, NAMESPACE
from camel_ray.operator.kube.reflector import Reflector
from rig.control_plane import ControlPlane
from rig.kube import Candidate, Mirror, agree, config_map, mirrored, wait_until


@pytest.fixture(scope="module")
def client_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tls.crt`, which is its own authority and speaks for an administrator, and `tls.key`."""
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/O=system:masters/CN=by-certificate", "-keyout", "tls.key", "-out", "tls.crt"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def control_plane(client_certificate: Path) -> Iterator[ControlPlane]:
    """One of our own: these tests kill it."""
    with ControlPlane(flags={"kube-apiserver": [f"--client-ca-file={client_certificate}/tls.crt"]}) as cluster:
        yield cluster


def test_certificates_of_both_sides_count(control_plane: ControlPlane, client_certificate: Path) -> None:
    ca = control_plane.ca_file.read_bytes()
    pair = (client_certificate / "tls.crt").read_bytes(), (client_certificate / "tls.key").read_bytes()
    mine = Config(control_plane.url, ca=ca, certificate=pair[0], key=pair[1])
    seen: list[str] = []

    def namespaces(config: Config) -> int:
        client = Client(config, manager="test", observe=lambda verb, code, seconds: seen.append(code))
        try:
            return len(client.list(NAMESPACE)[0])
        finally:
            client.close()

    assert namespaces(mine) >= 4
    assert namespaces(replace(mine, server_name="kubernetes.default.svc")) >= 4
    assert namespaces(replace(mine, ca=None, verify=False)) >= 4
    seen.clear()
    with pytest.raises(Unreachable, match="certificate verify failed"):
        namespaces(replace(mine, ca=None))
    with pytest.raises(Unreachable, match="Hostname mismatch"):
        namespaces(replace(mine, server_name="elsewhere.example"))
    assert seen == ["error", "error"]  # no second try will find another certificate


class CutOff(Client):
    """A client whose reads can be cut off for a while, as by a network."""

    cut = False

    def list_each(self, *args: Any, **options: Any) -> Any:
        if self.cut:
            raise Unreachable("cut off")
        return super().list_each(*args, **options)

    def watch(self, *args: Any, **options: Any) -> Any:
        if self.cut:
            raise Unreachable("cut off")
        return super().watch(*args, **options)


def test_deletions_behind_a_compaction_are_noticed(admin: Client, control_plane: ControlPlane, namespace: str) -> None:
    client, mirror = CutOff(admin.config, manager="test"), Mirror()
    reflector = Reflector(client, CONFIG_MAP, namespaces=[namespace], labels="app=test", changed=mirror)
    reflector.start()
    for name in ("stays", "goes", "comes-back"):
        admin.create(CONFIG_MAP, config_map(namespace, name, n="1"))
    wait_until(lambda: len(mirror.objects) == 3)
    version = admin.list(CONFIG_MAP, namespace)[1]
    uid = mirror.objects["comes-back"]["metadata"]["uid"]

    client.cut = True
    control_plane.restart("kube-apiserver")  # ends the watch
    admin.delete(CONFIG_MAP, "goes", namespace)
    admin.delete(CONFIG_MAP, "comes-back", namespace)
    admin.create(CONFIG_MAP, config_map(namespace, "comes-back", n="2"))
    control_plane.compact()
    control_plane.restart("kube-apiserver")
    with pytest.raises(Gone):
        list(admin.watch(CONFIG_MAP, namespace, resource_version=version, timeout_seconds=5))
    assert len(reflector.store) == 3
    client.cut = False
    wait_until(lambda: "goes" not in mirror.objects and agree(admin, namespace, reflector, mirror))
    assert mirror.objects["comes-back"]["metadata"]["uid"] != uid
    reflector.stop()
    client.close()


def test_nothing_is_missed_while_the_api_server_is_killed_again_and_again(
    admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    with mirrored(admin, namespace) as (reflector, mirror):
        stop = threading.Event()
        written = [0]

        def churn() -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                try:
                    admin.apply(CONFIG_MAP, config_map(namespace, f"c{number % 40}", n=str(number)))
                    if number % 3 == 0:
                        admin.delete(CONFIG_MAP, f"c{(number * 7) % 40}", namespace)
                    written[0] += 1
                except KubeError:
                    stop.wait(0.05)

        writer = threading.Thread(target=churn)
        writer.start()
        try:
            for _ in range(2):
                before = written[0]
                wait_until(lambda before=before: written[0] > before + 50)  # type: ignore[misc]
                control_plane.restart("kube-apiserver")
        finally:
            stop.set()
            writer.join()
        wait_until(lambda: agree(admin, namespace, reflector, mirror))
        assert mirror.calls > 50


def test_a_frozen_api_server_ends_the_watch_as_unreachable_and_closing_does_not_wait(
    admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    version = admin.list(CONFIG_MAP, namespace)[1]
    watch = admin.watch(CONFIG_MAP, namespace, resource_version=version, idle_seconds=1)
    patient = admin.watch(CONFIG_MAP, namespace, resource_version=version)
    closer = threading.Timer(0.2, patient.close)
    control_plane.signal("kube-apiserver", signal.SIGSTOP)
    try:
        with pytest.raises(Unreachable, match="was cut off"):
            for _ in watch:
                pass
        closer.start()
        started = time.monotonic()
        assert [event for event in patient if event["type"] != "BOOKMARK"] == []
        assert time.monotonic() - started < 30  # and not the 70 s of silence
        with pytest.raises(Unreachable):
            admin.hurried(0.5).get(CONFIG_MAP, "a", namespace)
    finally:
        control_plane.signal("kube-apiserver", signal.SIGCONT)
        closer.join()
    control_plane.wait_ready()


def test_a_leader_whose_server_is_gone_gives_up_before_others_may_start(
    admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    candidate = Candidate(control_plane.kubeconfig(), namespace, "alone")
    try:
        assert candidate.line() == "leads True"
        control_plane.signal("kube-apiserver", signal.SIGSTOP)
        assert [candidate.line(), candidate.line()] == ["stopped False", "lost"]
    finally:
        control_plane.signal("kube-apiserver", signal.SIGCONT)
        candidate.close()
    control_plane.wait_ready()
