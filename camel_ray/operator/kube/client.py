"""The API server as plain dicts: one method per verb, connections kept alive, errors as exceptions.

The controller, its reflectors, the lease and the command line speak to Kubernetes through this and nothing else. It is
thin on purpose: typed models cost 35 times the decoding time, refuse the fields of newer servers, and the caches hold
dicts anyway.

What is tried again, within 60 s in all: requests the server turned away unseen (429, or no connection), and those that
do no harm twice (get, list, update, apply, delete) also after a reset, a time-out or a 5xx. A create is not among them:
a caller that sees AlreadyExists after a lost answer knows best what to do.
"""

from __future__ import annotations

import copy
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

import orjson
import urllib3

from camel_ray.operator.kube.clock import ServerClock
from camel_ray.operator.kube.config import Config
from camel_ray.operator.kube.errors import Conflict, Gone, KubeError, NotFound, Unreachable, error_of
from camel_ray.operator.kube.kinds import POD, Kind
from camel_ray.operator.kube.stream import Stream, Watch

Object = dict[str, Any]
Objects = list[Object]
Kept = TypeVar("Kept")
Many = list[Kept]  # in the class that name is a verb
Observe = Callable[[str, str, float], None]
"""Told of each answer: verb, HTTP status or `error`, seconds."""

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0
_TRIES = 5
_PATIENCE_SECONDS = 60.0
_FIRST_DELAY_SECONDS = 0.2
_MAX_RETRY_AFTER_SECONDS = 10.0
_CONNECTIONS = 64  # kept; when more threads ask at once, more are opened and closed again

_HARMLESS_TWICE = frozenset({"get", "list", "log", "update", "apply", "delete"})
_TURNED_AWAY = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"

_log = logging.getLogger(__name__)


