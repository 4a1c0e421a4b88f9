"""What pipelines may ask for: each list of the policy refuses by itself, with the field, the value and its own name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.operator_config import OperatorConfig, Policy, StageDefaults
from camel_ray.operator.policy import policy_problems

NOTHING = Policy.model_validate({info.alias or name: [] for name, info in Policy.model_fields.items()})


def refused(cluster: dict[str, Any], config: OperatorConfig | None = None) -> list[str]:
    return list(policy_problems(ClusterSpec.model_validate(cluster), config or OperatorConfig()))


def policy(**lists: list[str]) -> OperatorConfig:
    return OperatorConfig(policy=Policy(**lists))


ASKED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("serviceAccountName", "builder", "serviceAccounts", {"serviceAccountName": "builder"}),
    ("imagePullSecrets[1]", "b", "secrets", {"imagePullSecrets": ["team-a", "b"]}),
    ("env[0].secret.name", "s", "secrets", {"env": [{"name": "A", "secret": {"name": "s", "key": "k"}}]}),
    ("envFromSecrets[0]", "s", "secrets", {"envFromSecrets": ["s"]}),
    ("volumes[0].secret", "s", "secrets", {"volumes": [{"mountPath": "/s", "secret": "s"}]}),
    ("volumes[0].configMap", "c", "configMaps", {"volumes": [{"mountPath": "/c", "configMap": "c"}]}),
    ("volumes[0].claim", "c", "claims", {"volumes": [{"mountPath": "/c", "claim": "c"}]}),
    ("priorityClassName", "high", "priorityClasses", {"priorityClassName": "high"}),
    ("head.nodeSelector", "pool", "nodeSelectorKeys", {"head": {"nodeSelector": {"pool": "x"}}}),
    ("groups[0].nodeSelector", "pool", "nodeSelectorKeys", {"groups": [{"name": "g", "nodeSelector": {"pool": "x"}}]}),
    (
        "groups[0].tolerations[0].key",
        "gpu",
        "tolerationKeys",
        {"groups": [{"name": "g", "tolerations": [{"key": "gpu", "operator": "Exists"}]}]},
    ),
    ("labels", "app", "labelKeys", {"labels": {"app": "x"}}),
    ("annotations", "note", "annotationKeys", {"annotations": {"note": "x"}}),
]


@pytest.mark.parametrize(("field", "value", "name", "cluster"), ASKED, ids=[case[0] for case in ASKED])
def test_each_list_is_asked_for_each_field(field: str, value: str, name: str, cluster: dict[str, Any]) -> None:
    own = Policy.model_validate({name: ["team-*"]})
    sentence = (
        f"spec.cluster.{field}: '{value}' is not allowed here: policy.{name} of the operator's configuration has "
        "team-*; choose one of these, or ask the administrator for it"
    )
    assert refused(cluster, OperatorConfig(policy=own)) == [sentence]
    allowing = Policy.model_validate({name: ["team-*", value]})
    assert refused(cluster, OperatorConfig(policy=allowing)) == []


def test_every_list_is_covered_by_the_cases_above() -> None:
    assert {name for _, _, name, _ in ASKED} == {info.alias for info in Policy.model_fields.values()}


def test_without_a_configuration_a_pipeline_gets_no_foreign_service_account_and_the_rest_of_its_namespace() -> None:
    found = [sentence for _, _, _, cluster in ASKED for sentence in refused(cluster)]
    assert found == [
        "spec.cluster.serviceAccountName: 'builder' is not allowed here: policy.serviceAccounts of the operator's "
        "configuration has default; choose one of these, or ask the administrator for it"
    ]
    assert refused({"serviceAccountName": "default"}) == []


def test_an_empty_list_forbids_the_whole_and_says_so() -> None:
    (sentence,) = refused({"envFromSecrets": ["s"]}, OperatorConfig(policy=NOTHING))
    assert "policy.secrets of the operator's configuration has none;" in sentence


def test_what_the_configuration_itself_gives_is_not_judged() -> None:
    stages = StageDefaults(
        service_account_name="stages", priority_class_name="system-ml", env_from_secrets=["storage"], labels={"a": "b"}
    )
    config = OperatorConfig(stages=stages, policy=NOTHING)
    assert refused({}, config) == []
    assert refused({"serviceAccountName": "stages", "priorityClassName": "system-ml"}, config) == []
    assert len(refused({"envFromSecrets": ["storage"]}, config)) == 1  # a pipeline could read all its keys by it


GUARDED: list[tuple[str, dict[str, Any]]] = [
    ("system-node-critical", {"priorityClassName": "system-node-critical"}),
    ("node-role.kubernetes.io/control-plane", {}),
    ("node-role.kubernetes.io/master", {}),
    ("node.kubernetes.io/unschedulable", {}),
    ("aadpodidbinding", {"labels": {"aadpodidbinding": "x"}}),
    *(
        (key, {"annotations": {key: "x"}})
        for key in (
            "container.apparmor.security.beta.kubernetes.io/ray-head",
            "seccomp.security.alpha.kubernetes.io/pod",
            "cdi.k8s.io/gpus",
            "k8s.v1.cni.cncf.io/networks",
            "sidecar.istio.io/userVolume",
            "iam.amazonaws.com/role",
        )
    ),
]


@pytest.mark.parametrize(("key", "cluster"), GUARDED, ids=[case[0] for case in GUARDED])
def test_no_glob_means_what_is_guarded_and_an_exact_name_does(key: str, cluster: dict[str, Any]) -> None:
    cluster = cluster or {"head": {"tolerations": [{"key": key, "operator": "Exists"}]}}
    names = ("priority_classes", "toleration_keys", "label_keys", "annotation_keys")
    assert len(refused(cluster)) == 1
    assert len(refused(cluster, policy(**{name: ["*", f"{key[:-1]}*"] for name in names}))) == 1
    assert refused(cluster, policy(**{name: [key] for name in names})) == []


def test_a_toleration_of_everything_has_to_be_named_as_the_empty_key() -> None:
    cluster = {"groups": [{"name": "g", "tolerations": [{"operator": "Exists"}]}]}
    sentence = (
        "spec.cluster.groups[0].tolerations[0].key: is missing, which accepts every taint and is not allowed here; "
        'name one, or ask the administrator for "" in policy.tolerationKeys of the operator\'s configuration'
    )
    assert refused(cluster) == [sentence]
    assert refused(cluster, policy(toleration_keys=["*", ""])) == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"app.kubernetes.io/name": "kuberay-operator"}, "marks pods of KubeRay's operator"),
        ({"app.kubernetes.io/component": "kuberay-operator"}, "marks pods of KubeRay's operator"),
        ({"job-name": "other"}, "is set by Kubernetes alone"),
        ({"controller-uid": "x"}, "is set by Kubernetes alone"),
    ],
)
def test_labels_that_impersonate_are_refused_whatever_the_policy_says(labels: dict[str, str], words: str) -> None:
    (sentence,) = refused({"labels": labels}, policy(label_keys=[*labels, "*"]))
    assert words in sentence
    assert refused({"labels": dict.fromkeys(labels, "mine")}, policy(label_keys=["*"])) == (
        [] if "app.kubernetes.io" in next(iter(labels)) else [sentence]
    )


@given(st.lists(st.text("ab*", max_size=3), max_size=3), st.text("ab", min_size=1, max_size=3))
def test_a_name_is_allowed_exactly_if_a_pattern_means_it(patterns: list[str], name: str) -> None:
    def means(pattern: str, rest: str) -> bool:
        if not pattern:
            return not rest
        if pattern[0] == "*":
            return means(pattern[1:], rest) or (bool(rest) and means(pattern, rest[1:]))
        return bool(rest) and rest[0] == pattern[0] and means(pattern[1:], rest[1:])

    allowed = refused({"envFromSecrets": [name]}, policy(secrets=patterns)) == []
    assert allowed == any(means(pattern, name) for pattern in patterns)
