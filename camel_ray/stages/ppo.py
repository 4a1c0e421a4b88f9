"""Stage `ppo`: reads the spec, starts the role groups, runs the loop of `camel_ray.ppo`, and writes the policy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_reward import EnvironmentSpec
from camel_ray.api.stages.ppo_roles import RoleName
from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.templates import stop_token_ids
from camel_ray.errors import SpecError
from camel_ray.models.load import check_length, load_config, load_tokenizer
from camel_ray.models.size import model_size
from camel_ray.ppo.checkpoint import Checkpoints
from camel_ray.ppo.driver import Driver
from camel_ray.ppo.groups import HostGroup, Losses, load_roles, restart_trained, start_groups
from camel_ray.ppo.loop import Loop
from camel_ray.ppo.memory import estimate, refuse_what_does_not_fit
from camel_ray.ppo.placement import Placement, needed_roles, place, settings_of
from camel_ray.ppo.prompts import Prompts, encode_prompts
from camel_ray.ppo.ptx import PtxText, encode_texts
from camel_ray.ppo.recording import Recording
from camel_ray.ppo.recovery import Recovery
from camel_ray.ppo.replay import Replayed, replay
from camel_ray.ppo.reservation import reserve
from camel_ray.ppo.rewards.sources import RewardSources
from camel_ray.ppo.scoring import Scorer
from camel_ray.ppo.settings import EnvironmentSettings, RoleSettings, RolloutSettings, TrainingSettings
from camel_ray.ppo.state import State
from camel_ray.ray_session import ensure_ray
from camel_ray.stages.contract import ArtifactKind, Output, StageContext
from camel_ray.stages.inputs import resolve_dataset, resolve_model, resolve_reward_model, resolve_tokenizer
from camel_ray.stop import StopRequest, heeding_stop_requests


@dataclass(frozen=True)
class Models:
    """What the roles are built from."""

    policy: ModelSpec
    critic: ModelSpec
    reward: ModelSpec | None
    tokenizer_source: str
    tokenizer: PreTrainedTokenizerBase
    own_reward_tokens: bool
    """The reward model reads other tokens than the policy writes."""


def run(context: StageContext) -> list[Output]:
    """Tune a policy against a reward. Makes a `model`."""
    spec = context.stage.ppo
    assert isinstance(spec, PpoStageSpec)
    cluster = context.pipeline.spec.cluster
    where = f"stage '{context.stage.name}', ppo"
    placement = place(spec, workers=context.workers, where=where, group=context.stage.group, cluster=cluster)
    losses = Losses(spec.limits, context.progress)
    with ExitStack() as stack:
        # Cheap checks first, then the processes, and what the driver prepares while they start.
        rewards = stack.enter_context(RewardSources(spec.reward, base_dir=context.base_dir))
        environment = None if spec.environment is None else _environment(spec.environment, context.base_dir)
        models = resolve_models(context, spec)
        ensure_ray(cores=context.cores)
        reservation = reserve(
            placement,
            autoscaling=cluster.autoscaling.enabled,
            limit_seconds=spec.limits.placement_seconds,
            progress=context.progress,
        )
        stack.callback(reservation.release)
        groups = start_groups(placement, options=reservation.options, cores=context.cores, losses=losses)
        for group in set(groups.values()):
            stack.callback(group.stop)
        prompts, held_out = _prompts(context, spec, models.tokenizer)
        ptx = _ptx(context, spec, models.tokenizer)
        for group in set(groups.values()):
            group.settle()
        _check_memory(spec, placement, models, groups, where=where)
        rewards.check(prompt.row for prompt in (*prompts.prompts, *held_out.prompts))
        settings = role_settings(
            spec, models, placement, seed=context.seed, bf16=_bf16(spec, groups), environment=environment, ptx=ptx
        )
        load_roles(groups, settings)
        scorer = Scorer(spec, groups, rewards, own_tokens=models.own_reward_tokens)
        if spec.reward.normalise != "none":
            scorer.measure_demonstrations([*prompts.prompts, *held_out.prompts])
        driver = Driver(
            spec=spec,
            groups=groups,
            losses=losses,
            scorer=scorer,
            shares_actor=placement.shares_actor(spec),
            bf16=settings["actor"].bf16 or settings["rollout"].bf16,
            seed=context.seed,
        )
        path = context.output(ArtifactKind.MODEL)

        def evaluate(step: int) -> dict[str, float]:
            metrics = driver.evaluate(held_out.prompts)
            context.progress.update("ppo-evaluate", step, spec.steps, metrics=metrics)
            return metrics

        restart = partial(restart_trained, groups)
        recovery = Recovery(driver, prompts, _checkpoints(context, spec), restart, evaluate, context.progress)
        stop = StopRequest(context.work)
        loop = Loop(driver, prompts, recovery, _recording(context, spec), context.progress, stop)
        with heeding_stop_requests():
            state, after = loop.run(path)
    return [Output(ArtifactKind.MODEL, path, _metrics(spec, state, after, prompts))]


def replay_round(context: StageContext, step: int) -> Replayed:
    """The training half of recorded round `step` once more, in this process. Raises ModelError if that cannot be."""
    spec = context.stage.ppo
    assert isinstance(spec, PpoStageSpec)
    placement = place(spec, workers=context.workers, where=f"stage '{context.stage.name}', ppo")
    models = resolve_models(context, spec)
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bf16 = {role: wants_bf16(spec, role, supported=gpu) for role in needed_roles(spec)}
    ptx = _ptx(context, spec, models.tokenizer)
    return replay(
        spec,
        role_settings(spec, models, placement, seed=context.seed, bf16=bf16, ptx=ptx),
        step=step,
        checkpoints=_checkpoints(context, spec),
        recording=_recording(context, spec),
        seed=context.seed,
        progress=context.progress,
    )


def _checkpoints(context: StageContext, spec: PpoStageSpec) -> Checkpoints:
    return Checkpoints(context.work / "checkpoints", spec.checkpoint.keep)


def _recording(context: StageContext, spec: PpoStageSpec) -> Recording:
    return Recording(context.work / "rounds", spec.record)


def resolve_models(context: StageContext, spec: PpoStageSpec) -> Models:
    """Where the roles' weights come from; refuses what cannot work before anything is loaded."""
    policy = resolve_model(context, spec.model, field="model")
    source = resolve_tokenizer(context, None, policy)
    tokenizer = load_tokenizer(source)
    length = spec.sampling.max_prompt_length + spec.sampling.max_response_length
    check_length(load_config(policy, tokenizer), length, field="sampling.maxPromptLength + sampling.maxResponseLength")
    reward, own_tokens = None, False
    if spec.reward.model is not None:
        reward = resolve_reward_model(context, spec.reward.model, field="reward.model")
        own_tokens = load_tokenizer(resolve_tokenizer(context, None, reward)).get_vocab() != tokenizer.get_vocab()
    if spec.critic is not None:
        critic = resolve_model(context, spec.critic, field="critic")
    else:
        # A critic reads the policy's tokens, so it can start from the reward model only if that reads the same.
        critic = reward if reward is not None and not own_tokens else policy
    return Models(policy, critic, reward, source, tokenizer, own_tokens)


