"""A mini-batch has one loss and one gradient, whatever the number of ranks, micro-batches and accumulation steps."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from camel_ray.ppo.batching import balance
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.kl import estimate_kl, full_kl
from camel_ray.ppo.losses import Aggregation, entropy, policy_loss, token_weights, value_loss
from camel_ray.ppo.ragged import sequence_mean_token_mean, token_mean

VOCABULARY = 7
AGGREGATIONS: tuple[Aggregation, ...] = ("token-mean", "sequence-mean")


class Model(nn.Module):
    """Logits and a value from a token and the one before it: enough for gradients to differ by position."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.Parameter(torch.randn((VOCABULARY, VOCABULARY), generator=generator, dtype=torch.float64))
        self.value = nn.Parameter(torch.randn(VOCABULARY, generator=generator, dtype=torch.float64))

    def forward(self, input_BT: Tensor, index_A: Tensor) -> tuple[Tensor, Tensor]:
        before_A = input_BT.reshape(-1)[index_A]
        return self.logits[before_A], self.value[before_A]


def experience(action_runs: list[list[int]], seed: int) -> Experience:
    """One sequence per list: a token of prompt, then runs of action tokens with one observation between them."""
    generator = torch.Generator().manual_seed(seed)
    actions = [[flag for run in runs for flag in (False, *[True] * run)] for runs in action_runs]
    count = sum(map(len, actions))
    action_N = torch.tensor([flag for row in actions for flag in row], dtype=torch.bool)
    tokens = int(action_N.sum())

    def noise() -> Tensor:
        return torch.randn(tokens, generator=generator, dtype=torch.float64)

    return Experience(
        tokens_N=torch.randint(VOCABULARY, (count,), generator=generator),
        lengths_B=torch.tensor([len(row) for row in actions]),
        action_N=action_N,
        rollout_logprobs_A=noise(),
        finished_B=torch.ones(len(actions), dtype=torch.bool),
        groups_B=torch.arange(len(actions)),
        policy_version_B=torch.zeros(len(actions), dtype=torch.long),
        logprobs_A=noise() - 2,
        reference_logprobs_A=noise() - 2,
        values_A=noise(),
        advantages_A=noise(),
        returns_A=noise(),
        importance_A=noise().abs(),
    )


def losses(model: Model, part: Experience) -> tuple[Tensor, Tensor]:
    """Token losses of policy (with entropy and KL) and critic, as the roles compute them."""
    batch = part.sequences.padded(range(len(part)))
    logits_AV, values_A = model(batch.input_BT, batch.index_A)
    logprobs_A = logits_AV.log_softmax(-1).gather(1, batch.target_A[:, None])[:, 0]
    assert part.logprobs_A is not None and part.advantages_A is not None and part.importance_A is not None
    assert part.reference_logprobs_A is not None and part.values_A is not None and part.returns_A is not None
    policy = policy_loss(logprobs_A, part.logprobs_A, part.advantages_A, clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    kl_A = estimate_kl(logprobs_A, part.reference_logprobs_A, "k3")
    policy_A = policy.loss_A * part.importance_A - 0.1 * entropy(logits_AV) + 0.05 * kl_A
    return policy_A, value_loss(values_A, part.values_A, part.returns_A, clip=0.2)[0]


def update(model: Model, whole: Experience, parts: list[list[int]], aggregation: Aggregation) -> list[Tensor]:
    """Loss sums and gradients, accumulated over the parts."""
    model.zero_grad()
    lengths_B = whole.action_lengths_B
    tokens, sequences = int(lengths_B.sum()), int((lengths_B > 0).sum())
    sums = torch.zeros(2, dtype=torch.float64)
    for rows in parts:
        part = whole.select(torch.tensor(rows, dtype=torch.long))
        weight_A = token_weights(part.action_lengths_B, aggregation, tokens=tokens, sequences=sequences)
        both = torch.stack([(loss_A * weight_A).sum() for loss_A in losses(model, part)])
        both.sum().backward()
        sums += both.detach()
    assert model.logits.grad is not None and model.value.grad is not None
    return [sums, model.logits.grad, model.value.grad]


RUNS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=8)


