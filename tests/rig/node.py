"""A Kubernetes with one real node: kubelet, containerd, kube-proxy and DNS in namespaces of their own. Pods really run.

    with Node() as node:
        node.import_image(archive)
        node.plane.kubectl("apply", "-f", "pod.yaml")

`tests/e2e` uses it. The control plane is that of `tests/cluster`, except that it listens on this machine's end of a
cable (a veth pair) to the node. Pods and services can be reached from this machine, and pods reach nothing beyond it.
It needs root, what `tests/rig/build.sh node` builds, and some programs of the distribution (`missing_node`). One kill
ends all of it, and mounts, interfaces and firewall rules vanish with the namespaces. One node per machine at a time.

The Python environment with torch and Ray has no place in an image of a test (it takes minutes to make and gigabytes to
keep): containerd mounts it into every container at the path it has here. Only an image whose PATH names it uses it.
"""

from __future__ import annotations

import fcntl
import http.client
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rig.control_plane import ControlPlane, missing_tools
from rig.process import CACHE, RigError, find_tools

NAME = "node-1"
GATEWAY, ADDRESS = "10.201.0.1", "10.201.0.2"
"""This machine's end of the cable, and the node's."""
POD_RANGE, SERVICE_RANGE = "10.244.0.0/24", "10.96.0.0/16"
PAUSE_IMAGE = "registry.local/pause:1"
TOOLS = ("kubelet", "kube-proxy", "coredns", "pause")
_PROGRAMS = ("buildah", "conntrack", "containerd", "ctr", "ip", "mmdebstrap", "nft", "nsenter", "runc", "unshare")
_PLUGINS = Path("/usr/lib/cni")
_STORE = CACHE / "node"
"""What outlives a run: containerd's images."""
_SCRIPTS = Path(__file__).parent / "node"
_OUTSIDE, _INSIDE = "camel-ray0", "camel-ray1"
"""Names of the cable's ends."""
_GROUP = "camel-ray-node"
_SOCKET = "/run/containerd/containerd.sock"
_USERS = {
    "kubelet": (f"system:node:{NAME}", "system:nodes"),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("coredns", ""),
}
_FLAGS = {"kube-apiserver": ["--kubelet-preferred-address-types=InternalIP"]}  # nobody here knows the node's name
_DNS_RIGHTS = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "rig-coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "rig-coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "rig-coredns"},
        "subjects": [{"kind": "User", "name": "coredns", "apiGroup": "rbac.authorization.k8s.io"}],
    },
]


