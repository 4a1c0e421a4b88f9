"""Memory that a placement needs on every device, before anything is loaded.

An estimate, not a promise: weights, gradients and optimizer state are exact, activations are those of answers and
prompts at their limits, and `CONTEXT_BYTES` stands for what cannot be computed (CUDA context, libraries, fragments).
What a role keeps adds up over the roles of a process; what it needs only while it works does not, because the roles of
a process work one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.errors import SpecError
from camel_ray.models.memory import (
    FP32,
    GIB,
    TrainingState,
    backward_bytes,
    cache_bytes,
    element_bytes,
    flat_state,
    forward_bytes,
    logits_bytes,
    zero_state,
)
from camel_ray.models.size import ModelSize
from camel_ray.ppo.batching import decode_rows
from camel_ray.ppo.placement import GroupPlan, Placement, effective_zero, settings_of

CONTEXT_BYTES = 3 * GIB // 2
"""Per process and GPU: CUDA context and kernels, NCCL's buffers, fragments of the allocator."""
BUCKET_ELEMENTS = 200_000_000
"""Elements of a gradient bucket; see `engine_zero.py`."""


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of one role on one device (`host`: in the memory of the machine, per process)."""

    role: RoleName
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    """Of the weights (EMA)."""
    communication: int = 0
    cache: int = 0
    """Keys and values of the answers being written. While the role works."""
    activations: int = 0
    """While the role works."""
    host: int = 0
    """Offloaded state."""
    loading: int = 0
    """Host memory for the whole model while it is read."""

    @property
    def kept(self) -> int:
        """On the device all the time."""
        return self.weights + self.gradients + self.optimizer + self.average + self.communication

    @property
    def working(self) -> int:
        """On the device while the role works, beside `kept`."""
        return self.cache + self.activations


@dataclass(frozen=True)
class GroupMemory:
    """What every process of a host group needs."""

    plan: GroupPlan
    roles: tuple[RoleMemory, ...]
    context: int
    device: int | None
    """Bytes of one device, where they are known."""

    @property
    def total(self) -> int:
        """Most bytes in use on one device."""
        return self.context + sum(role.kept for role in self.roles) + max(role.working for role in self.roles)

    @property
    def host(self) -> int:
        """Host memory of one process: what is offloaded, and one model at a time while it is read."""
        return sum(role.host for role in self.roles) + max(role.loading for role in self.roles)

    @property
    def fits(self) -> bool:
        """Whether it fits a device. True where the size of the devices is not known."""
        return self.device is None or self.total <= self.device


def estimate(
    spec: PpoStageSpec,
    placement: Placement,
    sizes: Mapping[RoleName, ModelSize],
    *,
    devices: Mapping[GroupPlan, int | None],
) -> tuple[GroupMemory, ...]:
    """Memory of all groups. `sizes`: the model of each role; `devices`: bytes of a device of each group, where known.

    Precision `auto` is bf16 on a group with GPUs and fp32 elsewhere.
    """
    return tuple(
        GroupMemory(
            plan,
            tuple(_role(spec, placement, plan, role, sizes[role], devices[plan]) for role in plan.roles),
            CONTEXT_BYTES if plan.on_gpu else 0,
            devices[plan],
        )
        for plan in placement.groups
    )


def refuse_what_does_not_fit(groups: Sequence[GroupMemory], *, where: str) -> None:
    """Raise SpecError, with a table of all roles in GiB per device, if a group does not fit its devices. `where` names
    the stage.
    """
    if all(group.fits for group in groups):
        return
    kinds = ("weights", "gradients", "optimizer", "average", "communication", "activations", "cache")
    rows: list[tuple[str, ...]] = [("group", "role", *kinds)]
    for group in groups:
        for role in group.roles:
            rows.append((group.plan.name, role.role, *(f"{getattr(role, kind) / GIB:.1f}" for kind in kinds)))
        device = "unknown" if group.device is None else f"{group.device / GIB:.1f}"
        verdict = "fits" if group.fits else "does not fit"
        rows.append((group.plan.name, f"at most {group.total / GIB:.1f} of {device}: {verdict}", *[""] * len(kinds)))
    widths = [max(len(row[column]) for row in rows if row[2]) for column in range(len(kinds) + 2)]
    table = "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    raise SpecError(
        f"{where} does not fit the memory of its devices (GiB per device); `camel-ray plan` says what to "
        f"change:\n{table}"
    )


def _role(
    spec: PpoStageSpec, placement: Placement, plan: GroupPlan, role: RoleName, size: ModelSize, device: int | None
) -> RoleMemory:
    precision = settings_of(spec, role).precision
    bf16 = precision == "bf16" or (precision == "auto" and bool(plan.on_gpu))
    match role:
        case "actor" | "critic":
            return _trained(spec, plan, role, size, bf16)
        case "reference" | "reward":
            return _frozen(spec, placement, role, size, bf16)
        case "rollout":
            return _rollout(spec, placement, plan, size, bf16, device)


def _trained(spec: PpoStageSpec, plan: GroupPlan, role: RoleName, size: ModelSize, bf16: bool) -> RoleMemory:
    fields = settings_of(spec, role)
    stage = effective_zero(fields.zero, fields.offload, bf16=bf16, ranks=plan.size)
    if role == "critic":
        trained, frozen = size.value_parameters, 0
    elif spec.lora is not None:
        trained, frozen = size.adapter_parameters(spec.lora.rank, spec.lora.targets), size.parameters
    else:
        trained, frozen = size.parameters, 0
    state: TrainingState
    if stage == 0:
        state = flat_state(trained, frozen, bf16=bf16)
    else:
        state = zero_state(
            trained,
            frozen,
            stage=stage,
            offload=fields.offload,
            bf16=bf16,
            ranks=plan.size,
            bucket_elements=BUCKET_ELEMENTS,
        )
    average = 0
    if role == "actor" and spec.ema_decay is not None:
        average = FP32 * trained // (plan.size if stage > 0 else 1)
    tokens, answered = _micro_batch(spec)
    if role == "actor" and spec.ptx is not None:
        answered = tokens  # the text that is mixed in is predicted at every position
    activations = backward_bytes(size, tokens, bf16=bf16, recompute=spec.gradient_checkpointing)
    if role == "actor":
        activations += logits_bytes(size.vocabulary, answered, bf16=bf16, backward=True)
    offloaded = fields.offload != "none"
    return RoleMemory(
        role,
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        average=0 if offloaded else average,
        communication=state.communication,
        activations=activations,
        host=state.host + (average if offloaded else 0),
        loading=0 if stage == 3 and plan.size > 1 else element_bytes(bf16) * (trained + frozen),
    )


def _frozen(spec: PpoStageSpec, placement: Placement, role: RoleName, size: ModelSize, bf16: bool) -> RoleMemory:
    tokens, answered = _micro_batch(spec)
    activations = forward_bytes(size, tokens, bf16=bf16)
    if role == "reward":
        weights = element_bytes(bf16) * size.reward_parameters
        return RoleMemory(role, weights=weights, activations=activations, loading=weights)
    activations += logits_bytes(size.vocabulary, answered, bf16=bf16, backward=False)
    weights = 0 if placement.reference_is_actor(spec) else element_bytes(bf16) * size.parameters
    return RoleMemory(role, weights=weights, activations=activations, loading=weights)


def _rollout(
    spec: PpoStageSpec, placement: Placement, plan: GroupPlan, size: ModelSize, bf16: bool, device: int | None
) -> RoleMemory:
    weights = 0 if placement.shares_actor(spec) else element_bytes(bf16) * size.parameters
    longest = spec.sampling.max_prompt_length + spec.sampling.max_response_length
    if spec.rollout.engine == "vllm":
        own = weights // plan.devices
        # vLLM fills its share of the device with cache; one answer at full length is the least it needs.
        least = cache_bytes(size, longest, bf16=bf16) // plan.devices
        share = spec.rollout.memory_share
        room = round(share * device) if device is not None else own + least
        cache = room - own if room >= own + least else round((own + least) / share) - own
        return RoleMemory("rollout", weights=own, cache=cache, loading=weights)
    rows = decode_rows(spec.micro_batch_tokens, longest)
    return RoleMemory(
        "rollout",
        weights=weights,
        cache=cache_bytes(size, rows * longest, bf16=bf16),
        activations=forward_bytes(size, rows * spec.sampling.max_prompt_length, bf16=bf16)
        + logits_bytes(size.vocabulary, rows, bf16=bf16, backward=True),
        loading=weights,
    )


def _micro_batch(spec: PpoStageSpec) -> tuple[int, int]:
    """Tokens of the largest micro-batch, and how many of them are answers: prompts and answers at their limits."""
    longest = spec.sampling.max_prompt_length + spec.sampling.max_response_length
    rows = max(1, spec.micro_batch_tokens // longest)
    return max(spec.micro_batch_tokens, longest), rows * spec.sampling.max_response_length
