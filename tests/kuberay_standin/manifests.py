"""What KubeRay writes into the API, as plain values: no I/O. Ray's own pods are in pods.py."""

from __future__ import annotations

import math
import re
import secrets
from copy import deepcopy
from fractions import Fraction

from kuberay_standin.api import Object, key_of

FINALIZER = "ray.io/rayjob-finalizer"
CLUSTER, NODE_TYPE, GROUP = "ray.io/cluster", "ray.io/node-type", "ray.io/group"
CR_NAME, CR_KIND = "ray.io/originated-from-cr-name", "ray.io/originated-from-crd"
HEAD_STAYS_AWAY = "ray.io/disable-provisioned-head-restart"
SUBMITTER = "ray-job-submitter"
NOWHERE = {"kuberay-standin/nowhere": "true"}
"""A node selector that no node fits."""
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_DECIMAL = {"n": 10**-9, "u": 10**-6, "m": 10**-3, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi")


def suffix() -> str:
    """Five random characters, as of a generated name."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(5))


def owned_by(owner: Object) -> list[Object]:
    """Owner references to a controller."""
    meta = owner["metadata"]
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    return [{**reference, "controller": True, "blockOwnerDeletion": True}]


def taken_over(job: Object) -> Object:
    """The RayJob as KubeRay's first update writes it: with the finalizer and with the zero values of its Go types.

    Those make KubeRay the owner of `workerGroupSpecs`, so that a second apply by anyone else is a conflict.
    """
    job = deepcopy(job)
    job["metadata"].setdefault("finalizers", []).append(FINALIZER)
    spec = job["spec"]
    if spec.get("suspend") is False:
        del spec["suspend"]
    cluster = spec.get("rayClusterSpec", {})
    groups = cluster.get("workerGroupSpecs", [])
    templates = [spec.get("submitterPodTemplate"), cluster.get("headGroupSpec", {}).get("template")]
    for template in [*templates, *(group.get("template") for group in groups)]:
        if template is not None:
            template.setdefault("metadata", {})
            for container in [*template["spec"].get("containers", ()), *template["spec"].get("initContainers", ())]:
                for amounts in container.setdefault("resources", {}).values():
                    if isinstance(amounts, dict):
                        amounts.update({name: canonical(str(amount)) for name, amount in amounts.items()})
    for group in groups:
        group.setdefault("scaleStrategy", {})
    return job


def canonical(quantity: str) -> str:
    """A resource quantity as Go writes it: `1000m` is `1`, `0.5` is `500m`, `1024Mi` is `1Gi`."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?([numkMGTP]|[KMGTP]i)?", quantity)
    if not match:
        return quantity
    number, unit = float(f"{match[1]}.{match[2] or 0}"), match[3] or ""
    if unit in _BINARY[1:]:
        if number != int(number):
            return quantity
        amount, power = int(number), _BINARY.index(unit)
        while amount and amount % 1024 == 0 and power < len(_BINARY) - 1:
            amount, power = amount // 1024, power + 1
        return f"{amount}{_BINARY[power]}"
    nano = round(number * _DECIMAL[unit] * 10**9)
    for name, factor in sorted(_DECIMAL.items(), key=lambda item: -item[1]):
        size = round(factor * 10**9)
        if nano and nano % size == 0:
            return f"{nano // size}{name}"
    return "0"


