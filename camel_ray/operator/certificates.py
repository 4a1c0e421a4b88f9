"""The progress server's own certificates: what lies in the operator's Secret, and when which part of it changes.

    ca.crt   authorities that pods trust, newest first      ca.key   keys of those that sign now, or will
    tls.crt  what every replica shows its clients           tls.key  its key

A pod trusts for life the bundle that lay in `ca.crt` when it was started, so an authority must be known for long before
it signs. It lives two years; after one its successor is published beside it, half a year later that one begins to sign,
and the old key is forgotten. A certificate for showing lives 30 days and is renewed after 20.

`renewed` decides from the contents and the time alone: replicas need to agree on nothing but the Secret, and nothing
has to be remembered besides it. No I/O, no clock; `progress_tls.py` calls it. Reasons: docs/decisions/0013.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from secrets import token_hex
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=730)
SUCCESSION = AUTHORITY_LIFE / 2
"""Age of an authority at which its successor is published."""
SETTLED = AUTHORITY_LIFE / 4
"""Age from which an authority signs, where an older one still can: longer than pods live."""
SERVING_LIFE = timedelta(days=30)
SERVING_AGE = 2 / 3
"""Part of its life after which a certificate is renewed."""
BACKDATED = timedelta(hours=1)
"""Certificates hold a little longer than they exist, as clocks differ."""
_SKEW = timedelta(days=1)
"""What is from further in the future was made by a wrong clock. An authority does not sign in its last day either."""
_OWNER = "camel-ray"
_KEY_PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----\s*", re.DOTALL)
_UNREADABLE = (
    *(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound),
    CryptographyDeprecationWarning,  # what a later version of the library refuses, we have never written
)


@dataclass(frozen=True)
class Certificates:
    """What the Secret should hold now."""

    bundle: str
    """`ca.crt`, PEM: what pods should trust."""
    certificate: str
    """`tls.crt`, PEM."""
    expires: datetime
    """When `certificate` does."""
    key: str = field(repr=False)
    """`tls.key`, PEM."""
    authority_keys: str = field(repr=False)
    """`ca.key`, PEM, in the bundle's order."""

    def data(self) -> dict[str, bytes]:
        """As it lies in the Secret."""
        texts = {
            "ca.crt": self.bundle,
            "ca.key": self.authority_keys,
            "tls.crt": self.certificate,
            "tls.key": self.key,
        }
        return {name: text.encode() for name, text in texts.items()}


def hosts_of(url: str) -> tuple[str, ...]:
    """Names that a server at this URL should prove to be: the URL's, and for a Service its shorter ones."""
    host = urlsplit(url).hostname or ""
    labels = host.split(".")
    if len(labels) < 3 or labels[2] != "svc":
        return (host,)
    return tuple(dict.fromkeys((host, ".".join(labels[:3]), ".".join(labels[:2]), labels[0])))


def renewed(found: Mapping[str, bytes], hosts: Sequence[str], now: datetime) -> tuple[Certificates, str]:
    """What the Secret should hold, given what is `found` in it; the same where nothing is due.

    `hosts`: DNS names and IP addresses of the server. Beside it one clause about contents that could not be used, and
    were replaced; empty if there were none. Never raises for anything found.
    """
    troubles: list[str] = []
    authorities = [each for each in _authorities(found, troubles) if each.valid(now)]
    if found.get("ca.crt") and not authorities and not troubles:
        troubles.append("no authority in ca.crt is valid any more")
    if not any(each.key for each in authorities):
        if authorities and not troubles:
            troubles.append("ca.key has no key of an authority in ca.crt")
        authorities.insert(0, _new_authority(now))
    elif now - authorities[0].published >= SUCCESSION:
        authorities.insert(0, _new_authority(now))
    signer = _signer(authorities, now)
    serving = _serving(found, signer, hosts, now, troubles) or _new_serving(signer, hosts, now)
    # whoever signed before will not sign again
    keys = [each.key for each in authorities[: authorities.index(signer) + 1] if each.key is not None]
    made = Certificates(
        bundle="".join(_pem(each.certificate) for each in authorities),
        certificate=_pem(serving.certificate),
        expires=serving.certificate.not_valid_after_utc,
        key=_key_pem(serving.key),
        authority_keys="".join(map(_key_pem, keys)),
    )
    return made, "; ".join(troubles)


@dataclass(frozen=True, eq=False)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None = field(repr=False)
    """None where it only remains to be trusted."""

    @property
    def published(self) -> datetime:
        return self.certificate.not_valid_before_utc + BACKDATED

    def valid(self, now: datetime) -> bool:
        return self.published - _SKEW <= now < self.certificate.not_valid_after_utc


