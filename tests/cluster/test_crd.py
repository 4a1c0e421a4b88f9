"""A real apiserver takes the CRD, keeps what a pipeline says, and refuses with the sentences of `camel-ray validate`."""

# ruff: noqa: E501 - one case per line reads as a table
from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.api import cel, crd, sentences
from camel_ray.api.load import load_pipeline_text
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import SpecError
from camel_ray.operator.kinds import CAMEL_PIPELINE
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import Invalid
from camel_ray.operator.kube.kinds import CUSTOM_RESOURCE_DEFINITION
from rig.control_plane import ControlPlane
from rig.process import RigError

pytestmark = pytest.mark.usefixtures("crds")
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "jobs/pipelines").glob("*.yaml")])
Document = dict[str, Any]

GOOD = """\
apiVersion: camel-ray.dev/v1alpha1
kind: CamelPipeline
metadata: {name: demo}
spec:
  storage: s3://bucket/team
  model: {source: start}
  cluster:
    groups:
    - {name: gpu, replicas: 2}
    - {name: cpu, minReplicas: 0, maxReplicas: 4}
    env: [{name: A, value: b}, {name: B, value: c}]
    volumes: [{mountPath: /data, claim: c}, {mountPath: /cache, memory: 1Gi}]
    labels: {team: blue}
    annotations: {note: any text}
  stages:
  - name: text
    data: {source: builtin://python-docs/text}
  - name: words
    tokenizer: {data: text, vocabSize: 512}
  - name: base
    group: gpu
    pretrain: {data: text, tokenizer: words}
  - name: judge
    reward: {data: text}
  - name: tuned
    ppo:
      prompts: text
      reward: {model: judge}
      roles: {actor: {group: gpu}}
  - name: report
    evaluate: {rewardModel: judge}
"""


def refusal(client: Client, namespace: str, document: Document) -> list[str]:
    """The sentences with which the apiserver refuses a pipeline, without field and value."""
    manifest = copy.deepcopy(document)
    manifest["metadata"]["namespace"] = namespace
    with pytest.raises(Invalid) as caught:
        client.create(CAMEL_PIPELINE, manifest)
    return [re.sub(r'^\S*: Invalid value: (("[^"]*"|[0-9.]+): )?', "", cause) for cause in caught.value.causes]


def applied(client: Client, namespace: str, document: Document) -> Document:
    """The pipeline as it is stored."""
    manifest = copy.deepcopy(document)
    manifest["metadata"]["namespace"] = namespace
    return client.create(CAMEL_PIPELINE, manifest)


# --- what is accepted ---------------------------------------------------------------------------


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_stored_without_a_change_to_what_they_say(admin: Client, namespace: str, file: Path) -> None:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    stored = applied(admin, namespace, document)
    written = CamelPipeline.model_validate(document)
    read = CamelPipeline.model_validate({**document, "spec": stored["spec"]})
    assert read.spec == written.spec
    assert contains(stored["spec"], document["spec"])