def model_of_roles(models: Models) -> dict[RoleName, ModelSpec | None]:
    """What each role's weights come from."""
    return {
        "actor": models.policy,
        "critic": models.critic,
        "reference": models.policy,
        "reward": models.reward,
        "rollout": models.policy,
    }


def role_settings(
    spec: PpoStageSpec,
    models: Models,
    placement: Placement,
    *,
    seed: int,
    bf16: Mapping[RoleName, bool],
    environment: EnvironmentSettings | None = None,
    ptx: PtxText | None = None,
) -> dict[RoleName, RoleSettings]:
    """What every role is built from, in the order in which roles that share a process have to be built."""
    sources = model_of_roles(models)
    optimizers = {"actor": spec.actor_optimizer, "critic": spec.critic_optimizer}
    with_actor = placement.group_of("actor").roles
    settings: dict[RoleName, RoleSettings] = {}
    for role in needed_roles(spec):
        model, fields = sources[role], settings_of(spec, role)
        assert model is not None
        training = None
        if role in optimizers:
            training = TrainingSettings(
                optimizer=optimizers[role],
                updates=_updates(spec),
                zero=fields.zero,
                offload=fields.offload,
                gradient_checkpointing=spec.gradient_checkpointing,
                ema_decay=spec.ema_decay if role == "actor" else None,
                guard=spec.guard,
            )
        rollout = None
        if role == "rollout":
            rollout = RolloutSettings(spec.rollout, spec.sampling, tuple(stop_token_ids(models.tokenizer)), environment)
        settings[role] = RoleSettings(
            model=model,
            tokenizer=str(model.source) if role == "reward" and models.own_reward_tokens else models.tokenizer_source,
            seed=seed,
            bf16=bf16[role],
            micro_batch_tokens=spec.micro_batch_tokens,
            training=training,
            lora=spec.lora if role in ("actor", "reference", "rollout") and role in with_actor else None,
            rollout=rollout,
            ptx=ptx if role == "actor" else None,
        )
    return settings


