"""How the played world behaves where it shall not simply succeed.

A script is a JSON file with a list of rules. The last rule whose `match` (and `namespace`) fits an object counts;
`match` is a shell pattern for the name of a RayJob or a batch Job. The file is read again whenever it changes, so a
test adds its rule before it creates the object:

    [{"match": "demo-sft-1", "exit_code": 24, "events": [{"after": 0.5, "do": "preempt", "pod": "worker"}]},
     {"match": "demo-sft-2", "head": "image-pull"}]
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

Start = Literal["run", "unschedulable", "image-pull"]
Disturbance = Literal["delete", "kill", "oom", "evict", "preempt", "drain", "node-lost", "dashboard-lost"]
Role = Literal["head", "worker", "submitter", "pod"]


@dataclass(frozen=True)
class Disturbed:
    """Something that happens to a pod while its job runs."""

    do: Disturbance
    """`delete`: by somebody. `kill`: SIGKILL to the first container. `oom`: the same, as OOMKilled. `evict`: by the
    kubelet, for lack of memory. `preempt`: by the scheduler. `drain`: through the eviction API, where budgets count.
    `node-lost`: its node never answers again. `dashboard-lost`: Ray runs on, but its dashboard answers no more."""
    pod: Role = "head"
    """Which pod: for workers the first found; `pod`: that of a batch Job without Ray."""
    after: float = 0.0
    """Seconds since the entry point (or the pod without Ray) began to run."""


@dataclass(frozen=True)
class Behaviour:
    """What happens to one RayJob or Job. Seconds are real ones, whatever the pace."""

    head: Start = "run"
    worker: Start = "run"
    submitter: Start = "run"
    """How pods start: `unschedulable` gives them a node selector that nothing fits, so the real scheduler says why."""
    submits: bool = True
    """False: the submitter waits for the dashboard for ever."""
    seconds: float | None = None
    """How long the entry point or the pod without Ray runs. Default: 4 s at pace 1."""
    exit_code: int = 0
    log: str = ""
    """What the entry point writes; for a pod without Ray also its termination message."""
    stopped: bool = False
    """The Ray job ends STOPPED."""
    tail_seconds: float | None = None
    """How long the submitter still reads logs after the end: `Running`, but the job is over. Default: 4 s at pace 1."""
    invalid: str = ""
    """A sentence of KubeRay's validation: ValidationFailed."""
    stuck: str = ""
    """A jobDeploymentStatus that is never left."""
    finalizer_seconds: float = 0.0
    """How long the finalizer holds a deleted RayJob."""
    shutdown_seconds: float | None = None
    """From SIGTERM to the end of a Ray node, within its grace period times the pace. Default: 1.5 s at pace 1."""
    events: tuple[Disturbed, ...] = ()


class ScriptError(ValueError):
    """A rule cannot be read."""


@dataclass(frozen=True)
class Pace:
    """How fast KubeRay, Ray and kubelet are, in seconds as seen with a real kubelet. Deadlines are the specs' own."""

    scale: float = 1.0
    """What the grace periods of played pods are multiplied with."""
    poll: float = 3.0
    """KubeRay's look at a dashboard."""
    container: float = 1.5
    """From the node's first sight of a pod to running containers, image present."""
    head: float = 15.0
    """From the head's running to its readiness."""
    worker: float = 20.0
    submit: float = 5.0
    """From the submitter's start to the submission."""
    pending: float = 1.0
    """From the submission to the start of the entry point."""
    run: float = 4.0
    tail: float = 4.0
    notice: float = 7.0
    """From the loss of a head to the end of its submitter."""
    shutdown: float = 1.5
    """From SIGTERM to the end of a Ray node."""
    restart: float = 2.0
    """Of a container, in place."""
    unreachable: float = 300.0
    """Of a dashboard, until JobStatusCheckTimeoutExceeded; also the wait of a terminal job for its submitter."""
    finished: float = 30.0
    """From the end of a submitter to the failure of a job that is not done."""
    lost: float = 60.0
    """From a node's loss to the removal of its pods by the garbage collector."""

    @classmethod
    def scaled(cls, scale: float) -> Pace:
        """This world `1 / scale` times as fast."""
        return cls(**{name: seconds * scale for name, seconds in asdict(cls()).items()})


class Script:
    """The rules of a file, read again when it changes. Without a file everything succeeds."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._rules: list[tuple[str, str, Behaviour]] = []

    def of(self, namespace: str, name: str) -> Behaviour:
        """The behaviour of an object. Raises ScriptError."""
        if self._path and self._path.exists() and (stamp := _stamp(self._path)) != self._stamp:
            try:
                self._rules = [_rule(raw) for raw in json.loads(self._path.read_text())]
            except json.JSONDecodeError as error:
                raise ScriptError(f"{self._path} is no JSON: {error}; replace it in one step, by renaming") from error
            self._stamp = stamp
        fits = [b for where, what, b in self._rules if fnmatchcase(namespace, where) and fnmatchcase(name, what)]
        return fits[-1] if fits else Behaviour()


def _stamp(path: Path) -> tuple[int, int, int]:
    """What tells one state of a file from the next; two that are written within a tick of the clock have one time."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _rule(raw: dict[str, Any]) -> tuple[str, str, Behaviour]:
    raw = dict(raw)
    match, namespace = raw.pop("match"), raw.pop("namespace", "*")
    events = tuple(_checked(Disturbed, event) for event in raw.pop("events", ()))
    return namespace, match, _checked(Behaviour, {**raw, "events": events})


def _checked(cls: type[Any], raw: dict[str, Any]) -> Any:
    if unknown := set(raw) - {f.name for f in fields(cls)}:
        raise ScriptError(f"a rule of the script has unknown fields: {', '.join(sorted(unknown))}")
    choices: dict[str, Any] = {"do": Disturbance, "head": Start, "worker": Start, "submitter": Start, "pod": Role}
    for name, value in raw.items():
        if name in choices and value not in get_args(choices[name]):
            raise ScriptError(f"{name} of a rule is {value!r}; it may be {', '.join(get_args(choices[name]))}")
    return cls(**raw)
