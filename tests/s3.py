"""A real S3 server for tests, over HTTP and with the rights of IAM, that fails on demand.

moto checks signatures and policies after `user_with_rights`; `fail` sits before it and answers what a server in
trouble does.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3  # type: ignore[import-untyped]
import moto.core.responses
import moto.settings
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

KEY, SECRET = "AKIAOFTHETESTS000000", "the-secret-of-the-tests-0123456789abcdef"
BUCKET = "team"
Fail = Callable[[str, str], int | str | None]
"""Of method and path: the status to answer with, S3's word for what is wrong with a request (`ExpiredToken`), 0 to
break the connection off, None to serve the request.
"""


class _Quiet(MotoRequestHandler):
    def log(self, *_: Any) -> None:
        """Nothing."""


class S3:
    """A server on a port of its own."""

    def __init__(self, address: str) -> None:
        self.fail: Fail = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        """Method and path of all requests so far."""
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(address, 0, self._answer, True, request_handler=_Quiet)
        self.url = f"http://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def client(self, service: str = "s3") -> Any:
        """boto3's client with rights to everything."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def names(self, prefix: str = "") -> list[str]:
        """Keys in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def content(self, name: str) -> bytes:
        """The content of an object."""
        found: bytes = self.client().get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return found

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        status = self.fail(method, path)
        if status is None:
            answer: Iterable[bytes] = self._moto(environ, start_response)
            return answer
        if status == 0:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        body = b"trouble"
        if isinstance(status, str):
            body, status = f"<Error><Code>{status}</Code><Message>{status}</Message></Error>".encode(), 400
        start_response(f"{status} Trouble", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[S3]:
    """A server with the bucket `team` at an address of this machine."""
    server = S3(address)
    try:
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    finally:
        server.close()


def use(server: S3, monkeypatch: pytest.MonkeyPatch, *, key: str = KEY, secret: str = SECRET) -> None:
    """Point this process to it the way users of MinIO do."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def user_with_rights(server: S3, monkeypatch: pytest.MonkeyPatch, actions: list[str]) -> tuple[str, str]:
    """Key and secret of a new user who may do only `actions` in the bucket; from now on the server looks at rights."""
    iam = server.client("iam")
    iam.create_user(UserName="u")
    resource = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": resource}]}
    iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(policy))
    made = iam.create_access_key(UserName="u")["AccessKey"]
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    return made["AccessKeyId"], made["SecretAccessKey"]
