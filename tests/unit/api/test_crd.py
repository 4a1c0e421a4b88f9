"""The CRD is what the models and the rules say: structural, complete, in sync, and small enough for kubectl."""

# ruff: noqa: E501 - one case per line reads as a table
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from camel_ray.api import cel, crd, generate, sentences
from camel_ray.api.base import Spec
from camel_ray.api.fields import alternatives, fields, models
from camel_ray.api.load import load_pipeline_text
from camel_ray.api.pipeline import STAGE_KINDS, CamelPipeline
from camel_ray.errors import SpecError

Schema = dict[str, Any]
ROOT: Schema = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
SENTENCES = {name: text for name, text in vars(sentences).items() if name.isupper()}


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """All nodes of a schema with their paths in the form of `CelRule.places`."""
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}".lstrip("."))
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


NODES = dict(nodes(ROOT))


def test_every_node_has_one_type_or_says_that_it_has_none() -> None:
    for path, schema in NODES.items():
        assert "type" in schema or schema.get("x-kubernetes-preserve-unknown-fields") is True, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "title", "const"} & schema.keys(), path
        assert (schema.get("type") == "array") == ("items" in schema), path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        assert set(schema.get("required", [])) <= schema.get("properties", {}).keys(), path


def test_only_fields_of_several_types_and_free_mappings_keep_unknown_keys() -> None:
    loose = {path for path, schema in NODES.items() if "x-kubernetes-preserve-unknown-fields" in schema}
    names = {re.sub(r"\[\]$", "", path).rpartition(".")[2] for path in loose}
    assert names == {
        "baseline", "config", "critic", "data", "model", "placement", "prompts", "reference", "source", "text",
        "trainer", "validationSource", "workers",
    }  # fmt: skip
    assert all(path.startswith("spec.") for path in loose)
    assert "type" in NODES["spec.stages[].data"], "the member, not the field"


def test_every_field_of_the_models_is_in_the_schema_with_its_description() -> None:
    def visit(model: type[Spec], schema: Schema, path: str) -> int:
        found = 0
        for name, info in fields(model).items():
            below = schema["properties"][name]
            assert below["description"] == " ".join((info.description or "").split()), f"{path}.{name}"
            found += 1
            for child in models(info.annotation):
                if any(option is child for option in alternatives(info.annotation)):
                    found += visit(child, below, f"{path}.{name}")
                elif "items" in below:
                    found += visit(child, below["items"], f"{path}.{name}[]")
        return found

    spec = CamelPipeline.model_fields["spec"].annotation
    assert isinstance(spec, type) and issubclass(spec, Spec)
    assert visit(spec, ROOT["properties"]["spec"], "spec") > 500


def test_defaults_are_those_of_the_models_and_no_mappings() -> None:
    assert NODES["spec.stages[].ppo.kl.coefficient"]["default"] == 0.05
    assert NODES["spec.stages[].pretrain.learningRate"]["default"] == 3e-4
    assert NODES["spec.stages[].sft.learningRate"]["default"] == 2e-5
    assert NODES["spec.stages[].timeoutSeconds"]["default"] == 604_800
    assert not [path for path, schema in NODES.items() if isinstance(schema.get("default"), dict | list)]
    assert not [path for path, schema in NODES.items() if path.startswith("status") and "default" in schema]


def test_null_is_kept_only_where_it_means_something_else_than_absence() -> None:
    nullable = {path for path, schema in NODES.items() if schema.get("nullable")}
    assert nullable == {"spec.stages[].ppo.valueClip", "spec.stages[].ppo.reward.clip"}
    assert not any("default" in NODES[path] for path in nullable)


def test_a_newer_operator_can_write_its_status() -> None:
    status = {path: schema for path, schema in NODES.items() if path.startswith("status")}
    assert not [path for path, schema in status.items() if "enum" in schema]
    required = {path: schema["required"] for path, schema in status.items() if "required" in schema}
    assert required == {"status.conditions[]": ["type"], "status.stages[]": ["name"]}


def test_lists_with_names_are_merged_by_name() -> None:
    keyed = {
        path: schema["x-kubernetes-list-map-keys"]
        for path, schema in NODES.items()
        if "x-kubernetes-list-map-keys" in schema
    }
    assert keyed == {
        "spec.stages": ["name"],
        "spec.cluster.groups": ["name"],
        "status.stages": ["name"],
        "status.conditions": ["type"],
    }
    for path, keys in keyed.items():
        assert keys[0] in NODES[f"{path}[]"]["required"]