def _environment(spec: EnvironmentSpec, base_dir: Path) -> EnvironmentSettings:
    path = (base_dir / spec.path).resolve()
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"environment.path: {path} cannot be read ({error}); check the path") from error
    return EnvironmentSettings(source, str(path), spec.name, spec.max_turns, spec.timeout_seconds)


def _prompts(context: StageContext, spec: PpoStageSpec, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts]:
    dataset = resolve_dataset(
        context, spec.prompts, field="prompts", accept=("prompt-completion", "messages", "preference")
    )
    where = f"stage '{context.stage.name}', prompts"
    limit = spec.sampling.max_prompt_length
    prompts = encode_prompts(dataset.train, tokenizer, max_length=limit, seed=context.seed, where=where)
    if prompts.too_long:
        context.progress.note(
            f"{prompts.too_long} prompts are longer than {limit} tokens and are left out", level="warning"
        )
    held_out = dataset.validation
    if not len(held_out):
        context.progress.note(
            "there are no held-out prompts, so the policy is evaluated on training prompts", level="warning"
        )
        held_out = dataset.train
    evaluation = encode_prompts(
        held_out,
        tokenizer,
        max_length=limit,
        seed=context.seed,
        where=f"{where} (held out)",
        limit=spec.evaluation_prompts,
        first_number=len(prompts.prompts),
    )
    return prompts, evaluation


def _ptx(context: StageContext, spec: PpoStageSpec, tokenizer: PreTrainedTokenizerBase) -> PtxText | None:
    if spec.ptx is None:
        return None
    dataset: PreparedDataset = resolve_dataset(context, spec.ptx.data, field="ptx.data", accept=("text",))
    return encode_texts(
        (row["text"] for row in dataset.train),
        tokenizer,
        max_length=spec.ptx.max_length,
        batch_size=spec.ptx.batch_size,
        updates=_updates(spec),
    )


def _check_memory(
    spec: PpoStageSpec, placement: Placement, models: Models, groups: Mapping[RoleName, HostGroup], *, where: str
) -> None:
    """Refuse a placement that does not fit the devices the hosts really have. A CPU's memory is not one host's own."""
    free = {group.plan: group.free_device_memory() for group in groups.values()}
    if all(size is None for size in free.values()):
        return
    plans = {plan: replace(plan, on_gpu=size is not None) for plan, size in free.items()}
    vocabulary = len(models.tokenizer)
    sizes = {
        role: model_size(model, vocabulary=vocabulary)
        for role, model in model_of_roles(models).items()
        if model is not None
    }
    asked = Placement(tuple(plans[plan] for plan in placement.groups))
    refuse_what_does_not_fit(
        estimate(spec, asked, sizes, devices={plans[plan]: size for plan, size in free.items()}), where=where
    )


def _updates(spec: PpoStageSpec) -> int:
    return spec.steps * spec.epochs * spec.mini_batches


def _bf16(spec: PpoStageSpec, groups: Mapping[RoleName, HostGroup]) -> dict[RoleName, bool]:
    """Arithmetic of each role; with `auto` a role computes in bf16 where the devices of its group have it."""
    return {role: wants_bf16(spec, role, supported=group.supports_bf16()) for role, group in groups.items()}


def wants_bf16(spec: PpoStageSpec, role: RoleName, *, supported: bool) -> bool:
    """Whether a role computes in bf16, where the device has it or not."""
    precision = settings_of(spec, role).precision
    return supported if precision == "auto" else precision == "bf16"


def _metrics(spec: PpoStageSpec, state: State, after: Mapping[str, float], prompts: Prompts) -> dict[str, Any]:
    return {
        "reward_before": state.before["reward"],
        "reward_after": after["reward"],
        "reward_std_before": state.before["reward_std"],
        "reward_std_after": after["reward_std"],
        "kl": after.get("kl"),
        "kl_target": spec.kl.target if spec.kl.controller == "adaptive" else None,
        "kl_coefficient": state.kl_coefficient,
        "response_length_before": state.before["response_length"],
        "response_length_after": after["response_length"],
        "steps": state.step,
        "rounds_left_out": state.left_out,
        "skipped_updates": state.skipped_updates,
        "prompts": len(prompts.prompts),
        "prompts_too_long": prompts.too_long,
        "reward_failures": state.failures,
    }
