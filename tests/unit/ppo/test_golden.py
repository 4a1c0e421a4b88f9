"""The mathematics of PPO against reference values computed independently from the papers (tests/golden/*.json).

The files hold padded rows with masks; our functions take the mask-1 tokens joined, so every case also shows that masked
numbers cannot matter. float64: rtol 1e-6, atol 1e-9; float32: rtol 1e-4, atol 1e-5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.ppo import advantages, importance, kl, losses, token_rewards
from camel_ray.ppo.estimate import estimate_advantages
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.ragged import sequence_mean_token_mean, sequence_sum, token_mean

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCE = {torch.float64: (1e-6, 1e-9), torch.float32: (1e-4, 1e-5)}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=("float64", "float32"))


def cases(name: str) -> Any:
    content = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return pytest.mark.parametrize(
        ("inputs", "expected"), [pytest.param(c["inputs"], c["expected"], id=c["name"]) for c in content]
    )


class Rows:
    """Padded rows of a case as flat tensors."""

    def __init__(self, mask: list[list[int]], dtype: torch.dtype) -> None:
        self.mask = torch.tensor(mask, dtype=torch.bool)
        self.lengths = self.mask.sum(1)
        self.dtype = dtype

    def flat(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=self.dtype)[self.mask]

    def check(self, actual: Tensor, expected: Any) -> None:
        close(actual, self.flat(expected))


def close(actual: Any, expected: Any, dtype: torch.dtype = torch.float64) -> None:
    actual = actual if isinstance(actual, Tensor) else torch.tensor(actual, dtype=dtype)
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    rtol, atol = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@dtypes
@cases("gae")
def test_gae(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    advantages_A, returns_A = advantages.gae(
        rows.flat(inputs["rewards"]),
        rows.flat(inputs["values"]),
        rows.lengths,
        gamma=inputs["gamma"],
        lam=inputs["lam"],
    )
    rows.check(advantages_A, expected["advantages"])
    rows.check(returns_A, expected["returns"])


@cases("gae")
def test_gae_of_conversations_skips_what_the_policy_did_not_write(
    inputs: dict[str, Any], expected: dict[str, Any]
) -> None:
    """The same rows as an experience: a prompt token in front, the environment's rewards, masks with several runs."""
    rows = Rows(inputs["mask"], torch.float64)
    action_BT = torch.nn.functional.pad(rows.mask, (1, 0))
    whole = Experience(
        tokens_N=torch.zeros(action_BT.numel(), dtype=torch.long),
        lengths_B=torch.full((action_BT.shape[0],), action_BT.shape[1]),
        action_N=action_BT.flatten(),
        rollout_logprobs_A=rows.flat(inputs["rewards"]) * 0,
        finished_B=torch.ones(action_BT.shape[0], dtype=torch.bool),
        groups_B=torch.arange(action_BT.shape[0]),
        policy_version_B=torch.zeros(action_BT.shape[0], dtype=torch.long),
        logprobs_A=rows.flat(inputs["rewards"]) * 0,
        values_A=rows.flat(inputs["values"]),
        turn_rewards_A=rows.flat(inputs["rewards"]),
    )
    spec = PpoStageSpec.model_validate(
        {"prompts": "p", "whitenAdvantages": False, "gamma": inputs["gamma"], "lam": inputs["lam"]}
    )
    result = estimate_advantages(whole, spec, kl_coefficient=0.0, baseline=advantages.Baseline("none"))
    assert result.advantages_A is not None and result.returns_A is not None
    rows.check(result.advantages_A, expected["advantages"])
    rows.check(result.returns_A, expected["returns"])


