"""The RayJob of an attempt: the form in which it runs at most once and fails visibly."""

from __future__ import annotations

from typing import Any

from camel_ray.operator.rayjob import rayjob_for
from operator_specs import DATA, PPO, attempt, environment, pipeline, templates

GPU = {"name": "gpu", "replicas": 2, "gpus": 8}
CPU = {"name": "cpu", "minReplicas": 0, "maxReplicas": 4}


def rayjob(cluster: dict[str, Any] | None = None, *stages: dict[str, Any]) -> dict[str, Any]:
    return rayjob_for(attempt(pipeline(cluster, *stages)))


def ray(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["rayClusterSpec"]
    return found


def group_names(manifest: dict[str, Any]) -> list[str]:
    return [group["groupName"] for group in ray(manifest).get("workerGroupSpecs", ())]


def test_it_runs_at_most_once_and_every_wait_has_an_end() -> None:
    stage = {"name": "base", "data": DATA, "timeoutSeconds": 3600}
    spec = rayjob({"startTimeoutSeconds": 600}, stage)["spec"]
    assert {key: value for key, value in spec.items() if key not in ("submitterPodTemplate", "rayClusterSpec")} == {
        "entrypoint": "python -m camel_ray.runtime.attempt",
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": 0},
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 10,
        "preRunningDeadlineSeconds": 600,
        "activeDeadlineSeconds": 3600,
    }


def test_deadlines_stay_below_what_kubernetes_takes() -> None:
    stage = {"name": "base", "data": DATA, "timeoutSeconds": 2**40}
    assert rayjob(None, stage)["spec"]["activeDeadlineSeconds"] == 2**31 - 1


def test_the_pipeline_owns_it_and_labels_find_it_and_all_its_pods() -> None:
    manifest = rayjob({"groups": [GPU]})
    labels = {
        "app.kubernetes.io/managed-by": "camel-ray",
        "camel-ray.dev/pipeline": "demo",
        "camel-ray.dev/stage": "base",
        "camel-ray.dev/attempt": "1",
    }
    metadata = manifest["metadata"]
    assert (metadata["name"], metadata["namespace"], metadata["labels"]) == ("demo-base-1", "team-a", labels)
    assert [(o["kind"], o["name"], o["controller"]) for o in metadata["ownerReferences"]] == [
        ("CamelPipeline", "demo", True)
    ]
    for _, pod in templates(manifest):
        assert labels.items() <= pod["metadata"]["labels"].items()


def test_the_submitter_is_small_and_ends_fast() -> None:
    pod = dict(templates(rayjob()))["submitter"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 5
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["name"] == "ray-job-submitter"
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"memory": "1Gi"},
    }


def test_ray_pods_are_asked_soon_and_often_whether_they_are_ready() -> None:
    manifest = ray(rayjob({"groups": [GPU]}))
    for group in (manifest["headGroupSpec"], *manifest["workerGroupSpecs"]):
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}
        assert probe["initialDelaySeconds"] < 10 and probe["periodSeconds"] < 5  # what KubeRay would write
        assert probe["periodSeconds"] * probe["failureThreshold"] == 50  # its patience with a busy node


