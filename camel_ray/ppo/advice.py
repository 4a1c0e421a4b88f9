"""What to change where a host group does not fit its devices: tried out on the estimate, not guessed.

Each change is made to a copy of the spec and the memory is estimated again. One change that is enough is named; else
changes are added up, mild ones first, until the group fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.ppo.memory import GroupMemory
from camel_ray.ppo.placement import settings_of

_MOST_WORKERS = 1024

Estimate = Callable[[PpoStageSpec], GroupMemory]
"""The group's memory under a changed spec."""
_Change = tuple[str, PpoStageSpec]


def advice(spec: PpoStageSpec, group: GroupMemory, estimate: Estimate) -> str:
    """The smallest change after which `group` fits its devices, as a sentence's end; empty if it fits already."""
    if group.fits:
        return ""
    for text, changed in _changes(spec, group):
        if estimate(changed).fits:
            return f"set {text}"
    texts: list[str] = []
    best, now = spec, group
    while not now.fits:
        step = next(
            ((text, s, m) for text, s in _changes(best, now) if (m := estimate(s)).total < 0.98 * now.total), None
        )
        if step is None:
            return "no setting is enough: use a smaller model, lora, or larger devices"
        text, best, now = step
        # A field that is changed twice is named once, with its last value.
        texts = [known for known in texts if known.split(":")[0] != text.split(":")[0]] + [text]
    return f"set {', '.join(texts)}"


def _changes(spec: PpoStageSpec, group: GroupMemory) -> Iterator[_Change]:
    """Single changes that may help the group, mild ones first."""
    roles = group.plan.roles
    trained: list[RoleName] = [role for role in roles if role in ("actor", "critic")]
    if "rollout" in roles and spec.rollout.engine == "vllm":
        more = 2 * spec.rollout.tensor_parallel
        rollout = spec.rollout.model_copy(update={"tensor_parallel": more})
        yield f"rollout.tensorParallel: {more}", spec.model_copy(update={"rollout": rollout})
        return
    if trained and not spec.gradient_checkpointing:
        yield "gradientCheckpointing: true", spec.model_copy(update={"gradient_checkpointing": True})
    longest = spec.sampling.max_prompt_length + spec.sampling.max_response_length
    if spec.micro_batch_tokens >= 2 * longest:
        half = spec.micro_batch_tokens // 2
        yield f"microBatchTokens: {half}", spec.model_copy(update={"micro_batch_tokens": half})
    for role in trained:
        fields = settings_of(spec, role)
        if fields.zero < 3 and group.plan.size > 1:
            yield f"roles.{role}.zero: 3", _with(spec, role, zero=3)
        if fields.offload == "none":
            yield f"roles.{role}.offload: optimizer", _with(spec, role, offload="optimizer", zero=max(2, fields.zero))
        elif fields.offload == "optimizer":
            yield f"roles.{role}.offload: all", _with(spec, role, offload="all", zero=3)
    if trained and 2 * group.plan.size <= _MOST_WORKERS:
        changed = spec
        for role in roles:
            changed = _with(changed, role, workers=2 * group.plan.size)
        yield f"workers of {group.plan.name}: {2 * group.plan.size}", changed


def _with(spec: PpoStageSpec, role: RoleName, **fields: Any) -> PpoStageSpec:
    own = getattr(spec.roles, role).model_copy(update=fields)
    return spec.model_copy(update={"roles": spec.roles.model_copy(update={role: own})})
