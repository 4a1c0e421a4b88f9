"""Starts the stand-in beside a control plane of the rig, for tests and benchmarks."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rig.control_plane import ControlPlane

_HERE = Path(__file__).parent


class KubeRay:
    """The stand-in as a process; everything it does beyond success is told by `rule`.

    with KubeRay(control_plane, tmp_path) as kuberay:
        kuberay.rule("demo-sft-1", exit_code=11, log="ValueError: no such column")
    """

    def __init__(
        self,
        cluster: ControlPlane,
        directory: Path,
        *,
        pace: float = 0.05,
        run_entrypoints: bool = False,
        real_pods: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        """`directory`: for the script and, with `run_entrypoints`, for logs and volumes of what is run.

        `environment` is what the image of those would bring. `real_pods`: the cluster has a kubelet; then the pace
        should be 1 and rules do not apply.
        """
        self._cluster, self.directory = cluster, directory
        self._rules: list[dict[str, Any]] = []
        self._script = directory / "script.json"
        command = [sys.executable, "-m", "kuberay_standin", "--kubeconfig", str(cluster.kubeconfig())]
        command += ["--script", str(self._script), "--pace", str(pace), "--directory", str(directory)]
        if run_entrypoints:
            command.append("--run-entrypoints")
        if real_pods:
            command.append("--real-pods")
        if "rayjobs.ray.io" not in cluster.kubectl("get", "crd", "-o", "name"):
            cluster.apply_crds(*sorted((_HERE / "crds").glob("*.yaml")))
        path = {"PYTHONPATH": f"{_HERE.parent}:{_HERE.parents[1]}"}
        self._process = cluster.spawn(f"kuberay-{secrets.token_hex(2)}", command, {**path, **(environment or {})})
        cluster.wait_for(lambda: "ready" in self._process.log_tail(1000).splitlines(), "the KubeRay stand-in")

    def rule(self, match: str, *, namespace: str = "*", **behaviour: Any) -> None:
        """How RayJobs and Jobs of that name pattern behave (script.Behaviour). The last rule that fits counts."""
        self._rules.append({"match": match, "namespace": namespace, **behaviour})
        new = self._script.with_suffix(".new")
        new.write_text(json.dumps(self._rules))
        new.replace(self._script)

    def log(self) -> str:
        """What it has written: the tracebacks of passes that failed, and when the apiserver did not answer."""
        return self._process.log_tail(1000)

    def close(self) -> None:
        """End it, and what it runs."""
        self._process.stop(graceful=True)

    def __enter__(self) -> KubeRay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