@settings(max_examples=60)
@given(runs=RUNS, cuts=st.integers(0, 2**16), seed=st.integers(0, 2**16), aggregation=st.sampled_from(AGGREGATIONS))
def test_any_split_gives_the_loss_and_the_gradient_of_one_batch(
    runs: list[list[int]], cuts: int, seed: int, aggregation: Aggregation
) -> None:
    model, whole = Model(), experience(runs, seed)
    rows = list(range(len(whole)))
    shuffled = random.Random(cuts)
    shuffled.shuffle(rows)
    bounds = sorted({0, len(rows), *(shuffled.randrange(len(rows) + 1) for _ in range(3))})
    parts = [rows[a:b] for a, b in pairwise(bounds)]
    for one, other in zip(
        update(model, whole, [list(range(len(whole)))], aggregation),
        update(model, whole, parts, aggregation),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(runs=RUNS, ranks=st.integers(1, 5), budget=st.integers(1, 40), aggregation=st.sampled_from(AGGREGATIONS))
def test_ranks_and_micro_batches_of_a_token_budget_change_nothing(
    runs: list[list[int]], ranks: int, budget: int, aggregation: Aggregation
) -> None:
    model, whole = Model(), experience(runs, 0)
    shares = balance(whole.lengths_B.tolist(), ranks=ranks, budget=budget)
    parts = [rows for share in shares for rows in share if rows]
    for one, other in zip(
        update(model, whole, [list(range(len(whole)))], aggregation),
        update(model, whole, parts, aggregation),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@given(runs=RUNS)
def test_weights_give_the_mean_over_tokens_and_the_mean_over_sequences(runs: list[list[int]]) -> None:
    whole = experience(runs, 3)
    lengths_B, loss_A = whole.action_lengths_B, whole.rollout_logprobs_A
    tokens, sequences = int(lengths_B.sum()), int((lengths_B > 0).sum())
    means = {"token-mean": token_mean(loss_A), "sequence-mean": sequence_mean_token_mean(loss_A, lengths_B)}
    for aggregation in AGGREGATIONS:
        weight_A = token_weights(lengths_B, aggregation, tokens=tokens, sequences=sequences)
        torch.testing.assert_close((loss_A * weight_A).sum(), means[aggregation], rtol=1e-5, atol=1e-6)


def test_every_token_or_every_answer_counts_the_same() -> None:
    lengths_B = torch.tensor([1, 0, 3])
    assert token_weights(lengths_B, "token-mean", tokens=8, sequences=4).tolist() == [0.125] * 4
    assert token_weights(lengths_B, "sequence-mean", tokens=8, sequences=4).tolist() == pytest.approx(
        [0.25, *[0.25 / 3] * 3]
    )


@given(st.integers(0, 2**16))
def test_k1_and_k3_are_the_exact_divergence_on_average_and_k3_is_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_AV = torch.randn((3, VOCABULARY), generator=generator, dtype=torch.float64)
    reference_AV = torch.randn((3, VOCABULARY), generator=generator, dtype=torch.float64)
    logp_AV, logq_AV = logits_AV.log_softmax(-1), reference_AV.log_softmax(-1)
    exact_A = full_kl(logits_AV, reference_AV)
    for estimator in ("k1", "k3"):
        kl_AV = estimate_kl(logp_AV, logq_AV, estimator)
        torch.testing.assert_close((logp_AV.exp() * kl_AV).sum(-1), exact_A)
    assert bool((estimate_kl(logp_AV, logq_AV, "k3") >= 0).all())


def test_as_a_loss_k2_follows_the_divergence_and_k1_has_no_gradient_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    reference_AV = torch.randn((1, VOCABULARY), generator=generator, dtype=torch.float64)
    logits_AV = torch.randn((1, VOCABULARY), generator=generator, dtype=torch.float64).requires_grad_()
    (exact_AV,) = torch.autograd.grad(full_kl(logits_AV, reference_AV).sum(), logits_AV)
    averages = {}
    for estimator in ("k1", "k2"):
        logp_AV = logits_AV.log_softmax(-1)
        kl_AV = estimate_kl(logp_AV, reference_AV.log_softmax(-1), estimator)  # type: ignore[arg-type]
        # Tokens were drawn before the update: their frequencies carry no gradient.
        (averages[estimator],) = torch.autograd.grad((logp_AV.exp().detach() * kl_AV).sum(), logits_AV)
    torch.testing.assert_close(averages["k2"], exact_AV)
    torch.testing.assert_close(averages["k1"], torch.zeros_like(exact_AV), rtol=0, atol=1e-12)
