"""`reconcile` against a world in which everything may happen in any order.

Hypothesis looks for short orders that break a rule and shrinks what it finds; long walks by seed reach the deep states.
`CAMEL_RAY_SCHEDULES` multiplies both (default 1: 300 and 1,000 schedules).
"""

from __future__ import annotations

import os
import random
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from unit.operator.world.api import KINDS
from unit.operator.world.operators import Fault
from unit.operator.world.world import World

TIMES = int(os.environ.get("CAMEL_RAY_SCHEDULES", "1"))
WALKS = 1000 * TIMES
CHUNKS = 10
pytestmark = pytest.mark.timeout(300 * TIMES)

PICK = st.integers(0, 2**12)
WHO = st.integers(0, 1)
SECONDS = (-300, 1, 6, 15, 70, 400, 4000)
FAULTS = st.one_of(st.none(), st.builds(Fault, step=st.integers(0, 3), landed=st.booleans(), crash=st.booleans()))


class Machine(RuleBasedStateMachine):
    """Steps of the cluster, the user, the clock and two operators."""

    world: World

    @initialize(executor=st.sampled_from(["RayJob", "RayJob", "Job"]), queue=st.sampled_from([None, None, "q"]))
    def begins(self, executor: str, queue: str | None) -> None:
        self.world = World(executor=executor, queue=queue)

    @rule(pick=PICK)
    def something_happens(self, pick: int) -> None:
        moves = self.world.cluster.moves()
        if moves:
            self.world.take(moves[pick % len(moves)])

    @rule(pick=PICK, count=st.integers(1, 6))
    def the_cluster_goes_on(self, pick: int, count: int) -> None:
        for i in range(count):
            moves = self.world.cluster.fair_moves()
            if moves:
                self.world.take(moves[(pick + i) % len(moves)])

    @rule(who=WHO, kind=st.sampled_from(KINDS), count=st.integers(1, 5))
    def one_watch_hears_some_news(self, who: int, kind: str, count: int) -> None:
        self.world.operators[who].hear(kind, count)

    @rule(who=WHO, kind=st.sampled_from(KINDS[1:]))
    def a_watch_hangs(self, who: int, kind: str) -> None:
        self.world.hang(self.world.operators[who], kind)

    @rule(who=WHO, fault=FAULTS)
    def an_operator_catches_up_and_takes_a_turn(self, who: int, fault: Fault | None) -> None:
        self.world.operators[who].hear_all()
        self.world.turn(self.world.operators[who], fault)

    @rule(who=WHO, fault=FAULTS)
    def an_operator_takes_a_turn_on_what_it_knows(self, who: int, fault: Fault | None) -> None:
        self.world.turn(self.world.operators[who], fault)

    @rule(who=WHO)
    def an_operator_decides(self, who: int) -> None:
        self.world.decide(self.world.operators[who])

    @rule(who=WHO, fault=FAULTS)
    def an_operator_carries_out_what_it_had_decided(self, who: int, fault: Fault | None) -> None:
        self.world.carry_out(self.world.operators[who], fault)

    @rule(who=WHO)
    def an_operator_restarts(self, who: int) -> None:
        self.world.restart(self.world.operators[who])

    @rule(seconds=st.sampled_from(SECONDS))
    def time_passes(self, seconds: int) -> None:
        self.world.advance(seconds)

    @rule(pick=PICK)
    def the_user_wants_something(self, pick: int) -> None:
        wishes = self.world.wishes()
        self.world.take(wishes[pick % len(wishes)])

    @rule(count=st.integers(1, 25))
    def for_a_while_all_is_well(self, count: int) -> None:
        self.world.go_on(count)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestShortOrders = Machine.TestCase
TestShortOrders.settings = settings(
    max_examples=300 * TIMES,
    derandomize=TIMES == 1,  # the same orders in every run of the suite; more of them are new ones
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_long_walks_break_no_rule(chunk: int) -> None:
    for seed in range(chunk * WALKS // CHUNKS, (chunk + 1) * WALKS // CHUNKS):
        try:
            walk(random.Random(seed))
        except Exception as error:
            error.add_note(f"walk(random.Random({seed}))")
            raise


def walk(dice: random.Random) -> World:
    """One schedule: its own length, and its own rates of accidents and of wishes."""
    executor, queue = dice.choice(["RayJob", "RayJob", "Job"]), dice.choice([None, None, "q"])
    world = World(executor=executor, queue=queue, max_retries=dice.choice([0, 1, 2]))
    accidents, wishes = dice.choice([0.02, 0.1, 0.3]), dice.choice([1, 5])
    weights = {
        "world": 30, "news": 15, "caught up": 15, "as known": 12, "decides": 4, "carries out": 4, "time": 6,
        "hangs": 0.5, "restarts": 0.5, "well": 10, "user": wishes,
    }  # fmt: skip

    def fault() -> Fault | None:
        return Fault(dice.randrange(4), dice.random() < 0.5, dice.random() < 0.5) if dice.random() < 0.2 else None

    def something() -> None:
        moves = world.cluster.moves() if dice.random() < accidents else world.cluster.fair_moves()
        if moves:
            world.take(dice.choice(moves))

    for step in dice.choices(list(weights), list(weights.values()), k=dice.choice([20, 60, 150])):
        operator = world.operators[int(dice.random() < 0.3)]
        if step == "caught up":
            operator.hear_all()
        {
            "world": something,
            "news": lambda o=operator: o.hear(dice.choice(KINDS), dice.randrange(1, 6)),
            "caught up": lambda o=operator: world.turn(o, fault()),
            "as known": lambda o=operator: world.turn(o, fault()),
            "decides": partial(world.decide, operator),
            "carries out": lambda o=operator: world.carry_out(o, fault()),
            "time": lambda: world.advance(dice.choice(SECONDS)),
            "hangs": lambda o=operator: world.hang(o, dice.choice(KINDS[1:])),
            "restarts": partial(world.restart, operator),
            "well": lambda: world.go_on(dice.randrange(1, 6)),
            "user": lambda: world.take(dice.choice(world.wishes())),
        }[step]()
    world.settle()
    return world
