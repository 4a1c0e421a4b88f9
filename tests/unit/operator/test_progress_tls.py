"""Where the progress server's certificates come from: brought files, and the Secret that replicas keep together."""

from __future__ import annotations

import base64
import logging
import math
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from progress_world import HOST, World

from camel_ray.operator import progress_tls
from camel_ray.operator.certificates import renewed
from camel_ray.operator.kube.errors import Conflict, Forbidden, KubeError, NotFound, Unreachable
from camel_ray.operator.progress_tls import (
    CertificateError,
    CertificateSecret,
    ProgressTls,
    authority_file,
    certificate_files,
    serving,
)

DAY = timedelta(days=1)


class Api:
    """One Secret, written as an API server writes it: only by who has seen the newest version."""

    def __init__(self) -> None:
        self.secret: dict[str, Any] | None = {"metadata": {"name": "tls", "namespace": "ops", "resourceVersion": "1"}}
        self.writes = 0
        self.trouble: KubeError | None = None
        self.before_write: list[Callable[[], None]] = []

    def get(self, kind: Any, name: str, namespace: str) -> dict[str, Any]:
        assert (kind.plural, name, namespace) == ("secrets", "tls", "ops")
        if self.trouble is not None:
            raise self.trouble
        if self.secret is None:
            raise NotFound("not found")
        return self.secret

    def replace(self, kind: Any, obj: dict[str, Any]) -> dict[str, Any]:
        while self.before_write:
            self.before_write.pop()()
        assert self.secret is not None
        if obj["metadata"]["resourceVersion"] != self.secret["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified")
        self.writes += 1
        version = str(int(obj["metadata"]["resourceVersion"]) + 1)
        self.secret = {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}}
        return self.secret

    def put(self, **data: bytes) -> None:
        assert self.secret is not None
        texts = {name.replace("_", "."): base64.b64encode(value).decode() for name, value in data.items()}
        self.secret = {**self.secret, "data": {**self.secret.get("data", {}), **texts}}


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replica(api: Api, clock: Clock) -> CertificateSecret:
    return CertificateSecret(api, name="tls", namespace="ops", hosts=(HOST,), now=clock)  # type: ignore[arg-type]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    made.hurry(monkeypatch)
    return made


def test_the_first_replica_fills_the_secret_and_the_others_take_what_it_made(api: Api, clock: Clock) -> None:
    first, second = replica(api, clock), replica(api, clock)
    assert (first.serving(), first.bundle()) == (None, "")
    first.look()
    second.look()
    first.look()
    assert api.writes == 1
    assert first.bundle() == second.bundle() != ""
    assert api.secret is not None
    assert sorted(api.secret["data"]) == ["ca.crt", "ca.key", "tls.crt", "tls.key"]


def test_who_loses_the_race_takes_the_winners(api: Api, clock: Clock) -> None:
    first, second = replica(api, clock), replica(api, clock)
    api.before_write.append(second.look)  # between the first's read and its write
    first.look()
    assert api.writes == 1
    assert first.bundle() == second.bundle()


def test_other_entries_of_the_secret_and_its_labels_stay(api: Api, clock: Clock) -> None:
    assert api.secret is not None
    api.secret["metadata"]["labels"] = {"app": "camel-ray"}
    api.put(note=b"mine")
    replica(api, clock).look()
    assert api.secret["data"]["note"] == base64.b64encode(b"mine").decode()
    assert api.secret["metadata"]["labels"] == {"app": "camel-ray"}


def test_a_running_server_changes_its_certificate_and_keeps_its_connections(
    api: Api, clock: Clock, world: World
) -> None:
    first, second = replica(api, clock), replica(api, clock)
    clock.now -= 21 * DAY
    first.look()
    second.look()
    world.authority = first.bundle()
    with world.serve(first.serving):
        assert world.post({})[0] == 200
        before = first.serving()
        with world.connect() as under_way:
            clock.now += 21 * DAY
            second.look()  # renews
            first.look()  # sees it
            assert api.writes == 2
            assert first.serving() is not before
            under_way.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert under_way.recv(12)[9:] == b"501"
        assert world.post({})[0] == 200  # with the bundle from before
        with world.connect() as connection:
            assert isinstance(connection, ssl.SSLSocket)
            shown = ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")
        assert api.secret is not None
        assert shown == base64.b64decode(api.secret["data"]["tls.crt"]).decode()


def test_wrong_authorities_old_versions_and_plain_http_are_refused(api: Api, clock: Clock, world: World) -> None:
    own, foreign = replica(api, clock), replica(Api(), clock)
    own.look()
    foreign.look()
    with world.serve(own.serving):
        assert world.raw(b"POST / HTTP/1.1\r\n\r\n")[:4] != b"HTTP"
        world.authority = foreign.bundle()
        with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get local issuer"):
            world.post({})
        world.authority = own.bundle()
        assert world.post({})[0] == 200
        old = world.trust()
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        world.trust = lambda: old  # type: ignore[method-assign]
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|protocol version"):
            world.connect()