def test_fractional_limits_are_rules_because_the_apiserver_cuts_them() -> None:
    for path, schema in NODES.items():
        for limit in ("minimum", "maximum"):
            assert isinstance(schema.get(limit, 0), int), path
    rules = NODES["spec.stages[].dpo.labelSmoothing"]["x-kubernetes-validations"]
    assert [rule["rule"] for rule in rules] == ["self < 0.5"]


def test_every_rule_stands_at_a_place_of_the_schema() -> None:
    for rule in cel.CEL_RULES:
        for place in rule.places:
            assert place in NODES, place
            if rule.at:
                assert f"{place}{rule.at}".lstrip(".") in NODES, f"{place}{rule.at}"
            assert rule.manifest() in NODES[place]["x-kubernetes-validations"]


def test_every_sentence_of_the_rules_is_mirrored_or_says_why_not() -> None:
    said = {rule.sentence for rule in cel.CEL_RULES}
    patterns = {name: re.sub(r"\\{\w+\\}", ".+", re.escape(text)) for name, text in SENTENCES.items()}
    mirrored = {name for name, pattern in patterns.items() if any(re.fullmatch(pattern, text) for text in said)}
    assert mirrored | cel.NOT_MIRRORED.keys() == SENTENCES.keys()
    assert not mirrored & cel.NOT_MIRRORED.keys()
    own = {cel.STAGE_STARTED, cel.FIELD_STARTED, cel.PIPELINE_NAME}
    unknown = {text for text in said if not any(re.fullmatch(pattern, text) for pattern in patterns.values())}
    assert {text.split(" ", 1)[-1] for text in unknown - own} <= {text.split(" ", 1)[-1] for text in own}


def test_the_two_ways_to_fill_a_sentence_have_the_same_names() -> None:
    for rule in cel.CEL_RULES:
        names = set(re.findall(r"\{(\w+)\}", rule.sentence))
        assert names == set(rule.values), rule.sentence
        assert len(rule.manifest().get("message", "")) < 2048


def test_there_is_a_rule_for_every_stage_kind() -> None:
    text = json.dumps(NODES["spec.stages[]"]["x-kubernetes-validations"])
    assert all(f"has(self.{kind})" in text for kind in STAGE_KINDS)


def test_a_client_side_apply_can_hold_it() -> None:
    # kubectl keeps the whole manifest in an annotation, and all annotations may have 262,144 bytes
    assert len(json.dumps(crd.crd())) < 200_000


def test_what_kubectl_prints() -> None:
    version = crd.crd()["spec"]["versions"][0]
    narrow = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert narrow == ["Phase", "Stage", "Progress", "Attempts", "Age"]
    for column in version["additionalPrinterColumns"]:
        if column["jsonPath"].startswith(".status."):
            assert column["jsonPath"].removeprefix(".") in NODES
    assert crd.crd()["spec"]["names"]["shortNames"] == ["camel"]
    assert crd.crd()["spec"]["names"]["categories"] == ["all"]
    assert version["subresources"] == {"status": {}}


def test_the_manifest_is_in_sync() -> None:
    if not generate.CRD.exists():
        pytest.skip("manifests are not part of an installed package")
    assert generate.CRD.read_text(encoding="utf-8") == crd.crd_text()
    assert yaml.safe_load(crd.crd_text()) == crd.crd()


PIPELINE = """\
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: demo}
spec:
  cluster: CLUSTER
  stages:
  - name: text
    data: {source: a}
"""


