"""Helm for the tests of the chart: no cluster, the chart is only rendered."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rig.helm import VERSIONS, Helm

EVERYTHING = Path(__file__).with_name("everything.yaml")
"""Values that differ from the defaults in as many places as fit together."""


@pytest.fixture(scope="session", params=VERSIONS)
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Each version of Helm."""
    return Helm(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def helm3(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """One of them, for what does not depend on the version."""
    return Helm("helm3", tmp_path_factory.mktemp("helm3"))


@pytest.fixture(scope="session")
def everything() -> dict[str, object]:
    """The values of everything.yaml."""
    values: dict[str, object] = yaml.safe_load(EVERYTHING.read_text())
    return values
