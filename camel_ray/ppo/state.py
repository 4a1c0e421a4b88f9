"""What the driver itself has to remember between rounds, and how a round changes it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from camel_ray.api.stages.ppo import KlSpec, PpoStageSpec
from camel_ray.ppo.advantages import Baseline, BaselineKind
from camel_ray.ppo.driver import Judged, answer_figures
from camel_ray.ppo.kl import AdaptiveKl, FixedKl, KlController

_BASELINES: dict[str, BaselineKind] = {
    "none": "none",
    "batch": "batch_mean",
    "moving": "moving_average",
    "ema": "ema",
}


@dataclass
class State:
    """JSON values only: a checkpoint keeps it."""

    step: int = 0
    """Rounds done."""
    left_out: int = 0
    """Rounds of data left out by rollbacks."""
    kl_coefficient: float = 0.0
    baseline: dict[str, Any] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    """Evaluation before the first round."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed rewards by reason."""
    skipped_updates: int = 0
    broken: int = 0
    """Rounds in a row with a skipped update."""
    rollbacks: int = 0
    last: dict[str, float] = field(default_factory=dict)
    """Metrics of the last round."""

    @property
    def next_data(self) -> int:
        """Number of the next round's prompts and random numbers (from 1): after a rollback not that of its step."""
        return self.step + self.left_out + 1


def first_state(spec: PpoStageSpec, before: dict[str, float]) -> State:
    """The state before the first round, with the evaluation of the first policy."""
    coefficient = 0.0 if spec.kl.controller == "none" else spec.kl.coefficient
    return State(kl_coefficient=coefficient, before=before, baseline=asdict(Baseline(_BASELINES[spec.baseline])))


def account(state: State, spec: PpoStageSpec, judged: Judged, learned: Mapping[str, float]) -> None:
    """Bring the state to the end of a round that judged and learned this."""
    summary = judged.summary
    skipped = int(learned.get("skipped", 0.0)) + int(learned.get("value_skipped", 0.0))
    state.step += 1
    state.skipped_updates += skipped
    state.broken = state.broken + 1 if skipped else 0
    state.failures = dict(Counter(state.failures) + judged.failures)
    state.baseline = asdict(summary.baseline)
    state.last = {
        **answer_figures(judged),
        **summary.figures,
        "kl_coefficient": state.kl_coefficient,
        "logprob_mismatch": summary.mismatch.abs_mean,
        **{name: value for name, value in learned.items() if name not in ("skipped", "value_skipped")},
        "skipped_updates": float(state.skipped_updates),
    }
    if summary.kl is not None:
        state.kl_coefficient = _controller(spec.kl, state.kl_coefficient).update(summary.kl, len(summary.index))


def _controller(spec: KlSpec, coefficient: float) -> KlController:
    if spec.controller == "adaptive":
        return AdaptiveKl(coefficient, target=spec.target, horizon=spec.horizon)
    return FixedKl(coefficient)
