"""A web service as reward: JSON over POST, in batches side by side, with time limits and further tries.

The limit of a request counts for all of it, from connecting to the last byte of the reply, so a service that sends a
byte now and then cannot stall a round. Redirects are not followed: neither answers nor token go to a host that the file
does not name.

How long a round can take: a batch is tried 1 + retries times, T seconds each, with waits of at most T between. If it
still fails for a reason that one answer may be guilty of (a hang, a status of 400 or 500, an unreadable reply), its
answers are tried alone, in the same way except that a hang is final. When 8 of these in a row have hung with no reply
between them, it is the service that hangs: the rest fails as `not tried`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import httpx2

from camel_ray.api.stages.ppo_reward import HttpRewardSpec
from camel_ray.errors import RewardError
from camel_ray.ppo.rewards.score import NOT_TRIED, TIMED_OUT, WRONG_COUNT, Answered, Failure, as_score

_CONNECTIONS = 32
_MAX_REPLY_BYTES = 8 << 20
_FIRST_WAIT_SECONDS = 0.5
_MAX_WAIT_SECONDS = 30.0
_STUCK_AFTER = 8
_UNREADABLE = "unreadable reply"
# Bad request, content too large, unprocessable, internal error, and the two that a gateway says of a process behind it.
_DIVISIBLE = (400, 413, 422, 500, 502, 504)


class HttpReward:
    """The service at `spec.url`. One call at a time; `close` may come from another thread and ends the call.

    Raises RewardError if the URL is none, or the variable with the token is not set.
    """

    def __init__(self, spec: HttpRewardSpec) -> None:
        self.spec = spec
        try:
            self._url = httpx2.URL(spec.url)
            if not self._url.host:
                raise ValueError("it has no host")
        except (httpx2.InvalidURL, ValueError) as error:
            raise RewardError(f"reward.http.url: this is no address of a web service ({error}); correct it") from None
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if spec.token_env is not None:
            self._headers["Authorization"] = f"Bearer {_token(spec.token_env)}"
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """The URL without what may be secret: user, password and query."""
        return str(self._url.copy_with(username=None, password=None, query=None, fragment=None))

    def __call__(self, answers: Sequence[Answered]) -> list[float | Failure]:
        """A score or a failure for each answer, in their order."""
        return asyncio.run(self._score(answers)) if answers else []

    def close(self) -> None:
        """End the call in progress: it raises CancelledError in its thread."""
        self._closed = True
        if self._running is not None:
            loop, task = self._running
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                loop.call_soon_threadsafe(task.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _score(self, answers: Sequence[Answered]) -> list[float | Failure]:
        task = asyncio.current_task()
        assert task is not None
        self._running = asyncio.get_running_loop(), task
        if self._closed:
            raise asyncio.CancelledError
        size = self.spec.batch_size
        try:
            async with httpx2.AsyncClient(
                headers=self._headers,
                timeout=None,  # ours counts for the whole request, see _post
                limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            ) as client:
                round_ = _Round(self.spec, self._url, client)
                parts = await asyncio.gather(
                    *(round_.batch(answers[start : start + size]) for start in range(0, len(answers), size))
                )
        finally:
            self._running = None
        return [score for part in parts for score in part]


@dataclass
class _Refused(Exception):
    """A request without scores."""

    failure: Failure
    again: bool = False
    """Whether another try may help."""
    divisible: bool = True
    """Whether one answer may be guilty, so that the others deserve to be tried without it."""
    wait_seconds: float | None = None
    """What the service asked for."""


class _Round:
    """The requests of one round, side by side."""

    def __init__(self, spec: HttpRewardSpec, url: httpx2.URL, client: httpx2.AsyncClient) -> None:
        self._spec, self._url, self._client = spec, url, client
        self._gate = asyncio.Semaphore(_CONNECTIONS)
        self._hung_in_a_row = 0
        self._random = random.Random()  # the global one belongs to the run and is reproducible

    async def batch(self, answers: Sequence[Answered]) -> list[float | Failure]:
        """Scores of one batch, at last answer by answer."""
        try:
            return await self._try(answers)
        except _Refused as refused:
            if len(answers) == 1 or not refused.divisible:
                return [refused.failure] * len(answers)
        return list(await asyncio.gather(*(self._alone(answer) for answer in answers)))

    async def _alone(self, answer: Answered) -> float | Failure:
        try:
            (score,) = await self._try([answer], alone=True)
        except _Refused as refused:
            return refused.failure
        return score

    async def _try(self, answers: Sequence[Answered], *, alone: bool = False) -> list[float | Failure]:
        """Scores of a request and its further tries. Raises _Refused of the last one.

        `alone`: what is left of a batch that failed; a time-out is final then, and many in a row end the others.
        """
        for tries in itertools.count():
            try:
                async with self._gate:
                    if alone and self._hung_in_a_row >= _STUCK_AFTER:
                        detail = f"{self._hung_in_a_row} answers in a row took too long"
                        raise _Refused(Failure(NOT_TRIED, detail))
                    scores = await self._post(answers)
            except _Refused as refused:
                hung = refused.failure.reason == TIMED_OUT
                if alone and refused.failure.reason != NOT_TRIED:
                    self._hung_in_a_row = self._hung_in_a_row + 1 if hung else 0
                if not refused.again or tries == self._spec.retries or (alone and hung):
                    raise
                wait = self._wait(tries, refused.wait_seconds)
            else:
                self._hung_in_a_row = 0
                return scores
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _wait(self, tries: int, asked: float | None) -> float:
        """Seconds until the next try: what the service asked for, else twice as long each time, with jitter so that
        the batches do not come back all at once; never more than the limit of a request.
        """
        if asked is not None:
            return min(max(asked, 0.0), self._spec.timeout_seconds)
        longest = min(_MAX_WAIT_SECONDS, self._spec.timeout_seconds, _FIRST_WAIT_SECONDS * 2.0**tries)
        return longest * self._random.uniform(0.5, 1.0)

    async def _post(self, answers: Sequence[Answered]) -> list[float | Failure]:
        """One request. Raises _Refused."""
        rows = ",".join(answer.row for answer in answers)
        prompts, texts = json.dumps([a.prompt for a in answers]), json.dumps([a.answer for a in answers])
        body = f'{{"prompts":{prompts},"answers":{texts},"rows":[{rows}]}}'.encode()
        try:
            async with (
                asyncio.timeout(self._spec.timeout_seconds),
                self._client.stream("POST", self._url, content=body) as response,
            ):
                _check_status(response)
                reply = await _read(response)
        except TimeoutError:
            failure = Failure(TIMED_OUT, f"no reply within {self._spec.timeout_seconds:g} s")
            raise _Refused(failure, again=True) from None
        except (httpx2.HTTPError, OSError) as error:
            failure = Failure("connection lost", f"{type(error).__name__}: {error}")
            # A service that took the request and then hung up may have died of it; one that is not there has not.
            raise _Refused(failure, again=True, divisible=not isinstance(error, httpx2.ConnectError)) from None
        return _scores(reply, len(answers))


def _token(variable: str) -> str:
    """The token, which must not show up in any message. Raises RewardError."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise RewardError(
            f"reward.http.tokenEnv: the environment variable {variable} is not set; set it to the bearer token, on "
            "Kubernetes from a Secret"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise RewardError(
            f"reward.http.tokenEnv: the value of {variable} is no bearer token, which is ASCII without spaces; correct "
            "the variable"
        )
    return token