def missing_node() -> str:
    """Why no node can be started here, in words; empty if one can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "a node needs root on Linux"
    programs = [name for name in _PROGRAMS if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} cannot be found; .ci/run installs the Debian packages"
    if not (_PLUGINS / "bridge").exists():
        return f"there are no network plugins in {_PLUGINS} (Debian: containernetworking-plugins)"
    if not Path("/proc/sys/net/bridge").exists():
        return "the kernel module br_netfilter is not loaded"
    if not any(Path("/sys/fs/cgroup").glob("*/cgroup.procs")):
        return "the rig knows cgroup v1 only"
    CACHE.mkdir(parents=True, exist_ok=True)
    if _said("stat", "--file-system", "--format=%T", str(CACHE)) in ("overlayfs", "tmpfs"):
        return f"images cannot be stored on the file system of {CACHE}; set CAMEL_RAY_CACHE to a directory on a disk"
    if _said("unshare", "--mount", "--net", "--pid", "--cgroup", "--fork", "echo", "made") != "made":
        return "root may not make namespaces here"
    if lacks := missing_tools():
        return lacks
    try:
        find_tools(*TOOLS, "helm3")
    except RigError as error:
        return str(error)
    return ""


def python_environment() -> tuple[Path, Path]:
    """The virtual environment with the heavy dependencies, and the Python it was made from."""
    ray = importlib.util.find_spec("ray")
    if ray is None or ray.origin is None:
        raise RigError("ray cannot be imported, so there is no environment to show to pods")
    packages = Path(ray.origin).parents[1]  # <environment>/lib/python3.x/site-packages
    environment = packages.parents[2]
    return environment, Path(os.path.realpath(environment / "bin/python")).parents[1]


class Node:
    """Starts a control plane and a node on entry, and throws both away on exit. The images stay for the next one.

    `audit`: keep a log of all requests, for `plane.audit_log`.
    """

    def __init__(self, *, audit: bool = True) -> None:
        self._audit = audit
        self._stack = ExitStack()
        self._boots = 0

    def __enter__(self) -> Node:
        self._tools = find_tools(*TOOLS)
        with self._stack as stack:
            self._lock(stack)
            stack.callback(_remove_cgroups)
            stack.callback(_unplug)
            _remove_cgroups()
            _plug()
            control_plane = ControlPlane(host=GATEWAY, audit=self._audit, users=_USERS, flags=_FLAGS)
            self.plane = stack.enter_context(control_plane)
            self.plane.kubectl("apply", "-f", "-", input="\n---\n".join(json.dumps(right) for right in _DNS_RIGHTS))
            self.boot()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the node and its control plane; nothing of them is left but the images."""
        self._stack.close()

    # --- what tests use -------------------------------------------------------------------------

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.plane.kubeconfig()

    def exec(self, *command: str, check: bool = True) -> str:
        """What a command prints that runs in the node's namespaces, with its DNS. Raises RigError if it fails."""
        done = subprocess.run([*self._inside(), *command], capture_output=True, text=True, check=False)
        if done.returncode and check:
            raise RigError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def import_image(self, archive: Path) -> None:
        """Give the node an image from a docker-archive named `<image>-<key>.tar`; nothing to do if it has that key."""
        image, _, key = archive.stem.rpartition("-")
        stamp = _STORE / f"imported-{image}"
        if not stamp.exists() or stamp.read_text() != key:
            stamp.unlink(missing_ok=True)
            command = ("ctr", "--address", _SOCKET, "--namespace", "k8s.io", "images", "import", str(archive))
            try:
                self.exec(*command)
            except RigError:  # layers of an image of that name before it may just be going away
                self.exec(*command)
            stamp.write_text(key)

    def power_off(self) -> None:
        """What a power cut does to the node; `boot` starts it again. The control plane lives on."""
        os.kill(self._pid, signal.SIGKILL)
        for name in ("node", "containerd", "kubelet", "kube-proxy", "coredns"):
            self.plane.component(name).wait()
        _unplug()
        _remove_cgroups()
        _plug()

    def boot(self) -> None:
        """Start the node, and wait until it is ready for pods."""
        self._boots += 1
        if self._boots > 1:  # what the kubelet said before a power cut does not count
            status = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
            self.plane.kubectl("patch", "node", NAME, "--subresource=status", "-p", json.dumps({"status": status}))
        directory = self.plane.directory / f"node-{self._boots}"
        for folder in ("etc", "cni"):
            (directory / folder).mkdir(parents=True)
        self._write_settings(directory)
        self._enter(directory)
        etc = directory / "etc"
        self._spawn("containerd", "containerd", f"--config={etc}/containerd.toml")
        self._spawn(
            "kubelet",
            # started again like by a service manager: containerd may listen before it knows its containers
            *("bash", "-c", 'while true; do "$@"; sleep 0.2; done', "kubelet"),
            str(self._tools["kubelet"]),
            f"--config={etc}/kubelet.json",
            f"--kubeconfig={self.plane.kubeconfig('kubelet')}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
        )
        self._spawn("kube-proxy", str(self._tools["kube-proxy"]), f"--config={etc}/kube-proxy.json")
        self._spawn("coredns", str(self._tools["coredns"]), "-conf", f"{etc}/Corefile")
        containerd = ("ctr", "--address", _SOCKET, "version")
        self.plane.wait_for(lambda: self.exec(*containerd), "containerd to answer")
        self.plane.wait_for(self._ready, "the node to be ready", 180)
        self.plane.wait_for(lambda: _answers(10256, "/healthz"), "kube-proxy to have written its rules")
        self.plane.wait_for(lambda: _answers(8181, "/ready"), "CoreDNS to have seen the services")

    # --- how it starts --------------------------------------------------------------------------

    def _lock(self, stack: ExitStack) -> None:
        _STORE.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((CACHE / "node.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RigError(f"another test node runs on this machine (it locks {lock.name}); wait for its end") from None

    def _enter(self, directory: Path) -> None:
        """Make the namespaces, and plug the cable in."""
        (directory / "cgroups").write_text("".join(f"{group}\n" for group in _make_cgroups()))
        arguments = (str(directory), str(_STORE), NAME, _INSIDE, ADDRESS, GATEWAY, str(self._tools["pause"]))
        self.plane.spawn("node", [str(_SCRIPTS / "enter.sh"), *arguments])
        told = directory / "init.pid"
        self.plane.wait_for(told.exists, "the node's namespaces")
        self._pid = int(told.read_text())
        _ip("link", "set", _INSIDE, "netns", str(self._pid))
        self.plane.wait_for((directory / "plugged").exists, "the node's network")
        _ip("route", "replace", POD_RANGE, "via", ADDRESS)
        _ip("route", "replace", SERVICE_RANGE, "via", ADDRESS)

    def _inside(self) -> list[str]:
        namespaces = ("--mount", "--net", "--pid", "--cgroup", "--ipc", "--uts")
        return ["nsenter", f"--target={self._pid}", *namespaces, "--"]

    def _spawn(self, name: str, *command: str) -> None:
        self.plane.spawn(name, [*self._inside(), *command])

    def _ready(self) -> bool:
        conditions = self.plane.request("GET", f"/api/v1/nodes/{NAME}")["status"]["conditions"]
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _write_settings(self, directory: Path) -> None:
        etc = directory / "etc"
        spec = json.loads(subprocess.run(["ctr", "oci", "spec"], capture_output=True, check=True).stdout)
        spec["process"].pop("rlimits", None)  # 1024 open files are too few for Ray
        spec["mounts"] += [
            {"destination": str(path), "source": str(path), "type": "bind", "options": ["rbind", "ro"]}
            for path in python_environment()
        ]
        _write_json(etc / "base-spec.json", spec)
        _write_json(directory / "cni/10-rig.conflist", _CNI)
        (etc / "containerd.toml").write_text(_CONTAINERD.format(store=_STORE, directory=directory))
        _write_json(etc / "kubelet.json", _KUBELET | {"volumePluginDir": f"{directory}/volume-plugins"})
        connection = {"clientConnection": {"kubeconfig": str(self.plane.kubeconfig("kube-proxy"))}}
        _write_json(etc / "kube-proxy.json", _KUBE_PROXY | connection)
        (etc / "Corefile").write_text(_COREFILE.format(kubeconfig=self.plane.kubeconfig("coredns")))


_CNI: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "rig",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,  # a pod reaches itself through its service
            "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_RANGE}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
# restrict_oom_score_adj: without CAP_SYS_RESOURCE nobody may ask for the negative scores that pods want.
# The plugin that is left out would make /opt/containerd.
_CONTAINERD = f"""
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
root = "{{store}}/containerd"
state = "/run/containerd"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{{directory}}/etc/base-spec.json"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{_PLUGINS}"
    conf_dir = "{{directory}}/cni"
"""
_KUBELET: dict[str, Any] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "failCgroupV1": False,
    "cgroupDriver": "cgroupfs",
    "failSwapOn": False,
    "containerRuntimeEndpoint": f"unix://{_SOCKET}",
    # Only this machine reaches it, through the cable. With client certificates the apiserver would need an authority.
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "address": ADDRESS,
    "clusterDNS": [ADDRESS],
    "clusterDomain": "cluster.local",
    "resolvConf": "/etc/resolv.conf",
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    "imageGCHighThresholdPercent": 100,  # an image that is gone cannot be pulled again
    "syncFrequency": "10s",
}
_KUBE_PROXY: dict[str, Any] = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "nftables",
    "clusterCIDR": POD_RANGE,
    "hostnameOverride": NAME,
    # the table of connections belongs to the whole machine
    "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    "healthzBindAddress": f"{ADDRESS}:10256",
    "metricsBindAddress": f"{ADDRESS}:10249",
}
_COREFILE = f"""
.:53 {{{{
  bind {ADDRESS}
  ready {ADDRESS}:8181
  errors
  kubernetes cluster.local in-addr.arpa {{{{
    kubeconfig {{kubeconfig}}
    pods insecure
    ttl 5
  }}}}
  cache 5
}}}}
"""


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))