def test_a_server_without_a_certificate_yet_closes_connections_and_says_why(
    api: Api, clock: Clock, world: World
) -> None:
    secret = replica(api, clock)
    tls = ProgressTls(secret.serving, secret.bundle, secret)
    assert tls.missing() == "the Secret ops/tls has not been read yet"
    assert math.isnan(tls.seconds_left())
    with world.serve(tls.serving):
        assert world.raw(b"POST / HTTP/1.1\r\n\r\n") == b""
        secret.look()
        world.authority = secret.bundle()
        assert world.post({})[0] == 200
    assert tls.missing() == ""
    assert tls.seconds_left() == pytest.approx(30 * 86400, abs=60)


def test_spoilt_contents_are_one_line_of_the_log_and_no_key_is_in_it(
    api: Api, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first, second = replica(api, clock), replica(api, clock)
    first.look()
    api.put(ca_crt=b"nothing")
    first.look()
    second.look()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [
        "the Secret ops/tls was not as the operator left it: ca.crt is not a list of authorities that the operator "
        "made; it has new certificates now, and attempts that trust the old ones report again after their next start"
    ]
    assert first.bundle() == second.bundle()
    assert "PRIVATE" not in caplog.text
    assert api.secret is not None
    for name in ("ca.key", "tls.key"):
        assert api.secret["data"][name] not in caplog.text


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (
            NotFound("gone"),
            "the Secret ops/tls of --progress-tls-secret does not exist; make it, empty",
        ),
        (Forbidden("no"), "the Secret ops/tls of --progress-tls-secret is not ours to get and update (no); grant that"),
        (Unreachable("no answer"), "the Secret ops/tls of --progress-tls-secret cannot be looked after: no answer"),
    ],
)
def test_what_keeps_it_from_its_secret_is_said_once_and_tried_again(
    api: Api,
    clock: Clock,
    trouble: KubeError,
    words: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_tls, "_RETRY_SECONDS", 0.001)
    tries: list[int] = []
    monkeypatch.setattr(api, "get", lambda *_, get=api.get: (tries.append(1), get(*_))[1])
    api.trouble = trouble
    secret = replica(api, clock)
    tls = ProgressTls(secret.serving, secret.bundle, secret)
    tls.start()
    wait_until(lambda: len(tries) > 3)
    assert tls.missing().startswith(words)
    api.trouble = None
    wait_until(lambda: not tls.missing())
    tls.close()
    assert len([record for record in caplog.records if record.getMessage().startswith(words)]) == 1


def test_an_api_server_that_is_away_takes_nothing_from_who_serves(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_tls, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(progress_tls, "LOOK_SECONDS", 0.001)
    secret = replica(api, clock)
    secret.start()
    wait_until(lambda: secret.serving() is not None)
    held, api.trouble = secret.serving(), Unreachable("no answer")
    wait_until(lambda: "no answer" in secret.trouble)
    assert secret.serving() is held
    clock.now, api.trouble = clock.now + 21 * DAY, None
    wait_until(lambda: secret.serving() is not held)
    secret.close()
    assert not any(thread.name == "certificates" for thread in threading.enumerate())


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_the_key_is_in_a_file_of_ours_alone_and_only_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def look(context: ssl.SSLContext, path: str) -> None:
        seen.append(stat.S_IMODE(Path(path).stat().st_mode))
        load(context, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    made, _ = renewed({}, (HOST,), datetime.now(UTC))
    serving(made.certificate.encode(), made.key.encode())
    with pytest.raises(CertificateError, match="no certificate with its key"):
        serving(made.certificate.encode(), b"")
    assert seen == [0o600, 0o600]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Certificate, key and authority, as cert-manager brings them."""
    paths = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt"
    write(paths)
    return paths


def write(files: tuple[Path, Path, Path]) -> None:
    made, _ = renewed({}, (HOST,), datetime.now(UTC))
    for path, text in zip(files, (made.certificate, made.key, made.bundle), strict=True):
        path.write_text(text)


def test_brought_files_are_read_again_when_they_change(files: tuple[Path, Path, Path], world: World) -> None:
    tls, bundle = certificate_files(*files[:2]), authority_file(files[2])
    world.authority = first = bundle()
    with world.serve(tls):
        assert world.post({})[0] == 200
        write(files)
        assert bundle() != first
        with pytest.raises(ssl.SSLCertVerificationError):
            world.post({})
        world.authority = bundle()
        assert world.post({})[0] == 200


def test_files_that_are_half_new_change_nothing_until_they_are_whole(
    files: tuple[Path, Path, Path], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    tls = certificate_files(*files[:2])
    before, old = tls(), [path.read_text() for path in files]
    write(files)
    new_key = files[1].read_text()
    files[1].write_text(old[1])
    assert tls() is before
    assert tls() is before
    files[1].unlink()
    assert tls() is before
    files[1].write_text(new_key)
    assert tls() is not before
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(f"{files[0]} and {files[1]} cannot be read again (this is no certificate with its key")
    assert "PRIVATE" not in caplog.text


def test_files_that_are_no_certificate_end_the_start_with_a_sentence(files: tuple[Path, Path, Path]) -> None:
    files[1].write_text("nothing")
    with pytest.raises(CertificateError, match=r"tls\.key: this is no certificate with its key"):
        certificate_files(*files[:2])
    with pytest.raises(FileNotFoundError):
        authority_file(files[2].with_name("none"))
