"""Brings the actor's new weights to rollout, and checks that rollout really has them."""

from __future__ import annotations

from camel_ray.errors import WorkerLost
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.groups import HostGroup
from camel_ray.ppo.importance import Mismatch, mismatch

MISMATCH_LIMIT = {False: 0.02, True: 0.2}
"""Largest mean of |logp_train - logp_rollout| in fp32 and (key True) bf16: rounding stays far below, other weights
far above."""


def sync(actor: HostGroup, rollout: HostGroup, version: int, *, shared: bool) -> None:
    """Number the actor's weights `version` and make rollout use them.

    `shared`: rollout uses the actor's own module, so there is nothing to move. Else rank 0 of the actor puts the
    gathered weights into Ray's object store once, and every rollout host reads them from there; the driver never
    holds them.
    """
    named = actor.call_all("actor", "set_version", version)
    if not shared:
        states = actor.call_all("actor", "full_state")
        loaded = rollout.call_all("rollout", "load_weights", states.refs[0], version)
        loaded.wait()
    named.wait()


def check(experience: Experience, *, version: int, bf16: bool) -> Mismatch:
    """Compare the log-probabilities of trainer and rollout for the tokens of a round.

    Raises WorkerLost if an answer was written by other weights than `version`, or the log-probabilities differ too
    much.
    """
    stale = experience.policy_version_B != version
    if bool(stale.any()):
        found = int(experience.policy_version_B[stale][0])
        raise WorkerLost(
            f"role rollout answered with policy version {found} instead of {version}; run again to continue"
        )
    assert experience.logprobs_A is not None
    found_mismatch = mismatch(experience.logprobs_A, experience.rollout_logprobs_A)
    if found_mismatch.abs_mean > MISMATCH_LIMIT[bf16]:
        raise WorkerLost(
            f"role rollout and role actor give log-probabilities that differ by {found_mismatch.abs_mean:.3g} on "
            f"average (limit {MISMATCH_LIMIT[bf16]}), so their weights are not the same; run again to continue"
        )
    return found_mismatch
