"""Stage `ppo`: reads the spec, starts the role groups, runs the loop of `camel_ray.ppo`, and writes the policy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import PpoStageSpec, RoleName
from camel_ray.data.dataset import PreparedDataset
from camel_ray.data.templates import stop_token_ids
from camel_ray.models.load import check_length, load_config, load_tokenizer
from camel_ray.ppo.checkpoint import Checkpoints
from camel_ray.ppo.driver import Driver
from camel_ray.ppo.groups import HostGroup, start_groups
from camel_ray.ppo.loop import Loop, State
from camel_ray.ppo.placement import Placement, needed_roles, place, zero_stage
from camel_ray.ppo.prompts import Prompts, encode_prompts
from camel_ray.ppo.ptx import PtxText, encode_texts
from camel_ray.ppo.reward_function import RewardFunction
from camel_ray.ppo.settings import RoleSettings
from camel_ray.ray_session import ensure_ray
from camel_ray.stages.contract import ArtifactKind, Output, StageContext
from camel_ray.stages.inputs import resolve_dataset, resolve_model, resolve_reward_model, resolve_tokenizer


@dataclass(frozen=True)
class Models:
    """What the roles are built from."""

    policy: ModelSpec
    critic: ModelSpec
    reward: ModelSpec | None
    tokenizer_source: str
    tokenizer: PreTrainedTokenizerBase
    reward_tokenizer: PreTrainedTokenizerBase | None
    """Set only where the reward model reads other tokens than the policy writes."""


def run(context: StageContext) -> list[Output]:
    """Tune a policy against a reward. Makes a `model`."""
    spec = context.stage.ppo
    assert isinstance(spec, PpoStageSpec)
    where = f"stage '{context.stage.name}', ppo"
    placement = place(spec, workers=context.workers, where=where)
    with ExitStack() as stack:
        # Cheap checks first, then the processes, and what the driver prepares while they start.
        function = None
        if spec.reward.function is not None:
            function = stack.enter_context(RewardFunction(spec.reward.function, base_dir=context.base_dir))
        models = _models(context, spec)
        ensure_ray(cores=context.cores)
        groups = start_groups(placement, cores=context.cores)
        for group in set(groups.values()):
            stack.callback(group.stop)
        prompts, held_out = _prompts(context, spec, models.tokenizer)
        ptx = _ptx(context, spec, models.tokenizer)
        bf16 = _bf16(spec, groups)
        _load_roles(spec, groups, models, bf16=bf16, seed=context.seed)
        driver = Driver(
            spec=spec,
            groups=groups,
            tokenizer=models.tokenizer,
            reward_tokenizer=models.reward_tokenizer,
            stop_ids=stop_token_ids(models.tokenizer),
            function=function,
            ptx=ptx,
            shares_actor=placement.shares_actor(spec),
            bf16=bf16,
            seed=context.seed,
        )
        checkpoints = Checkpoints(context.work / "checkpoints", spec.checkpoint.keep, _layout(spec, placement))
        state, after = Loop(driver, prompts, held_out, checkpoints, context.progress).run()
        path = context.output(ArtifactKind.MODEL)
        driver.save_model(path)
    return [Output(ArtifactKind.MODEL, path, _metrics(spec, state, after, prompts))]


def _models(context: StageContext, spec: PpoStageSpec) -> Models:
    policy = resolve_model(context, spec.model, field="model")
    source = resolve_tokenizer(context, None, policy)
    tokenizer = load_tokenizer(source)
    length = spec.sampling.max_prompt_length + spec.sampling.max_response_length
    check_length(load_config(policy, tokenizer), length, field="sampling.maxPromptLength + sampling.maxResponseLength")
    reward = reward_tokenizer = None
    if spec.reward.model is not None:
        reward = resolve_reward_model(context, spec.reward.model, field="reward.model")
        own = load_tokenizer(resolve_tokenizer(context, None, reward))
        if own.get_vocab() != tokenizer.get_vocab():
            reward_tokenizer = own
    if spec.critic is not None:
        critic = resolve_model(context, spec.critic, field="critic")
    else:
        # A critic reads the policy's tokens, so it can start from the reward model only if that reads the same.
        critic = reward if reward is not None and reward_tokenizer is None else policy
    return Models(policy, critic, reward, source, tokenizer, reward_tokenizer)


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


def _load_roles(
    spec: PpoStageSpec, groups: Mapping[RoleName, HostGroup], models: Models, *, bf16: bool, seed: int
) -> None:
    """Form the process groups and build all roles, groups side by side, the actor before rollout that may share it."""
    trained = {groups[role] for role in groups if role in ("actor", "critic")}
    for pending in [group.join() for group in trained]:
        pending.wait()
    sources: dict[RoleName, ModelSpec | None] = {
        "actor": models.policy,
        "critic": models.critic,
        "reference": models.policy,
        "reward": models.reward,
        "rollout": models.policy,
    }
    optimizers = {"actor": spec.actor_optimizer, "critic": spec.critic_optimizer}
    waiting = []
    for role in needed_roles(spec):
        model = sources[role]
        assert model is not None
        own_tokenizer = role == "reward" and models.reward_tokenizer is not None
        settings = RoleSettings(
            model=model,
            tokenizer=str(model.source) if own_tokenizer else models.tokenizer_source,
            seed=seed,
            bf16=bf16,
            micro_batch_tokens=spec.micro_batch_tokens,
            zero=zero_stage(spec, role),
            optimizer=optimizers.get(role),
            updates=_updates(spec),
        )
        waiting.append(groups[role].load(role, settings))
    for pending in waiting:
        pending.wait()


def _updates(spec: PpoStageSpec) -> int:
    return spec.steps * spec.epochs * spec.mini_batches


def _bf16(spec: PpoStageSpec, groups: Mapping[RoleName, HostGroup]) -> bool:
    if spec.precision == "auto":
        return all(group.supports_bf16() for group in set(groups.values()))
    return spec.precision == "bf16"


def _layout(spec: PpoStageSpec, placement: Placement) -> dict[str, Any]:
    trained: tuple[RoleName, ...] = ("actor", "critic")
    return {
        role: {"workers": placement.group_of(role).size, "zero": zero_stage(spec, role)}
        for role in trained
        if role in needed_roles(spec)
    }


def _metrics(spec: PpoStageSpec, state: State, after: Mapping[str, float], prompts: Prompts) -> dict[str, Any]:
    return {
        "reward_before": state.before["reward"],
        "reward_after": after["reward"],
        "reward_std_before": state.before["reward_std"],
        "reward_std_after": after["reward_std"],
        "kl": after["kl"],
        "kl_target": spec.kl.target if spec.kl.controller == "adaptive" else None,
        "kl_coefficient": state.kl_coefficient,
        "response_length_before": state.before["response_length"],
        "response_length_after": after["response_length"],
        "steps": state.step,
        "prompts": len(prompts.prompts),
        "prompts_too_long": prompts.too_long,
        "reward_failures": state.failures,
    }
