"""All objects of one attempt of a stage, in the order in which they are created.

Pure. The reconciler turns them into `Create` operations, `camel-ray render` prints them. Names are deterministic, so a
second creation finds the first one's objects. What could not work on a cluster is found before, by `cluster_problems`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from camel_ray.operator import names
from camel_ray.operator.groups import used_groups
from camel_ray.operator.job import job_for
from camel_ray.operator.kube.kinds import CONFIG_MAP, NETWORK_POLICY, POD_DISRUPTION_BUDGET
from camel_ray.operator.model import Attempt
from camel_ray.operator.pods import attempt_labels, attempt_name, metadata, owner, spec_data, spec_map_name
from camel_ray.operator.policy import KUBERAY
from camel_ray.operator.problems import cluster_problems
from camel_ray.operator.rayjob import rayjob_for
from camel_ray.operator.scratch import claim_for, claim_name

__all__ = ["budget_for", "children_for", "cluster_problems", "network_policy_for", "scratch_for", "spec_map_for"]

_DASHBOARD_PORT = 8265
_KUBERAY: tuple[Mapping[str, str], ...] = (
    {"app.kubernetes.io/name": KUBERAY},  # of its chart
    {"app.kubernetes.io/component": KUBERAY},  # of its kustomization
)


def children_for(attempt: Attempt) -> tuple[dict[str, Any], ...]:
    """The ConfigMap with the spec, what the pods share, what guards them, and the RayJob or Job."""
    around = (scratch_for(attempt), network_policy_for(attempt), budget_for(attempt))
    work = job_for(attempt) if attempt.pipeline.spec.cluster.executor == "Job" else rayjob_for(attempt)
    return (spec_map_for(attempt), *(child for child in around if child is not None), work)


def spec_map_for(attempt: Attempt) -> dict[str, Any]:
    """The immutable ConfigMap with the pipeline; attempts of one version of the spec share it."""
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.name,
        "metadata": _shared_metadata(attempt, spec_map_name(attempt)),
        "immutable": True,
        "data": spec_data(attempt),
    }


def scratch_for(attempt: Attempt) -> dict[str, Any] | None:
    """The claim for the mirror of object storage, or None; all attempts of the pipeline share it."""
    shared = _shared_metadata(attempt, claim_name(attempt.pipeline.metadata.name))
    return claim_for(attempt.pipeline, attempt.settings.config, shared)


def network_policy_for(attempt: Attempt) -> dict[str, Any] | None:
    """A NetworkPolicy that lets only pods of the same pipeline reach one another: whoever reaches a Ray cluster and has
    its token runs code in it. All attempts share it, and another content has another name: nothing is ever updated.

    KubeRay's operator reads the state of the job at the head's dashboard. What the pods themselves reach is not
    limited: storage and hubs are anywhere.
    """
    config = attempt.settings.config.network_policy
    if not config.enabled:
        return None
    mine = _labels(attempt)
    ingress: list[dict[str, Any]] = [{"from": [{"podSelector": {"matchLabels": mine}}, *config.allow_from]}]
    if attempt.pipeline.spec.cluster.executor == "RayJob":
        peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": dict(labels)}} for labels in _KUBERAY]
        ingress.append({"from": peers, "ports": [{"port": _DASHBOARD_PORT, "protocol": "TCP"}]})
    spec = {"podSelector": {"matchLabels": mine}, "policyTypes": ["Ingress"], "ingress": ingress}
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return {
        "apiVersion": NETWORK_POLICY.api_version,
        "kind": NETWORK_POLICY.name,
        "metadata": _shared_metadata(attempt, f"{attempt.pipeline.metadata.name}-{digest[:10]}"),
        "spec": spec,
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


def _shared_metadata(attempt: Attempt, name: str) -> dict[str, Any]:
    """Metadata of what all attempts of a pipeline share; it goes with the pipeline."""
    return {
        "name": name,
        "namespace": attempt.namespace,
        "labels": _labels(attempt),
        "ownerReferences": [owner(attempt)],
    }


def _labels(attempt: Attempt) -> dict[str, str]:
    return {names.MANAGED_BY: names.MANAGER, names.PIPELINE: attempt.pipeline.metadata.name}
