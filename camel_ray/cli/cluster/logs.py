"""`camel-ray logs`: what a stage prints, also while it runs, over its retries and the stages after it.

The log of a stage is that of its container where the stage is a Job, and of the submitter where it is a RayJob: that
one repeats what the driver prints on the head. A followed log goes on where it was when a connection breaks.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from camel_ray.cli.cluster.connection import Cluster, Object, PipelineName, Reach, add_command, status_of
from camel_ray.cli.cluster.status import over
from camel_ray.cli.cluster.watching import patiently
from camel_ray.cli.console import print_error
from camel_ray.errors import PermanentError, RetryableError

if TYPE_CHECKING:
    from camel_ray.api.status import PipelineStatus, StageStatus
    from camel_ray.operator.kube.stream import Stream

POLL_SECONDS = 1.0
_STAGE_CONTAINERS = ("stage", "ray-job-submitter")
_CONTAINERS = {"head": ("ray-head",), "worker": ("ray-worker",)}


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    add_command(app, logs)


def logs(
    reach: Reach,
    name: PipelineName,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="Default: the one that runs, or ran last.")
    ] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, metavar="N", help="Default: the newest.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on to the end of the pipeline (or of --stage, or --attempt).")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, metavar="N", help="Only the last N lines so far.")
    ] = None,
    container: Annotated[
        str | None,
        typer.Option("--container", "-c", metavar="NAME", help="head, worker, or a container's name instead."),
    ] = None,
) -> None:
    """Print the log of a stage."""
    wanted = _STAGE_CONTAINERS if container is None else _CONTAINERS.get(container, (container,))
    with reach.connect() as cluster:
        reader = _Reader(cluster, name, wanted)
        if not follow:
            reader.print(stage, attempt, tail)
            return
        try:
            reader.follow(stage, attempt, tail)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


class _Reader:
    """Finds and prints the logs of one pipeline's attempts."""

    def __init__(self, cluster: Cluster, name: str, containers: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._name = name
        self._containers = containers

    def print(self, stage: str | None, attempt: int | None, tail: int | None) -> None:
        """The logs as they are now. Raises PermanentError or RetryableError if there are none."""
        told = status_of(self._cluster.pipeline(self._name))
        chosen = self._choose(told, stage)
        number = self._number(chosen, attempt)
        pods = self._pods(chosen.name, number)
        begun = [pod for pod in pods if self._state(pod) in ("running", "terminated")]
        if not begun:
            raise self._nothing(chosen, number, bool(pods))
        for pod in begun:
            if len(begun) > 1:
                self._announce(f"pod {pod['metadata']['name']}")
            container = self._container(pod)
            with closing(
                self._cluster.client.logs(
                    pod["metadata"]["name"], self._cluster.namespace, container=container, tail=tail
                )
            ) as stream:
                for data in stream:
                    _write(data)

    def follow(self, stage: str | None, attempt: int | None, tail: int | None) -> None:
        """The log of an attempt to its end, then those of the attempts after it."""
        pipeline = self._cluster.pipeline(self._name)
        told = status_of(pipeline)
        while not told.stages or not any(s.attempts for s in told.stages):
            if over(pipeline, told):
                raise PermanentError(f"no stage of pipeline '{self._name}' has run: {told.message}")
            pipeline, told = self._look_again()
        first = self._choose(told, stage)
        number = self._number(first, attempt)
        shown = {s.name: s.attempts for s in told.stages} | {first.name: number - 1}
        while True:
            for now in told.stages:
                while shown.setdefault(now.name, 0) < now.attempts and (stage in (None, now.name)):
                    shown[now.name] += 1
                    self._follow_attempt(now.name, shown[now.name], tail)
                    tail = None
                    if attempt is not None:
                        return
            pipeline, told = self._look_again()
            news = any(s.attempts > shown.get(s.name, 0) for s in told.stages if stage in (None, s.name))
            ended = stage is not None and (told.stage_named(stage) or first).phase in (
                "Succeeded",
                "Failed",
                "Cancelled",
            )
            if not news and (ended or over(pipeline, told)):
                return

    def _look_again(self) -> tuple[Object, PipelineStatus]:
        time.sleep(POLL_SECONDS)
        pipeline = patiently(self._cluster, lambda: self._cluster.pipeline(self._name), print_error)
        return pipeline, status_of(pipeline)

    def _choose(self, told: PipelineStatus, stage: str | None) -> StageStatus:
        if stage is not None:
            found = told.stage_named(stage)
            if found is None:
                names = ", ".join(s.name for s in told.stages) or "none yet"
                raise PermanentError(f"--stage {stage}: pipeline '{self._name}' has no such stage; there are {names}")
            return found
        begun = [s for s in told.stages if s.attempts]
        if not begun:
            raise RetryableError(
                f"no stage of pipeline '{self._name}' has begun ({told.phase}: {told.message or 'not seen yet'}); "
                "-f waits for it"
            )
        active = told.stage_named(told.stage)
        return active if active is not None and active.attempts else begun[-1]

    def _number(self, stage: StageStatus, attempt: int | None) -> int:
        if attempt is not None and attempt > stage.attempts:
            raise PermanentError(f"--attempt {attempt}: stage '{stage.name}' has had {stage.attempts} so far")
        if not stage.attempts:
            raise RetryableError(f"stage '{stage.name}' has not begun yet; `logs -f` without --stage waits for it")
        return attempt or stage.attempts

    def _pods(self, stage: str, number: int) -> list[Object]:
        """The pods of an attempt that have the wanted container, by name."""
        from camel_ray.operator.kube.kinds import POD
        from camel_ray.operator.names import attempt_labels

        labels = ",".join(f"{key}={value}" for key, value in attempt_labels(self._name, stage, number).items())
        pods, _ = self._cluster.client.list(POD, self._cluster.namespace, labels=labels)
        return sorted((pod for pod in pods if self._container(pod)), key=lambda pod: str(pod["metadata"]["name"]))

    def _container(self, pod: Object) -> str:
        """The wanted container's name in this pod; empty if it has none."""
        return next((str(c["name"]) for c in pod["spec"]["containers"] if c["name"] in self._containers), "")

    def _state(self, pod: Object) -> str:
        """waiting, running or terminated; waiting also while nothing is known."""
        name = self._container(pod)
        for status in pod.get("status", {}).get("containerStatuses") or ():
            if status["name"] == name:
                return str(next(iter(status.get("state") or {"waiting": {}})))
        return "waiting"

    def _nothing(self, stage: StageStatus, number: int, there: bool) -> Exception:
        what = f"attempt {number} of stage '{stage.name}'"
        if stage.current is not None and stage.current.number == number:
            words = stage.message or stage.phase
            if there or self._containers == _STAGE_CONTAINERS:
                return RetryableError(f"{what} has not started to run ({words}); `logs -f` waits for it")
            return PermanentError(f"{what} has no container {' or '.join(self._containers)} ({words})")
        return PermanentError(
            f"the pods of {what} are gone, and their logs with them; `camel-ray status {self._name}` says how it ended"
        )

    def _follow_attempt(self, stage: str, number: int, tail: int | None) -> None:
        over = False
        while True:
            pods = patiently(self._cluster, lambda: self._pods(stage, number), print_error)
            begun = [pod for pod in pods if self._state(pod) != "waiting"]
            if len(begun) > 1:
                pod, container = begun[0]["metadata"]["name"], self._container(begun[0])
                raise PermanentError(
                    f"-f follows one log, and {len(begun)} pods have a container {container}; leave out -f, or follow "
                    f"one with `kubectl -n {self._cluster.namespace} logs -f {pod} -c {container}`"
                )
            if begun:
                self._announce(f"stage {stage}, attempt {number}")
                self._follow_pod(begun[0], tail)
                return
            if over:
                self._announce(f"stage {stage}, attempt {number}: its pods are gone")
                return
            _, told = self._look_again()
            now = told.stage_named(stage)
            # if so, look for pods once more: it may have begun and ended since the last look
            over = now is None or now.current is None or now.current.number != number

    def _follow_pod(self, pod: Object, tail: int | None) -> None:
        """The log to the container's end. What was printed is counted in bytes, so that a new connection goes on
        exactly there.
        """
        from camel_ray.operator.kube.errors import KubeError

        position = _Position()
        if tail is not None:
            patiently(self._cluster, lambda: self._skip_to_tail(pod, tail, position), print_error)
        while True:
            try:
                with closing(self._stream(pod, follow=True)) as stream:
                    position.reconnected()
                    for data in stream:
                        _write(position.unseen(data))
            except KubeError as error:
                if not self._still_there(pod):
                    return
                if error.status == 0:
                    self._announce("the connection was lost; trying again")
            else:
                if not self._still_there(pod):
                    return
            time.sleep(POLL_SECONDS)

    def _skip_to_tail(self, pod: Object, lines: int, position: _Position) -> None:
        last: deque[bytes] = deque(maxlen=lines)
        with closing(self._stream(pod, follow=False)) as stream:
            position.reconnected()
            rest = b""
            for data in stream:
                *whole, rest = (rest + position.unseen(data)).split(b"\n")
                last.extend(line + b"\n" for line in whole)
        _write(b"".join(last) + rest)

    def _stream(self, pod: Object, *, follow: bool) -> Stream:
        name, container = pod["metadata"]["name"], self._container(pod)
        return self._cluster.client.logs(name, self._cluster.namespace, container=container, follow=follow)

    def _still_there(self, pod: Object) -> bool:
        """Whether the container may still print."""
        from camel_ray.operator.kube.errors import NotFound
        from camel_ray.operator.kube.kinds import POD

        metadata = pod["metadata"]
        try:
            now = patiently(
                self._cluster,
                lambda: self._cluster.client.get(POD, metadata["name"], self._cluster.namespace),
                print_error,
            )
        except NotFound:
            return False
        return now["metadata"]["uid"] == metadata["uid"] and self._state(now) != "terminated"

    def _announce(self, words: str) -> None:
        sys.stdout.flush()
        print_error(f"--- {words} ---")


class _Position:
    """How much of a log was printed, for connections that begin at its beginning again."""

    def __init__(self) -> None:
        self._printed = 0
        self._read = 0

    def reconnected(self) -> None:
        """The next bytes are the log's first."""
        self._read = 0

    def unseen(self, data: bytes) -> bytes:
        """The part of the next bytes that was not printed yet."""
        known = max(0, min(len(data), self._printed - self._read))
        self._read += len(data)
        self._printed = max(self._printed, self._read)
        return data[known:]


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
