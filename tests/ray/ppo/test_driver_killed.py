"""The driver is killed with SIGKILL in the middle of every phase, and the run ends as if nothing had happened."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from camel_ray.stages.contract import StageContext

pytestmark = pytest.mark.usefixtures("local_ray")

FIELDS: dict[str, Any] = {
    "steps": 6,
    "checkpoint": {"everySteps": 1, "keep": 2},
    "kl": {"horizon": 50},
    "emaDecay": 0.5,
    "advantage": "reinforce",
    "baseline": "ema",
}
PHASES = (
    ("rollout", "generate", 2),  # the first one is the evaluation
    ("reference", "logprobs", 2),
    ("buffer", "judge", 3),
    ("actor", "update", 3),
    ("actor", "set_version", 4),
    ("actor", "save", 1),
    ("actor", "save_model", 1),
)
"""Role, method, and the number of the call (in one process) that the driver does not survive."""

PROGRAM = """
import os, pickle, signal, sys
from camel_ray.ppo.groups import HostGroup
from camel_ray.stages.ppo import run

role, method, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = 0

def deadly(original):
    def call(group, asked, what, *args, **kwargs):
        global seen
        pending = original(group, asked, what, *args, **kwargs)
        seen += (asked, what) == (role, method)
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return pending
    return call

HostGroup.call, HostGroup.call_first = deadly(HostGroup.call), deadly(HostGroup.call_first)
run(pickle.loads(sys.stdin.buffer.read()))
"""


def run_until_killed(stage: StageContext, role: str, method: str, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, role, method, str(count)],
        input=pickle.dumps(stage),
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


def test_a_driver_killed_in_every_phase_ends_with_the_same_weights(ppo: Any, tmp_path: Path, assert_same: Any) -> None:
    expected = ppo.weights(tmp_path / "unbroken", **FIELDS)
    work = tmp_path / "killed"
    for phase in PHASES:
        run_until_killed(ppo.context(work, **FIELDS), *phase)
    assert_same(ppo.weights(work, **FIELDS), expected, atol=1e-6)
    for metric in ("reward", "kl", "policy_loss", "grad_norm", "kl_coefficient", "response_length"):
        actual, wanted = (ppo.curve(path, metric) for path in (work, tmp_path / "unbroken"))
        assert actual == pytest.approx(wanted, rel=1e-5, abs=1e-6), metric
