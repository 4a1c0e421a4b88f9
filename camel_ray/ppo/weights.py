"""Brings the actor's new weights to rollout, and checks that rollout really has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from camel_ray.errors import WorkerLost
from camel_ray.ppo.groups import Group
from camel_ray.ppo.importance import Mismatch, mismatch
from camel_ray.ppo.shares import Share, Shares

_DEFAULT_LIMIT = {False: 1e-3, True: 0.1}
"""Largest mean of |logp_train - logp_rollout| in fp32 and (key True) bf16: rounding stays far below, other weights
far above."""


@dataclass(frozen=True)
class Sample:
    """Answers on which actor and rollout have to agree."""

    ref: Any
    """Their experience in the object store."""
    shares: Shares
    """Among the actor's ranks."""


def sync(actor: Group, rollout: Group, version: int, *, shared: bool) -> int:
    """Number the actor's weights `version` and make rollout use them. Returns the bytes that moved to each host.

    `shared`: rollout uses the actor's own module, so there is nothing to move. Else rank 0 of the actor puts the
    gathered weights into Ray's object store once, and every rollout host reads them from there; the driver never
    holds them. Three calls per rank, whatever the size of the model.
    """
    named = actor.call_all("actor", "set_version", version)
    moved = 0
    if not shared:
        states = actor.call_all("actor", "weights", keep=True)
        moved = states.wait()[0]
        state = states.kept[0]
        # A host that replaces a dead one gets them too.
        rollout.remember("rollout", "load_weights", version, state)
        rollout.call_all("rollout", "load_weights", version, state).wait()
    named.wait()
    return moved


def verify(actor: Group, rollout: Group, sample: Sample, *, temperature: float, limit: float) -> Mismatch:
    """Compare actor and rollout on a sample of answers, on every rollout host. Returns the largest mismatch.

    Raises WorkerLost if it is above `limit`.
    """
    rows = Share(sample.shares.order, [])
    rolled = rollout.call_all("rollout", "logprobs", sample.ref, rows)
    trained = actor.call(
        "actor", "logprobs", lambda rank: (sample.ref, *sample.shares.of(rank)), keep=True, temperature=temperature
    )
    trained.wait()
    expected_A = torch.cat(ray.get(trained.kept))
    worst = max((mismatch(expected_A, own_A) for own_A in rolled.wait()), key=lambda found: found.abs_mean)
    return require(worst, limit=limit)


def require(found: Mismatch, *, limit: float) -> Mismatch:
    """Raise WorkerLost where trainer and rollout disagree more than rounding explains."""
    if not found.abs_mean <= limit:
        raise WorkerLost(
            f"role rollout and role actor give log-probabilities that differ by {found.abs_mean:.3g} on average "
            f"(limit {limit:g}, rollout.mismatchLimit), so their weights are not the same; run again to continue"
        )
    return found


def limit_of(configured: float | None, *, bf16: bool) -> float:
    """The mismatch that is allowed."""
    return _DEFAULT_LIMIT[bf16] if configured is None else configured


def require_fresh(versions: Sequence[int], *, version: int, staleness: int) -> None:
    """Raise WorkerLost where an answer was written by weights that are too old, or from the future."""
    for found in set(versions):
        if not version - staleness <= found <= version:
            raise WorkerLost(
                f"role rollout answered with policy version {found}, but the policy is at {version} and "
                f"rollout.staleness is {staleness}; run again to continue"
            )
