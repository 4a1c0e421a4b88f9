"""What a request to the API server can end with.

KubeError
├── Invalid            400, 422   the server does not take the object; trying again changes nothing
├── Unauthorized       401        it does not know who we are, also after the token was read again
├── Forbidden          403        we may not do this, or a quota is used up, or the namespace is being deleted
├── NotFound           404        no such object, or no such kind
├── AlreadyExists      409        the name is taken
├── Conflict           409        somebody else changed the object meanwhile, or owns the field
├── Gone               410        the resource version is too old: list again
├── TooManyRequests    429        the server asks for less; `retry_after` says when
├── ServerError        5xx        the server or one of its webhooks failed
└── Unreachable        0          no answer: refused, reset, timed out, or the client was closed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson


class KubeError(Exception):
    """A request failed; `str(error)` is one sentence that names the request and carries the server's words."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after: float | None = None,
        causes: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        """HTTP status; 0 without an answer."""
        self.reason = reason
        """The server's reason in one word, such as `AlreadyExists`."""
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again, if it said so."""
        self.causes = tuple(causes)
        """What is wrong with each field of an object that is not taken: `field: the server's words`."""


class Invalid(KubeError):
    """The server does not take the object or the request."""


class Unauthorized(KubeError):
    """The server does not know who we are."""


class Forbidden(KubeError):
    """We may not do this, a quota is used up, or the namespace is being deleted."""


class NotFound(KubeError):
    """No such object, or no such kind."""


class AlreadyExists(KubeError):
    """The name is taken."""


class Conflict(KubeError):
    """Somebody else changed the object meanwhile, or owns the field."""


class Gone(KubeError):
    """The resource version is too old."""


class TooManyRequests(KubeError):
    """The server asks for fewer requests."""


class ServerError(KubeError):
    """The server or one of its webhooks failed."""


class Unreachable(KubeError):
    """There was no answer, or it was cut off."""


_BY_STATUS: Mapping[int, type[KubeError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_of(request: str, status: int, body: bytes | Mapping[str, Any], retry_after: str | None = None) -> KubeError:
    """The exception for an answer that is no success. `body` is a `Status` object, or what a proxy said instead."""
    answer: Any = body
    if isinstance(body, bytes):
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = {"message": body[:300].decode(errors="replace").strip()}
    if not isinstance(answer, Mapping):
        answer = {"message": str(answer)[:300]}
    reason = str(answer.get("reason") or "")
    details = answer.get("details")
    seconds = retry_after or (details.get("retryAfterSeconds") if isinstance(details, Mapping) else None)
    cls = _BY_STATUS.get(status, ServerError if status >= 500 else KubeError)
    if reason == "AlreadyExists":
        cls = AlreadyExists
    words = str(answer.get("message") or "no reason given")
    return cls(
        f"{request} failed with {status}{f' {reason}' if reason else ''}: {words}",
        status=status,
        reason=reason,
        retry_after=_seconds(seconds),
        causes=_causes(details.get("causes")) if isinstance(details, Mapping) else (),
    )


def _causes(value: object) -> list[str]:
    causes = [cause for cause in value if isinstance(cause, Mapping)] if isinstance(value, list) else []
    return [f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in causes]


def _seconds(value: object) -> float | None:
    try:
        return float(str(value)) if value else None
    except ValueError:  # HTTP also allows a date; no API server sends one
        return None
