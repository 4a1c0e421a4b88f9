"""The kinds of other projects and of our own that the operator works with, beside those of Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping

from camel_ray.operator.kube.kinds import (
    CONFIG_MAP,
    JOB,
    NETWORK_POLICY,
    PERSISTENT_VOLUME_CLAIM,
    POD_DISRUPTION_BUDGET,
    Kind,
)

CAMEL_PIPELINE = Kind("camel-ray.dev", "v1alpha1", "CamelPipeline", "camelpipelines")
RAY_JOB = Kind("ray.io", "v1", "RayJob", "rayjobs")
RAY_CLUSTER = Kind("ray.io", "v1", "RayCluster", "rayclusters")
WORKLOAD = Kind("kueue.x-k8s.io", "v1beta2", "Workload", "workloads")
OLDER_WORKLOADS = (Kind("kueue.x-k8s.io", "v1beta1", "Workload", "workloads"),)
"""What Kueue served before: the owners and conditions in it, which is all that we read, are the same."""

CHILDREN: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (RAY_JOB, JOB, CONFIG_MAP, PERSISTENT_VOLUME_CLAIM, POD_DISRUPTION_BUDGET, NETWORK_POLICY)
}
"""What the operator creates and deletes, by kind."""
