"""All objects of one attempt of a stage, in the order in which they are created.

Pure. The reconciler turns them into `Create` operations, `camel-ray render` prints them. Names are deterministic, so a
second creation finds the first one's objects. What could not work on a cluster is found before, by `cluster_problems`.
"""

from __future__ import annotations

from typing import Any

from camel_ray.operator import names
from camel_ray.operator.groups import used_groups
from camel_ray.operator.job import job_for
from camel_ray.operator.kube.kinds import CONFIG_MAP, POD_DISRUPTION_BUDGET
from camel_ray.operator.model import Attempt
from camel_ray.operator.pods import attempt_labels, attempt_name, metadata, owner, spec_data, spec_map_name
from camel_ray.operator.problems import cluster_problems
from camel_ray.operator.rayjob import rayjob_for

__all__ = ["budget_for", "children_for", "cluster_problems", "spec_map_for"]


def children_for(attempt: Attempt) -> tuple[dict[str, Any], ...]:
    """The ConfigMap with the spec, the disruption budget if there is one, and the RayJob or Job."""
    budget = budget_for(attempt)
    work = job_for(attempt) if attempt.pipeline.spec.cluster.executor == "Job" else rayjob_for(attempt)
    return (spec_map_for(attempt), *(() if budget is None else (budget,)), work)


def spec_map_for(attempt: Attempt) -> dict[str, Any]:
    """The immutable ConfigMap with the pipeline; attempts of one version of the spec share it."""
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": {
            "name": spec_map_name(attempt),
            "namespace": attempt.namespace,
            "labels": {names.MANAGED_BY: names.MANAGER, names.PIPELINE: attempt.pipeline.metadata.name},
            "ownerReferences": [owner(attempt)],
        },
        "immutable": True,
        "data": spec_data(attempt),
    }


def budget_for(attempt: Attempt) -> dict[str, Any] | None:
    """A PodDisruptionBudget that lets one pod of a Ray cluster go at a time, so that a drained node costs one restart.

    None where an attempt has fewer than two pods that are always there: a budget for one pod would block every drain.
    """
    if attempt.pipeline.spec.cluster.executor == "Job":
        return None
    fixed = 1 + sum(group.least for group in used_groups(attempt.pipeline, attempt.stage))
    if fixed < 2:
        return None
    return {
        "apiVersion": POD_DISRUPTION_BUDGET.api_version,
        "kind": POD_DISRUPTION_BUDGET.name,
        "metadata": metadata(attempt, attempt_name(attempt)),
        "spec": {
            # a number, because a RayCluster has no scale subresource that a share could be counted from
            "minAvailable": fixed - 1,
            "selector": {
                "matchLabels": attempt_labels(attempt),
                # KubeRay's label; the submitter has none, and would count as one more healthy pod
                "matchExpressions": [{"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}],
            },
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