@dtypes
@cases("reinforce_returns")
def test_reinforce(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    baseline = advantages.Baseline(inputs["baseline"], decay=inputs["ema_decay"] or 0.0)
    for batch, want in zip(inputs["batches"], expected["batches"], strict=True):
        rows = Rows(batch["mask"], dtype)
        rewards_A = rows.flat(batch["rewards"])
        advantages_A, returns_A, used = advantages.reinforce(
            rewards_A, rows.lengths, gamma=inputs["gamma"], baseline=baseline
        )
        rows.check(returns_A, want["returns"])
        close(
            advantages.discounted_returns(rewards_A, rows.lengths, gamma=inputs["gamma"])[1], want["sequence_returns"]
        )
        close(torch.tensor(used, dtype=dtype), want["baseline"])
        rows.check(advantages_A, want["advantages"])


@dtypes
@cases("group_advantages")
def test_group_advantages(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    scores = torch.tensor([s for group in inputs["scores"] for s in group], dtype=dtype)
    groups = torch.tensor([g for g, group in enumerate(inputs["scores"]) for _ in group])
    eps = inputs["eps"]
    actual = {
        "rloo": advantages.rloo(scores, groups),
        "dr_grpo": advantages.dr_grpo(scores, groups),
        "grpo_unbiased": advantages.group_normalised(scores, groups, unbiased=True, eps=eps),
        "grpo_biased": advantages.group_normalised(scores, groups, unbiased=False, eps=eps),
    }
    for name, values in actual.items():
        close(values, [v for group in expected[name] for v in group])
        if inputs["mask"] is not None:
            rows = Rows(inputs["mask"], dtype)
            rows.check(advantages.spread(values, rows.lengths), expected["token_advantages"][name])


@dtypes
@cases("whitening")
def test_whitening(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    settings = {name: inputs[name] for name in ("shift_mean", "unbiased", "eps")}
    rows.check(advantages.whiten(rows.flat(inputs["x"]), **settings), expected["whitened"])


@dtypes
@cases("kl_estimators")
def test_kl_estimators(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    for name, per_token in expected["per_token"].items():
        values = kl.estimate_kl(
            rows.flat(inputs["logp_policy"]), rows.flat(inputs["logp_ref"]), name, clamp=inputs["clamp"]
        )
        rows.check(values, per_token)
        close(token_mean(values), expected["token_mean"][name])
        close(sequence_sum(values, rows.lengths), expected["row_sum"][name])


@dtypes
@cases("kl_full_vocab")
def test_full_kl(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    policy, reference = rows.flat(inputs["logits_policy"]), rows.flat(inputs["logits_ref"])
    rows.check(kl.full_kl(policy, reference), expected["kl_policy_ref"])
    rows.check(kl.full_kl(reference, policy), expected["kl_ref_policy"])


@cases("adaptive_kl_controller")
def test_adaptive_kl(inputs: dict[str, Any], expected: dict[str, Any]) -> None:
    controller = kl.AdaptiveKl(inputs["init_beta"], target=inputs["target"], horizon=inputs["horizon"])
    history = [controller.update(value, n) for value, n in zip(inputs["kl"], inputs["n"], strict=True)]
    close(torch.tensor(history, dtype=torch.float64), expected["beta"])


@dtypes
@cases("token_rewards")
def test_token_rewards(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    scores = token_rewards.adjust_scores(
        torch.tensor(inputs["scores"], dtype=dtype),
        torch.tensor(inputs["has_eos"]),
        clip=inputs["score_clip"],
        missing_eos_penalty=inputs["missing_eos_penalty"] or 0.0,
    )
    close(scores, expected["adjusted_scores"])
    rewards = token_rewards.place_rewards(rows.flat(inputs["kl"]), scores, rows.lengths, kl_coefficient=inputs["beta"])
    rows.check(rewards, expected["rewards"])
    close(sequence_sum(rewards, rows.lengths), expected["row_sum"])


@dtypes
@cases("ppo_policy_loss")
def test_policy_loss(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    new, old = rows.flat(inputs["logp_new"]), rows.flat(inputs["logp_old"])
    result = losses.policy_loss(
        new,
        old,
        rows.flat(inputs["advantages"]),
        clip_low=inputs["clip_low"],
        clip_high=inputs["clip_high"],
        dual_clip=inputs["dual_clip"],
    )
    rows.check(result.ratio_A, expected["ratio"])
    rows.check(result.loss_A, expected["token_loss"])
    close(token_mean(result.loss_A), expected["loss_token_mean"])
    close(sequence_mean_token_mean(result.loss_A, rows.lengths), expected["loss_seq_mean_token_mean"])
    close(token_mean(result.clip_active_A), expected["clip_fraction_active"])
    close(token_mean(result.clip_outside_A), expected["clip_fraction_outside"])
    close(token_mean(result.dual_clip_A), expected["dual_clip_fraction"])
    for name, value in losses.approximate_kl(new, old).items():
        close(value, expected[f"approx_kl_{name}"])


@dtypes
@cases("value_loss")
def test_value_loss(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    loss, clipped = losses.value_loss(
        rows.flat(inputs["values"]), rows.flat(inputs["old_values"]), rows.flat(inputs["returns"]), clip=inputs["clip"]
    )
    rows.check(loss, expected["token_loss"])
    close(token_mean(loss), expected["loss_token_mean"])
    close(sequence_mean_token_mean(loss, rows.lengths), expected["loss_seq_mean_token_mean"])
    close(token_mean(clipped), expected["clip_fraction"])


@dtypes
@cases("entropy")
def test_entropy(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    values = losses.entropy(rows.flat(inputs["logits"]), temperature=inputs["temperature"])
    rows.check(values, expected["entropy"])
    close(token_mean(values), expected["token_mean"])
    close(sequence_mean_token_mean(values, rows.lengths), expected["seq_mean_token_mean"])


@dtypes
@cases("importance")
def test_importance(inputs: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    rows = Rows(inputs["mask"], dtype)
    train, rollout = rows.flat(inputs["logp_train"]), rows.flat(inputs["logp_rollout"])
    rows.check(importance.truncated_weights(train, rollout, cap=inputs["cap"]), expected["token_tis"])
    masked = importance.masked_weights(train, rollout, low=inputs["low"], high=inputs["high"])
    rows.check(masked, expected["token_masked"])
    close(token_mean((masked == 0).to(dtype)), expected["token_masked_fraction"])
    product, geometric = importance.sequence_ratios(train, rollout, rows.lengths)
    close(product, expected["seq_ratio_product"])
    filled = rows.lengths > 0
    first = (rows.lengths.cumsum(0) - rows.lengths)[filled]
    truncated = importance.truncated_answers(train, rollout, rows.lengths, cap=inputs["cap"])
    close(truncated[first], torch.tensor(expected["seq_tis"], dtype=dtype)[filled])
    close(geometric, expected["seq_ratio_geometric"])
    kept = importance.masked_answers(train, rollout, rows.lengths, low=inputs["low"], high=inputs["high"])
    close(kept[first], torch.tensor(expected["seq_keep"], dtype=dtype)[filled])
    measured = importance.mismatch(train, rollout)
    for name in ("kl_k1", "kl_k3", "abs_mean", "abs_max"):
        close(torch.tensor(getattr(measured, name), dtype=dtype), expected[f"mismatch_{name}"])


def test_gae_at_lambda_one_is_the_return_minus_the_value() -> None:
    lengths = torch.tensor([3, 0, 1, 70])
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(74, generator=generator, dtype=torch.float64)
    values = torch.randn(74, generator=generator, dtype=torch.float64)
    advantages_A, returns_A = advantages.gae(rewards, values, lengths, gamma=1.0, lam=1.0)
    future = torch.cat([part.flip(0).cumsum(0).flip(0) for part in rewards.split(lengths.tolist())])
    close(advantages_A, future - values)
    close(returns_A, future)


def test_gae_refuses_lengths_that_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="rewards_A has 4 tokens, but the lengths add up to 5"):
        advantages.gae(torch.zeros(4), torch.zeros(4), torch.tensor([2, 3]), gamma=1.0, lam=0.95)
