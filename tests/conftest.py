"""What all tests share: quiet and offline libraries, layers by folder, and a loud word about a layer that cannot run.

A test's layer is its folder, so nobody has to mark anything: `tests/unit` needs seconds, `tests/ray` starts Ray and
trains, `tests/chart` renders the Helm chart, `tests/cluster` starts a Kubernetes control plane, `tests/e2e` a node with
it, as root. What a folder needs is listed here; where something is missing the whole folder is left out and the summary
says so.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from camel_ray.ray_session import protect_local_ray, shut_down_ray
from rig.control_plane import missing_tools
from rig.helm import missing_helm
from rig.node import missing_node

TESTS = Path(__file__).parent
TRAIN = ("datasets", "deepspeed", "ray", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Layer:
    """A folder of tests: its marker, its limit against hangs, and what it cannot run without."""

    folder: str
    marker: str
    timeout_seconds: int
    needs: tuple[str, ...] = ()
    """Modules."""
    lacks: Callable[[], str] = str
    """What else is missing, in words; empty if nothing is."""

    @functools.cached_property
    def missing(self) -> str:
        """Why the layer cannot run; empty if it can."""
        modules = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"{', '.join(modules)} cannot be imported" if modules else self.lacks()

    def holds(self, path: Path) -> bool:
        """Whether a test file lies in the folder."""
        return path.is_relative_to(TESTS / self.folder)


# The first that holds a file counts. Spec and command line work without the [train] extra, so their tests do too. The
# limits are many times what a test takes: machines are slow and busy, and who comes first pays for a module's fixtures.
LAYERS = (
    Layer("ray", "ray", 1800, TRAIN),
    Layer("vllm", "vllm", 1800, (*TRAIN, "vllm")),
    Layer("chart", "chart", 600, lacks=missing_helm),
    Layer("cluster/test_chart.py", "cluster", 900, lacks=lambda: missing_tools() or missing_helm()),
    Layer("cluster", "cluster", 900, lacks=missing_tools),
    Layer("e2e", "e2e", 5400, TRAIN, lacks=missing_node),
    Layer("unit/api", "unit", 600),
    Layer("unit/cli", "unit", 600),
    *(
        Layer(f"unit/{package}", "unit", 600, TRAIN)
        for package in ("data", "evaluation", "models", "ppo", "runtime", "stages", "training")
    ),
    Layer("unit", "unit", 600),
)

# Set before any hook: the conftest.py of a folder may import torch and transformers, which read their variables once.
_CACHE = tempfile.mkdtemp(prefix="camel-ray-tests-")
_ENVIRONMENT = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HOME": _CACHE,
    "HF_HUB_OFFLINE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray ends its largest worker when 95% of the machine's memory are taken, by whatever else runs beside the tests.
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray's own 15, beside the niceness of the whole stream, would leave its workers next to nothing of a busy machine.
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(_ENVIRONMENT)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test's matrices are tiny
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a spinning thread stops the other processes of a test
protect_local_ray()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started by a shell in the background. What a test starts would ignore it as well, and is to be interrupted by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_left_out: set[Layer] = set()
_status = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)
    if "ray" in sys.modules and _status in config.stash:
        shut_down_ray()
        # Everything is told. The libraries' native threads do not always survive the end of an interpreter that used
        # all of them in turn (seen: a segmentation fault after the last line), which would hide the tests' own status.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(config.stash[_status])


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    layer = _layer_of(collection_path)
    if layer and layer.missing:
        _left_out.add(layer)
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layer = _layer_of(item.path)
        if layer is None:
            raise pytest.UsageError(f"{item.path} lies in no layer; move it to one of the folders of tests/conftest.py")
        item.add_marker(layer.marker)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(layer.timeout_seconds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for layer in sorted(_left_out, key=lambda layer: layer.folder):
        line = f"NOT RUN: tests/{layer.folder}, because {layer.missing}"
        terminalreporter.write_line(line, red=True, bold=True)


def _layer_of(path: Path) -> Layer | None:
    return next((layer for layer in LAYERS if layer.holds(path)), None)
