"""Follows one pipeline: every state of it, however often the connection breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from camel_ray.cli.cluster.connection import Cluster, Object, explained, not_yet_sure, transient
from camel_ray.errors import PermanentError

if TYPE_CHECKING:
    from camel_ray.operator.kube.errors import KubeError

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 15.0
_UNSURE_SECONDS = 10.0
"""How long refusals are not believed: an API server that has just started knows neither all roles nor all kinds."""


def follow(cluster: Cluster, name: str, *, lost: Callable[[str], None]) -> Generator[Object, None, None]:
    """The pipeline as it is, then each time it has changed; without end.

    An API server that goes away is waited for; `lost` is told once each time. Raises PermanentError when there is no
    such pipeline, or when it is deleted while it is followed.
    """
    from camel_ray.operator.kube.errors import KubeError

    patience = _Patience(cluster, lost, silent_failures=1)  # one is just a connection that was recycled
    uid = version = ""
    while True:
        try:
            for count, pipeline in enumerate(_changes(cluster, name, uid)):
                if count:  # the watch works, not only the list before it
                    patience.reset()
                uid = pipeline["metadata"]["uid"]
                if version != pipeline["metadata"]["resourceVersion"]:
                    version = pipeline["metadata"]["resourceVersion"]
                    yield pipeline
        except KubeError as error:
            if not uid and not transient(error):
                raise
            patience.failed(error)
        else:
            patience.reset()
            time.sleep(FIRST_WAIT_SECONDS)


def patiently(cluster: Cluster, ask: Callable[[], T], lost: Callable[[str], None]) -> T:
    """What `ask` returns, asked again while the API server cannot answer; `lost` is told once."""
    from camel_ray.operator.kube.errors import KubeError

    patience = _Patience(cluster, lost)
    while True:
        try:
            return ask()
        except KubeError as error:
            patience.failed(error)


class _Patience:
    """Waits after a failure, longer each time; raises what waiting does not mend."""

    def __init__(self, cluster: Cluster, lost: Callable[[str], None], silent_failures: int = 0) -> None:
        self._cluster = cluster
        self._lost = lost
        self._silent = silent_failures
        self.reset()

    def reset(self) -> None:
        """It works again."""
        self._failures = 0
        self._since = 0.0

    def failed(self, error: KubeError) -> None:
        """Wait, or raise the error."""
        now, unsure = time.monotonic(), not_yet_sure(error)
        if unsure:  # since the first refusal: the server may have been away before
            self._since = self._since or now
            unsure = now - self._since < _UNSURE_SECONDS
        if not transient(error) and not unsure:
            raise error
        if self._failures == self._silent:
            self._lost(f"{explained(error, self._cluster.namespace, self._cluster.server)}; trying again")
        time.sleep(min(_LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(self._failures, 10)))
        self._failures += 1


def _changes(cluster: Cluster, name: str, uid: str) -> Iterator[Object]:
    """The pipeline and its changes until the watch ends. `uid`: that of the pipeline seen before, if one was."""
    from camel_ray.operator.kinds import CAMEL_PIPELINE

    fields = f"metadata.name={name}"
    found, version = cluster.client.list(CAMEL_PIPELINE, cluster.namespace, fields=fields)
    if not found and not uid:
        cluster.pipeline(name)  # says that there is none
    if not found or (uid and found[0]["metadata"]["uid"] != uid):
        raise _deleted(name)
    yield found[0]
    watch = cluster.client.watch(CAMEL_PIPELINE, cluster.namespace, resource_version=version, fields=fields)
    with closing(watch):
        for event in watch:
            if event["type"] == "DELETED":
                raise _deleted(name)
            if event["type"] != "BOOKMARK":
                yield event["object"]


def _deleted(name: str) -> PermanentError:
    return PermanentError(f"pipeline '{name}' was deleted; what it made is still in its storage")