def whole(quantity: str) -> int:
    """A resource quantity as Go's `Value()` tells it: rounded up."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([numkMGTPE]|[KMGTPE]i)?", quantity)
    if not match:
        raise ValueError(f"{quantity!r} is no quantity the stand-in knows")
    number, unit = Fraction(match[1]), match[2] or ""
    if unit in _BINARY:
        return math.ceil(number * Fraction(1024) ** _BINARY.index(unit))
    return math.ceil(number * Fraction(_DECIMAL[unit]).limit_denominator(10**9))


def host(cluster: Object) -> str:
    """The name by which pods find the head."""
    namespace, name = key_of(cluster)
    return f"{name}-head-svc.{namespace}.svc.cluster.local"


def invalid(job: Object) -> tuple[str, str] | None:
    """The reason of the event and the sentence with which KubeRay refuses a RayJob."""
    name, spec = job["metadata"]["name"], job["spec"]
    cluster, mode = spec.get("rayClusterSpec"), spec.get("submissionMode")
    if len(name) > 47:
        return (
            "InvalidRayJobMetadata",
            "The RayJob metadata is invalid: RayJob name should be no more than 47 characters",
        )
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return "InvalidRayJobMetadata", "The RayJob metadata is invalid: RayJob name should be a valid DNS1035 label"
    sentence = ""
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        sentence = "a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended"
    elif spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        sentence = "a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished"
    elif spec.get("ttlSecondsAfterFinished", 0) < 0:
        sentence = "TTLSecondsAfterFinished must be a non-negative integer"
    elif cluster is None:
        sentence = "one of RayClusterSpec or ClusterSelector must be set"
    elif spec.get("backoffLimit", 0) and mode == "InteractiveMode":
        sentence = "BackoffLimit is incompatible with InteractiveMode"
    elif spec.get("activeDeadlineSeconds", 1) <= 0:
        sentence = "activeDeadlineSeconds must be a positive integer"
    elif spec.get("backoffLimit", 0) < 0:
        sentence = "backoffLimit must be a positive integer"
    elif mode == "SidecarMode" or spec.get("clusterSelector") or spec.get("deletionStrategy"):
        sentence = "the stand-in does not play SidecarMode, clusterSelector and deletionStrategy"
    else:
        sentence = _invalid_cluster(cluster)
    return ("InvalidRayJobSpec", f"The RayJob spec is invalid: {sentence}") if sentence else None


def _invalid_cluster(spec: Object) -> str:
    head, groups = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    autoscaling = spec.get("enableInTreeAutoscaling", False)
    if not head["template"]["spec"].get("containers"):
        return "headGroupSpec should have at least one container"
    for name, group in (("head", head), *((g["groupName"], g) for g in groups)):
        if not group["template"]["spec"].get("containers"):
            return "workerGroupSpec should have at least one container"
        if "labels" in group.get("rayStartParams", {}):
            instead = "please use the top-level Labels field instead"
            return f"rayStartParams['labels'] is not supported for {name} group; {instead}"
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if autoscaling and spec.get("autoscalerOptions", {}).get("version") == "v2" and policy != "Never":
            where = "head Pod" if name == "head" else f"worker group {name}"
            return f"restartPolicy for {where} should be Never or unset when using autoscaler V2"
    if any(group.get("resources") for group in (head, *groups)):
        return "the stand-in does not play `resources` of groups, only those of their containers"
    for group in groups:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2147483647)
        if least > most:
            return f"worker group {group['groupName']} has minReplicas {least} greater than maxReplicas {most}"
    if spec.get("authOptions", {}).get("mode") == "token" and not spec.get("rayVersion"):
        return "authOptions.mode is 'token' but RayVersion was not specified. Ray version 2.52.0 or later is required"
    if "upgradeStrategy" in spec:
        return "upgradeStrategy cannot be set when RayCluster is created by RayJob"
    if "gcsFaultToleranceOptions" in spec:
        return "the stand-in does not play GCS fault tolerance"
    return ""


def ray_cluster(job: Object, name: str) -> Object:
    """The RayCluster of a RayJob: its labels and annotations are copied here, and nowhere else."""
    meta = job["metadata"]
    labels = {**meta.get("labels", {}), CR_NAME: meta["name"], CR_KIND: "RayJob"}
    annotations = {k: v for k, v in meta.get("annotations", {}).items() if not k.startswith("kubectl.kubernetes.io/")}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": name,
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": owned_by(job),
        },
        "spec": deepcopy(job["spec"]["rayClusterSpec"]),
    }


def submitter_job(job: Object, nowhere: bool) -> Object:
    """The batch Job that submits, named like the RayJob."""
    spec, meta = job["spec"], job["metadata"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    amounts = {"requests": {"cpu": "500m", "memory": "200Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    default = {"name": SUBMITTER, "image": head["containers"][0]["image"], "resources": amounts}
    template = deepcopy(spec.get("submitterPodTemplate")) or {
        "spec": {"containers": [default], "restartPolicy": "Never"}
    }
    labels = {CR_NAME: meta["name"], CR_KIND: "RayJob", "app.kubernetes.io/created-by": "kuberay-operator"}
    template.setdefault("metadata", {}).setdefault("labels", {}).update(labels)
    container = template["spec"]["containers"][0]
    if not container.get("command"):
        container |= {"command": ["/bin/bash", "-ce", "--"], "args": [_submit_script(job)]}
    container.setdefault("env", []).extend(
        [
            {"name": "PYTHONUNBUFFERED", "value": "1"},
            {"name": "RAY_DASHBOARD_ADDRESS", "value": job["status"]["dashboardURL"]},
            {"name": "RAY_JOB_SUBMISSION_ID", "value": job["status"]["jobId"]},
            *token_env(spec["rayClusterSpec"], job["status"]["rayClusterName"]),
        ]
    )
    if nowhere:
        template["spec"]["nodeSelector"] = NOWHERE
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": labels,
            "ownerReferences": owned_by(job),
        },
        "spec": {"backoffLimit": spec.get("submitterConfig", {}).get("backoffLimit", 2), "template": template},
    }


def _submit_script(job: Object) -> str:
    """What the submitter runs: the entry point is pasted unquoted, as KubeRay does it.

    It waits for the dashboard, submits unless the job is known already (a second submitter after a lost one), and then
    follows the log, whose end is its own.
    """
    address, job_id = f"http://{job['status']['dashboardURL']}", job["status"]["jobId"]
    healthy = (
        f"import urllib.request; r=urllib.request.urlopen('{address}/api/gcs_healthz', timeout=10); "
        "exit(0 if b'success' in r.read() else 1)"
    )
    return (
        f'until python -c "{healthy}" >/dev/null 2>&1 ; '
        f'do echo "Waiting for Ray Dashboard GCS to become healthy at {address} ..." ; sleep 2 ; done ; '
        f"if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; "
        f"then ray job submit --address {address} --no-wait --submission-id {job_id} -- "
        f"{job['spec']['entrypoint'].strip()} ; fi ; ray job logs --address {address} --follow {job_id}"
    )


def head_service(owner: Object, name: str, cluster: str) -> Object:
    """A headless Service in front of a head, ready or not: workers ask for it while it starts."""
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": owner["metadata"]["namespace"], "ownerReferences": owned_by(owner)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {CLUSTER: cluster, NODE_TYPE: "head"},
            "ports": [{"name": k, "port": v} for k, v in ports.items()],
        },
    }


def auth_secret(cluster: Object) -> Object:
    """Where the token of `authOptions.mode: token` lies."""
    namespace, name = key_of(cluster)
    meta = {"name": name, "namespace": namespace, "ownerReferences": owned_by(cluster)}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"auth_token": secrets.token_hex(16)}}


def autoscaler_rights(cluster: Object) -> list[tuple[str, Object]]:
    """Whom the autoscaler acts as, and what that may do; each with its resource."""
    namespace, name = key_of(cluster)
    meta = {"name": name, "namespace": namespace, "ownerReferences": owned_by(cluster)}
    account = cluster["spec"]["headGroupSpec"]["template"]["spec"].get("serviceAccountName", name)
    rights: list[tuple[str, str, list[str]]] = [
        ("", "pods", ["get", "list", "watch", "patch"]),
        ("", "pods/resize", ["patch"]),
        ("ray.io", "rayclusters", ["get", "patch"]),
    ]
    rules = [{"apiGroups": [group], "resources": [what], "verbs": verbs} for group, what, verbs in rights]
    version = "rbac.authorization.k8s.io/v1"
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    made: list[tuple[str, Object]] = [
        ("roles", {"apiVersion": version, "kind": "Role", "metadata": meta, "rules": rules}),
        (
            "rolebindings",
            {
                "apiVersion": version,
                "kind": "RoleBinding",
                "metadata": meta,
                "subjects": [subject],
                "roleRef": reference,
            },
        ),
    ]
    if account == name:
        made.insert(0, ("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}))
    return made


def token_env(spec: Object, cluster: str) -> list[Object]:
    """How a container proves itself to Ray, if the cluster asks for that."""
    options = spec.get("authOptions", {})
    if options.get("mode") != "token":
        return []
    reference = {"name": options.get("secretName", cluster), "key": "auth_token"}
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}},
    ]
