from __future__ import annotations

import random
import threading
import time
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from camel_ray.operator.kube.queue import SHORT_CUTS, WorkQueue

KEYS = st.sampled_from(["a", "b", "c"])


class QueueMachine(RuleBasedStateMachine):
    """The queue beside the simplest thing that keeps its promises."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WorkQueue()
        self.waiting: list[str] = []
        self.first: list[str] = []
        self.passed = 0
        self.working: set[str] = set()
        self.again: list[str] = []
        self.shut = False

    @rule(key=KEYS, first=st.booleans())
    def add(self, key: str, first: bool) -> None:
        self.queue.add(key, first=first)
        if self.shut:
            return
        if key in self.working:
            if key not in self.again:
                self.again.append(key)
        elif key not in self.waiting + self.first:
            (self.first if first else self.waiting).append(key)

    @rule()
    def get(self) -> None:
        key = self.queue.get(timeout=0)
        if self.first and not (self.waiting and self.passed == SHORT_CUTS):
            self.passed = min(self.passed + 1, SHORT_CUTS)
            assert key == self.first.pop(0)
        else:
            self.passed = 0 if self.waiting else self.passed
            assert key == (self.waiting.pop(0) if self.waiting else None)
        if key is not None:
            assert key not in self.working
            self.working.add(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.queue.done(key)
        self.working.remove(key)
        if key in self.again:
            self.again.remove(key)
            self.waiting.append(key)

    @rule()
    def shut_down(self) -> None:
        self.queue.shut_down()
        self.shut = True
        self.waiting, self.first, self.again = [], [], []

    @invariant()
    def lengths_agree(self) -> None:
        assert len(self.queue) == len(self.waiting) + len(self.first)

    def teardown(self) -> None:
        self.queue.shut_down()


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase


def test_new_keys_pass_those_that_wait_which_go_on_all_the_same() -> None:
    queue = WorkQueue()
    for number in range(3):
        queue.add(f"old {number}")
    for number in range(8):
        queue.add(f"new {number}", first=True)
    queue.add("old 0", first=True)
    order = [queue.get() or "" for _ in range(11)]
    assert [key.partition(" ")[0] for key in order] == ["new"] * 3 + ["old"] + ["new"] * 3 + ["old"] + ["new"] * 2 + [
        "old"
    ]
    assert sorted(order) == sorted({*order})
    queue.shut_down()


def test_no_key_is_lost_and_none_is_worked_on_twice_at_a_time() -> None:
    queue = WorkQueue(first_delay_seconds=0.0001, max_delay_seconds=0.001)
    keys = [f"k{number}" for number in range(20)]
    wanted = dict.fromkeys(keys, 0)
    done = dict.fromkeys(keys, 0)
    """The newest wish that work on the key has seen when it began."""
    busy: set[str] = set()
    overlaps: list[str] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        while (key := queue.get()) is not None:
            if key in busy:
                overlaps.append(key)
            busy.add(key)
            seen = wanted[key]
            if dice.random() < 0.2:
                time.sleep(0.0002)
            failed = dice.random() < 0.3
            if not failed:
                done[key] = seen
            busy.discard(key)
            if failed:
                queue.retry(key)
            else:
                queue.forget(key)
            queue.done(key)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    dice = random.Random(0)
    for number in range(1, 3001):
        key = dice.choice(keys)
        wanted[key] = number
        if number % 5:
            queue.add(key)
        else:
            queue.add_after(key, dice.random() / 1000)
    end = time.monotonic() + 30
    while done != wanted and time.monotonic() < end:
        time.sleep(0.005)
    queue.shut_down()
    for worker in workers:
        worker.join()
    assert done == wanted
    assert overlaps == []


def test_a_delayed_key_comes_when_it_is_due_and_the_sooner_date_counts() -> None:
    queue = WorkQueue()
    started = time.monotonic()
    queue.add_after("a", 60)
    queue.add_after("a", 1.0)
    queue.add_after("a", 30)
    assert (len(queue), queue.get(timeout=0)) == (0, None)
    assert queue.get(timeout=20) == "a"
    assert 1.0 <= time.monotonic() - started < 20
    queue.done("a")
    assert queue.get(timeout=0.1) is None  # the later dates are forgotten
    queue.shut_down()


def test_failures_come_back_later_each_time_until_one_succeeds() -> None:
    queue = WorkQueue(first_delay_seconds=0.01, max_delay_seconds=0.03)
    pauses = []
    for _ in range(4):
        started = time.monotonic()
        queue.retry("a")
        assert queue.get(timeout=20) == "a"
        pauses.append(time.monotonic() - started)
        queue.done("a")
    assert [pause >= at_least for pause, at_least in zip(pauses, (0.01, 0.02, 0.03, 0.03), strict=True)] == [True] * 4
    assert queue.failures("a") == 4
    queue.forget("a")
    assert queue.failures("a") == 0
    queue.shut_down()


def test_shutting_down_drops_what_waits_and_what_is_delayed() -> None:
    queue = WorkQueue()
    idle: list[str | None] = []
    waiter = threading.Thread(target=lambda: idle.append(WorkQueue.get(empty)))
    empty = WorkQueue()
    waiter.start()
    queue.add("a")
    queue.add_after("b", 0.01)
    queue.shut_down()
    queue.add("c")
    assert (len(queue), queue.get()) == (0, None)
    empty.shut_down()
    waiter.join(10)
    assert idle == [None]


def test_metrics_count_each_key_once() -> None:
    counts: Counter[str] = Counter()

    class Metrics:
        def added(self) -> None:
            counts["added"] += 1

        def retried(self) -> None:
            counts["retried"] += 1

        def waited(self, seconds: float) -> None:
            assert seconds >= 0
            counts["waited"] += 1

        def worked(self, seconds: float) -> None:
            assert seconds >= 0
            counts["worked"] += 1

    queue = WorkQueue(first_delay_seconds=0.001, metrics=Metrics())
    queue.add("a")
    queue.add("a")
    assert queue.get() == "a"
    assert queue.longest_work_seconds() > 0
    queue.retry("a")
    queue.done("a")
    assert queue.get(timeout=20) == "a"
    queue.done("a")
    assert queue.longest_work_seconds() == 0
    assert counts == {"added": 2, "retried": 1, "waited": 2, "worked": 2}
    queue.shut_down()
