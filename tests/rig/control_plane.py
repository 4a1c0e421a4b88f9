"""A real Kubernetes control plane as processes of this machine, without a container and without root.

    with ControlPlane() as cluster:
        cluster.kubectl("apply", "-f", "manifests/crd.yaml")

`tests/cluster` and the benchmarks use it. It needs openssl and what `tests/rig/build.sh control-plane` builds: the real
etcd, apiserver, controller-manager and scheduler, so RBAC, admission, garbage collection and Jobs work. There is no
kubelet, so no pod runs by itself. Several can run side by side. All processes share a process group, and a watchdog
ends that group when the process that made it dies, however it dies.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rig.process import HOST, Process, RigError, find_tools, free_ports

TOOLS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
"""What a control plane consists of, in the order of starting; kubectl is for its users."""
_ISSUER = "https://kubernetes.default.svc.cluster.local"
_USERS = {  # name: Kubernetes user, group
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
}
_SHORTEST_TOKEN = 600  # seconds; the API refuses to issue shorter ones
_READABLE = ("--storage-media-type=application/json", "--etcd-compaction-interval=0")
_LEEWAY = 60  # seconds the apiserver accepts a token after its end


class RequestError(RigError):
    """The apiserver refused a request of the rig."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def missing_tools() -> str:
    """Why no control plane can be started here, in words; empty if one can."""
    if shutil.which("openssl") is None:
        return "openssl is not installed"
    try:
        find_tools(*TOOLS)
    except RigError as error:
        return str(error)
    return ""


