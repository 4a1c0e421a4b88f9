"""Names and labels of everything the operator makes. They are the contract between operator, stage pods and users."""

from __future__ import annotations

import hashlib

API_GROUP = "camel-ray.dev"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "camel-ray"
"""Value of `MANAGED_BY`, and the field manager of what the operator writes."""
SELECTOR = f"{MANAGED_BY}={MANAGER}"
"""Selects everything the operator made, and the pods that others made for it."""
PIPELINE = f"{API_GROUP}/pipeline"
STAGE = f"{API_GROUP}/stage"
ATTEMPT = f"{API_GROUP}/attempt"
GROUP = f"{API_GROUP}/group"
"""Worker group; `ppo` finds the nodes of a group by it (the same label as `ppo.placement.GROUP_LABEL`)."""
REQUEST = f"{API_GROUP}/request"
"""Annotation of a pipeline with what its user asks for: `retry STAGE TOKEN`, `retry - TOKEN` (what failed) or `cancel
- TOKEN`.
The token makes each request new; the operator notes the last value it carried out in `status.handledRequest`."""
QUEUE = "kueue.x-k8s.io/queue-name"

MAX_NAME = 47
"""KubeRay refuses longer names of RayJobs."""


def attempt_name(pipeline: str, stage: str, number: int) -> str:
    """Name of the RayJob or Job of an attempt: the same for the same arguments, at most 47 characters, a DNS-1035
    label.
    """
    plain = f"{pipeline}-{stage}-{number}"
    if len(plain) <= MAX_NAME and plain[0].isalpha():
        return plain
    digest = hashlib.sha256(f"{pipeline}/{stage}".encode()).hexdigest()[:6]
    tail = f"-{stage}-{digest}-{number}"
    return f"p{pipeline}"[: MAX_NAME - len(tail)].rstrip("-") + tail


def attempt_labels(pipeline: str, stage: str, number: int) -> dict[str, str]:
    """Labels of an attempt's object and of all its pods."""
    return {MANAGED_BY: MANAGER, PIPELINE: pipeline, STAGE: stage, ATTEMPT: str(number)}
