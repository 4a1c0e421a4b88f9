"""Now is the API server's, whatever the clock of this machine does."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from camel_ray.operator.kube import clock as clock_module
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.clock import ServerClock
from camel_ray.operator.kube.kinds import POD

from .conftest import Server

NOON = datetime(2030, 1, 2, 12, 0, 0, tzinfo=UTC)


class World:
    """A server whose clock may jump, and an operator that hears of it every two seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed, self.server = 0.0, NOON
        monkeypatch.setattr(clock_module, "boot_seconds", lambda: 5000.0 + self.passed)
        self.clock = ServerClock()
        self.tell()

    def tell(self) -> None:
        self.clock.heard(format_datetime(self.server, usegmt=True))

    def run(self, seconds: int) -> list[float]:
        """What the clock told in that time, as seconds since noon, each time before it heard of the server again."""
        told = []
        for _ in range(0, seconds, 2):
            self.passed += 2.0
            self.server += timedelta(seconds=2)
            told.append((self.clock.now() - NOON).total_seconds())
            self.tell()
        return told

    @property
    def behind(self) -> float:
        return (self.server - self.clock.now()).total_seconds()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_it_is_the_servers_time_and_goes_on_between_answers(world: World) -> None:
    assert world.run(100) == [pytest.approx(0.5 + seconds) for seconds in range(2, 101, 2)]
    world.passed += 3600  # an hour without an answer
    assert (world.clock.now() - NOON).total_seconds() == pytest.approx(3700.5)


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_jump_of_the_server_lengthens_or_shortens_a_minute_by_six_seconds_at_most(world: World, jump: int) -> None:
    world.server += timedelta(seconds=jump)
    told = world.run(60)
    assert 54.0 - 1 <= told[-1] <= 66.0 + 1
    assert told == sorted(told)
    world.run(11 * 3600)
    assert abs(world.behind) < 1.0


def test_answers_within_a_second_are_heard_once_and_what_is_no_date_never(world: World) -> None:
    world.server += timedelta(seconds=3600)
    for _ in range(1000):
        world.passed += 0.0001
        world.tell()
    assert (world.clock.now() - NOON).total_seconds() < 1.0
    for date in (None, "", "yesterday", "Wed, 99 Jan 2030 12:00:00 GMT"):
        world.passed += 10.0
        before = world.clock.now()
        world.clock.heard(date)
        assert world.clock.now() == before


def test_before_the_first_answer_it_is_this_machines_time() -> None:
    clock = ServerClock()
    assert abs(clock.now().timestamp() - time.time()) < 60


def test_the_client_hears_the_date_of_every_answer(server: Server, client: Client) -> None:
    server.answers = [lambda request, reply: reply.json({"metadata": {"name": "a"}})]
    before = datetime.now(UTC)
    client.get(POD, "a", "n")
    told = client.clock.now()
    assert before - timedelta(seconds=1) <= told <= datetime.now(UTC) + timedelta(seconds=1)
    assert client.hurried(1.0).clock is client.clock
