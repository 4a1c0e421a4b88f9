"""The values of the Helm chart as models: values.yaml, values.schema.json and the chart's README are made of them.

`stages`, `policy` and `networkPolicy` are the operator's configuration file itself, so a value that the chart takes is
one that the operator takes. `camel_ray.api.chart` writes the files; charts/camel-ray/templates reads the values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from camel_ray.api.base import Spec
from camel_ray.api.cluster import OPTIONAL_NAME, LabelValue, ObjectName, ResourcesSpec, Toleration
from camel_ray.api.operator_config import OperatorConfig

_NAMESPACE = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SHORT_NAME = r"^([a-z]([-a-z0-9]{0,38}[a-z0-9])?)?$"
"""Names of the release's objects: what the chart appends has to fit into 63 characters, and a Service's starts with a
letter."""


class ImageValues(Spec):
    """The operator's image."""

    repository: str = Field(default="camel-ray/operator", min_length=1)
    """Registry and name, such as `registry.example.com/camel-ray/operator`."""
    tag: str = ""
    """Tag. Empty: the chart's `appVersion`."""
    digest: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Digest `sha256:...`. It goes before the tag."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull it."""


class CrdsValues(Spec):
    """The resource CamelPipeline."""

    enabled: bool = True
    """Install and upgrade it with the chart. It exists once per cluster, so of several releases one has this on."""
    keep: bool = True
    """Leave it, and with it all pipelines, when the release is uninstalled."""


class ServiceAccountValues(Spec):
    """Who the operator is."""

    create: bool = True
    """Make it. `false`: it exists under `name`."""
    name: str = Field(default="", pattern=OPTIONAL_NAME)
    """Its name. Empty: that of the release."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Its annotations."""


class RbacValues(Spec):
    """What the operator and users may do."""

    create: bool = True
    """Grant the operator exactly the rights it uses, in `watchNamespaces` or in all."""
    aggregate: bool = True
    """Let who has the cluster roles `view`, `edit` or `admin` in a namespace look at or work with its pipelines. That
    holds for the whole cluster, so of several releases one has this on."""


class OperatorValues(Spec):
    """How it works."""

    workers: int = Field(default=16, ge=1)
    """Pipelines looked at side by side; they mostly wait for the API server."""
    stop_seconds: int = Field(default=300, ge=0)
    """How long an attempt that was asked to stop may take for its last checkpoint."""
    silent_seconds: int = Field(default=300, ge=1)
    """How long a Ray cluster may be up without its job being submitted."""
    fixed_user: bool = True
    """Run its pods as user and group 1000. `false`: the cluster chooses the ids, as with `stages.fixedUser`."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object per line, or lines for people."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged."""


class TopologySpreadValues(Spec):
    """How replicas spread, so that one machine's end does not take both."""

    topology_key: str = Field(default="kubernetes.io/hostname", min_length=1)
    """Label of nodes; `topology.kubernetes.io/zone` for zones."""
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    """Whether a replica waits (`DoNotSchedule`) where it cannot be apart from the others."""


class SwitchValues(Spec):
    """An object that can be left out."""

    enabled: bool = True
    """Make it."""


class ProgressTlsValues(Spec):
    """TLS of the server that stage pods report to."""

    mode: Literal["auto", "secret", "none"] = "auto"
    """`auto`: the operator makes its certificates and renews them. `secret`: yours, from `secretName`. `none`: plain
    HTTP, where a service mesh encrypts."""
    secret_name: str = Field(default="", pattern=OPTIONAL_NAME)
    """With `secret`: a Secret with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager writes it. It has to be good for
    the host in the progress URL, `<service>.<namespace>.svc`."""


class ProgressValues(Spec):
    """The server that stage pods report to."""

    tls: ProgressTlsValues = ProgressTlsValues()
    """Its certificates."""


class OperatorNetworkPolicyValues(Spec):
    """NetworkPolicy of the operator's own pods. Stage pods reach the progress server; everything else is refused."""

    enabled: bool = True
    """Make it. Clusters whose network enforces none ignore it."""
    metrics_from: list[dict[str, Any]] = Field(default_factory=list, max_length=50)
    """Who may read metrics, as NetworkPolicyPeers, such as `{namespaceSelector: {matchLabels:
    {kubernetes.io/metadata.name: monitoring}}}`."""


