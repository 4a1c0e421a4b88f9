"""What the operator's options do while it runs: a configuration file that changes under it, a Lease of another name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.operator import ACCOUNT, NAMESPACE, Operator, leader
from rig.pipelines import Object, Pipelines, pipeline

StartOperator = Callable[..., Operator]


class Volume:
    """A ConfigMap's volume as a kubelet keeps it: the file is a link into a folder that is a link, which is swapped."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self.file = folder / "config.yaml"
        self.file.symlink_to("..data/config.yaml")

    def put(self, text: str) -> None:
        """New content."""
        self._number += 1
        place = self._folder / f"..{self._number}"
        place.mkdir()
        (place / "config.yaml").write_text(text, encoding="utf-8")
        (self._folder / "..data_tmp").symlink_to(place.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")


@pytest.fixture
def pipelines(control_plane: ControlPlane, namespace: str, installed: None, kuberay: KubeRay) -> Pipelines:
    return Pipelines(control_plane, namespace)


def asks_for(secret: str, name: str) -> Object:
    """A pipeline with a variable from a Secret."""
    env = [{"name": "TOKEN", "secret": {"name": secret, "key": "token"}}]
    return pipeline(name, cluster={"env": env})


def test_a_tighter_policy_counts_at_once_and_a_broken_one_not_at_all(
    operator: StartOperator, pipelines: Pipelines, kuberay: KubeRay, tmp_path: Path
) -> None:
    volume = Volume(tmp_path)
    volume.put("stages: {labels: {round: first}}\n")
    replica = operator("main", f"--config={volume.file}")

    def said(words: str) -> bool:
        return words in replica.process.log_tail(100_000)

    kuberay.rule("runs-a-1", namespace=pipelines.namespace, seconds=300.0)
    pipelines.apply(asks_for("wandb", "runs"))
    pipelines.wait_stage("runs", "a", "Running")
    pipelines.apply({**asks_for("wandb", "later"), "spec": {**asks_for("wandb", "later")["spec"], "suspend": True}})
    pipelines.wait_phase("later", "Suspended")

    volume.put("stages: {labels: {round: second}}\npolicy: {secrets: [team-*]}\n")
    pipelines.wait(lambda: said(f"{volume.file} has changed, and is in force from now on"), "the file to be read")
    # Also one that was judged by the old policy, though nobody has touched it since.
    assert "secrets" in pipelines.wait_phase("later", "Failed")["message"]
    pipelines.apply(asks_for("wandb", "refused"))
    assert "'wandb' is not allowed" in pipelines.wait_phase("refused", "Failed")["message"]

    volume.put("policy: {secrets: all}\nstage: {}\n")
    pipelines.wait(lambda: said("is broken; the configuration from before stays in force"), "the mistakes to be named")
    assert said("config.yaml:1: policy.secrets: should be a list of texts, not 'all'")
    assert said("config.yaml:2: stage: is not known here. Did you mean 'stages'?")
    pipelines.apply(asks_for("wandb", "again"))
    pipelines.wait_phase("again", "Failed")
    pipelines.apply(asks_for("team-a", "allowed"))
    pipelines.wait(lambda: pipelines.list("jobs", "allowed"), "a Job of what the old policy allows")
    assert pipelines.list("jobs", "allowed")[0]["spec"]["template"]["metadata"]["labels"]["round"] == "second"
    assert pipelines.status("runs")["attempts"] == 1
    volume.file.unlink()
    pipelines.wait(lambda: said("config.yaml: cannot be read (No such file or directory)"), "the loss to be named")
    log = replica.process.log_tail(100_000)
    assert [log.count(words) for words in ("in force from now on", "not 'all'")] == [1, 1]
    assert pipelines.stage("runs", "a")["phase"] == "Running"


def test_two_installations_in_one_namespace_lead_by_leases_of_different_names(
    control_plane: ControlPlane, operator: StartOperator, pipelines: Pipelines
) -> None:
    other = f"lease-{pipelines.namespace}"
    kubectl = ("-n", NAMESPACE, "create")
    control_plane.kubectl(*kubectl, "role", other, "--verb=get,update", "--resource=leases", f"--resource-name={other}")
    control_plane.kubectl(*kubectl, "rolebinding", other, f"--role={other}", f"--serviceaccount={NAMESPACE}:{ACCOUNT}")
    watches = f"--watch-namespace={pipelines.namespace}"
    operator("usual", "--watch-namespace=default")
    replica = operator("other", f"--lease-name={other}", watches)
    control_plane.wait_for(lambda: leader(control_plane) == "usual", "the first to lead")
    control_plane.wait_for(lambda: leader(control_plane, other) == "other", "the second to lead as well")
    assert f'leader_election_master_status{{name="{other}"}} 1.0' in replica.page()
    pipelines.apply(pipeline("demo"))
    pipelines.wait_phase("demo", "Succeeded")
