"""The images of the project's Dockerfile: what is in them, who they run as, and that they run with a read-only root."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from camel_ray.version import __version__
from rig.control_plane import ControlPlane
from rig.images import OPERATOR, ROOT, TRAINER, inspect
from rig.pods import run

MEGABYTE = 1_000_000
LIST = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
HEAVY = {"datasets", "deepspeed", "ray", "torch", "transformers", "trl", "vllm"}


@pytest.mark.parametrize(("image", "title"), [(OPERATOR, "camel-ray operator"), (TRAINER, "camel-ray trainer")])
def test_an_image_says_what_it_is_and_does_not_run_as_root(images: dict[str, Path], image: str, title: str) -> None:
    configuration = inspect(image)
    assert configuration["User"] == "1000:1000"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in configuration["Labels"].items()}
    assert labels["title"] == title
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["description"]


def test_the_operator_image_is_small_and_knows_how_to_be_asked_for_its_health(images: dict[str, Path]) -> None:
    assert images["operator"].stat().st_size < 250 * MEGABYTE
    configuration = inspect(OPERATOR)
    assert configuration["Entrypoint"] == ["python", "-m", "camel_ray.operator.main"]
    check = configuration["Healthcheck"]["Test"]
    assert check[0] == "CMD" and "/healthz" in check[-1]


def test_the_operator_image_holds_the_pinned_base_dependencies_and_nothing_else(
    plane: ControlPlane, namespace: str
) -> None:
    found = json.loads(run(plane, namespace, OPERATOR, LIST, command=["python", "-c"]))
    assert found.pop("camel-ray") == __version__
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}
    assert {name: pins.get(name) for name in normal} == normal
    assert not HEAVY & set(normal)
    assert {"pydantic", "urllib3", "cryptography"} <= set(normal)


def test_the_entry_point_of_the_operator_runs_on_a_read_only_root(plane: ControlPlane, namespace: str) -> None:
    assert run(plane, namespace, OPERATOR, "--version").strip() == __version__
    # the command line is there as well: the chart's test uses it
    assert __version__ in run(plane, namespace, OPERATOR, "version", command=["camel-ray"])


def test_the_health_check_of_the_image_fails_where_nothing_runs(plane: ControlPlane, namespace: str) -> None:
    script = " ".join(
        [
            "import subprocess, sys;",
            "done = subprocess.run(sys.argv[1:], capture_output=True, text=True);",
            "print(done.returncode, done.stderr[-300:])",
        ]
    )
    check = inspect(OPERATOR)["Healthcheck"]["Test"][1:]
    printed = run(plane, namespace, OPERATOR, script, *check, command=["python", "-c"])
    assert printed.startswith("1 ") and "Connection refused" in printed


def test_the_trainer_image_imports_everything_that_stages_need(plane: ControlPlane, namespace: str) -> None:
    lines = "import camel_ray.stages, camel_ray.runtime.attempt, ray, torch; print(camel_ray.__file__, ray.__version__)"
    printed = run(plane, namespace, TRAINER, lines, command=["python", "-c"])
    assert printed.startswith("/opt/camel-ray/"), printed