def test_a_head_beside_workers_takes_no_work_and_one_alone_takes_all() -> None:
    beside, alone = rayjob({"groups": [GPU]}), rayjob()
    assert ray(beside)["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert ray(alone)["headGroupSpec"]["rayStartParams"] == {}
    assert "workerGroupSpecs" not in ray(alone)
    assert ray(alone)["authOptions"] == {"mode": "token"}


def test_a_group_writes_what_kubernetes_would_add_and_no_more() -> None:
    (group,) = ray(rayjob({"groups": [GPU]}))["workerGroupSpecs"]
    del group["template"]
    assert group == {
        "groupName": "gpu",
        "replicas": 2,
        "minReplicas": 2,
        "maxReplicas": 2,
        "numOfHosts": 1,
        "priority": 0,
        "scaleStrategy": {},
        "labels": {"camel-ray.dev/group": "gpu"},
        "rayStartParams": {},
    }


def test_workers_drain_before_they_are_killed() -> None:
    pods = dict(templates(rayjob({"groups": [GPU], "drainTimeoutSeconds": 120})))
    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert environment(pods["gpu"]["spec"]["containers"][0])[name] == "120"
    assert pods["gpu"]["spec"]["terminationGracePeriodSeconds"] == 150
    assert environment(pods["head"]["spec"]["containers"][0])[name] == "10"
    assert pods["head"]["spec"]["terminationGracePeriodSeconds"] == 30


def test_only_the_groups_a_stage_uses_are_in_its_cluster() -> None:
    cluster = {"groups": [GPU, CPU], "autoscaling": {"enabled": True}}
    data = {"data": DATA}
    assert group_names(rayjob(cluster, {"name": "base", "group": "cpu", **data})) == ["cpu"]
    assert group_names(rayjob(cluster, {"name": "base", **data})) == ["gpu", "cpu"]


def test_a_ppo_stage_has_the_groups_of_its_roles_and_their_pods_say_which() -> None:
    groups = [{"name": name, "replicas": 1, "gpus": 8} for name in ("train", "score", "rollout", "other")]
    roles = {"critic": {"group": "score"}, "reward": {"group": "score"}, "rollout": {"group": "rollout"}}
    ppo = {**PPO, "placement": "split", "roles": roles}
    manifest = rayjob({"groups": groups}, {"name": "tune", "group": "train", "ppo": ppo})
    assert group_names(manifest) == ["train", "score", "rollout"]
    pods = dict(templates(manifest))
    found = {
        name: sorted(key for key in pods[name]["metadata"]["labels"] if key.startswith("role."))
        for name in group_names(manifest)
    }
    assert found == {
        "train": ["role.camel-ray.dev/actor", "role.camel-ray.dev/reference"],
        "score": ["role.camel-ray.dev/critic", "role.camel-ray.dev/reward"],
        "rollout": ["role.camel-ray.dev/rollout"],
    }


def test_a_role_without_a_group_may_run_on_all_of_them() -> None:
    ppo = {**PPO, "placement": "split", "roles": {"rollout": {"group": "gpu"}}}
    cluster = {"groups": [GPU, {"name": "cpu"}]}
    assert group_names(rayjob(cluster, {"name": "tune", "ppo": ppo})) == ["gpu", "cpu"]


def test_an_autoscaled_cluster_brings_the_autoscaler_its_own_security_and_token() -> None:
    manifest = rayjob({"groups": [CPU, GPU], "autoscaling": {"enabled": True, "idleTimeoutSeconds": 20}})
    options = ray(manifest)["autoscalerOptions"]
    assert ray(manifest)["enableInTreeAutoscaling"] is True
    assert (options["version"], options["idleTimeoutSeconds"]) == ("v2", 20)
    assert options["securityContext"] == dict(templates(manifest))["head"]["spec"]["containers"][0]["securityContext"]
    assert options["env"] == [{"name": "HOME", "value": "/tmp"}]
    sizes = [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in ray(manifest)["workerGroupSpecs"]]
    assert sizes == [(0, 0, 4), (2, 2, 2)]


def test_only_the_autoscaler_can_read_its_token_and_shares_no_home_with_the_code_of_users() -> None:
    manifest = rayjob({"groups": [CPU], "autoscaling": {"enabled": True}})
    pods = dict(templates(manifest))
    assert not any(pod["spec"]["automountServiceAccountToken"] for pod in pods.values())
    mounts = {m["mountPath"]: m["name"] for m in ray(manifest)["autoscalerOptions"]["volumeMounts"]}
    assert mounts == {"/tmp": "autoscaler-tmp", "/var/run/secrets/kubernetes.io/serviceaccount": "api-access"}
    (head,) = pods["head"]["spec"]["containers"]
    assert not set(mounts.values()) & {mount["name"] for mount in head["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods["head"]["spec"]["volumes"]}
    files = [path for source in volumes["api-access"]["projected"]["sources"] for path in _paths(source)]
    assert files == ["token", "ca.crt", "namespace"]
    assert "autoscaler-tmp" in volumes
    # nor does its image come from them
    own = rayjob({"image": "evil.example/ray:1", "groups": [CPU], "autoscaling": {"enabled": True}})
    assert dict(templates(own))["head"]["spec"]["containers"][0]["image"] == "evil.example/ray:1"
    assert ray(own)["autoscalerOptions"]["image"] == "registry.example.com/camel-ray:1"
    assert "api-access" not in {
        v["name"] for v in dict(templates(rayjob({"groups": [CPU]})))["head"]["spec"]["volumes"]
    }


def _paths(source: dict[str, Any]) -> list[str]:
    (kind,) = source.values()
    return [item["path"] for item in kind.get("items", [kind])]


def test_without_groups_there_is_nothing_to_scale() -> None:
    assert "enableInTreeAutoscaling" not in ray(rayjob({"autoscaling": {"enabled": True}}))


def test_a_queued_one_is_created_suspended() -> None:
    manifest = rayjob({"queue": "team-a"})
    assert manifest["spec"]["suspend"] is True
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert "suspend" not in rayjob()["spec"]
    scaled = rayjob({"queue": "team-a", "groups": [CPU], "autoscaling": {"enabled": True}})
    assert scaled["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
