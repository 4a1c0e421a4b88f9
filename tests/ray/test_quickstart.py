"""The quickstart as a user runs it: the whole chain of examples/01-quickstart.yaml, and the figures it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages' folder of a finished run, made by the command line in a process of its own."""
    storage = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "camel_ray", "run", "-f", str(ROOT / "examples" / "01-quickstart.yaml")]
    finished = subprocess.run(
        [*command, "--storage", str(storage)], capture_output=True, text=True, timeout=3000, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return storage / "quickstart" / "stages"


def metrics(stages: Path, artifact: str) -> dict[str, Any]:
    """Figures stored with an artifact, `<stage>/<kind>`."""
    found: dict[str, Any] = json.loads((stages / artifact / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return found


@pytest.mark.timeout(3600)
def test_pretraining_lowers_the_perplexity_of_held_out_text_fivefold(stages: Path) -> None:
    base = metrics(stages, "base/model")
    assert base["perplexity_untrained"] / base["perplexity"] >= 5


@pytest.mark.timeout(3600)
def test_the_reward_model_is_right_on_three_of_four_held_out_pairs_and_beats_the_longer_answer(stages: Path) -> None:
    judge = metrics(stages, "judge/reward-model")
    assert judge["accuracy"] >= 0.75
    assert judge["accuracy"] > judge["accuracy_longer_wins"]


@pytest.mark.timeout(3600)
def test_ppo_raises_the_held_out_reward_by_half_a_deviation_with_kl_within_its_target(stages: Path) -> None:
    tuned = metrics(stages, "tuned/model")
    assert tuned["reward_after"] - tuned["reward_before"] >= 0.5 * tuned["reward_std_before"]
    assert tuned["kl"] <= tuned["kl_target"]


@pytest.mark.timeout(3600)
def test_the_report_shows_the_figures_of_the_run(stages: Path) -> None:
    page = (stages.parent / "report.html").read_text(encoding="utf-8")
    base, judge, tuned = (metrics(stages, a) for a in ("base/model", "judge/reward-model", "tuned/model"))
    gain = (tuned["reward_after"] - tuned["reward_before"]) / tuned["reward_std_before"]
    assert f"{base['perplexity_untrained'] / base['perplexity']:.1f}×" in page
    assert f"{100 * judge['accuracy']:.1f}" in page
    assert f"+{gain:.2f}" in page
