"""Tells the operator how far a stage is, and hears from it whether the stage should stop.

A thread follows the stage's progress file and posts what it finds to the server in KUBEFLOW_TRAINER_SERVER_URL, in the
form of Kubeflow Trainer's status contract, with our own fields beside it (`stage`, `result`). The stage knows nothing
of it: a server that is slow, broken or absent costs one warning in the log. `runtime/attempt.py` starts it.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from camel_ray.progress import ProgressReader, Rate

_GLANCE_SECONDS = 1.0
"""Between two looks at the progress file."""
_POST_SECONDS = 5.0
"""Between two reports of a stage that moves."""
_ASK_SECONDS = 15.0
"""Between two reports of a stage that does not: the answer may ask it to stop."""
_LONGEST_PAUSE_SECONDS = 60.0
"""Between two tries to reach a server that does not answer, or asks to be left alone for longer."""
_LOG_SECONDS = 30.0
"""Between two lines about progress in the attempt's log."""
_TIMEOUT_SECONDS = 5.0
_RESULT_SECONDS = 20.0
"""How long the end of an attempt is offered to the server."""
_LONGEST_ANSWER = 64 << 10
_METRICS = 50
_FIRST = ("loss", "reward", "kl", "accuracy", "perplexity", "tokens_per_second")
"""Metrics that are sent even if there are too many."""
_POINTS = {"validate": "validation_", "ppo-evaluate": "held_out_"}
"""Tasks that are measured now and then, and the prefix of their metrics: they are no progress of their own."""


class Refused(Exception):
    """The server answered, but did not take the report."""

    def __init__(self, status: int, message: str, retry_after: float | None) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Endpoint:
    """The progress server as this attempt reaches it."""

    url: str
    token: Path | None = None
    """File with the bearer token. It is read for every report, because Kubernetes renews it."""
    ca: Path | None = None
    """File with the certificate authority; None: the system's."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Endpoint | None:
        """The server that the variables of Kubeflow Trainer's contract name, or None if they name none."""
        url = environment.get("KUBEFLOW_TRAINER_SERVER_URL")
        if not url:
            return None
        token, ca = (environment.get(f"KUBEFLOW_TRAINER_SERVER_{name}") for name in ("TOKEN", "CA_CERT"))
        return cls(url, Path(token) if token else None, Path(ca) if ca else None)

    def post(self, report: Mapping[str, Any]) -> bool:
        """Send a report; returns whether the stage should stop. Raises Refused, or OSError if there is no answer."""
        place = urlsplit(self.url)
        # No redirects and no proxies, as a library would follow them: the token is for this server alone.
        if place.scheme == "https":
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                place.hostname or "", place.port, timeout=_TIMEOUT_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=_TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.read_text(encoding='ascii').strip()}"
        try:
            connection.request("POST", place.path, json.dumps(report, allow_nan=False).encode(), headers)
            answer = connection.getresponse()
            body = answer.read(_LONGEST_ANSWER)
        except http.client.HTTPException as error:
            raise OSError(f"the answer is not HTTP: {type(error).__name__}") from error
        finally:
            connection.close()
        if answer.status != 200:
            text = " ".join(body.decode("utf-8", "replace").split())[:200]
            after = answer.headers.get("Retry-After", "")
            raise Refused(answer.status, text, float(after) if after.isdigit() else None)
        try:
            said = json.loads(body or b"{}")
        except ValueError as error:
            raise OSError("the answer is not JSON") from error
        return isinstance(said, Mapping) and said.get("stop") is True


