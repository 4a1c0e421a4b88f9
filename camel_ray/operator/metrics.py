"""What the operator tells Prometheus, and the small server that tells it, beside /healthz and /readyz.

The names are controller-runtime's where it has one, so that dashboards and alerts made for other operators work. No
label holds anything a user chose: the number of series does not grow with the number of pipelines. Called by the
controller, by the work queue and the API client through their hooks, and by the progress server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from camel_ray.api.pipeline import STAGE_KINDS
from camel_ray.api.status import Outcome, PipelinePhase
from camel_ray.operator.listen import Handler, Listener
from camel_ray.version import __version__

CONTROLLER = "camelpipeline"
"""Value of `controller` and `name` in controller-runtime's metrics."""

ReconcileResult = Literal["success", "error", "requeue", "requeue_after"]
Check = Callable[[], str]
"""What is wrong, in one sentence; empty if nothing is."""

_RECONCILE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUE_SECONDS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000)
_REQUEST_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
_WAIT_SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)
_ATTEMPT_SECONDS = (10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600)


class Metrics:
    """All metrics of one operator, in a registry of their own. Every method may be called from any thread."""

    def __init__(self, *, workers: int = 1) -> None:
        """`workers`: how many reconciles may run at once."""
        # a second series beside every counter and histogram that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("camel_ray_build", "Version of the operator.", registry=registry).info({"version": __version__})

        self._reconciles = Counter(
            "controller_runtime_reconcile_total", "Reconciles by result.", ["controller", "result"], registry=registry
        )
        self._reconcile_errors = Counter(
            "controller_runtime_reconcile_errors_total", "Reconciles that failed.", ["controller"], registry=registry
        ).labels(CONTROLLER)
        self._reconcile_seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Seconds per reconcile.",
            ["controller"],
            buckets=_RECONCILE_SECONDS,
            registry=registry,
        ).labels(CONTROLLER)
        self._active = Gauge(
            "controller_runtime_active_workers", "Reconciles that are running.", ["controller"], registry=registry
        ).labels(CONTROLLER)
        Gauge(
            "controller_runtime_max_concurrent_reconciles",
            "Reconciles that may run at once.",
            ["controller"],
            registry=registry,
        ).labels(CONTROLLER).set(workers)
        for result in get_args(ReconcileResult):
            self._reconciles.labels(CONTROLLER, result)

        self.queue = QueueMetrics(registry)
        """Hooks of the work queue."""

        self._requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server; code `error` where no answer came.",
            ["code", "method", "host"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Seconds until the API server answered.",
            ["verb", "host"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._leader = Gauge(
            "leader_election_master_status", "1 while this process leads.", ["name"], registry=registry
        )

        self._attempts = Counter(
            "camel_ray_attempts_total", "Attempts that ended.", ["kind", "outcome"], registry=registry
        )
        for kind, outcome in product(STAGE_KINDS, get_args(Outcome)):
            self._attempts.labels(kind, outcome)  # Prometheus sees no increase in a series that begins with 1
        self._attempt_seconds = Histogram(
            "camel_ray_attempt_duration_seconds",
            "Seconds from the start of an attempt to its end.",
            ["kind", "outcome"],
            buckets=_ATTEMPT_SECONDS,
            registry=registry,
        )
        self._start_seconds = Histogram(
            "camel_ray_start_seconds",
            "Seconds from the decision to start an attempt until the stage's process ran; includes the queue.",
            ["kind"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._queue_seconds = Histogram(
            "camel_ray_queue_wait_seconds",
            "Seconds an attempt waited for Kueue to admit it.",
            ["kind"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._reports = Counter(
            "camel_ray_progress_reports_total",
            "Requests to the progress server by HTTP status.",
            ["code"],
            registry=registry,
        )

    @contextmanager
    def reconcile(self) -> Iterator[ReconcileTimer]:
        """Counts and times one reconcile; the caller sets `result`, an exception counts as `error`."""
        timer = ReconcileTimer()
        began = time.perf_counter()
        self._active.inc()
        try:
            yield timer
        except BaseException:
            timer.result = "error"
            raise
        finally:
            self._active.dec()
            self._reconcile_seconds.observe(time.perf_counter() - began)
            self._reconciles.labels(CONTROLLER, timer.result).inc()
            if timer.result == "error":
                self._reconcile_errors.inc()

    def request_observer(self, host: str) -> Callable[[str, str, float], None]:
        """The hook of an API client that talks to `host`: called with verb, status code and seconds."""

        def observe(verb: str, code: str, seconds: float) -> None:
            self._requests.labels(code, verb, host).inc()
            if verb not in ("watch", "log"):  # they last as long as somebody listens
                self._request_seconds.labels(verb, host).observe(seconds)

        return observe

    def leads(self, lease: str, leads: bool) -> None:
        """Whether this process holds the lease."""
        self._leader.labels(lease).set(leads)

    def attempt_queued(self, kind: str, seconds: float) -> None:
        """An attempt of a stage of `kind` (data, sft, ...) was admitted by Kueue after `seconds`."""
        self._queue_seconds.labels(kind).observe(max(0.0, seconds))

    def attempt_running(self, kind: str, seconds: float) -> None:
        """The process of an attempt runs, `seconds` after it was decided to start it."""
        self._start_seconds.labels(kind).observe(max(0.0, seconds))

    def attempt_ended(self, kind: str, outcome: Outcome, seconds: float) -> None:
        """An attempt ended `seconds` after it was decided to start it."""
        self._attempts.labels(kind, outcome).inc()
        self._attempt_seconds.labels(kind, outcome).observe(max(0.0, seconds))

    def progress_report(self, code: int) -> None:
        """The progress server answered a request with this HTTP status."""
        self._reports.labels(str(code)).inc()

    def read_certificate_expiry_with(self, left: Callable[[], float]) -> None:
        """Asks how many seconds are left of the progress server's certificate whenever the metrics are read. Call it
        once, and not at all where that server has none.
        """
        text = "Seconds until the progress server's certificate ends; NaN while there is none yet."
        Gauge("camel_ray_progress_certificate_expiry_seconds", text, registry=self.registry).set_function(left)

    def count_pipelines_with(self, count: Callable[[], Mapping[PipelinePhase, int]]) -> None:
        """Asks `count` for the number of pipelines per phase whenever the metrics are read. Call it once."""

        def phases() -> Mapping[str, float]:
            counted = count()
            return {phase: counted.get(phase, 0) for phase in get_args(PipelinePhase)}

        self.registry.register(_Read("camel_ray_pipelines", "Pipelines by phase.", "phase", phases))

    def read_ages_with(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Asks `ages` for the seconds since each reflector's last sign of life, by kind. Call it once."""
        self.registry.register(
            _Read("camel_ray_reflector_age_seconds", "Seconds since a watch last said anything.", "kind", ages)
        )


class ReconcileTimer:
    """What a reconcile came to."""

    def __init__(self) -> None:
        self.result: ReconcileResult = "success"


class QueueMetrics:
    """Hooks of the work queue (`kube.queue.QueueMetrics`), under the names of client-go's workqueue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels: dict[str, Any] = {"labelnames": ["name"], "registry": registry}
        seconds: dict[str, Any] = {**labels, "buckets": _QUEUE_SECONDS}
        self._depth = Gauge("workqueue_depth", "Keys that wait.", **labels).labels(CONTROLLER)
        self._adds = Counter("workqueue_adds_total", "Keys added.", **labels).labels(CONTROLLER)
        self._retries = Counter("workqueue_retries_total", "Keys added again after an error.", **labels).labels(
            CONTROLLER
        )
        self._waited = Histogram("workqueue_queue_duration_seconds", "Seconds a key waited.", **seconds).labels(
            CONTROLLER
        )
        self._worked = Histogram("workqueue_work_duration_seconds", "Seconds of work on a key.", **seconds).labels(
            CONTROLLER
        )
        unfinished = "Seconds of work on keys that are not done yet; grows when a worker hangs."
        Gauge("workqueue_unfinished_work_seconds", unfinished, **labels).labels(CONTROLLER).set_function(
            self._unfinished
        )
        self._longest = Gauge(
            "workqueue_longest_running_processor_seconds", "Seconds of the longest work that is not done.", **labels
        ).labels(CONTROLLER)
        self._lock = threading.Lock()
        self._working = 0
        self._began = 0.0
        """Sum of the moments at which the work on `_working` keys began."""

    def read_with(self, *, depth: Callable[[], int], longest: Callable[[], float]) -> None:
        """Asks for the keys that wait and for the seconds of the longest work whenever the metrics are read."""
        self._depth.set_function(depth)
        self._longest.set_function(longest)

    def added(self) -> None:
        """A key began to wait."""
        self._adds.inc()

    def retried(self) -> None:
        """A key failed and will come again."""
        self._retries.inc()

    def waited(self, seconds: float) -> None:
        """A worker took a key that had waited for so long."""
        self._waited.observe(seconds)
        with self._lock:
            self._working += 1
            self._began += time.monotonic()

    def worked(self, seconds: float) -> None:
        """The worker is done with a key after so long."""
        self._worked.observe(seconds)
        with self._lock:
            self._working -= 1
            self._began -= time.monotonic() - seconds

    def _unfinished(self) -> float:
        with self._lock:
            return max(0.0, self._working * time.monotonic() - self._began) if self._working else 0.0


class _Read:
    """A gauge with one label whose values are asked for when the metrics are read."""

    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The name, so that registering it does not ask for values yet."""
        return [GaugeMetricFamily(self._name, self._text, labels=[self._label])]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The values."""
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for value, number in self._read().items():
            family.add_metric([value], number)
        return [family]


class MetricsServer:
    """Serves /metrics, /healthz and /readyz from threads of its own until `close`, which joins them.

    `healthy` and `ready` say what is wrong; one that raises is unwell. Raises OSError if the port is taken.
    """

    def __init__(self, metrics: Metrics, *, port: int, healthy: Check, ready: Check, host: str = "") -> None:
        self._server = _Server(host, port)
        self._server.registry = metrics.registry
        self._server.checks = {"/healthz": healthy, "/readyz": ready}
        self.port = self._server.port
        """The port it listens on, also where 0 was asked for."""
        # shutdown() waits for the end of a poll interval
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to listen and wait for the answers under way."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(Listener):
    daemon_threads = False  # server_close joins them
    registry: CollectorRegistry
    checks: Mapping[str, Check]

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port, _Handler)


class _Handler(Handler):
    server: _Server

    def do_GET(self) -> None:
        with self.server.serves(self.connection):
            code, content_type, body = self._answer()
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            return 200, content_type, encode(self.server.registry)
        if (check := self.server.checks.get(path)) is not None:
            try:
                problem = check()
            except Exception as error:
                problem = f"{path[1:]} failed: {type(error).__name__}: {error}"
            return 503 if problem else 200, "text/plain; charset=utf-8", (problem or "ok").encode() + b"\n"
        return 404, "text/plain; charset=utf-8", b"there are /metrics, /healthz and /readyz\n"
