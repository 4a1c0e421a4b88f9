"""Runs a container's command as a process of this machine, in the environment its pod describes.

Environment values, ConfigMaps, Secrets, downward fields and service account tokens come through the API as they would
to a kubelet. There is no mount namespace, because that needs root: volumes lie in a private directory, and values of
the environment and words of the command that name a path below a mount are rewritten to it. Volumes that hold data
(claims, host paths) and /dev/shm are not rewritten: a test mounts them where they are.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kuberay_standin.api import Api, ApiError, Object, key_of

LOG_CHARACTERS = 20_000
"""How much of a log Ray keeps in the message of a failed job."""
_MESSAGE_BYTES = 2048


class MissingError(Exception):
    """Something a container needs does not exist (yet); the text is that of the kubelet's event."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Process:
    """A process group with its log."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], directory: Path, log: Path, message: Path) -> None:
        self.log, self._message = log, message
        with log.open("wb") as out:
            self._popen = subprocess.Popen(
                argv, env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def poll(self) -> int | None:
        """The exit code as a kubelet tells it, None while it runs."""
        code = self._popen.poll()
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group, and its end."""
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def tail(self, characters: int = LOG_CHARACTERS) -> str:
        """The end of the log."""
        return self.log.read_bytes()[-4 * characters :].decode(errors="replace")[-characters:]

    def message(self, policy: str) -> str:
        """The termination message, of the file or as the policy says."""
        text = self._message.read_text() if self._message.exists() else ""
        if not text and policy == "FallbackToLogsOnError" and self.poll():
            text = "\n".join(self.tail(_MESSAGE_BYTES).splitlines()[-80:])
        return text

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)


