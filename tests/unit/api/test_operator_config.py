"""The operator's configuration file: what it takes, and one sentence for each mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from camel_ray.api.operator_config import OperatorConfig, load_operator_config
from camel_ray.errors import SpecError
from camel_ray.version import __version__


def load(tmp_path: Path, text: str) -> OperatorConfig:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_operator_config(file)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "{}", "stages: {}\npolicy: {}\nnetworkPolicy: {}\n"])
def test_what_is_not_said_has_a_default(tmp_path: Path, text: str) -> None:
    config = load(tmp_path, text)
    assert config == OperatorConfig()
    assert config.stages.image == f"camel-ray/trainer:{__version__}"
    assert config.policy.service_accounts == ["default"]
    assert config.policy.secrets == ["*"]
    assert config.network_policy.enabled is True


def test_a_file_with_everything_is_read_and_written_back_the_same(tmp_path: Path) -> None:
    text = """
stages:
  image: registry.example.com/trainer:2
  imagePullPolicy: Always
  rayVersion: "2.61.0"
  imagePullSecrets: [pull]
  serviceAccountName: stages
  priorityClassName: low
  nodeSelector: {pool: gpu}
  tolerations: [{key: gpu, operator: Exists, effect: NoSchedule}]
  labels: {team: ml}
  annotations: {note: a b}
  env: [{name: A, value: b}, {name: B, secret: {name: s, key: k}}]
  envFromSecrets: [storage]
policy:
  serviceAccounts: []
  secrets: [team-*]
  configMaps: [a]
  claims: [b]
  priorityClasses: [low]
  nodeSelectorKeys: [pool]
  tolerationKeys: [gpu, ""]
  labelKeys: [team]
  annotationKeys: [note]
networkPolicy:
  enabled: false
  allowFrom: [{namespaceSelector: {}, podSelector: {matchLabels: {app: prometheus}}}]
"""
    config = load(tmp_path, text)
    assert config.stages.tolerations[0].key == "gpu"
    assert config.policy.toleration_keys == ["gpu", ""]
    assert OperatorConfig.model_validate(config.wire()) == config
    assert config != OperatorConfig()


def test_every_mistake_is_named_with_its_line_and_the_nearest_key(tmp_path: Path) -> None:
    text = """\
stage: {}
stages:
  image_pull_policy: Always
  imagePullSecret: [a]
  image: 3
  serviceAccountName: Foo
  tolerations:
  - {key: a b}
policy:
  secrets: "*"
networkPolicy:
"""
    see = "see docs/reference/operator.md"
    key = "`name` or `domain/name`, the name of at most 63 letters, digits, dashes, dots and underscores"
    assert problems(tmp_path, text) == [
        "config.yaml:1: stage: is not known here; delete the line",
        "config.yaml:3: stages.image_pull_policy: is not known in this spelling; fields are written in camelCase, so "
        "write `imagePullPolicy`",
        "config.yaml:4: stages.imagePullSecret: is not known here. Did you mean 'imagePullSecrets'?",
        "config.yaml:5: stages.image: should be text, not empty, not 3. Put it in quotes.",
        "config.yaml:6: stages.serviceAccountName: should be text, the name of an object, or nothing, not 'Foo'; "
        f"{see}",
        f"config.yaml:8: stages.tolerations[0].key: should be text, {key}, not 'a b'; {see}",
        f"config.yaml:10: policy.secrets: should be a list of texts, not '*'; {see}",
        "config.yaml:11: networkPolicy: is empty; it should be a mapping, so give it a value or delete the line",
    ]


def test_labels_variables_and_peers_that_cannot_be(tmp_path: Path) -> None:
    text = """\
stages:
  labels: {camel-ray.dev/stage: x, "a b": y}
  annotations: {ray.io/cluster: x}
  env:
  - {name: CAMEL_RAY_STAGE, value: x}
  - {name: A}
  - {name: A, value: x}
  - {name: WANDB_API_KEY, value: x}
networkPolicy:
  allowFrom: [{}, {pods: {}}]
"""
    assert problems(tmp_path, text) == [
        "config.yaml:2: stages.labels.camel-ray.dev/stage: 'camel-ray.dev/stage' is set by the operator, KubeRay or "
        "Kueue alone; delete the line",
        "config.yaml:2: stages.labels.a b: 'a b' is no key of labels; write name or domain/name",
        "config.yaml:3: stages.annotations.ray.io/cluster: 'ray.io/cluster' is set by the operator, KubeRay or "
        "Kueue alone; delete the line",
        "config.yaml:5: stages.env[0]: 'CAMEL_RAY_STAGE' is set by the operator alone; delete it",
        "config.yaml:6: stages.env[1]: 'A' needs exactly one of `value` and `secret`",
        "config.yaml:7: stages.env[2]: 'A' is set twice; delete one of them",
        "config.yaml:8: stages.env[3]: 'WANDB_API_KEY' is a credential; write secret: {name: ..., key: ...} instead of "
        "value",
        "config.yaml:10: networkPolicy.allowFrom[0]: should have at least one of podSelector, namespaceSelector, "
        "ipBlock, and no more",
        "config.yaml:10: networkPolicy.allowFrom[1]: should have at least one of podSelector, namespaceSelector, "
        "ipBlock, and no more",
    ]


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert problems(tmp_path, "- a\n") == [
        "config.yaml:1: should be a mapping with the keys stages, policy, networkPolicy"
    ]
    assert problems(tmp_path, "stages: {image: a:1}\nstages: {}\n") == [
        "config.yaml:2: stages: is set twice, first on line 1; delete one of them"
    ]
    with pytest.raises(SpecError, match=r"absent\.yaml: cannot be read \(No such file or directory\); give the"):
        load_operator_config(tmp_path / "absent.yaml")
