"""Where the API server is and how to prove who we are: from a pod's service account, or from a kubeconfig.

`in_cluster()` serves the operator, `from_kubeconfig()` the command line. Both give a `Config`, which the client turns
into connections. Kubeconfigs are read here rather than with the `kubernetes` package, which takes 67 MB of memory and
126 MB of disk; what kubectl reads is read, except the `auth-provider` form that kubectl deprecated for exec plugins.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, its namespace and the certificate authority."""
_REREAD_SECONDS = 60.0
_PLUGIN_SECONDS = 60.0


class ConfigError(Exception):
    """The cluster cannot be found, or no way to log in; the message says what to do."""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Config:
    """One API server and one identity. Its `repr` shows no secret."""

    server: str
    """Base URL, such as `https://10.96.0.1:443`."""
    namespace: str = "default"
    """Namespace where none is named: the pod's own, or the context's."""
    ca: bytes | None = field(default=None, repr=False)
    """Certificate authorities as PEM; None: the system's."""
    verify: bool = True
    """False trusts any certificate (`insecure-skip-tls-verify`)."""
    server_name: str | None = None
    """Name the server's certificate must carry, where it is not the one of the URL."""
    certificate: bytes | None = field(default=None, repr=False)
    """Client certificate as PEM."""
    key: bytes | None = field(default=None, repr=False)
    """Its private key as PEM."""
    proxy: str | None = field(default=None, repr=False)
    """URL of an HTTP proxy in front of the server."""
    authorization: Callable[[], str | None] = field(default=_nothing, repr=False)
    """Value of the `Authorization` header, asked for before each request: tokens rotate."""
    renew: Callable[[], None] = field(default=_nothing, repr=False)
    """Makes `authorization` look again, because the server refused what it gave."""

    def ssl_context(self) -> ssl.SSLContext:
        """A context that trusts `ca` and shows `certificate`. Raises ConfigError where one of them is malformed."""
        try:
            context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
            # Python 3.13 turned on a strictness that refuses the certificate authorities of many clusters.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate and self.key:
                # `ssl` loads keys from files only. The directory is private and gone a moment later.
                with tempfile.TemporaryDirectory(prefix="camel-ray-") as folder:
                    pair = Path(folder) / "pair.pem"
                    pair.touch(mode=0o600)
                    pair.write_bytes(self.certificate + b"\n" + self.key)
                    context.load_cert_chain(pair)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"The certificates for {self.server} cannot be used: {error}.") from error
        return context


class TokenFile:
    """A bearer token in a file that somebody else rotates, as the kubelet does with projected tokens.

    Read again when the file changed, and each minute, because not every file system tells of changes. A file that
    cannot be read for a moment keeps the last token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._token = ""
        self._stamp: tuple[int, int] | None = None
        self._read_at = 0.0
        self.authorization()  # fails now rather than in the middle of a request

    def authorization(self) -> str | None:
        """The header's value. Raises ConfigError if there never was a token."""
        with self._lock:
            now = time.monotonic()
            try:
                stat = self._path.stat()
                stamp = (stat.st_mtime_ns, stat.st_ino)
                if stamp != self._stamp or now - self._read_at > _REREAD_SECONDS:
                    self._token = self._path.read_text().strip() or self._token
                    self._stamp, self._read_at = stamp, now
            except OSError as error:
                if not self._token:
                    raise ConfigError(f"The token {self._path} cannot be read: {error.strerror}.") from error
            return f"Bearer {self._token}"

    def renew(self) -> None:
        """Read the file at the next request, changed or not."""
        with self._lock:
            self._stamp = None


class ExecPlugin:
    """A program that prints a token, as cloud providers use it (`client.authentication.k8s.io` ExecCredential).

    The token is kept until it expires or the server refuses it.
    """

    def __init__(self, spec: Mapping[str, Any], folder: Path, server: str) -> None:
        self._spec = spec
        self._folder = folder
        self._server = server
        self._lock = threading.Lock()
        self._credential: Mapping[str, Any] = {}

    def credential(self) -> Mapping[str, Any]:
        """The `status` of its answer: token, or client certificate and key. Raises ConfigError if it gives none."""
        with self._lock:
            if not self._credential or _expired(self._credential.get("expirationTimestamp")):
                self._credential = self._run()
            return self._credential

    def authorization(self) -> str | None:
        """The header's value; None if the plugin gives certificates only."""
        token = self.credential().get("token")
        return f"Bearer {token}" if token else None

    def renew(self) -> None:
        """Run the program again at the next request."""
        with self._lock:
            self._credential = {}

    def _run(self) -> Mapping[str, Any]:
        command = str(self._spec["command"])
        if "/" in command:  # relative to the kubeconfig, as kubectl does
            command = str(self._folder / command)
        request = {
            "apiVersion": self._spec["apiVersion"],
            "kind": "ExecCredential",
            "spec": {"interactive": False, "cluster": {"server": self._server}},
        }
        extra = {entry["name"]: entry["value"] for entry in self._spec.get("env") or ()}
        environment = {**os.environ, **extra, "KUBERNETES_EXEC_INFO": json.dumps(request)}
        try:
            done = subprocess.run(
                [command, *(self._spec.get("args") or ())],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PLUGIN_SECONDS,
                check=True,
            )
            status = json.loads(done.stdout)["status"]
        except FileNotFoundError as error:
            hint = str(self._spec.get("installHint") or "install it, or use another context").strip().rstrip(".")
            raise ConfigError(f"The login program {command!r} of the kubeconfig does not exist; {hint}.") from error
        except subprocess.CalledProcessError as error:
            words = error.stderr.decode(errors="replace").strip()[-500:]
            raise ConfigError(f"The login program {command!r} ended with {error.returncode}: {words}") from error
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"The login program {command!r} gave no answer in {_PLUGIN_SECONDS:.0f} s.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"The login program {command!r} printed no ExecCredential with a status.") from error
        if not isinstance(status, dict) or not (status.get("token") or status.get("clientCertificateData")):
            raise ConfigError(f"The login program {command!r} gave neither a token nor a certificate.")
        return status