class Processes:
    """Starts containers below one directory."""

    def __init__(self, api: Api, root: Path) -> None:
        self._api, self._root = api, root

    def start(self, pod: Object, container: Object, argv: Sequence[str] | None = None, label: str = "") -> Process:
        """Run `argv`, or the container's own command, as that container. Raises MissingError."""
        home = self._root.joinpath(*key_of(pod))
        home.mkdir(parents=True, exist_ok=True)
        name = f"{container['name']}{label}"
        message = home / f"{name}.message"
        paths = self._mounts(pod, container, home)
        paths[container.get("terminationMessagePath", "/dev/termination-log")] = message
        env = {k: _local(v, paths) for k, v in self.environment(pod, container).items()}
        words = argv or [_expand(w, env) for w in (*container.get("command", ()), *container.get("args", ()))]
        work = home / "work"
        work.mkdir(exist_ok=True)
        directory = Path(_local(container["workingDir"], paths)) if "workingDir" in container else work
        # What the image would bring: this interpreter and its modules, and how the tests quieten their libraries.
        image = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        log = home / f"{name}.log"
        return Process([_local(w, paths) for w in words], {**image, **env}, directory, log, message)

    def environment(self, pod: Object, container: Object) -> dict[str, str]:
        """The variables of a container, references resolved. Raises MissingError."""
        namespace, env = pod["metadata"]["namespace"], dict[str, str]()
        for source in container.get("envFrom", ()):
            for kind, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
                if reference := source.get(kind):
                    data = self._data(resource, namespace, reference["name"], reference.get("optional", False))
                    env |= {source.get("prefix", "") + k: v.decode() for k, v in data.items()}
        for entry in container.get("env", ()):
            if "valueFrom" not in entry:
                env[entry["name"]] = _expand(entry.get("value", ""), env)
            elif (value := self._value(pod, entry["valueFrom"])) is not None:
                env[entry["name"]] = value
        return env

    def _value(self, pod: Object, source: Mapping[str, Any]) -> str | None:
        if "fieldRef" in source:
            return _field(pod, source["fieldRef"]["fieldPath"])
        for kind, resource in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if reference := source.get(kind):
                optional = reference.get("optional", False)
                data = self._data(resource, pod["metadata"]["namespace"], reference["name"], optional)
                if reference["key"] in data:
                    return data[reference["key"]].decode()
                if not optional:
                    raise MissingError(
                        "Failed", f"Error: couldn't find key {reference['key']} in {resource[:-1]} {reference['name']}"
                    )
        return None

    def _data(self, resource: str, namespace: str, name: str, optional: bool) -> dict[str, bytes]:
        obj = self._api.get(resource, namespace, name)
        if obj is None:
            if optional:
                return {}
            raise MissingError("Failed", f'{resource[:-1]} "{name}" not found')
        text = {k: v.encode() for k, v in obj.get("data", {}).items()}
        if resource == "secrets":
            return {k: base64.b64decode(v) for k, v in text.items()}
        return text | {k: base64.b64decode(v) for k, v in obj.get("binaryData", {}).items()}

    def _mounts(self, pod: Object, container: Object, home: Path) -> dict[str, Path | None]:
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        paths: dict[str, Path | None] = {}
        for mount in container.get("volumeMounts", ()):
            directory = home / "volumes" / mount["name"]
            held = self._fill(pod, volumes[mount["name"]], directory) and mount["mountPath"] != "/dev/shm"
            paths[mount["mountPath"].rstrip("/")] = directory / mount.get("subPath", "") if held else None
        return paths

    def _fill(self, pod: Object, volume: Mapping[str, Any], directory: Path) -> bool:
        """Write a volume's files; False if it holds data of its own. Raises MissingError."""
        if not {"configMap", "secret", "projected", "downwardAPI", "emptyDir"} & set(volume):
            return False
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            try:
                files = self._files(pod, source)
            except MissingError as error:
                words = f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                raise MissingError("FailedMount", words) from error
            for path, content in files.items():
                (directory / path).parent.mkdir(parents=True, exist_ok=True)
                (directory / path).write_bytes(content)
        return True

    def _files(self, pod: Object, source: Mapping[str, Any]) -> dict[str, bytes]:
        for kind, resource in (("configMap", "configmaps"), ("secret", "secrets")):
            if wanted := source.get(kind):
                name = wanted.get("name") or wanted["secretName"]
                optional = wanted.get("optional", False)
                data = self._data(resource, pod["metadata"]["namespace"], name, optional)
                items = wanted.get("items")
                return {i["path"]: data[i["key"]] for i in items if i["key"] in data} if items else data
        if wanted := source.get("downwardAPI"):
            return {i["path"]: _field(pod, i["fieldRef"]["fieldPath"]).encode() for i in wanted.get("items", ())}
        if wanted := source.get("serviceAccountToken"):
            return {wanted["path"]: self._token(pod, wanted).encode()}
        return {}

    def _token(self, pod: Object, wanted: Mapping[str, Any]) -> str:
        namespace, name = key_of(pod)
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"]}
        spec: Object = {"boundObjectRef": bound, "expirationSeconds": wanted.get("expirationSeconds", 3600)}
        if wanted.get("audience"):
            spec["audiences"] = [wanted["audience"]]
        path = self._api.path("serviceaccounts", namespace, pod["spec"].get("serviceAccountName", "default"), "token")
        try:
            token: str = self._api.call("POST", path, {"spec": spec})["status"]["token"]
        except ApiError as error:  # its namespace is being deleted, say
            raise MissingError("FailedMount", f"failed to fetch token: {error}") from error
        return token


def _local(value: str, paths: Mapping[str, Path | None]) -> str:
    """A path below a mount, where its volume really is; anything else as it is."""
    for mount in sorted(paths, key=len, reverse=True):
        if value == mount or value.startswith(f"{mount}/"):
            directory = paths[mount]
            return value if directory is None else str(directory) + value[len(mount) :]
    return value


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)`, and `$$(NAME)` for the text itself."""
    return re.sub(r"\$\$|\$\(([A-Za-z_][\w.-]*)\)", lambda m: "$" if not m[1] else env.get(m[1], m[0]), text)


def _field(pod: Object, path: str) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)
