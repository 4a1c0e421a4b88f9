"""Where the progress server has its certificate from: files that somebody brings, or a Secret that it keeps itself.

Both are looked at again while it serves. A new certificate is a new TLS context, taken for the connections that come
after it; those under way keep theirs. What pods should trust goes the same way: `bundle` is asked for each attempt.
"""

from __future__ import annotations

import base64
import logging
import math
import ssl
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import uniform
from typing import Generic, TypeVar

from cryptography import x509

from camel_ray.operator.certificates import Certificates, renewed
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.errors import Conflict, Forbidden, KubeError, NotFound
from camel_ray.operator.kube.kinds import SECRET

LOOK_SECONDS = 60.0
"""Between two looks at the Secret."""
_RETRY_SECONDS = 5.0
T = TypeVar("T")
log = logging.getLogger(__name__)


class CertificateError(ValueError):
    """Certificates that cannot be used."""


@dataclass(frozen=True)
class Serving:
    """What a connection is served with."""

    context: ssl.SSLContext
    expires: datetime


def serving(certificate: bytes, key: bytes) -> Serving:
    """From PEM texts: certificate with the authorities between it and its root, and key. Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # `ssl` reads files only: one that nobody else may read, and that is gone at once.
    with tempfile.NamedTemporaryFile(prefix="camel-ray-") as file:
        file.write(certificate.rstrip() + b"\n" + key)
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except ssl.SSLError as error:
            raise CertificateError(f"this is no certificate with its key ({error.reason or error})") from None
    return Serving(context, x509.load_pem_x509_certificate(certificate).not_valid_after_utc)


class Fresh(Generic[T]):
    """What files say, read again when they have changed; the last good word holds while they cannot be read.

    Raises OSError or CertificateError when made, if they cannot be used from the beginning.
    """

    def __init__(self, read: Callable[[Sequence[bytes]], T], *files: Path) -> None:
        self._read, self._files = read, files
        self._lock = threading.Lock()
        self._complaint = ""
        self._seen = self._stamps()
        try:
            self._value = read([file.read_bytes() for file in files])
        except ValueError as error:
            raise CertificateError(f"{self._names()}: {error}") from error

    def __call__(self) -> T:
        """What they say now."""
        with self._lock:
            try:
                stamps = self._stamps()
                if stamps != self._seen:
                    self._value = self._read([file.read_bytes() for file in self._files])
                    self._seen = stamps
            except (OSError, ValueError) as error:
                self._complain(str(error))
            else:
                self._complaint = ""
            return self._value

    def _complain(self, words: str) -> None:
        if words != self._complaint:
            log.warning("%s cannot be read again (%s); what was read before still holds", self._names(), words)
        self._complaint = words

    def _names(self) -> str:
        return " and ".join(map(str, self._files))

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in (file.stat() for file in self._files))


def certificate_files(certificate: Path, key: Path) -> Fresh[Serving]:
    """A brought certificate."""
    return Fresh(lambda texts: serving(texts[0], texts[1]), certificate, key)


def authority_file(path: Path) -> Fresh[str]:
    """A brought authority, PEM."""
    return Fresh(lambda texts: texts[0].decode(), path)


class CertificateSecret:
    """Keeps the certificates in a Secret that exists already, of which this process may get and update that one only.

    Each replica has one. Whoever first finds something due makes it and writes it; the others, and one that lost such
    a race, take what they find. `now`: the clock, UTC. Nothing is there before the first `look`.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        namespace: str,
        hosts: Sequence[str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client, self._name, self._namespace = client, name, namespace
        self._hosts, self._now = tuple(hosts), now
        self._held: tuple[Certificates, Serving] | None = None
        self._stop = threading.Event()
        self.trouble = f"the Secret {namespace}/{name} has not been read yet"
        """Why the Secret could not be looked at the last time, in a sentence; empty if it could."""
        self._thread = threading.Thread(target=self._run, name="certificates", daemon=True)

    def start(self) -> None:
        """Look now and then, until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    def serving(self) -> Serving | None:
        """What to serve with; None while there is nothing."""
        held = self._held
        return held[1] if held else None

    def bundle(self) -> str:
        """What pods should trust, PEM; empty while there is nothing."""
        held = self._held
        return held[0].bundle if held else ""

    def look(self) -> None:
        """Read the Secret, write what is due, and serve with what it then holds. Raises KubeError."""
        while True:
            secret = self._client.get(SECRET, self._name, self._namespace)
            data: dict[str, str] = secret.get("data") or {}
            found = {name: base64.b64decode(text) for name, text in data.items()}
            made, trouble = renewed(found, self._hosts, self._now())
            due = {name: value for name, value in made.data().items() if found.get(name) != value}
            if due:
                texts = {name: base64.b64encode(value).decode() for name, value in due.items()}
                try:
                    self._client.replace(SECRET, {**secret, "data": data | texts})
                except Conflict:  # another replica was first
                    continue
                if trouble:
                    log.warning(
                        "the Secret %s/%s was not as the operator left it: %s; it has new certificates now, and "
                        "attempts that trust the old ones report again after their next start",
                        *(self._namespace, self._name, trouble),
                    )
            self._take(made)
            return

    def _take(self, made: Certificates) -> None:
        held = self._held
        if held is None or held[0].data() != made.data():
            taken = serving(made.certificate.encode(), made.key.encode())
            self._held = (made, taken)
            log.info("the progress server's certificate holds until %s", f"{taken.expires:%Y-%m-%d %H:%M} UTC")

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause * uniform(0.8, 1.2)):
            pause = LOOK_SECONDS
            try:
                self.look()
                self.trouble = ""
            except Exception as error:  # whatever it is, the next look may work, and the server serves on meanwhile
                pause = _RETRY_SECONDS
                trouble = self._words(error)
                if trouble != self.trouble:
                    log.warning("%s", trouble, exc_info=not isinstance(error, KubeError))
                self.trouble = trouble

    def _words(self, error: Exception) -> str:
        secret = f"the Secret {self._namespace}/{self._name}"
        if isinstance(error, NotFound):
            return (
                f"{secret} of --progress-tls-secret does not exist; make it, empty: "
                f"`kubectl -n {self._namespace} create secret generic {self._name}`"
            )
        if isinstance(error, Forbidden):
            return f"{secret} of --progress-tls-secret is not ours to get and update ({error.message}); grant that"
        return f"{secret} of --progress-tls-secret cannot be looked after: {error}"


@dataclass(frozen=True)
class ProgressTls:
    """What the operator's options chose."""

    serving: Callable[[], Serving | None] | None = None
    """None: plain HTTP."""
    bundle: Callable[[], str] = str
    """What pods should trust, PEM; empty: what their system trusts."""
    secret: CertificateSecret | None = None

    def start(self) -> None:
        """Look after the Secret, if there is one."""
        if self.secret is not None:
            self.secret.start()

    def close(self) -> None:
        """Leave it to the others."""
        if self.secret is not None:
            self.secret.close()

    def missing(self) -> str:
        """Why there is no certificate yet, in a sentence; empty if none is needed, or there is one."""
        return "" if self.serving is None or self.serving() or self.secret is None else self.secret.trouble

    def seconds_left(self) -> float:
        """Until the certificate ends; NaN without one."""
        shown = self.serving() if self.serving is not None else None
        return (shown.expires - datetime.now(UTC)).total_seconds() if shown else math.nan
