from __future__ import annotations

import threading
from typing import Any

import pytest

from camel_ray.operator.kube import lease as lease_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.lease import LeaderElection, LeaseLost

from .conftest import Reply, Request, Server


class Clock:
    """The local clock, as the test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(lease_module, "boot_seconds", lambda: self.now)


class LeaseServer:
    """One Lease with optimistic concurrency. `before_answer` is what happens between a write and its answer."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.before_answer = lambda: None

    def write(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = {"name": "l", "namespace": "n", "resourceVersion": str(self.version)}
        self.lease = {"metadata": metadata, "spec": spec}
        return self.lease

    def __call__(self, request: Request, reply: Reply) -> None:
        if request.method == "GET":
            reply.json(self.lease) if self.lease else reply.status(404, "NotFound")
        elif request.method == "POST" and self.lease:
            reply.status(409, "AlreadyExists")
        elif request.method == "PUT" and request.body["metadata"]["resourceVersion"] != str(self.version):
            reply.status(409, "Conflict")
        else:
            answer = self.write(request.body["spec"])
            self.before_answer()
            reply.json(answer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lease(server: Server) -> LeaseServer:
    lease = LeaseServer()
    server.answers = [lease]
    return lease


def election(client: Client, identity: str = "me", retry_seconds: float = 0.01) -> LeaderElection:
    return LeaderElection(
        client, name="l", namespace="n", identity=identity, renew_seconds=10, retry_seconds=retry_seconds
    )


def test_a_free_lease_is_taken_renewed_and_given_back(client: Client, lease: LeaseServer) -> None:
    candidate = election(client)
    seen: list[dict[str, Any]] = []

    def lead(stop: threading.Event) -> None:
        assert candidate.is_leader and lease.lease is not None
        seen.append(lease.lease["spec"])
        while lease.version < 4:
            stop.wait(0.005)

    candidate.run(lead)
    assert (seen[0]["holderIdentity"], seen[0]["leaseDurationSeconds"], seen[0]["leaseTransitions"]) == ("me", 15, 0)
    assert lease.lease is not None
    assert (lease.lease["spec"]["holderIdentity"], lease.lease["spec"]["leaseDurationSeconds"]) == ("", 1)
    assert lease.lease["spec"]["acquireTime"] == seen[0]["acquireTime"] != lease.lease["spec"]["renewTime"]
    assert not candidate.is_leader


def test_anothers_lease_is_taken_only_after_it_was_unchanged_for_its_duration_by_our_own_clock(
    client: Client, lease: LeaseServer, clock: Clock
) -> None:
    # Its times lie in a year long past: another machine's clock says nothing.
    other = {"holderIdentity": "other", "leaseDurationSeconds": 20, "renewTime": "2001-01-01T00:00:00.000000Z"}
    lease.write({**other, "leaseTransitions": 3})
    candidate = election(client)
    assert not candidate._try()
    clock.now += 19
    assert not candidate._try()
    lease.write({**other, "leaseTransitions": 3})  # renewed
    clock.now += 19
    assert not candidate._try()
    clock.now += 20
    assert not candidate._try()
    clock.now += 1
    assert candidate._try() and candidate.is_leader
    assert lease.lease is not None and lease.lease["spec"]["leaseTransitions"] == 4


def test_a_leader_that_was_frozen_does_not_lead_when_it_wakes(client: Client, lease: LeaseServer, clock: Clock) -> None:
    candidate = election(client)

    def lead(stop: threading.Event) -> None:
        assert candidate.is_leader
        clock.now += 11
        assert not candidate.is_leader
        assert stop.wait(60)

    with pytest.raises(LeaseLost, match="me lost the lease n/l"):
        candidate.run(lead)
    assert lease.lease is not None and lease.lease["spec"]["holderIdentity"] == "me"  # no more ours to give back


def test_a_renewal_counts_from_when_it_was_sent(client: Client, lease: LeaseServer, clock: Clock) -> None:
    def late() -> None:
        clock.now += 11

    candidate = election(client)
    lease.before_answer = late
    assert not candidate._try() and not candidate.is_leader
    lease.before_answer = lambda: None
    assert candidate._try() and candidate.is_leader  # and it can still win in the next try


def test_a_leader_sees_that_another_has_taken_over(client: Client, lease: LeaseServer, clock: Clock) -> None:
    candidate = election(client)

    def lead(stop: threading.Event) -> None:
        lease.write({"holderIdentity": "other", "leaseDurationSeconds": 15})
        assert stop.wait(60)

    with pytest.raises(LeaseLost):
        candidate.run(lead)
    assert lease.lease is not None and lease.lease["spec"]["holderIdentity"] == "other"


def test_a_server_that_is_away_for_a_moment_does_not_cost_the_lease(
    client: Client, server: Server, lease: LeaseServer, clock: Clock
) -> None:
    candidate = election(client)

    def lead(stop: threading.Event) -> None:
        server.answers = [lambda _, reply: reply.status(500), lambda _, reply: reply.reset(), lease]
        version = lease.version
        while lease.version < version + 2:
            assert not stop.wait(0.005)
        assert candidate.is_leader

    candidate.run(lead)


def test_stopping_ends_the_wait_and_what_is_led_ends_as_leader(client: Client, lease: LeaseServer) -> None:
    first, second = election(client, "first"), election(client, "second")
    leading = threading.Event()
    ended_as_leader = []

    def lead(stop: threading.Event) -> None:
        leading.set()
        stop.wait()
        version = lease.version
        while lease.version < version + 3:  # still renewed while it winds up
            threading.Event().wait(0.005)
        ended_as_leader.append(first.is_leader)

    leader = threading.Thread(target=first.run, args=(lead,))
    waiter = threading.Thread(target=second.run, args=(lambda stop: None,))
    leader.start()
    assert leading.wait(60)
    waiter.start()
    second.stop()
    waiter.join(60)
    first.stop()
    leader.join(60)
    assert ended_as_leader == [True]
    assert not waiter.is_alive() and not leader.is_alive()
    assert lease.lease is not None and lease.lease["spec"]["holderIdentity"] == ""


def test_what_is_led_may_fail_and_the_lease_is_given_back(client: Client, lease: LeaseServer) -> None:
    def lead(stop: threading.Event) -> None:
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        election(client).run(lead)
    assert lease.lease is not None and lease.lease["spec"]["holderIdentity"] == ""


def test_times_that_cannot_work_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="lease_seconds > renew_seconds > retry_seconds"):
        LeaderElection(client, name="l", namespace="n", identity="me", lease_seconds=10, renew_seconds=10)
