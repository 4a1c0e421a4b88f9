"""Helm of the rig, 3 and 4: renders, checks and installs the chart."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rig.process import RigError, find_tools

CHART = Path(__file__).parents[2] / "charts/camel-ray"
NAMESPACE = "camel-ray-system"
RELEASE = "camel-ray"
VERSIONS = ("helm3", "helm4")
RELEASES = ("1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
"""Of Kubernetes, that the chart is checked against."""

Object = dict[str, Any]


def missing_helm() -> str:
    """Why the chart cannot be checked here, in words; empty if it can."""
    try:
        find_tools(*VERSIONS, "kubeconform", "promtool", *(f"openapi-{release}" for release in RELEASES))
    except RigError as error:
        return str(error)
    return ""


class Helm:
    """One version of Helm. `directory`: where it may keep what it keeps."""

    def __init__(self, version: str, directory: Path, *, kubeconfig: Path | None = None) -> None:
        self.version = version
        self.executable = find_tools(version)[version]
        self._environment = {
            **os.environ,
            "HELM_CACHE_HOME": f"{directory}/cache",
            "HELM_CONFIG_HOME": f"{directory}/config",
            "HELM_DATA_HOME": f"{directory}/data",
            "KUBECONFIG": str(kubeconfig or directory / "no-cluster"),
        }

    def run(self, *arguments: str, input: str | None = None) -> str:
        """What it prints. Raises RigError with its complaint if it fails."""
        done = subprocess.run(
            [str(self.executable), *arguments],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
        )
        if done.returncode:
            raise RigError(f"{self.version} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def template(
        self, values: Mapping[str, Any] | None = None, *options: str, chart: Path = CHART, release: str = RELEASE
    ) -> str:
        """The chart rendered with these values, as YAML."""
        arguments = ("template", release, str(chart), f"--namespace={NAMESPACE}", "--values=-", *options)
        return self.run(*arguments, input=json.dumps(values or {}))


def objects(rendered: str) -> dict[tuple[str, str, str], Object]:
    """Objects of a YAML text by kind, namespace and name."""
    found = [document for document in yaml.load_all(rendered, yaml.CSafeLoader) if document]
    keyed = {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): o for o in found}
    assert len(keyed) == len(found), "an object is rendered twice"
    return keyed
