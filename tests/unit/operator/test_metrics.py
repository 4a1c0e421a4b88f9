"""What Prometheus reads, over a real socket."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from camel_ray.operator.kube.queue import WorkQueue
from camel_ray.operator.metrics import Metrics, MetricsServer

CONTROLLER = {"controller": "camelpipeline"}
QUEUE = {"name": "camelpipeline"}


class State:
    """What the checks say; a test changes it."""

    unhealthy = ""
    unready = ""

    def healthy(self) -> str:
        return self.unhealthy

    def ready(self) -> str:
        if self.unready == "raise":
            raise RuntimeError("no cache")
        return self.unready


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(workers=4)


@pytest.fixture
def server(metrics: Metrics, state: State) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics, port=0, healthy=state.healthy, ready=state.ready, host="127.0.0.1")
    yield server
    server.close()


def get(server: MetricsServer, path: str, **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def value(metrics: Metrics, name: str, labels: dict[str, str]) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    return -1.0 if found is None else found


def test_reconciles_are_counted_by_result_and_timed(metrics: Metrics) -> None:
    with metrics.reconcile():
        assert value(metrics, "controller_runtime_active_workers", CONTROLLER) == 1
    with metrics.reconcile() as timer:
        timer.result = "requeue_after"
    with pytest.raises(ZeroDivisionError), metrics.reconcile() as timer:
        timer.result = "requeue"
        raise ZeroDivisionError
    counts = {
        result: value(metrics, "controller_runtime_reconcile_total", {**CONTROLLER, "result": result})
        for result in ("success", "error", "requeue", "requeue_after")
    }
    assert counts == {"success": 1, "error": 1, "requeue": 0, "requeue_after": 1}
    assert value(metrics, "controller_runtime_reconcile_errors_total", CONTROLLER) == 1
    assert value(metrics, "controller_runtime_reconcile_time_seconds_count", CONTROLLER) == 3
    assert value(metrics, "controller_runtime_active_workers", CONTROLLER) == 0
    assert value(metrics, "controller_runtime_max_concurrent_reconciles", CONTROLLER) == 4


def test_the_queue_shows_depth_waits_and_work_under_way(metrics: Metrics) -> None:
    queue = WorkQueue(metrics=metrics.queue)
    metrics.queue.read_with(depth=queue.__len__, longest=queue.longest_work_seconds)
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert (value(metrics, "workqueue_adds_total", QUEUE), value(metrics, "workqueue_depth", QUEUE)) == (2, 2)
    assert queue.get() == "a"
    queue.retry("a")
    assert value(metrics, "workqueue_depth", QUEUE) == 1
    assert value(metrics, "workqueue_retries_total", QUEUE) == 1
    assert value(metrics, "workqueue_queue_duration_seconds_count", QUEUE) == 1
    assert value(metrics, "workqueue_unfinished_work_seconds", QUEUE) > 0
    assert value(metrics, "workqueue_longest_running_processor_seconds", QUEUE) > 0
    queue.done("a")
    queue.shut_down()
    assert value(metrics, "workqueue_work_duration_seconds_count", QUEUE) == 1
    assert value(metrics, "workqueue_unfinished_work_seconds", QUEUE) == 0
    assert value(metrics, "workqueue_longest_running_processor_seconds", QUEUE) == 0


def test_requests_are_counted_by_code_verb_and_host_and_watches_are_not_timed(metrics: Metrics) -> None:
    observe = metrics.request_observer("10.0.0.1:443")
    observe("get", "200", 0.25)
    observe("watch", "200", 270.0)
    requests = {"code": "200", "host": "10.0.0.1:443"}
    assert value(metrics, "rest_client_requests_total", {**requests, "method": "get"}) == 1
    assert value(metrics, "rest_client_requests_total", {**requests, "method": "watch"}) == 1
    timed = {"host": "10.0.0.1:443", "verb": "get"}
    assert value(metrics, "rest_client_request_duration_seconds_sum", timed) == 0.25
    assert value(metrics, "rest_client_request_duration_seconds_count", {**timed, "verb": "watch"}) == -1


def test_attempts_pipelines_and_reports_are_counted(metrics: Metrics) -> None:
    phases = {"Running": 3, "Failed": 1}
    metrics.count_pipelines_with(lambda: phases)  # type: ignore[arg-type,return-value]
    metrics.read_ages_with(lambda: {"RayJob": 12.5})
    metrics.attempt_queued("ppo", 40.0)
    metrics.attempt_running("ppo", 90.0)
    metrics.attempt_ended("ppo", "OutOfMemory", 600.0)
    metrics.attempt_ended("data", "Succeeded", -1.0)  # clocks of two machines
    metrics.progress_report(429)
    metrics.leads("camel-ray", True)
    assert value(metrics, "camel_ray_pipelines", {"phase": "Running"}) == 3
    assert value(metrics, "camel_ray_pipelines", {"phase": "Suspended"}) == 0
    phases["Running"] = 4
    assert value(metrics, "camel_ray_pipelines", {"phase": "Running"}) == 4
    assert value(metrics, "camel_ray_reflector_age_seconds", {"kind": "RayJob"}) == 12.5
    ended = {"kind": "ppo", "outcome": "OutOfMemory"}
    assert value(metrics, "camel_ray_attempts_total", ended) == 1
    assert value(metrics, "camel_ray_attempt_duration_seconds_sum", ended) == 600
    succeeded = {"kind": "data", "outcome": "Succeeded"}
    assert value(metrics, "camel_ray_attempt_duration_seconds_sum", succeeded) == 0
    assert value(metrics, "camel_ray_start_seconds_sum", {"kind": "ppo"}) == 90
    assert value(metrics, "camel_ray_queue_wait_seconds_sum", {"kind": "ppo"}) == 40
    assert value(metrics, "camel_ray_progress_reports_total", {"code": "429"}) == 1
    assert value(metrics, "leader_election_master_status", {"name": "camel-ray"}) == 1


def test_two_operators_in_one_process_do_not_share_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.attempt_ended("sft", "Succeeded", 1.0)
    labels = {"kind": "sft", "outcome": "Succeeded"}
    assert value(one, "camel_ray_attempts_total", labels) == 1
    assert value(other, "camel_ray_attempts_total", labels) == 0


def test_prometheus_can_read_the_page(server: MetricsServer, metrics: Metrics) -> None:
    metrics.attempt_ended("sft", "Succeeded", 1.0)
    code, content_type, page = get(server, "/metrics")
    names = {family.name for family in text_string_to_metric_families(page)}
    assert (code, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert {
        "workqueue_depth",
        "controller_runtime_reconcile",
        "camel_ray_attempts",
        "process_resident_memory_bytes",
    } <= names
    assert [line for line in page.splitlines() if "_created" in line] == []
    code, content_type, _ = get(server, "/metrics?name=x", Accept="application/openmetrics-text; version=1.0.0")
    assert (code, content_type.partition(";")[0]) == (200, "application/openmetrics-text")


def test_checks_answer_503_with_what_is_wrong(server: MetricsServer, state: State) -> None:
    assert get(server, "/healthz")[::2] == (200, "ok\n")
    assert get(server, "/readyz")[::2] == (200, "ok\n")
    state.unhealthy = "the watch of RayJobs has been silent for 400 s"
    state.unready = "raise"
    assert get(server, "/healthz")[::2] == (503, "the watch of RayJobs has been silent for 400 s\n")
    assert get(server, "/readyz")[::2] == (503, "readyz failed: RuntimeError: no cache\n")
    assert get(server, "/other")[0] == 404


def test_closing_leaves_no_thread_and_no_port(metrics: Metrics, state: State) -> None:
    before = set(threading.enumerate())
    server = MetricsServer(metrics, port=0, healthy=state.healthy, ready=state.ready)
    get(server, "/healthz")
    server.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