class ControlPlane:
    """Starts a control plane on entry and throws it away on exit.

    `flags`: more flags for a component, by its name. `audit`: keep a log of all requests, for `audit_log`. `history`:
    keep every version of every object, for `rig.history`. `host`: the address of this machine on which the apiserver
    listens. `users`: more users with a kubeconfig: Kubernetes user and group by name.
    """

    def __init__(
        self,
        *,
        audit: bool = False,
        history: bool = False,
        flags: Mapping[str, Sequence[str]] | None = None,
        host: str = HOST,
        users: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.host = host
        self._users = {**_USERS, **(users or {})}
        self._flags = dict(flags or {})
        self._audit = audit
        self.keeps_history = history
        self._processes: dict[str, Process] = {}

    def __enter__(self) -> ControlPlane:
        self._tools = find_tools(*TOOLS)
        self.directory = Path(tempfile.mkdtemp(prefix="camel-ray-rig-"))
        # It reads until we close the pipe or die, then ends itself and everything else in its process group.
        self._watchdog = subprocess.Popen(
            ["sh", "-c", "read -r _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0
        )
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the rig and remove its directory."""
        os.killpg(self._watchdog.pid, signal.SIGKILL)  # data is thrown away: no reason to wait for a graceful end
        for process in self._processes.values():
            if process.returncode is None:
                process.wait()
        self._watchdog.communicate()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- what tests use -------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the apiserver listens."""
        return f"https://{self.host}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The certificate that speaks for the apiserver."""
        return self.directory / "pki/apiserver.crt"

    @property
    def admin_token(self) -> str:
        """The administrator's bearer token."""
        return self._admin_token

    def kubeconfig(self, user: str = "admin") -> Path:
        """The kubeconfig of a user of the rig, or of a service account for which `service_account` was called."""
        return self.directory / f"pki/{user}.kubeconfig"

    def service_account(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A kubeconfig of a service account (made if it is missing) with a token that ends after `seconds`.

        A second call rewrites the token file that the kubeconfig names, as the kubelet does with projected tokens. The
        apiserver remembers for 10 s that a token was good, so one that ends sooner may live that long.
        """
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        try:
            account = self.request("GET", f"{path}/{name}")
        except RequestError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            account = self.request("POST", path, {"metadata": {"name": name}})
        if seconds >= _SHORTEST_TOKEN:
            request = self.request("POST", f"{path}/{name}/token", {"spec": {"expirationSeconds": seconds}})
            token = str(request["status"]["token"])
        else:
            token = self._signed_token(namespace, name, account["metadata"]["uid"], seconds)
        return self._write_kubeconfig(f"{namespace}.{name}", token)

    def kubectl(
        self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None, check: bool = True
    ) -> str:
        """What kubectl prints, as admin unless told otherwise.

        Raises RigError with what it wrote on stderr if it fails, unless `check` is false.
        """
        command = [
            str(self._tools["kubectl"]),
            f"--kubeconfig={kubeconfig or self.kubeconfig()}",
            f"--cache-dir={self.directory}/kubectl",
            *arguments,
        ]
        done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
        if done.returncode and check:
            raise RigError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply_crds(self, *files: Path) -> None:
        """Apply files that hold CustomResourceDefinitions (and nothing else), and wait until they are served.

        The garbage collector knows them then, too. By itself it looks for new kinds every 30 s only, and until then
        what they own outlives them.
        """
        names = [f"--filename={file}" for file in files]
        before = self.kubectl("get", "crd", "-o", "name")
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", *names
        )  # some are too large for the annotation of a client-side apply
        # kubectl gives up on one whose conditions are not there yet
        wait = ("wait", "--for=condition=Established", "--timeout=30s", *names)
        self.wait_for(lambda: self.kubectl(*wait), "the CRDs to be served")
        if self.kubectl("get", "crd", "-o", "name") != before:
            self.restart("kube-controller-manager")

    def request(
        self, method: str, path: str, body: object = None, *, content: str = "application/json", timeout: float = 60
    ) -> dict[str, Any]:
        """One request as admin, without retries. Raises RequestError if it is refused, OSError if nobody answers."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self._tls())
        headers = {"Authorization": f"Bearer {self._admin_token}", "Content-Type": content}
        return _json(connection, method, path, headers, body)

    def spawn(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        """Start another process of the rig, such as an operator; it is ended with the rig at the latest.

        `environment`: variables beside those of this process.
        """
        if name in self._processes and self._processes[name].alive:
            raise RigError(f"a process named {name} runs already")
        log = self.directory / f"log/{name}.log"
        process = Process(name, command, log, self._watchdog.pid, environment or {})
        self._processes[name] = process
        return process

    def component(self, name: str) -> Process:
        """A process of the rig by its name."""
        return self._processes[name]

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process of the rig; after SIGKILL its end is waited for."""
        process = self.component(name)
        process.signal(number)
        if number == signal.SIGKILL:
            process.wait()

    def restart(self, name: str, *, graceful: bool = False) -> None:
        """End a process of the rig, start it again, and wait until the apiserver answers. etcd keeps its data."""
        process = self.component(name)
        process.stop(graceful=graceful)
        process.start()
        self.wait_ready()

    def wait_ready(self, seconds: float = 180) -> None:
        """Wait until etcd is healthy and the apiserver says that it is ready."""
        self.wait_for(lambda: self.etcd("GET", "/health").get("health") == "true", "etcd to be healthy", seconds)
        self.wait_for(lambda: self.request("GET", "/readyz"), "the apiserver to be ready", seconds)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 120) -> Any:
        """Call `condition` until it returns something true, and return that. A request that fails counts as not yet.

        Raises RigError with the ends of the logs when time is over, or when a process has died meanwhile that was not
        expendable.
        """
        end = time.monotonic() + seconds
        problem: Exception | None = None
        running = [process for process in self._processes.values() if process.alive and not process.expendable]
        while time.monotonic() < end:
            try:
                if value := condition():
                    return value
            except (RigError, OSError, http.client.HTTPException) as error:
                problem = error
            dead = [process.name for process in running if not process.alive]
            if dead:
                raise RigError(f"{', '.join(dead)} died while waiting for {what}\n{self._logs(dead)}")
            time.sleep(0.05)
        raise RigError(f"gave up waiting for {what} ({problem})\n{self._logs(self._processes)}")

    def log_tail(self, name: str, lines: int = 30) -> str:
        """The last lines of the log of a process of the rig."""
        return self.component(name).log_tail(lines)

    def audit_log(self) -> Iterator[dict[str, Any]]:
        """Audit events of all finished requests, oldest first (`verb`, `user`, `objectRef`, `responseStatus`, ...)."""
        if not self._audit:
            raise RigError("this control plane keeps no audit log; start it with ControlPlane(audit=True)")
        with (self.directory / "log/audit.jsonl").open() as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    def etcd(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request to etcd's own JSON API. Raises RequestError if it is refused, OSError if nobody answers."""
        connection = http.client.HTTPConnection(HOST, self.etcd_port, timeout=60)
        return _json(connection, method, path, {}, body)

    def compact(self) -> None:
        """Make etcd forget the past: after a restart of the apiserver, a watch from an older version gets 410."""
        now = self.etcd("POST", "/v3/kv/range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
        self.etcd("POST", "/v3/kv/compaction", {"revision": now, "physical": True})

    # --- how it starts --------------------------------------------------------------------------

    def _start(self) -> None:
        self.port, self.etcd_port, etcd_peer_port = free_ports(3)
        pki = self.directory / "pki"
        for folder in (pki, self.directory / "log"):
            folder.mkdir(mode=0o700)
        subprocess.run(["openssl", "genrsa", "-out", f"{pki}/sa.key", "2048"], capture_output=True, check=True)
        tokens = {user: secrets.token_hex(16) for user in self._users}
        self._admin_token = tokens["admin"]
        rows = [f'{tokens[user]},{name},{user},"{group}"\n' for user, (name, group) in self._users.items()]
        (pki / "tokens.csv").write_text("".join(rows))

        client, peer = f"http://{HOST}:{self.etcd_port}", f"http://{HOST}:{etcd_peer_port}"
        self._component(
            "etcd",
            f"--data-dir={self.directory}/etcd",
            "--unsafe-no-fsync",  # survives the end of the process, not that of the machine
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self._component(
            "kube-apiserver",
            f"--etcd-servers={client}",
            f"--bind-address={self.host}",
            f"--advertise-address={self.host}",
            f"--secure-port={self.port}",
            f"--cert-dir={pki}",  # empty: it writes a self-signed apiserver.crt there, which is its own authority
            f"--token-auth-file={pki}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            # NodeRestriction as everywhere. The other one is stricter than the default, as on OpenShift:
            # blockOwnerDeletion needs `update` on the owner's finalizers.
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--service-account-issuer={_ISSUER}",
            f"--service-account-key-file={pki}/sa.key",
            f"--service-account-signing-key-file={pki}/sa.key",
            *(self._audit_flags() if self._audit else ()),
            *(_READABLE if self.keeps_history else ()),
        )
        self.wait_for(self.ca_file.exists, "the apiserver to write its certificate")
        for user, token in tokens.items():
            self._write_kubeconfig(user, token)
        self.wait_ready()
        self._component(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('kube-controller-manager')}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={self.ca_file}",
            "--kube-api-qps=200",  # it makes a token per controller when it starts: 1 s instead of 5
            "--kube-api-burst=400",
            "--secure-port=0",
            "--leader-elect=false",
            f"--flex-volume-plugin-dir={self.directory}/flexvolume",  # the default lies under /usr
        )
        self._component(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('kube-scheduler')}",
            "--secure-port=0",
            "--leader-elect=false",
        )
        self.wait_service_account("default")

    def wait_service_account(self, namespace: str) -> None:
        """Wait for the `default` service account of a namespace: before that no pod can be made in it."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        self.wait_for(lambda: self.request("GET", path), f"service account {namespace}/default")

    def _component(self, name: str, *flags: str) -> None:
        self.spawn(name, [str(self._tools[name]), *flags, *self._flags.get(name, ())])

    def _audit_flags(self) -> Sequence[str]:
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        }
        path = self.directory / "audit-policy.json"
        path.write_text(json.dumps(policy))
        return f"--audit-policy-file={path}", f"--audit-log-path={self.directory}/log/audit.jsonl"

    def _write_kubeconfig(self, user: str, token: str) -> Path:
        path = self.kubeconfig(user)
        token_file = path.with_suffix(".token")
        _replace(token_file, token)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": user, "user": {"tokenFile": str(token_file)}}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": user, "namespace": "default"}}],
            "current-context": "rig",
        }
        _replace(path, json.dumps(config, indent=1))
        return path

    def _signed_token(self, namespace: str, name: str, uid: str, seconds: int) -> str:
        """A token as the apiserver would issue it, but of any length."""
        now = int(time.time())
        claims = {
            "aud": [_ISSUER],
            "exp": now + seconds - _LEEWAY,
            "iat": now - 2 * _LEEWAY,
            "nbf": now - 2 * _LEEWAY,
            "iss": _ISSUER,
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}},
        }
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", f"{self.directory}/pki/sa.key"]
        signature = subprocess.run(command, input=signed, capture_output=True, check=True).stdout
        return (signed + b"." + _base64url(signature)).decode()

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _logs(self, names: Sequence[str] | Mapping[str, Process]) -> str:
        return "\n".join(f"--- {name}\n{self.log_tail(name)}" for name in names)


def _json(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: object
) -> dict[str, Any]:
    """What a server answers; `{"text": ...}` if that is not a JSON object."""
    try:
        connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise RequestError(response.status, f"{method} {path}: {response.status} {text}")
    return dict(json.loads(text)) if text.startswith("{") else {"text": text}


def _replace(path: Path, text: str) -> None:
    """Write a file that others may be reading."""
    partial = path.with_name(path.name + ".partial")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