def in_cluster() -> Config:
    """The API server of the pod this runs in, as its service account. Raises ConfigError outside of a pod."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError("This is not a pod: KUBERNETES_SERVICE_HOST is not set; give a kubeconfig instead.")
    try:
        ca = (SERVICE_ACCOUNT / "ca.crt").read_bytes()
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"The pod's service account cannot be read ({error.filename}: {error.strerror}); "
            "set automountServiceAccountToken: true."
        ) from error
    token = TokenFile(SERVICE_ACCOUNT / "token")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Config(server, namespace, ca, authorization=token.authorization, renew=token.renew)


def from_kubeconfig(path: str | None = None, context: str | None = None) -> Config:
    """What kubectl would use: `path`, or the files of KUBECONFIG, or ~/.kube/config; `context`, or the current one.

    Raises ConfigError, naming the file and the entry that is missing or cannot be used.
    """
    files = [path] if path else (os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)
    book = _Kubeconfig([Path(name).expanduser() for name in files if name])
    name = context or book.current
    if not name:
        raise ConfigError(f"{book.where} has no current-context; choose one with --context.")
    chosen, _ = book.entry("contexts", "context", name)
    cluster, cluster_folder = book.entry("clusters", "cluster", str(chosen.get("cluster", "")))
    server = str(cluster.get("server", "")).rstrip("/")
    if not server:
        raise ConfigError(f"Cluster {chosen.get('cluster')!r} of {book.where} has no server.")
    user, user_folder = book.entry("users", "user", str(chosen["user"])) if chosen.get("user") else ({}, Path())
    authorization, renew, certificate, key = _identity(user, user_folder, server, book.where)
    return Config(
        server=server,
        namespace=str(chosen.get("namespace") or "default"),
        ca=_data(cluster, "certificate-authority", cluster_folder),
        verify=not cluster.get("insecure-skip-tls-verify"),
        server_name=cluster.get("tls-server-name"),
        certificate=certificate,
        key=key,
        proxy=cluster.get("proxy-url"),
        authorization=authorization,
        renew=renew,
    )


class _Kubeconfig:
    """One or more kubeconfig files read as one: the first that sets a value or names an entry counts."""

    def __init__(self, files: list[Path]) -> None:
        self.where = ", ".join(map(str, files))
        self.current = ""
        self._documents: list[tuple[Path, dict[str, Any]]] = []
        for file in files:
            try:
                document = yaml.safe_load(file.read_text()) or {}
            except FileNotFoundError:
                continue
            except (OSError, yaml.YAMLError) as error:
                raise ConfigError(f"The kubeconfig {file} cannot be read: {error}.") from error
            if not isinstance(document, dict):
                raise ConfigError(f"The kubeconfig {file} is not a mapping.")
            self._documents.append((file.parent, document))
            self.current = self.current or str(document.get("current-context") or "")
        if not self._documents:
            raise ConfigError(f"There is no kubeconfig at {self.where}; set KUBECONFIG or pass --kubeconfig.")

    def entry(self, section: str, member: str, name: str) -> tuple[dict[str, Any], Path]:
        """An entry by name, and the folder its relative paths start from."""
        for folder, document in self._documents:
            for item in document.get(section) or ():
                if item.get("name") == name:
                    return item.get(member) or {}, folder
        raise ConfigError(f"{self.where} has no {member} {name!r}.")


def _identity(
    user: Mapping[str, Any], folder: Path, server: str, where: str
) -> tuple[Callable[[], str | None], Callable[[], None], bytes | None, bytes | None]:
    """Header, renewal, certificate and key of a kubeconfig's user."""
    certificate, key = _data(user, "client-certificate", folder), _data(user, "client-key", folder)
    if user.get("tokenFile"):
        file = TokenFile(folder / str(user["tokenFile"]))
        return file.authorization, file.renew, certificate, key
    if user.get("token"):
        header = f"Bearer {user['token']}"
        return lambda: header, _nothing, certificate, key
    if user.get("username"):
        pair = f"{user['username']}:{user.get('password', '')}".encode()
        basic = f"Basic {base64.b64encode(pair).decode()}"
        return lambda: basic, _nothing, certificate, key
    if user.get("exec"):
        plugin = ExecPlugin(user["exec"], folder, server)
        answer = plugin.credential()
        if answer.get("clientCertificateData"):
            certificate, key = answer["clientCertificateData"].encode(), answer.get("clientKeyData", "").encode()
        return plugin.authorization, plugin.renew, certificate, key
    if user.get("auth-provider"):
        raise ConfigError(
            f"A user of {where} logs in by the deprecated auth-provider {user['auth-provider'].get('name')!r}; "
            "use its exec plugin instead (`kubectl oidc-login` for OIDC)."
        )
    return _nothing, _nothing, certificate, key


def _data(entry: Mapping[str, Any], name: str, folder: Path) -> bytes | None:
    """`NAME-data` (base64) or the content of the file `NAME`."""
    try:
        if entry.get(f"{name}-data"):
            return base64.b64decode(entry[f"{name}-data"], validate=True)
        if entry.get(name):
            return (folder / str(entry[name])).read_bytes()
    except (binascii.Error, OSError) as error:
        raise ConfigError(f"`{name}` of the kubeconfig cannot be read: {error}.") from error
    return None


def _expired(timestamp: str | None) -> bool:
    if not timestamp:
        return False
    return datetime.fromisoformat(timestamp).timestamp() < time.time() + 10