def cluster_problems(cluster: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_pipeline_text(PIPELINE.replace("CLUSTER", cluster), "demo.yaml")
    return [problem.split(": ", 1)[1] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("{env: [{name: A}]}", "spec.cluster.env[0]: set exactly one of value and secret"),
        ("{env: [{name: A, value: b, secret: {name: s, key: k}}]}", "spec.cluster.env[0]: set exactly one of"),
        ("{env: [{name: A, value: b}, {name: A, value: c}]}", "spec.cluster.env[1].name: the name 'A' is taken by number 1"),
        ("{env: [{name: CAMEL_RAY_STAGE, value: b}]}", "spec.cluster.env[0].name: the variable 'CAMEL_RAY_STAGE' is set by"),
        ("{env: [{name: 1A, value: b}]}", "spec.cluster.env[0].name: should be text, letters, digits and underscores"),
        ("{envFromSecrets: [A]}", "spec.cluster.envFromSecrets[0]: should be text, at most 253 lower-case letters"),
        ("{volumes: [{mountPath: /data}]}", "spec.cluster.volumes[0]: set exactly one of claim, secret, configMap and memory"),
        ("{volumes: [{mountPath: /data, claim: a, memory: 1Gi}]}", "spec.cluster.volumes[0]: set exactly one of claim"),
        ("{volumes: [{mountPath: data, claim: a}]}", "spec.cluster.volumes[0].mountPath: should be text, an absolute path"),
        ("{volumes: [{mountPath: /a/../b, claim: a}]}", "spec.cluster.volumes[0].mountPath: should be text, an absolute"),
        ("{volumes: [{mountPath: /data/, claim: a}]}", "spec.cluster.volumes[0].mountPath: should be text, an absolute"),
        ("{volumes: [{mountPath: /tmp/x, claim: a}]}", "spec.cluster.volumes[0].mountPath: '/tmp/x' hides or is hidden by /tmp"),
        ("{volumes: [{mountPath: /var/run, claim: a}]}", "spec.cluster.volumes[0].mountPath: '/var/run' hides or is hidden by /var/run/secrets"),
        ("{volumes: [{mountPath: /d, claim: a}, {mountPath: /d, claim: b}]}", "spec.cluster.volumes[1].mountPath: the path '/d' is"),
        ("{volumes: [{mountPath: /d, memory: a lot}]}", "spec.cluster.volumes[0].memory: should be text, a size such as 16Gi"),
        ("{labels: {ray.io/cluster: a}}", "spec.cluster.labels.ray.io/cluster: the key 'ray.io/cluster' is set by the"),
        ("{annotations: {app.kubernetes.io/managed-by: a}}", "spec.cluster.annotations.app.kubernetes.io/managed-by: the key"),
        ("{labels: {a b: c}}", "spec.cluster.labels.a b: 'a b' is no key of a label or annotation"),
        ("{labels: {a: b c}}", "spec.cluster.labels.a: should be text, at most 63 letters"),
        ("{image: ''}", "spec.cluster.image: should be text, not empty, not ''"),
        (f"{{groups: [{', '.join(f'{{name: g{i}}}' for i in range(17))}]}}", "spec.cluster.groups: should be a list of mappings"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_cluster_gives_one_sentence(cluster: str, words: str) -> None:
    found = cluster_problems(cluster)
    assert len(found) == 1, found
    assert found[0].startswith(words)


def test_what_a_cluster_may_say() -> None:
    pipeline = load_pipeline_text(
        PIPELINE.replace(
            "CLUSTER",
            "{image: r/i:1, env: [{name: A, value: ''}, {name: B, secret: {name: s, key: k.txt}}], envFromSecrets: [s3], "
            "volumes: [{mountPath: /data, claim: c}, {mountPath: /opt/cache, memory: 1.5Gi}, {mountPath: /tmpx, secret: s}], "
            "priorityClassName: high, labels: {team: '', example.com/cost: A_1}, annotations: {note: any text at all}}",
        ),
        "demo.yaml",
    )
    cluster = pipeline.spec.cluster
    assert [v.mount_path for v in cluster.volumes] == ["/data", "/opt/cache", "/tmpx"]
    assert cluster.env[1].secret is not None and cluster.env[1].secret.key == "k.txt"
    assert (cluster.start_timeout_seconds, cluster.drain_timeout_seconds) == (1800, 300)
    assert pipeline.spec.stages[0].timeout_seconds == 604_800


def test_the_wire_form_reads_back_as_the_same_pipeline() -> None:
    text = PIPELINE.replace("CLUSTER", "{}").replace(
        "data: {source: a}", "ppo: {prompts: {source: a}, model: m, reward: {model: r, clip: null}, valueClip: null}"
    )
    pipeline = load_pipeline_text(text, "demo.yaml")
    wire = json.loads(json.dumps(pipeline.wire()))
    assert wire["spec"]["stages"][0]["ppo"]["valueClip"] is None
    assert "ptx" not in wire["spec"]["stages"][0]["ppo"]
    again = CamelPipeline.model_validate(wire)
    assert again == pipeline
    assert again.spec.stages[0].ppo is not None and again.spec.stages[0].ppo.value_clip is None
