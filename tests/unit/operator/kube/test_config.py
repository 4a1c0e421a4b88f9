from __future__ import annotations

import base64
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from camel_ray.operator.kube import config as config_module
from camel_ray.operator.kube.config import Config, ConfigError, TokenFile, from_kubeconfig, in_cluster


def write(path: Path, user: dict[str, Any], cluster: dict[str, Any] | None = None, **top: Any) -> str:
    document = {
        "clusters": [{"name": "c", "cluster": cluster or {"server": "https://example:6443/"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
        **top,
    }
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod's service account, mounted as the kubelet does."""
    monkeypatch.setattr(config_module, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for name, text in {"token": "t1\n", "ca.crt": "PEM", "namespace": "camel-system"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_pod_is_its_service_account_and_follows_a_rotated_token(pod: Path) -> None:
    config = in_cluster()
    assert (config.server, config.namespace, config.ca) == ("https://10.96.0.1:443", "camel-system", b"PEM")
    assert config.authorization() == "Bearer t1"
    new = pod / "new"
    new.write_text("t2")
    new.replace(pod / "token")
    assert config.authorization() == "Bearer t2"
    (pod / "token").unlink()  # for a moment there is none
    assert config.authorization() == "Bearer t2"


def test_an_address_of_ipv6_is_put_in_brackets(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert in_cluster().server == "https://[fd00::1]:443"


def test_a_token_is_read_again_each_minute_where_the_file_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("t1")
    file, times = TokenFile(path), path.stat()
    path.write_text("t2")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.authorization() == "Bearer t1"
    monkeypatch.setattr(config_module, "_REREAD_SECONDS", -1.0)
    assert file.authorization() == "Bearer t2"


def test_outside_of_a_pod_the_error_says_what_to_do(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pod / "token").unlink()
    with pytest.raises(ConfigError, match="token cannot be read"):
        in_cluster()
    (pod / "ca.crt").unlink()
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        in_cluster()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(ConfigError, match=r"not a pod.*kubeconfig"):
        in_cluster()


def test_no_secret_is_shown(tmp_path: Path) -> None:
    config = from_kubeconfig(write(tmp_path / "k", {"username": "me", "password": "hush"}))
    expected = base64.b64encode(b"me:hush").decode()
    assert config.authorization() == f"Basic {expected}"
    config = Config("https://x", key=b"hush", proxy="http://me:hush@proxy")
    assert "hush" not in repr(config) and "Basic" not in repr(config)


def test_a_kubeconfig_is_read_as_kubectl_does(tmp_path: Path) -> None:
    ca = base64.b64encode(b"CA").decode()
    cluster = {
        "server": "https://example:6443/",
        "certificate-authority-data": ca,
        "tls-server-name": "other",
        "proxy-url": "http://proxy",
        "insecure-skip-tls-verify": True,
    }
    (tmp_path / "client.pem").write_bytes(b"CERT")
    user = {"token": "t", "client-certificate": "client.pem", "client-key-data": base64.b64encode(b"KEY").decode()}
    config = from_kubeconfig(write(tmp_path / "k", user, cluster))
    assert (config.server, config.namespace, config.ca) == ("https://example:6443", "team", b"CA")
    assert (config.server_name, config.proxy, config.verify) == ("other", "http://proxy", False)
    assert (config.certificate, config.key, config.authorization()) == (b"CERT", b"KEY", "Bearer t")


def test_several_files_are_one_and_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "1", {"token": "one"}, contexts=[], **{"current-context": "x"})
    second = write(tmp_path / "2", {"token": "two"}, {"server": "https://second"}, **{"current-context": "y"})
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([first, str(tmp_path / "missing"), second]))
    config = from_kubeconfig()
    assert (config.server, config.authorization()) == ("https://example:6443", "Bearer one")


def test_what_is_missing_in_a_kubeconfig_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"There is no kubeconfig at .*missing; set KUBECONFIG"):
        from_kubeconfig(missing)
    path = write(tmp_path / "k", {})
    with pytest.raises(ConfigError, match="has no context 'other'"):
        from_kubeconfig(path, "other")
    with pytest.raises(ConfigError, match="has no current-context; choose one with --context"):
        from_kubeconfig(write(tmp_path / "k", {}, **{"current-context": ""}))
    with pytest.raises(ConfigError, match="has no cluster 'c'"):
        from_kubeconfig(write(tmp_path / "k", {}, clusters=[]))
    with pytest.raises(ConfigError, match=r"Cluster 'c' of .* has no server"):
        from_kubeconfig(write(tmp_path / "k", {}, {"server": ""}))
    with pytest.raises(ConfigError, match="deprecated auth-provider 'oidc'"):
        from_kubeconfig(write(tmp_path / "k", {"auth-provider": {"name": "oidc"}}))
    with pytest.raises(ConfigError, match="`client-key` of the kubeconfig cannot be read"):
        from_kubeconfig(write(tmp_path / "k", {"client-key-data": "?"}))
    (tmp_path / "k").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_kubeconfig(str(tmp_path / "k"))
    with pytest.raises(ConfigError, match="certificates for https://x cannot be used"):
        Config("https://x", ca=b"no PEM").ssl_context()


PLUGIN = """#!{python}
import json, os, pathlib
count = pathlib.Path(__file__).with_suffix(".count")
runs = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(runs))
info = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
assert info["spec"]["cluster"]["server"] == "https://example:6443"
status = {{"token": f"{{os.environ['PREFIX']}}-{{runs}}", "expirationTimestamp": "{expires}"}}
print(json.dumps({{"kind": "ExecCredential", "status": status}}))
"""


@pytest.mark.parametrize(("expires", "second"), [("2999-01-01T00:00:00Z", "t-1"), ("2001-01-01T00:00:00Z", "t-2")])
def test_a_login_program_is_asked_again_when_its_token_expires_or_is_refused(
    tmp_path: Path, expires: str, second: str
) -> None:
    plugin = tmp_path / "login"
    plugin.write_text(PLUGIN.format(python=sys.executable, expires=expires))
    plugin.chmod(stat.S_IRWXU)
    spec = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "./login",  # relative to the kubeconfig
        "env": [{"name": "PREFIX", "value": "t"}],
    }
    config = from_kubeconfig(write(tmp_path / "k", {"exec": spec}))
    assert config.authorization() == f"Bearer {second}"
    count = int((tmp_path / "login.count").read_text())
    config.renew()
    assert config.authorization() == f"Bearer t-{count + 1}"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo no >&2; exit 3", "ended with 3: no"),
        ("echo '{}'", "printed no ExecCredential"),
        ("""echo '{"status": {}}'""", "neither a token nor a certificate"),
    ],
)
def test_a_login_program_that_fails_is_quoted(tmp_path: Path, script: str, words: str) -> None:
    spec = {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script]}
    with pytest.raises(ConfigError, match=words):
        from_kubeconfig(write(tmp_path / "k", {"exec": spec}))


def test_a_login_program_that_is_not_installed_comes_with_its_hint(tmp_path: Path) -> None:
    spec = {"apiVersion": "v1", "command": "no-such-program", "installHint": "Install it from example.com."}
    with pytest.raises(
        ConfigError, match=r"'no-such-program' of the kubeconfig does not exist; Install it from example"
    ):
        from_kubeconfig(write(tmp_path / "k", {"exec": spec}))
