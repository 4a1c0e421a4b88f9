"""The node of the rig is a real one: what the other tests of this folder take for granted about it."""

from __future__ import annotations

from pathlib import Path

from rig.control_plane import ControlPlane
from rig.images import OPERATOR
from rig.node import Node
from rig.pods import run

PYTHON = ("python", "-c")


def test_a_pod_finds_the_api_server_by_its_name_and_is_known_there(plane: ControlPlane, namespace: str) -> None:
    script = """
import json, pathlib, ssl, urllib.error, urllib.request
account = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
headers = {"Authorization": "Bearer " + (account / "token").read_text()}
request = urllib.request.Request("https://kubernetes.default.svc/api/v1/secrets", headers=headers)
try:
    urllib.request.urlopen(request, context=ssl.create_default_context(cafile=account / "ca.crt"))
except urllib.error.HTTPError as error:
    print(error.code, json.loads(error.read())["message"])
"""
    printed = run(plane, namespace, OPERATOR, script, command=PYTHON)
    assert printed.startswith("403 ")
    assert f"system:serviceaccount:{namespace}:default" in printed


def test_a_pod_reaches_nothing_beyond_the_node(plane: ControlPlane, namespace: str) -> None:
    script = """
import socket
try:
    socket.create_connection(("192.0.2.1", 443), timeout=1)
except OSError as error:
    print("refused", error)
"""
    assert run(plane, namespace, OPERATOR, script, command=PYTHON).startswith("refused")


def test_requests_are_in_the_audit_log(plane: ControlPlane, namespace: str) -> None:
    users = {event["user"]["username"] for event in plane.audit_log()}
    assert {"admin", "system:node:node-1", "coredns"} <= users


def test_the_machine_keeps_its_own_settings(node: Node) -> None:
    for setting, wanted in (("vm/overcommit_memory", "1"), ("kernel/panic", "10"), ("kernel/panic_on_oops", "1")):
        assert node.exec("cat", f"/proc/sys/{setting}").strip() == wanted
    mounted = Path("/proc/self/mounts").read_text()
    assert str(node.plane.directory) not in mounted
    assert node.exec("cat", "/etc/resolv.conf").strip() == "nameserver 10.201.0.2"
    assert "10.201.0.2" not in Path("/etc/resolv.conf").read_text()


def test_the_node_comes_back_after_a_power_cut(node: Node, plane: ControlPlane, namespace: str) -> None:
    node.power_off()
    node.boot()
    assert run(plane, namespace, OPERATOR, "--version")
