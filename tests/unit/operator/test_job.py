"""The Job of an attempt, for clusters without KubeRay."""

from __future__ import annotations

from typing import Any

from camel_ray.operator.job import job_for
from operator_specs import DATA, attempt, pipeline, templates


def job(cluster: dict[str, Any] | None = None, **stage: Any) -> dict[str, Any]:
    of = pipeline({"executor": "Job", **(cluster or {})}, {"name": "base", "data": DATA, **stage})
    return job_for(attempt(of))


def test_it_runs_its_pod_once() -> None:
    spec = job(timeoutSeconds=3600)["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 1, 0)
    assert spec["activeDeadlineSeconds"] == 3600
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 330
    assert pod["automountServiceAccountToken"] is False


def test_its_container_runs_the_constant_entry_point_without_a_shell() -> None:
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    assert container["name"] == "stage"
    assert container["command"] == ["python", "-m", "camel_ray.runtime.attempt"]
    assert "args" not in container
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_every_failure_matches_a_rule_that_names_its_cause_and_a_disruption_comes_first() -> None:
    disruption, code = job()["spec"]["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert code["onExitCodes"] == {"containerName": "stage", "operator": "NotIn", "values": [0]}
    assert {disruption["action"], code["action"]} == {"FailJob"}


def test_its_pod_is_the_head_on_a_machine_of_the_stages_group() -> None:
    cluster = {
        "head": {
            "resources": {"requests": {"cpu": "2", "memory": "8Gi"}},
            "nodeSelector": {"pool": "any", "zone": "a"},
            "tolerations": [{"key": "batch", "operator": "Exists"}],
        },
        "groups": [
            {
                "name": "gpu",
                "gpus": 4,
                "resources": {"requests": {"memory": "64Gi"}},
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "batch", "operator": "Exists"}],
            }
        ],
    }
    template = job(cluster, group="gpu")["spec"]["template"]
    pod = template["spec"]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "2", "memory": "64Gi"},
        "limits": {"nvidia.com/gpu": "4"},
    }
    assert pod["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert [t["key"] for t in pod["tolerations"]] == ["batch", "gpu"]
    assert template["metadata"]["labels"]["camel-ray.dev/group"] == "gpu"
    alone = dict(templates(job(cluster)))["job"]["spec"]
    assert alone["nodeSelector"] == {"pool": "any", "zone": "a"}
    assert alone["containers"][0]["resources"] == {"requests": {"cpu": "2", "memory": "8Gi"}}


def test_a_resource_that_the_group_names_is_the_groups_alone() -> None:
    """A request of the head beside a limit of the group would reserve little on a machine that is used whole."""
    head = {"resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "16Gi"}}}
    limits = {"name": "gpu", "gpus": 8, "resources": {"limits": {"cpu": "96", "memory": "768Gi"}}}
    requests = {"name": "gpu", "resources": {"requests": {"memory": "64Gi"}}}

    def resources(group: dict[str, Any]) -> Any:
        pod = job({"head": head, "groups": [group]}, group="gpu")["spec"]["template"]["spec"]
        return pod["containers"][0]["resources"]

    assert resources(limits) == {"limits": {"cpu": "96", "memory": "768Gi", "nvidia.com/gpu": "8"}}
    assert resources(requests) == {"requests": {"cpu": "4", "memory": "64Gi"}}


def test_a_queued_one_is_created_suspended() -> None:
    manifest = job({"queue": "team-a"})
    assert manifest["spec"]["suspend"] is True
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert "suspend" not in job()["spec"]