def contains(whole: Any, part: Any) -> bool:
    """Whether `whole` is `part` and possibly more keys."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and contains(whole[k], v) for k, v in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


def test_the_wire_form_is_stored_as_it_is(admin: Client, namespace: str) -> None:
    # all fields written out, which finds every field that the schema would prune, default or refuse
    pipeline = load_pipeline_text(
        GOOD.replace("reward: {model: judge}\n", "reward: {model: judge, clip: null, answer: {}, function: {path: a.py}}\n      valueClip: null\n")
        .replace("prompts: text\n", "prompts: {source: [a, b], columns: {text: t}}\n      placement: split\n      ptx: {data: text}\n      lora: {}\n      environment: {path: a.py}\n")
        .replace("{data: text, tokenizer: words}", "{data: text, tokenizer: words, trainer: {torch_compile: true}, model: {config: {model_type: llama, deep: {er: [1, {a: b}]}}}}")
        .replace("replicas: 2}", "replicas: 2, gpus: 1, tolerations: [{key: gpu, operator: Exists}], nodeSelector: {a: b}, resources: {limits: {cpu: '4'}}}"),
        "demo.yaml",
    )  # fmt: skip
    wire = json.loads(json.dumps(pipeline.wire()))
    stored = applied(admin, namespace, wire)
    assert contains(stored["spec"], wire["spec"])
    assert contains(wire["spec"], stored["spec"])
    assert CamelPipeline.model_validate({**wire, "spec": stored["spec"]}) == pipeline


def large() -> Document:
    """The largest pipeline: 50 stages that need all before, 16 groups, every name as long as it may be."""
    names = [f"stage-of-20-chars-{i:02d}" for i in range(50)]
    groups = [f"group-of-20-chars-{i:02d}" for i in range(16)]
    stages = [
        {
            "name": name,
            "needs": names[:i],
            "group": groups[i % 16],
            "sft": {"data": {"source": "x" * 200}, "model": "m"},
        }
        for i, name in enumerate(names)
    ]
    cluster = {
        "groups": [{"name": name, "replicas": 1} for name in groups],
        "env": [{"name": f"VARIABLE_{i}", "value": "x" * 200} for i in range(100)],
        "volumes": [{"mountPath": f"/data/{i}", "claim": "c"} for i in range(16)],
        "labels": {f"example.com/key-{i}": "value" for i in range(50)},
    }
    spec = {
        "storage": "s3://bucket",
        "model": {"source": "m", "config": {"a": 1}},
        "cluster": cluster,
        "stages": stages,
    }
    return {
        "apiVersion": "camel-ray.dev/v1alpha1",
        "kind": "CamelPipeline",
        "metadata": {"name": "large"},
        "spec": spec,
    }


def test_the_largest_pipeline_stays_within_the_cost_of_a_request(admin: Client, namespace: str) -> None:
    stored = applied(admin, namespace, large())
    started = [stage["name"] for stage in stored["spec"]["stages"]]
    stored = admin.replace_status(CAMEL_PIPELINE, {**stored, "status": {"phase": "Running", "startedStages": started}})
    stored = admin.replace_status(CAMEL_PIPELINE, {**stored, "status": {**stored["status"], "attempts": 2}})
    assert stored["status"]["startedStages"] == started

    broken = large()
    broken["metadata"]["name"] = "broken"
    for stage in broken["spec"]["stages"][1:]:
        stage["needs"][-1] = "nowhere"
    assert refusal(admin, namespace, broken) == ["there is no stage 'nowhere'."]


# --- what is refused ----------------------------------------------------------------------------

CASES: dict[str, tuple[str, str, str]] = {
    # sentence: (old, new, what is said)
    "CREDENTIALS": ("s3://bucket/team", "s3://key:secret@bucket/team", sentences.CREDENTIALS),
    "NAME_TAKEN": ("name: judge", "name: text", "the name 'text' is taken by number 1; give each its own name"),
    "NAME_TAKEN groups": ("{name: cpu", "{name: gpu", "the name 'gpu' is taken by number 1; give each its own name"),
    "NAME_TAKEN env": ("{name: B", "{name: A", "the name 'A' is taken by number 1; give each its own name"),
    "GROUP_RANGE": ("minReplicas: 0", "minReplicas: 5", "minReplicas 5 is above maxReplicas 4"),
    "GROUP_SIZE": ("minReplicas: 0,", "replicas: 1,", sentences.GROUP_SIZE),
    "ENV_SOURCE": ("{name: B, value: c}", "{name: B}", sentences.ENV_SOURCE),
    "ENV_SOURCE both": ("{name: B, value: c}", "{name: B, value: c, secret: {name: s, key: k}}", sentences.ENV_SOURCE),
    "ENV_TAKEN": ("{name: B", "{name: KUBEFLOW_TRAINER_SERVER_URL", "the variable 'KUBEFLOW_TRAINER_SERVER_URL' is set by the operator; leave it out"),
    "ENV_SECRET": ("{name: B", "{name: WANDB_API_KEY", "the value of 'WANDB_API_KEY' would be read by everybody who may read the pipeline; put it into a Secret, and write secret: {name: ..., key: ...} instead of value"),
    "VOLUME_SOURCE": ("/data, claim: c", "/data", sentences.VOLUME_SOURCE),
    "VOLUME_SOURCE both": ("/data, claim: c", "/data, claim: c, secret: s", sentences.VOLUME_SOURCE),
    "VOLUME_TAKEN": ("mountPath: /cache", "mountPath: /data", "the path '/data' is mounted by number 1 already; give each volume its own"),
    "VOLUME_RESERVED": ("mountPath: /cache", "mountPath: /etc/camel-ray/x", "'/etc/camel-ray/x' hides or is hidden by /etc/camel-ray, which the operator mounts; choose another path, such as /data"),
    "VOLUME_RESERVED above": ("mountPath: /cache", "mountPath: /var/run", "'/var/run' hides or is hidden by /var/run/secrets, which the operator mounts; choose another path, such as /data"),
    "POD_KEY": ("team: blue", "ray.io/cluster: blue", "the key 'ray.io/cluster' is set by the operator, Ray or Kueue; leave it out"),
    "POD_KEY annotation": ("note: any", "app.kubernetes.io/managed-by: any", "the key 'app.kubernetes.io/managed-by' is set by the operator, Ray or Kueue; leave it out"),
    "POD_KEY_FORM": ("team: blue", "my team: blue", "'my team' is no key of a label or annotation; write name or example.com/name, the name with at most 63 characters"),
    "MEMBER_NONE": ("  - name: judge", "  - name: idle\n  - name: judge", sentences.MEMBER_NONE.format(kinds="data, tokenizer, pretrain, sft, reward, dpo, ppo, evaluate")),
    "MEMBER_SEVERAL": ("    evaluate:", "    data: {source: a}\n    dpo: {data: text}\n    evaluate:", "a stage has exactly one member, this one has data and dpo and evaluate; make it two stages"),
    "NEEDS_ITSELF": ("  - name: judge", "  - name: judge\n    needs: [judge]", "stage 'judge' cannot need itself"),
    "NEEDS_ITSELF field": ("rewardModel: judge", "rewardModel: report", "stage 'report' cannot need itself"),
    "NEEDS_LATER": ("  - name: judge", "  - name: judge\n    needs: [text, report]", sentences.NEEDS_LATER.format(name="report")),
    "NEEDS_LATER field": ("{model: judge}", "{model: report}", sentences.NEEDS_LATER.format(name="report")),
    "NEEDS_UNKNOWN": ("  - name: judge", "  - name: judge\n    needs: [text, xyz]", "there is no stage 'xyz'."),
    "WRONG_ARTIFACT": ("tokenizer: words", "tokenizer: text", "stage 'text' makes a dataset, but this field takes a tokenizer"),
    "WRONG_ARTIFACT reward": ("{model: judge}", "{model: base}", "stage 'base' makes a model, but this field takes a reward-model"),
    "WRONG_ARTIFACT report": ("rewardModel: judge", "rewardModel: words", "stage 'words' makes a tokenizer, but this field takes a reward-model"),
    "NO_GROUP": ("    group: gpu\n", "    group: tpu\n", "there is no group 'tpu' in spec.cluster.groups."),
    "NO_GROUP role": ("{actor: {group: gpu}}", "{critic: {group: xyz}}", "there is no group 'xyz' in spec.cluster.groups."),
    "EARLY_STOPPING": ("reward: {data: text}", "reward: {data: text, earlyStopping: {}}", sentences.EARLY_STOPPING),
    "OFFLOAD_ALL": ("reward: {data: text}", "reward: {data: text, offload: all}", sentences.OFFLOAD_ALL),
    "OFFLOAD_ALL role": ("actor: {group: gpu}", "critic: {offload: all}", sentences.OFFLOAD_ALL),
    "OFFLOAD_ALL zero of a role": ("roles: {actor: {group: gpu}}", "offload: all\n      zero: 3\n      roles: {actor: {zero: 2}}", sentences.OFFLOAD_ALL),
    "OFFLOAD_OPTIMIZER": ("reward: {data: text}", "reward: {data: text, offload: optimizer, zero: 0}", sentences.OFFLOAD_OPTIMIZER),
    "OFFLOAD_OPTIMIZER ppo": ("prompts: text", "prompts: text\n      offload: optimizer\n      zero: 0", sentences.OFFLOAD_OPTIMIZER),
    "TOKENIZER_SOURCE": ("{data: text, vocabSize: 512}", "{vocabSize: 512}", sentences.TOKENIZER_SOURCE),
    "REWARD_NONE": ("reward: {model: judge}", "reward: {overlongBuffer: 1}", sentences.REWARD_NONE),
    "SAMPLES": ("prompts: text", "prompts: text\n      advantage: rloo", "rloo compares several answers to one prompt; set samplesPerPrompt to at least 2"),
    "UNIFORM_GROUPS": ("prompts: text", "prompts: text\n      skipUniformGroups: 2", sentences.UNIFORM_GROUPS),
    "KL_LOSS": ("prompts: text", "prompts: text\n      kl: {place: loss}", sentences.KL_LOSS),
    "OVERLONG": ("{model: judge}", "{model: judge, overlongBuffer: 200}", "overlongBuffer 200 is above sampling.maxResponseLength 128"),
    "OVERLONG sampling": ("reward: {model: judge}", "sampling: {maxResponseLength: 9}\n      reward: {answer: {}, overlongBuffer: 10}", "overlongBuffer 10 is above sampling.maxResponseLength 9"),
    "HTTP_URL": ("{model: judge}", "{http: {url: 'ftp://x'}}", "'ftp://x' is no address of a web service; write http(s)://..."),
    "ROLLOUT_ALONE engine": ("prompts: text", "prompts: text\n      rollout: {engine: vllm}", sentences.ROLLOUT_ALONE.format(name="engine", value="vllm")),
    "ROLLOUT_ALONE staleness": ("prompts: text", "prompts: text\n      rollout: {staleness: 1}", sentences.ROLLOUT_ALONE.format(name="staleness", value=1)),
}  # fmt: skip

VALUES: dict[str, tuple[str, str]] = {
    # one value that is not in the form of its field: (old, new)
    "stage name": ("name: judge", "name: Judge"),
    "group name": ("{name: cpu", "{name: CPU"),
    "variable": ("{name: B", "{name: 1B"),
    "mount path": ("mountPath: /cache", "mountPath: cache"),
    "path with dots": ("mountPath: /cache", "mountPath: /a/../b"),
    "claim": ("claim: c", "claim: C"),
    "memory": ("memory: 1Gi", "memory: a lot"),
    "label": ("team: blue", "team: light blue"),
    "secret": ("    labels:", "    envFromSecrets: [A_B]\n    labels:"),
    "priority": ("    labels:", "    priorityClassName: A_B\n    labels:"),
    "fraction": ("reward: {data: text}", "dpo: {data: text, labelSmoothing: 0.5}"),
}


def said_by_validate(text: str) -> list[str]:
    """The sentences without file, line, field and suggestions."""
    with pytest.raises(SpecError) as caught:
        load_pipeline_text(text, "demo.yaml")
    found = [re.sub(r"^demo\.yaml:\d+: [^:]+: ", "", problem) for problem in caught.value.problems]
    return [re.sub(r"\.? (Did you mean|A file or URI is) .*", ".", sentence) for sentence in found]


@pytest.mark.parametrize("case", CASES)
def test_the_apiserver_says_what_validate_says(admin: Client, namespace: str, case: str) -> None:
    old, new, sentence = CASES[case]
    assert GOOD.count(old) == 1, old
    text = GOOD.replace(old, new)
    assert sentence in said_by_validate(text)
    assert sentence in refusal(admin, namespace, yaml.safe_load(text))


@pytest.mark.parametrize("case", VALUES)
def test_a_value_in_another_form_gets_the_sentence_of_validate(admin: Client, namespace: str, case: str) -> None:
    old, new = VALUES[case]
    assert GOOD.count(old) == 1, old
    text = GOOD.replace(old, new)
    (sentence,) = said_by_validate(
        text.replace("rewardModel: judge", "samples: 1").replace("{model: judge}", "{answer: {}}")
    )
    assert sentence in refusal(admin, namespace, yaml.safe_load(text))


def test_every_mirrored_sentence_has_a_case() -> None:
    names = {name for name in vars(sentences) if name.isupper()}
    assert names - cel.NOT_MIRRORED.keys() == {case.split(" ", 1)[0] for case in CASES}


def test_the_good_pipeline_is_accepted(admin: Client, namespace: str) -> None:
    assert load_pipeline_text(GOOD, "demo.yaml").metadata.name == "demo"
    assert applied(admin, namespace, yaml.safe_load(GOOD))["spec"]["stages"][0]["timeoutSeconds"] == 604_800


def test_a_whole_number_fits_a_fractional_limit(admin: Client, namespace: str) -> None:
    text = GOOD.replace("reward: {data: text}", "dpo: {data: text, labelSmoothing: 0}").replace("judge", "judged")
    text = text.replace("{model: judged}", "{answer: {}}").replace("rewardModel: judged", "samples: 1")
    assert applied(admin, namespace, yaml.safe_load(text))["spec"]["stages"][3]["dpo"]["labelSmoothing"] == 0


@pytest.mark.parametrize("name", ["a" * 41, "a.b"])
def test_the_name_of_a_pipeline_is_checked(admin: Client, namespace: str, name: str) -> None:
    (sentence,) = said_by_validate(GOOD.replace("name: demo", f"name: {name}"))
    document = yaml.safe_load(GOOD)
    document["metadata"]["name"] = name
    assert refusal(admin, namespace, document) == [f"metadata.name {sentence}"]


# --- what has started ---------------------------------------------------------------------------


@pytest.fixture
def running(admin: Client, namespace: str) -> Document:
    """A pipeline whose first three stages have started."""
    stored = applied(admin, namespace, yaml.safe_load(GOOD))
    status = {"phase": "Running", "message": "", "startedStages": ["text", "words", "base"]}
    return admin.replace_status(CAMEL_PIPELINE, {**stored, "status": status})


def swap(stages: list[Document], a: int, b: int) -> None:
    stages[a], stages[b] = stages[b], stages[a]


STAGE = "stage '{}' has started; its fields cannot be changed: delete the pipeline and apply it again (storage is kept), or `camel-ray retry NAME --from {}`"
FROZEN: dict[str, tuple[Callable[[Document], object], str]] = {
    "a typed field": (lambda spec: spec["stages"][2]["pretrain"].update(epochs=3), STAGE.format("base", "base")),
    "a field of several types": (lambda spec: spec["stages"][1]["tokenizer"].update(data=["text"]), STAGE.format("words", "words")),
    "inside such a field": (lambda spec: spec["stages"][0]["data"].update(source=["x"]), STAGE.format("text", "text")),
    "a new member": (lambda spec: spec["stages"][0].update(group="cpu"), STAGE.format("text", "text")),
    "removed": (lambda spec: spec["stages"].pop(0), STAGE.format("text", "text")),
    "renamed": (lambda spec: spec["stages"][0].update(name="texts"), STAGE.format("text", "text")),
    "reordered": (lambda spec: swap(spec["stages"], 0, 1), STAGE.format("text", "text")),
    "a stage put before": (lambda spec: spec["stages"].insert(1, {"name": "new", "data": {"source": "a"}}), STAGE.format("words", "words")),
    "storage": (lambda spec: spec.update(storage="s3://other"), cel.FIELD_STARTED.format(name="storage")),
    "seed": (lambda spec: spec.update(seed=7), cel.FIELD_STARTED.format(name="seed")),
    "model": (lambda spec: spec["model"].update(source="other"), cel.FIELD_STARTED.format(name="model")),
    "no model": (lambda spec: spec.pop("model"), cel.FIELD_STARTED.format(name="model")),
}  # fmt: skip


@pytest.mark.parametrize("case", FROZEN)
def test_what_has_started_cannot_be_changed(admin: Client, running: Document, case: str) -> None:
    change, sentence = FROZEN[case]
    spec = copy.deepcopy(running["spec"])
    change(spec)
    with pytest.raises(Invalid) as caught:
        replace_spec(admin, running, spec)
    assert sentence in str(caught.value)


def replace_spec(client: Client, document: Document, spec: Document) -> Document:
    change = {"op": "replace", "path": "/spec", "value": spec}
    return client.patch(CAMEL_PIPELINE, document["metadata"]["name"], document["metadata"]["namespace"], [change])


def test_what_has_not_started_can_be_changed(admin: Client, running: Document) -> None:
    edited = copy.deepcopy(running)
    stages = edited["spec"]["stages"]
    stages[3]["reward"]["epochs"] = 4
    stages.insert(3, {"name": "more", "data": {"source": "a"}})
    stages.pop()
    edited["spec"]["suspend"] = True
    edited["spec"]["retry"] = {"maxRetries": 9}
    edited["spec"]["cluster"]["groups"][0]["replicas"] = 8
    stored = replace_spec(admin, running, edited["spec"])
    assert [stage["name"] for stage in stored["spec"]["stages"]] == ["text", "words", "base", "more", "judge", "tuned"]
    assert stored["spec"]["suspend"] is True
    assert stored["metadata"]["generation"] == 2


def test_everything_can_be_changed_before_the_start(admin: Client, namespace: str) -> None:
    stored = applied(admin, namespace, yaml.safe_load(GOOD))
    stored = admin.replace_status(CAMEL_PIPELINE, {**stored, "status": {"phase": "Pending", "startedStages": []}})
    changes = [
        {"op": "replace", "path": "/spec/storage", "value": "s3://other"},
        {"op": "add", "path": "/spec/seed", "value": 7},
        {"op": "replace", "path": "/spec/stages/1/tokenizer/vocabSize", "value": 600},
    ]
    stored = admin.patch(CAMEL_PIPELINE, "demo", namespace, changes)
    assert stored["spec"]["seed"] == 7


def test_a_write_of_spec_and_status_at_once_changes_only_one(admin: Client, running: Document) -> None:
    # the rule on started stages leaves out writes of the status; nobody can use that to change the spec
    namespace = running["metadata"]["namespace"]
    changes = [
        {"op": "replace", "path": "/status/message", "value": "other"},
        {"op": "add", "path": "/spec/stages/0/data/limit", "value": 5},
    ]
    with pytest.raises(Invalid, match="stage 'text' has started"):
        admin.patch(CAMEL_PIPELINE, "demo", namespace, changes)
    stored = admin.patch(CAMEL_PIPELINE, "demo", namespace, changes, subresource="status")
    assert stored["status"]["message"] == "other"
    assert "limit" not in stored["spec"]["stages"][0]["data"]


# --- objects of other versions --------------------------------------------------------------------


def test_an_object_of_another_version_can_be_updated(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    # stored under a CRD that knows nothing: other status fields, none of today's, and a stage with a field that is gone
    other = crd.crd()
    loose = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    other["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = {
        "type": "object",
        "properties": {"spec": loose, "status": loose},
    }
    document = yaml.safe_load(GOOD)
    document["spec"]["stages"][0]["data"]["gone"] = 1
    status = {
        "phase": "Melting",
        "novelty": {"a": 1},
        "stages": [{"name": "text"}, {"name": "words", "phase": "Cooling"}],
    }
    try:
        admin.apply(CUSTOM_RESOURCE_DEFINITION, other)
        control_plane.wait_for(
            lambda: "gone" in applied_once(admin, namespace, document)["spec"]["stages"][0]["data"], "the old schema"
        )
        stored = applied_once(admin, namespace, document)
        stored = admin.replace_status(CAMEL_PIPELINE, {**stored, "status": status})
    finally:
        admin.apply(CUSTOM_RESOURCE_DEFINITION, crd.crd())
    control_plane.wait_for(
        lambda: "gone" not in admin.get(CAMEL_PIPELINE, "demo", namespace)["spec"]["stages"][0]["data"],
        "the new schema",
    )
    stored = admin.get(CAMEL_PIPELINE, "demo", namespace)
    assert stored["status"]["phase"] == "Melting"
    stored["status"]["message"] = "hello"
    stored = admin.replace_status(CAMEL_PIPELINE, stored)
    assert stored["status"]["message"] == "hello"
    assert [stage["name"] for stage in stored["status"]["stages"]] == ["text", "words"]
    stored = admin.patch(CAMEL_PIPELINE, "demo", namespace, {"spec": {"suspend": True}})
    assert stored["spec"]["suspend"] is True


def applied_once(client: Client, namespace: str, document: Document) -> Document:
    return client.apply(CAMEL_PIPELINE, {**document, "metadata": {"name": "demo", "namespace": namespace}})


# --- what people see ----------------------------------------------------------------------------


def test_kubectl_applies_validates_and_explains(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    kubectl = control_plane.kubectl
    assert "created" in kubectl("-n", namespace, "apply", "-f", str(EXAMPLES[0]))
    with pytest.raises(RigError, match=r'strict decoding error: unknown field "spec.stages\[0\].data.sorce"'):
        kubectl(
            "-n", namespace, "apply", "-f", "-", input=GOOD.replace("data: {source:", "data: {sorce: a, source:", 1)
        )
    explained = kubectl("explain", "camel.spec.stages.ppo.kl")
    assert "How the policy is kept near the reference model." in explained
    assert "enum: none, fixed, adaptive" in explained
    assert "quickstart" in kubectl("-n", namespace, "get", "all")


def test_kubectl_prints_where_a_pipeline_stands(control_plane: ControlPlane, admin: Client, namespace: str) -> None:
    stored = applied(admin, namespace, yaml.safe_load(GOOD))
    status = {
        "phase": "Running",
        "stage": "base",
        "progress": "2/6, 40%",
        "attempts": 3,
        "metrics": "loss 2.1",
        "message": "trains",
    }
    admin.replace_status(CAMEL_PIPELINE, {**stored, "status": status})
    head, row = control_plane.kubectl("-n", namespace, "get", "camel").splitlines()
    assert re.split(r"\s{2,}", head.strip()) == ["NAME", "PHASE", "STAGE", "PROGRESS", "ATTEMPTS", "AGE"]
    assert re.split(r"\s{2,}", row.strip())[:5] == ["demo", "Running", "base", "2/6, 40%", "3"]
    head, row = control_plane.kubectl("-n", namespace, "get", "camel", "-o", "wide").splitlines()
    assert re.split(r"\s{2,}", head.strip())[6:] == ["METRICS", "MESSAGE"]
    assert re.split(r"\s{2,}", row.strip())[6:] == ["loss 2.1", "trains"]