@dataclass
class Standing:
    """What a stage does now, made up from its events."""

    task: str = ""
    done: int = 0
    total: int | None = None
    unit: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    """Newest finite value of each."""
    _rates: dict[str, Rate] = field(default_factory=dict)
    _at: float = 0.0

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the progress file."""
        if event.get("event") != "update":
            return
        task = str(event["task"])
        for name, value in (event.get("metrics") or {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.metrics[_metric_name(_POINTS.get(task, "") + name)] = float(value)
        if task in _POINTS:
            return
        self._at = float(event["time"])
        self.task, self.unit = task, str(event["unit"])
        self.done, self.total = int(event["done"]), event.get("total")
        rate = self._rates.setdefault(task, Rate())
        rate.add(self._at, self.done, event.get("tokens") or 0)
        if tokens := rate.per_second()[1]:
            self.metrics["tokens_per_second"] = round(tokens, 3)

    @property
    def percentage(self) -> int | None:
        """Of the task, whole percent that are done; None where its length is not known."""
        return min(100, 100 * self.done // self.total) if self.total else None

    @property
    def remaining_seconds(self) -> int | None:
        """Until the task is done, at the speed of the last seconds."""
        per_second = self._rates[self.task].per_second()[0] if self.task in self._rates else 0.0
        return math.ceil(max(0, self.total - self.done) / per_second) if self.total and per_second > 0 else None

    def report(self) -> dict[str, Any]:
        """The body of a report; empty before the first event: then it only asks whether to stop."""
        if not self.task:
            return {}
        status: dict[str, Any] = {
            "lastUpdatedTime": datetime.fromtimestamp(self._at, UTC).isoformat(timespec="seconds")
        }
        if self.percentage is not None:
            status["progressPercentage"] = self.percentage
        if self.remaining_seconds is not None:
            status["estimatedRemainingSeconds"] = self.remaining_seconds
        names = sorted(self.metrics, key=lambda name: (name not in _FIRST, name))[:_METRICS]
        # The contract wants values as strings.
        status["metrics"] = [{"name": name, "value": repr(self.metrics[name])} for name in names]
        stage: dict[str, Any] = {"task": self.task, "done": self.done, "unit": self.unit}
        if self.total is not None:
            stage["total"] = self.total
        return {"trainerStatus": status, "stage": stage}

    def line(self) -> str:
        """The same for a log, such as `train 40/100 steps, loss 2.1, 5300 tokens/s, 12 s left`."""
        parts = [f"{self.task} {self.done}" + (f"/{self.total}" if self.total else "") + f" {self.unit}"]
        parts += [f"{name} {self.metrics[name]:.4g}" for name in _FIRST[:-1] if name in self.metrics]
        if "tokens_per_second" in self.metrics:
            parts.append(f"{self.metrics['tokens_per_second']:.0f} tokens/s")
        if self.remaining_seconds:
            parts.append(f"{self.remaining_seconds} s left")
        return ", ".join(parts)


class Reporter:
    """Follows a stage from `follow` to `close`, in a thread of its own.

    `log` gets lines for the attempt's log, `stop` is called (in the thread) once the server asks the stage to stop.
    """

    def __init__(self, endpoint: Endpoint | None, *, log: Callable[[str], None], stop: Callable[[], None]) -> None:
        self._endpoint, self._log, self._stop = endpoint, log, stop
        self._standing = Standing()
        self._reader: ProgressReader | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._warned = False
        self._stopped = False
        self._sent: dict[str, Any] | None = None
        self._logged = ""
        self._thread = threading.Thread(target=self._run, name="report-progress", daemon=True)
        self._thread.start()

    def follow(self, path: Path) -> None:
        """Read what is appended to `path` from now on; what is there is of earlier attempts."""
        reader = ProgressReader(path)
        reader.new_events()
        with self._lock:
            self._reader = reader

    def close(self, result: Mapping[str, Any]) -> None:
        """Send what is left and the result of the attempt, and end. Returns in less than a minute, whatever happens."""
        self._closing.set()
        self._thread.join()  # two requests with a time limit at most
        self._read()
        if self._endpoint is None:
            return None
        until = time.monotonic() + _RESULT_SECONDS
        report = {**self._standing.report(), "result": result}
        while True:
            try:
                self._endpoint.post(report)
                return None
            except Refused as error:
                pause = error.retry_after if error.retry_after is not None else 1.0
                if error.status not in (429, 500, 502, 503, 504) or time.monotonic() + pause > until:
                    return self._warn(error)
            except (OSError, ValueError) as error:
                pause = 1.0
                if time.monotonic() + pause > until:
                    return self._warn(error)
            time.sleep(pause)

    def _run(self) -> None:
        next_post, next_log, failures = 0.0, time.monotonic() + _LOG_SECONDS, 0
        last_post = -math.inf
        while not self._closing.wait(_GLANCE_SECONDS):
            self._read()
            now = time.monotonic()
            if now >= next_log and self._standing.task and (line := self._standing.line()) != self._logged:
                self._log(line)
                self._logged, next_log = line, now + _LOG_SECONDS
            report = self._standing.report()
            if self._endpoint is None or now < next_post or (report == self._sent and now < last_post + _ASK_SECONDS):
                continue
            try:
                self._ask_to_stop(self._endpoint.post(report))
                failures, self._sent, last_post, pause = 0, report, now, _POST_SECONDS
            except (OSError, ValueError, Refused) as error:
                self._warn(error)
                # The operator has given this attempt up: another one may write to the same storage soon.
                self._ask_to_stop(isinstance(error, Refused) and error.status == 409)
                failures += 1
                pause = _pause(error, failures)
            next_post = now + pause

    def _read(self) -> None:
        with self._lock:
            reader = self._reader
        try:
            events = reader.new_events() if reader is not None else []
        except (OSError, ValueError):
            return  # storage has its own way to fail; this thread is not the one to tell
        for event in events:
            if event.get("event") == "note":
                self._log(("warning: " if event.get("level") == "warning" else "") + str(event.get("message")))
            self._standing.add(event)

    def _ask_to_stop(self, asked: bool) -> None:
        if asked and not self._stopped:
            self._stopped = True
            self._stop()

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._log(f"warning: progress cannot be reported ({error}); the stage goes on")


def _pause(error: Exception, failures: int) -> float:
    """Seconds until the next try: what a busy server asks for, else twice as long after each failure."""
    asked = error.retry_after if isinstance(error, Refused) and error.status in (429, 503) else None
    return min(_POST_SECONDS * 2 ** min(failures, 10) if asked is None else asked, _LONGEST_PAUSE_SECONDS)


def _metric_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_./-]", "_", name)[:64]