def _answers(port: int, path: str) -> bool:
    """Whether a daemon of the node says that it is well."""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    finally:
        connection.close()


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode and check:
        raise RigError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _plug() -> None:
    """This machine's end of the cable, and the address the control plane listens on."""
    _unplug()  # of a node that was killed a moment ago
    _ip("link", "add", _OUTSIDE, "type", "veth", "peer", "name", _INSIDE)
    _ip("address", "add", f"{GATEWAY}/24", "dev", _OUTSIDE)
    _ip("link", "set", _OUTSIDE, "up")


def _unplug() -> None:
    _ip("link", "delete", _OUTSIDE, check=False)


def _cgroups() -> Iterator[Path]:
    """The node's cgroup in each hierarchy, below that of this process: one place to look at, to limit, to remove."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:  # without one it is the hierarchy of version 2, which holds no controller here
            yield Path("/sys/fs/cgroup", controllers.removeprefix("name="), path.strip("/"), _GROUP)


def _make_cgroups() -> Sequence[Path]:
    groups = list(_cgroups())
    for group in groups:
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (group / setting).exists():  # a new cpuset is empty, and then takes no process
                (group / setting).write_text((group.parent / setting).read_text())
    return groups


def _remove_cgroups() -> None:
    """Remove what is left of a node; its processes may need a moment to be gone."""
    end = time.monotonic() + 60
    for group in _cgroups():
        while group.exists():
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):  # a process is still in there
                    Path(folder).rmdir()
            if group.exists() and time.monotonic() > end:
                pids = (group / "cgroup.procs").read_text().split()
                raise RigError(f"processes {', '.join(pids)} are still in {group}; a node before this one left them")
            time.sleep(0.02)