def _check_status(response: httpx2.Response) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    detail = "redirects are not followed; name the final address" if 300 <= status < 400 else response.reason_phrase
    raise _Refused(
        Failure(f"HTTP {status}", detail),
        again=status == 429 or status >= 500,
        divisible=status in _DIVISIBLE,
        wait_seconds=_retry_after(response.headers.get("Retry-After")),
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, section 10.2.3): a number, or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


async def _read(response: httpx2.Response) -> bytes:
    reply = bytearray()
    async for chunk in response.aiter_bytes():
        reply += chunk
        if len(reply) > _MAX_REPLY_BYTES:
            raise _Refused(Failure(_UNREADABLE, f"more than {_MAX_REPLY_BYTES >> 20} MiB"))
    return bytes(reply)


def _scores(reply: bytes, count: int) -> list[float | Failure]:
    """The scores of a reply {"scores": [...]}. Raises _Refused if it is of another shape."""
    try:
        parsed = json.loads(reply)
    except (ValueError, RecursionError):
        raise _Refused(Failure(_UNREADABLE, "it is no JSON")) from None
    scores = parsed.get("scores") if isinstance(parsed, dict) else None
    if not isinstance(scores, list):
        raise _Refused(Failure(_UNREADABLE, "it has no list 'scores'"))
    if len(scores) != count:
        raise _Refused(Failure(WRONG_COUNT, f"{len(scores)} for {count} answers"))
    return [as_score(score) for score in scores]
