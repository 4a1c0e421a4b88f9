"""Opens what lies behind a URI, and says in one sentence what went wrong there.

fsspec gives every store the same calls, but the errors stay those of botocore, aiohttp or Google's libraries, some of
which are no OSErrors at all. What a user has to act on (credentials, a bucket that is not there) is permanent here,
what time may heal is `StorageUnavailable`, and no sentence holds a password.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import fsspec

from camel_ray.api.rules import holds_credentials
from camel_ray.api.sentences import CREDENTIALS
from camel_ray.errors import CamelError, PermanentError, SpecError, StorageUnavailable

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"})
"""Stores without directories: there is none to make, and asking for one may make a bucket."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_LIBRARIES = frozenset({"aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"})
_LOCAL = (errno.ENOSPC, errno.EDQUOT)
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")

_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "SSOTokenLoadError", "DefaultCredentialsError"}
    | {"UnauthorizedSSOTokenError", "NoAuthTokenError"}
)
_REFUSED_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "401", "403"}
)
_WRONG_CODES = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidBucketName", "PermanentRedirect"}
    | {"301", "400"}
)
_TEMPORARY_CODES = frozenset({"ExpiredToken", "RequestTimeTooSkewed", "TokenRefreshRequired"})


def open_filesystem(
    uri: str, *, field: str, permanent: Callable[[str], PermanentError] = SpecError
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it. Raises `permanent(sentence)` if that cannot be."""
    if holds_credentials(uri):
        raise permanent(f"{field} {CREDENTIALS}")
    parts = urlsplit(uri)
    options: dict[str, Any] = {}
    if parts.scheme in OBJECT_STORES:
        options = {"skip_instance_cache": True, "use_listings_cache": False}
    if parts.scheme in ("s3", "s3a"):
        # Few and short tries of a request: whoever waits longer than that wants to say so, and not for 15 of them.
        retries = {"mode": "standard", "max_attempts": 3}
        options["config_kwargs"] = {"retries": retries, "connect_timeout": 10, "read_timeout": 30}
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, **({} if "::" in uri else options))
    except ImportError as error:
        extra = _EXTRAS.get(parts.scheme)
        remedy = f"pip install 'camel-ray[{extra}]'" if extra else "install it"
        raise permanent(f"{field}: {uri} needs a package that is not there ({error}); {remedy}") from error
    except ValueError as error:
        raise permanent(f"{field}: {uri} cannot be opened ({error}); check the URI") from error
    if hasattr(filesystem, "retries"):
        filesystem.retries = 1
    return filesystem, str(path)


@contextmanager
def explained(uri: str, *, field: str) -> Iterator[None]:
    """Turn what a store's library raises into one sentence, as `trouble` does. Other errors pass."""
    try:
        yield
    except CamelError:
        raise
    except Exception as error:
        found = trouble(error, uri, field=field, permanent=SpecError)
        if found is None:
            raise
        raise found from error


def trouble(
    error: Exception, uri: str, *, field: str, permanent: Callable[[str], PermanentError]
) -> PermanentError | StorageUnavailable | None:
    """What an error of a store means; None for errors of the local disk and of our own code.

    A FileNotFoundError is taken for a bucket that is not there: whoever reads files tells theirs apart first.
    """
    if _is_ours(error):
        return None
    uri = _PASSWORD.sub("***", uri)
    why, code = _reason(error), _code(error)
    if type(error).__name__ in _NO_CREDENTIALS:
        return permanent(
            f"{field}: there are no credentials for {uri} ({why}); set the store's environment variables (on a "
            "cluster: cluster.envFromSecrets) or use a service account that has rights there"
        )
    if code in _REFUSED_CODES or (isinstance(error, PermissionError) and code not in _TEMPORARY_CODES):
        return permanent(
            f"{field}: {uri} refuses the credentials ({why}); check them and their rights to list, read, write and "
            "delete there"
        )
    if isinstance(error, FileNotFoundError):
        return permanent(f"{field}: {uri} does not exist ({why}); create the bucket, or correct the name")
    if code == "400" and _asked_for_the_head(error):
        # To other requests S3 says ExpiredToken. Whoever gives out such tokens gives out the next one, and what else
        # 400 may mean is told by a listing, with which a run begins.
        return StorageUnavailable(
            f"{uri} cannot be reached ({why} without a reason: most likely the session token of the credentials has "
            "expired); run again with a new one, work is kept"
        )
    if code in _WRONG_CODES or type(error).__name__ == "ParamValidationError":
        return permanent(f"{field}: {uri} refuses the request ({why}); check the name, the region and the endpoint")
    return StorageUnavailable(f"{uri} cannot be reached ({why}); run again when it can, work is kept")


def _is_ours(error: Exception) -> bool:
    """Whether it is an error of the local disk, or none of a store at all."""
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _LOCAL
    return type(error).__module__.split(".")[0] not in _LIBRARIES


def _code(error: BaseException) -> str:
    """The store's own word for what happened: of an S3 error (s3fs keeps botocore's as the cause), or of HTTP."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        if (code := getattr(found, "code", None)) is not None:
            return str(code)
    return "403" if str(error).startswith("Forbidden") else ""


def _asked_for_the_head(error: BaseException) -> bool:
    """Whether an S3 error is the answer to HEAD, which has no body: its code is no more than the status of HTTP."""
    return any(str(getattr(e, "operation_name", "")).startswith("Head") for e in (error, error.__cause__))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return _PASSWORD.sub("***", text)[:200].rstrip(".")
