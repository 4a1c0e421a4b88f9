"""The job API of a head's dashboard, as far as KubeRay uses it.

It is played (dashboard.py), or asked of a real dashboard over HTTP.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Protocol

import urllib3

from kuberay_standin.api import Api, Key, Mirror, Object

TERMINAL = ("STOPPED", "SUCCEEDED", "FAILED")
DASHBOARD_PORT = 8265
_TIMEOUT_SECONDS = 2.0  # KubeRay's own


class UnreachableError(Exception):
    """No dashboard answered, or not with what was asked."""


@dataclass(frozen=True)
class JobInfo:
    """What a dashboard says of a job."""

    status: str
    message: str
    started: float = 0.0
    """Seconds since the epoch; 0 before the start."""
    ended: float = 0.0


class JobApi(Protocol):
    """The dashboards of all RayClusters. Every call raises UnreachableError."""

    def job(self, cluster: Key, job_id: str) -> JobInfo | None:
        """A job, None if the dashboard does not know it."""

    def submit(self, cluster: Key, job_id: str, entrypoint: str) -> None:
        """Start a job, unless it is known already."""

    def stop(self, cluster: Key, job_id: str) -> None:
        """Ask a job to end."""


class HttpJobApi:
    """Real dashboards, reached at the address of the head pod, with the token of `authOptions`."""

    def __init__(self, api: Api, mirror: Mirror) -> None:
        self._api, self._mirror = api, mirror
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=_TIMEOUT_SECONDS))
        self._headers: dict[str, dict[str, str]] = {}
        """By the uid of a RayCluster."""

    def job(self, cluster: Key, job_id: str) -> JobInfo | None:
        told = self._call(cluster, "GET", f"/api/jobs/{job_id}")
        if told is None:
            return None
        started, ended = (float(told.get(name) or 0) / 1000 for name in ("start_time", "end_time"))
        return JobInfo(told["status"], told.get("message") or "", started, ended)

    def submit(self, cluster: Key, job_id: str, entrypoint: str) -> None:
        self._call(cluster, "POST", "/api/jobs/", {"submission_id": job_id, "entrypoint": entrypoint})

    def stop(self, cluster: Key, job_id: str) -> None:
        self._call(cluster, "POST", f"/api/jobs/{job_id}/stop")

    def _call(self, cluster: Key, method: str, path: str, body: Object | None = None) -> Object | None:
        """What the dashboard answers, None if it knows no such job."""
        found = self._mirror.get("rayclusters", *cluster)
        address = found.get("status", {}).get("head", {}).get("podIP") if found else None
        if found is None or address is None:
            raise UnreachableError(f"RayCluster {'/'.join(cluster)} has no head with an address")
        url = f"http://{address}:{DASHBOARD_PORT}{path}"
        try:
            answer = self._http.request(method, url, json=body, headers=self._token(found))
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{url}: {error}") from error
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise UnreachableError(f"{url}: {answer.status} {answer.data[:200]!r}")
        told: Object = json.loads(answer.data)
        return told

    def _token(self, cluster: Object) -> dict[str, str]:
        auth, uid = cluster["spec"].get("authOptions", {}), cluster["metadata"]["uid"]
        if auth.get("mode") != "token":
            return {}
        if uid not in self._headers:
            name = auth.get("secretName", cluster["metadata"]["name"])
            secret = self._api.get("secrets", cluster["metadata"]["namespace"], name)
            if secret is None:
                raise UnreachableError(f"there is no Secret {name} with the token of the dashboard")
            token = base64.b64decode(secret["data"]["auth_token"]).decode()
            self._headers[uid] = {"Authorization": f"Bearer {token}"}
        return self._headers[uid]
