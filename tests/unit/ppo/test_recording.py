"""Recorded rounds: the last few, whole, and with a sentence for one that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from camel_ray.errors import ModelError
from camel_ray.ppo.recording import Recording


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    recording = Recording(tmp_path / "rounds", keep=3)
    for step in range(1, 6):
        recording.write(step, step + 10, 0.5, {"policy_loss": 0.1 * step}, lambda path: path.write_bytes(b"experience"))
    return recording


def test_the_last_rounds_are_kept(recording: Recording) -> None:
    assert sorted(path.name for path in recording.directory.iterdir()) == ["step-000003", "step-000004", "step-000005"]
    found = recording.read(4)
    assert (found.step, found.number, found.kl_coefficient) == (4, 14, 0.5)
    assert found.learned == {"policy_loss": pytest.approx(0.4)}
    assert found.experience.read_bytes() == b"experience"


def test_a_round_that_is_not_there_is_named_with_those_that_are(recording: Recording) -> None:
    with pytest.raises(ModelError, match=r"round 2 is not recorded in .* \(rounds 3 to 5 are\); set ppo.record"):
        recording.read(2)
    with pytest.raises(ModelError, match=r"\(nothing is\)"):
        Recording(recording.directory / "none", keep=1).read(2)


def test_a_damaged_round_is_refused(recording: Recording) -> None:
    (recording.directory / "step-000004" / "experience.safetensors").write_bytes(b"experiencE")
    with pytest.raises(ModelError, match="the record of round 4 is damaged"):
        recording.read(4)