class ServiceMonitorValues(Spec):
    """ServiceMonitor for the Prometheus operator."""

    enabled: bool = False
    """Make it."""
    interval: str = Field(default="30s", pattern=r"^[0-9]+(ms|s|m)$")
    """Time between two readings."""
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    """Labels by which Prometheus selects it."""


class PrometheusRuleValues(Spec):
    """PrometheusRule with alerts for the Prometheus operator."""

    enabled: bool = False
    """Make it."""
    labels: dict[str, LabelValue] = Field(default_factory=dict)
    """Labels by which Prometheus selects it."""


class DashboardValues(Spec):
    """Grafana dashboard in a ConfigMap, for Grafana's sidecar."""

    enabled: bool = False
    """Make it."""
    labels: dict[str, LabelValue] = Field(default_factory=lambda: {"grafana_dashboard": "1"})
    """Labels by which the sidecar selects it."""


class MetricsValues(Spec):
    """Monitoring. The operator always serves metrics; these objects make others read them."""

    service_monitor: ServiceMonitorValues = ServiceMonitorValues()
    """Readings by the Prometheus operator."""
    prometheus_rule: PrometheusRuleValues = PrometheusRuleValues()
    """Alerts."""
    dashboard: DashboardValues = DashboardValues()
    """Dashboard."""


class ChartValues(OperatorConfig):
    """All values of the chart."""

    name_override: str = Field(default="", pattern=_SHORT_NAME)
    """Start of the names of all objects. Empty: the release's name, with `-camel-ray` where it does not hold that."""
    image: ImageValues = ImageValues()
    """The operator's image."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Secrets with registry credentials for the operator's image."""
    replicas: int = Field(default=2, ge=0)
    """Operator pods. All watch and take reports, one decides."""
    watch_namespaces: list[Annotated[str, Field(pattern=_NAMESPACE)]] = Field(default_factory=list)
    """Serve pipelines of these namespaces only, with rights in these only. Empty: all."""
    crds: CrdsValues = CrdsValues()
    """The resource CamelPipeline."""
    service_account: ServiceAccountValues = ServiceAccountValues()
    """The operator's service account."""
    rbac: RbacValues = RbacValues()
    """Rights."""
    operator: OperatorValues = OperatorValues()
    """How the operator works."""
    resources: ResourcesSpec = ResourcesSpec(requests={"cpu": "100m", "memory": "128Mi"}, limits={"memory": "512Mi"})
    """Of an operator pod. Measured: 58 MB idle, and 23 kB more for each pipeline on the cluster."""
    node_selector: dict[str, LabelValue] = Field(default_factory=dict)
    """Labels a node of the operator must have."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints the operator accepts."""
    affinity: dict[str, Any] = Field(default_factory=dict)
    """Affinity of the operator's pods, as Kubernetes has it."""
    topology_spread: TopologySpreadValues = TopologySpreadValues()
    """How the operator's pods spread."""
    priority_class_name: str = Field(default="", pattern=OPTIONAL_NAME)
    """PriorityClass of the operator's pods; `system-cluster-critical` is a good one."""
    pod_labels: dict[str, LabelValue] = Field(default_factory=dict)
    """Further labels of the operator's pods."""
    pod_annotations: dict[str, str] = Field(default_factory=dict)
    """Further annotations of the operator's pods."""
    pod_disruption_budget: SwitchValues = SwitchValues()
    """Keep one operator pod while nodes are drained, where there are two or more."""
    progress: ProgressValues = ProgressValues()
    """The server that stage pods report to."""
    operator_network_policy: OperatorNetworkPolicyValues = OperatorNetworkPolicyValues()
    """Who reaches the operator."""
    metrics: MetricsValues = MetricsValues()
    """Monitoring."""
    test: SwitchValues = SwitchValues()
    """What `helm test` runs: a pipeline of one small Job, in the first of `watchNamespaces` or beside the operator.
    The pod that waits for its end stays, for `helm test --logs`."""