class Client:
    """Requests to one API server. All methods may be called from any thread and raise KubeError.

    `manager` is the field manager of everything written; `observe` is called once per answer, for metrics.
    """

    def __init__(
        self,
        config: Config,
        *,
        manager: str,
        user_agent: str = "camel-ray",
        observe: Observe | None = None,
    ) -> None:
        self.config = config
        self.manager = manager
        self.clock = ServerClock()
        """The server's time, by its answers."""
        self._observe = observe
        self._headers = {"Accept": _JSON, "User-Agent": user_agent}
        self._tries = _TRIES
        self._read_seconds = _READ_SECONDS
        self._closed = threading.Event()
        self._warned: set[str] = set()
        self._pool = _connections(config)

    def hurried(self, seconds: float) -> Client:
        """The same connections, but one try of at most `seconds` per request: for those who race against a deadline."""
        other = copy.copy(self)
        other._tries, other._read_seconds = 1, seconds
        return other

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """One object. Raises NotFound."""
        return self._json("get", _what("get", kind, namespace, name), "GET", kind.path(namespace, name))

    def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        page: int = 500,
    ) -> tuple[Objects, str]:
        """All objects of a namespace, or of all, as they were at one moment, and the resource version of that moment.

        They come in pages of `page`. When a page comes too late for its moment (410), everything is read again at once,
        as kubectl does.
        """
        return self.list_each(kind, namespace, lambda item: item, labels=labels, fields=fields, page=page)

    def list_each(
        self,
        kind: Kind,
        namespace: str | None,
        each: Callable[[Object], Kept],
        *,
        labels: str = "",
        fields: str = "",
        page: int = 500,
    ) -> tuple[Many[Kept], str]:
        """The same, but only what `each` makes of every object is kept before the next page is read."""
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(page)}
        items: Many[Kept] = []
        while True:
            try:
                answer = self._json("list", _what("list", kind, namespace), "GET", kind.path(namespace), query=query)
            except Gone:
                if not query.get("continue"):
                    raise
                items, query = [], {**query, "continue": "", "limit": ""}
                continue
            for item in answer.get("items") or ():
                item["apiVersion"], item["kind"] = kind.api_version, kind.name  # lists leave them out
                items.append(each(item))
            query["continue"] = answer["metadata"].get("continue") or ""
            if not query["continue"]:
                return items, answer["metadata"]["resourceVersion"]

    def create(self, kind: Kind, manifest: Mapping[str, Any]) -> Object:
        """Create an object in the namespace of its metadata. Raises AlreadyExists."""
        name, namespace = _identity(kind, manifest)
        body = {"apiVersion": kind.api_version, "kind": kind.name, **manifest}
        what = _what("create", kind, namespace, name)
        return self._json("create", what, "POST", kind.path(namespace), query=self._managed(), body=body)

    def apply(
        self, kind: Kind, manifest: Mapping[str, Any], *, subresource: str | None = None, force: bool = True
    ) -> Object:
        """Server-side apply: make the named fields so, and drop those we set before and no longer name.

        Without `force` a field that another manager set otherwise raises Conflict.
        """
        name, namespace = _identity(kind, manifest)
        body = {"apiVersion": kind.api_version, "kind": kind.name, **manifest}
        query = self._managed() | {"force": "true" if force else "false"}
        what = _what("apply", kind, namespace, name)
        path = kind.path(namespace, name, subresource)
        return self._json("apply", what, "PATCH", path, query=query, body=body, content_type=_APPLY)

    def replace(self, kind: Kind, obj: Mapping[str, Any], *, subresource: str | None = None) -> Object:
        """Write an object as it is given. Raises Conflict if it carries a resource version that is not the newest."""
        name, namespace = _identity(kind, obj)
        what = _what("update", kind, namespace, name)
        return self._json(
            "update", what, "PUT", kind.path(namespace, name, subresource), query=self._managed(), body=obj
        )

    def replace_status(self, kind: Kind, obj: Mapping[str, Any]) -> Object:
        """Write the status of an object; the rest of it is ignored. Raises Conflict like `replace`."""
        return self.replace(kind, obj, subresource="status")

    def patch(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        patch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        subresource: str | None = None,
    ) -> Object:
        """Merge patch (a mapping) or JSON patch (a list). Raises Invalid where a `test` of the latter does not hold."""
        content_type = _MERGE if isinstance(patch, Mapping) else _JSON_PATCH
        what, path = _what("patch", kind, namespace, name), kind.path(namespace, name, subresource)
        return self._json("patch", what, "PATCH", path, query=self._managed(), body=patch, content_type=content_type)

    def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        version: str | None = None,
        propagation: str = "Background",
    ) -> None:
        """Delete an object and what it owns. That it is gone, or (with `uid`) replaced by a namesake, is success; so it
        is, with both, that it is not the `version` (its resource version) any more, and then it stays.
        """
        body: Object = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid, **({"resourceVersion": version} if version else {})}
        try:
            self._json(
                "delete", _what("delete", kind, namespace, name), "DELETE", kind.path(namespace, name), body=body
            )
        except NotFound:
            pass
        except Conflict as error:
            if not uid or "precondition" not in error.message.lower():
                raise

    def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: str = "",
        fields: str = "",
        timeout_seconds: float = 270,
        idle_seconds: float = 70,
    ) -> Watch:
        """What happens after `resource_version`, for `timeout_seconds` give or take a tenth: not all shall end at once.

        Bookmarks come each minute, so silence of `idle_seconds` means a dead connection, and raises Unreachable.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(round(timeout_seconds * random.uniform(0.9, 1.1))),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        what = _what("watch", kind, namespace)
        once = self.hurried(idle_seconds)  # whoever watches has a pace of its own for trying again
        path = kind.path(namespace)
        response = once._send("watch", what, "GET", path, silence=idle_seconds, query=query, stream=True)
        return Watch(Stream(response, what), what)

    def logs(
        self, pod: str, namespace: str, *, container: str, follow: bool = False, tail: int | None = None
    ) -> Stream:
        """The log of a container as bytes, the last `tail` lines of it, and with `follow` what is still to come."""
        query = {
            "container": container,
            "follow": "true" if follow else "",
            "tailLines": "" if tail is None else str(tail),
        }
        what = f"log of {namespace}/{pod}"
        # A silent container is no fault: a followed log waits for ever, and TCP's keep-alive notices a dead peer.
        silence = None if follow else self._read_seconds
        path = POD.path(namespace, pod, "log")
        return Stream(self._send("log", what, "GET", path, silence=silence, query=query, stream=True), what)

    def close(self) -> None:
        """Close the connections and end waits between tries. Watches and logs are closed by those who opened them."""
        self._closed.set()
        self._pool.clear()

    def _managed(self) -> dict[str, str]:
        return {"fieldManager": self.manager}

    def _json(self, verb: str, what: str, method: str, path: str, **options: Any) -> Object:
        response = self._send(verb, what, method, path, silence=self._read_seconds, **options)
        try:
            answer: Object = orjson.loads(response.data)
        except orjson.JSONDecodeError as error:
            words = response.data[:200].decode(errors="replace")
            raise KubeError(f"{what} got an answer that is no JSON: {words!r}", status=response.status) from error
        return answer

    def _send(
        self,
        verb: str,
        what: str,
        method: str,
        path: str,
        *,
        silence: float | None,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = _JSON,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """One request with its tries; `what` names it in errors, `silence` is how long bytes may take."""
        asked = urlencode({key: value for key, value in (query or {}).items() if value})
        url = f"{self.config.server}{path}?{asked}" if asked else f"{self.config.server}{path}"
        headers = dict(self._headers)
        data = None
        if body is not None:
            data = orjson.dumps(body)
            headers["Content-Type"] = content_type
        timeout = urllib3.Timeout(connect=min(_CONNECT_SECONDS, silence or _CONNECT_SECONDS), read=silence)
        begin = time.monotonic()
        tries, renewed = 0, False
        while True:
            if self._closed.is_set():
                raise Unreachable(f"{what} failed: the client is closed")
            if header := self.config.authorization():
                headers["Authorization"] = header
            tries += 1
            started = time.monotonic()
            cause: Exception | None = None
            try:
                response = self._pool.request(
                    method,
                    url,
                    body=data,
                    headers=headers,
                    timeout=timeout,
                    retries=False,
                    redirect=False,
                    preload_content=not stream,
                )
                code = str(response.status)
            except urllib3.exceptions.HTTPError as error:
                cause, code = error, "error"
            if self._observe:
                self._observe(verb, code, time.monotonic() - started)
            if cause is None:
                self.clock.heard(response.headers.get("Date"))
                if response.status < 300:
                    self._warn(response)
                    return response
                failure = _failure(what, response)
            else:
                failure = Unreachable(f"{what} failed: {_words(cause)}")
            if failure.status == 401 and not renewed:
                renewed = True
                self.config.renew()
                continue
            delay = _delay(tries, failure)
            again = _again(verb, failure, cause) and tries < self._tries
            if not again or time.monotonic() - begin + delay > _PATIENCE_SECONDS or self._closed.wait(delay):
                raise failure from cause

    def _warn(self, response: urllib3.BaseHTTPResponse) -> None:
        """Log what the server warns of (unknown fields, deprecated versions), each text once."""
        for text in response.headers.getlist("Warning"):
            if text not in self._warned and len(self._warned) < 100:
                self._warned.add(text)
                _log.warning("the API server warns: %s", text)


def _connections(config: Config) -> urllib3.PoolManager:
    options: dict[str, Any] = {"maxsize": _CONNECTIONS, "socket_options": _socket_options()}
    if config.server.startswith("https"):
        options["ssl_context"] = config.ssl_context()
        if config.server_name:
            options["server_hostname"] = config.server_name  # `ssl` checks it
        if not config.verify:
            options["assert_hostname"] = False
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # the user asked for it
    if config.proxy:
        return urllib3.ProxyManager(config.proxy, num_pools=2, **options)
    return urllib3.PoolManager(num_pools=2, **options)


def _socket_options() -> Sequence[tuple[int, int, int]]:
    """No delay, and keep-alive that notices a dead peer in 60 s also where nobody waits for bytes."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not everywhere under this name
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def _what(verb: str, kind: Kind, namespace: str | None, name: str = "") -> str:
    return " ".join(part for part in (verb, kind.plural, "/".join(p for p in (namespace, name) if p)) if part)