@dataclass(frozen=True)
class _Serving:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def _signer(authorities: Sequence[_Authority], now: datetime) -> _Authority:
    """The newest that every pod knows; if there is none the oldest, which the most pods know."""
    able = [each for each in authorities if each.key is not None]
    lasting = [each for each in able if each.certificate.not_valid_after_utc - now > _SKEW] or able
    return next((each for each in lasting if now - each.published >= SETTLED), lasting[-1])


def _authorities(found: Mapping[str, bytes], troubles: list[str]) -> list[_Authority]:
    """Those of ca.crt, newest first, with their keys where ca.key has them."""
    if not found.get("ca.crt"):
        if any(found.values()):
            troubles.append("ca.crt is missing")
        return []
    try:
        certificates = _certificates(found["ca.crt"])
        for certificate in certificates:
            _check_authority(certificate)
    except _UNREADABLE:
        troubles.append("ca.crt is not a list of authorities that the operator made")
        return []
    keys: dict[bytes, ec.EllipticCurvePrivateKey] = {}
    try:
        keys = {_public(key.public_key()): key for key in _keys(found.get("ca.key", b""))}
    except _UNREADABLE:
        troubles.append("ca.key cannot be read")
    listed = [_Authority(each, keys.get(_public(_elliptic(each)))) for each in certificates]
    return sorted(listed, key=lambda each: each.published, reverse=True)


def _certificates(pem: bytes) -> list[x509.Certificate]:
    """All of a PEM text. Raises one of `_UNREADABLE`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        return x509.load_pem_x509_certificates(pem)


def _check_authority(certificate: x509.Certificate) -> None:
    """Raises one of `_UNREADABLE` for what `_new_authority` did not make."""
    owners = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if [owner.value for owner in owners] != [_OWNER]:
        raise ValueError("another's")
    if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("no authority")
    _elliptic(certificate)
    certificate.verify_directly_issued_by(certificate)


def _serving(
    found: Mapping[str, bytes], signer: _Authority, hosts: Sequence[str], now: datetime, troubles: list[str]
) -> _Serving | None:
    """That of tls.crt; None if it is time for another."""
    if not found.get("tls.crt") or not found.get("tls.key"):
        if found.get("ca.crt") and not troubles:
            troubles.append("tls.crt or tls.key is missing")
        return None
    try:
        certificate = _certificates(found["tls.crt"])[0]
        (key,) = _keys(found["tls.key"])
        if _public(_elliptic(certificate)) != _public(key.public_key()):
            raise ValueError("key of another certificate")
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        begin, end = certificate.not_valid_before_utc + BACKDATED, certificate.not_valid_after_utc
    except _UNREADABLE:
        if not troubles:
            troubles.append("tls.crt and tls.key are not a certificate and its key")
        return None
    try:
        certificate.verify_directly_issued_by(signer.certificate)
    except _UNREADABLE:  # the signer has changed
        return None
    fresh = begin - _SKEW <= now < begin + (end - begin) * SERVING_AGE
    return _Serving(certificate, key) if fresh and all(name in names for name in _names(hosts)) else None


def _new_authority(now: datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: a client that knows two authorities of one name may try the wrong one, and give up.
    name = _subject(f"camel-ray progress authority {now:%Y-%m-%d} {token_hex(4)}")
    builder = _builder(name, name, key, now, now + AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    return _Authority(builder.sign(key, hashes.SHA256()), key)


def _new_serving(signer: _Authority, hosts: Sequence[str], now: datetime) -> _Serving:
    assert signer.key is not None
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(now + SERVING_LIFE, signer.certificate.not_valid_after_utc)
    builder = _builder(_subject("camel-ray progress server"), signer.certificate.subject, key, now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(list(_names(hosts))), critical=False)
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return _Serving(builder.add_extension(known, critical=False).sign(signer.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _subject(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, _OWNER), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(hosts: Sequence[str]) -> Iterator[x509.GeneralName]:
    for host in hosts:
        try:
            yield x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            yield x509.DNSName(host)


def _keys(pem: bytes) -> list[ec.EllipticCurvePrivateKey]:
    """All of a PEM text. Raises one of `_UNREADABLE`."""
    if _KEY_PEM.sub(b"", pem).strip():
        raise ValueError("more than keys")
    keys = [serialization.load_pem_private_key(block, password=None) for block in _KEY_PEM.findall(pem)]
    elliptic = [key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)]
    if len(elliptic) != len(keys):
        raise ValueError("a key of another kind")
    return elliptic


def _elliptic(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a key of another kind")
    return key


def _public(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