def _identity(kind: Kind, obj: Mapping[str, Any]) -> tuple[str, str | None]:
    metadata = obj.get("metadata", {})
    return metadata.get("name", ""), metadata.get("namespace") if kind.namespaced else None


def _failure(what: str, response: urllib3.BaseHTTPResponse) -> KubeError:
    try:
        body = response.data  # a stream's answer is read here; that gives the connection back
    except urllib3.exceptions.HTTPError as error:
        body = str(error).encode()
    return error_of(what, response.status, body, response.headers.get("Retry-After"))


def _again(verb: str, failure: KubeError, cause: Exception | None) -> bool:
    """Whether another try can do good and cannot do harm."""
    if _certificate_error(cause):
        return False
    if failure.status == 429 or isinstance(cause, _TURNED_AWAY):
        return True
    return verb in _HARMLESS_TWICE and (failure.status == 0 or failure.status >= 500)


def _certificate_error(cause: BaseException | None) -> bool:
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__ or _argument(cause)
    return False


def _argument(error: BaseException) -> BaseException | None:
    return next((arg for arg in error.args if isinstance(arg, BaseException)), None)


def _delay(tries: int, failure: KubeError) -> float:
    """Seconds before the next try: what the server asks for, or twice as long each time; always with jitter."""
    if failure.retry_after is not None:
        return min(failure.retry_after, _MAX_RETRY_AFTER_SECONDS) * random.uniform(1.0, 1.2)
    return float(_FIRST_DELAY_SECONDS * 2 ** (tries - 1) * random.uniform(0.5, 1.5))


def _words(error: Exception) -> str:
    """An error of urllib3 without the address of its connection object."""
    text = str(error)
    return text.split(": ", 1)[1] if text.startswith("<") and ": " in text else text
