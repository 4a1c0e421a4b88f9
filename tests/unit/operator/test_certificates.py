"""The operator's own certificates over simulated years: what is due when, and that nobody is ever locked out."""

from __future__ import annotations

import base64
import random
import ssl
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from camel_ray.operator.certificates import Certificates, hosts_of, renewed
from camel_ray.operator.progress_tls import serving

HOST = "camel-ray-operator.camel-ray-system.svc"
HOSTS = hosts_of(f"https://{HOST}:8443")
START = datetime(2026, 11, 23, 7, tzinfo=UTC)
DAY = timedelta(days=1)


def fresh(now: datetime = START) -> Certificates:
    made, trouble = renewed({}, HOSTS, now)
    assert trouble == ""
    return made


def at(found: Certificates | Mapping[str, bytes], now: datetime) -> Certificates:
    """After a look at this moment at what nobody tampered with."""
    made, trouble = renewed(found.data() if isinstance(found, Certificates) else found, HOSTS, now)
    assert trouble == ""
    return made


def authorities(made: Certificates) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(made.bundle.encode())


def trusts(bundle: str, shown: str, now: datetime, host: str = HOST) -> bool:
    """Whether a client with this bundle accepts a server that shows this certificate, by the rules of the web."""
    policy = PolicyBuilder().store(Store(x509.load_pem_x509_certificates(bundle.encode()))).time(now)
    try:
        policy.build_server_verifier(x509.DNSName(host)).verify(x509.load_pem_x509_certificate(shown.encode()), [])
    except VerificationError:
        return False
    return True


def test_the_names_are_those_by_which_pods_may_call_a_service() -> None:
    assert hosts_of("https://op.ns.svc.cluster.local:8443") == ("op.ns.svc.cluster.local", "op.ns.svc", "op.ns", "op")
    assert hosts_of("https://op.ns.svc:8443/") == ("op.ns.svc", "op.ns", "op")
    assert hosts_of("https://progress.example.com") == ("progress.example.com",)
    assert hosts_of("https://10.0.0.1:8443") == ("10.0.0.1",)
    assert hosts_of("https://[fd00::1]:8443") == ("fd00::1",)


def test_an_empty_secret_gets_an_authority_and_a_certificate_for_every_name() -> None:
    made = fresh()
    (authority,) = authorities(made)
    assert authority.not_valid_after_utc - START == 730 * DAY
    assert made.expires - START == 30 * DAY
    assert all(trusts(made.bundle, made.certificate, START, host) for host in HOSTS)
    assert not trusts(made.bundle, made.certificate, START, "other.camel-ray-system.svc")
    assert not trusts(made.bundle, made.certificate, START + 31 * DAY)
    assert not trusts(fresh().bundle, made.certificate, START)


def test_an_address_can_be_a_name() -> None:
    made, _ = renewed({}, ("10.0.0.1", "fd00::1"), START)
    names = x509.load_pem_x509_certificate(made.certificate.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(address) for address in names.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "fd00::1"]


def test_keys_are_in_no_representation() -> None:
    made = fresh()
    assert "PRIVATE" in made.key
    assert "PRIVATE" in made.authority_keys
    assert "PRIVATE" not in repr(made)


def test_a_certificate_is_renewed_after_twenty_days() -> None:
    made = fresh()
    assert at(made, START + 20 * DAY - timedelta(minutes=1)) == made
    later = at(made, START + 20 * DAY)
    assert later.expires == START + 50 * DAY
    assert (later.bundle, later.authority_keys) == (made.bundle, made.authority_keys)
    assert later.key != made.key


def test_a_name_that_is_new_is_certified_at_once() -> None:
    made = fresh()
    later, trouble = renewed(made.data(), ("progress.example.com",), START + DAY)
    assert trouble == ""
    assert later.bundle == made.bundle
    assert trusts(later.bundle, later.certificate, START + DAY, "progress.example.com")


def test_a_successor_is_published_after_a_year_and_signs_half_a_year_later() -> None:
    made = fresh()
    told: list[tuple[int, int, int, bool]] = []
    for day in range(740):
        made = at(made, START + day * DAY)
        shown = x509.load_pem_x509_certificate(made.certificate.encode())
        newest = authorities(made)[0]
        keys = made.authority_keys.count("BEGIN")
        told.append((day, len(authorities(made)), keys, shown.issuer == newest.subject))
    changes = [now for before, now in pairwise(told) if before[1:] != now[1:]]
    assert changes == [
        (365, 2, 2, False),  # published
        (548, 2, 1, True),  # signs; 547.5 days are three quarters of its predecessor's life
        (730, 2, 2, False),  # the old one has expired, and the next is published
    ]


def test_who_got_a_bundle_in_the_last_half_year_can_connect_to_every_replica_at_every_moment() -> None:
    """Six years, two replicas that look when they look, and one that is cut off for up to a week now and then."""
    choices = random.Random(6)
    secret: Mapping[str, bytes] = {}
    replicas: list[Certificates] = []
    blind = [0.0, 0.0]
    published: deque[tuple[datetime, str]] = deque()
    rotations = set()
    for day in range(6 * 365):
        hour = 24 * day + choices.uniform(0, 24)
        now = START + timedelta(hours=hour)
        for index in choices.sample((0, 1), 2):
            if hour < blind[index] and replicas:
                continue
            if choices.random() < 0.02:
                blind[index] = hour + choices.uniform(0, 7 * 24)
            held = at(secret, now)
            secret = held.data()
            replicas[index:] = [held, *replicas[index + 1 :]] if replicas else [held, held]
            if not published or published[-1][1] != held.bundle:
                published.append((now, held.bundle))
        while len(published) > 1 and now - published[1][0] > 180 * DAY:
            published.popleft()
        for held in replicas:
            rotations.add(authorities(held)[0].subject)
            assert all(trusts(bundle, held.certificate, now) for _, bundle in published), now
    assert len(rotations) == 6


def test_after_a_long_pause_the_old_authority_signs_as_long_as_it_can() -> None:
    made = fresh()
    late = START + 720 * DAY
    later = at(made, late)
    assert len(authorities(later)) == 2
    assert trusts(made.bundle, later.certificate, late)
    assert later.expires == START + 730 * DAY  # not longer than who vouches for it
    last = at(later, START + 729 * DAY + timedelta(hours=1))
    assert not trusts(made.bundle, last.certificate, START + 729 * DAY + timedelta(hours=1))
    assert trusts(later.bundle, last.certificate, START + 729 * DAY + timedelta(hours=1))


def test_a_pause_longer_than_an_authority_lives_is_said() -> None:
    made, trouble = renewed(fresh().data(), HOSTS, START + 731 * DAY)
    assert trouble == "no authority in ca.crt is valid any more"
    assert len(authorities(made)) == 1
    assert trusts(made.bundle, made.certificate, START + 731 * DAY)


def test_a_clock_that_was_far_ahead_does_no_lasting_harm() -> None:
    ahead = fresh(START + 400 * DAY)
    made, trouble = renewed(ahead.data(), HOSTS, START)
    assert trouble == "no authority in ca.crt is valid any more"
    assert trusts(made.bundle, made.certificate, START)
    assert renewed(fresh(START + timedelta(minutes=30)).data(), HOSTS, START)[1] == ""


def another_key(kind: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def foreign_authority(owner: str, *, ca: bool) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, owner)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, START, START + 900 * DAY)
    made = builder.add_extension(x509.BasicConstraints(ca, None), critical=True).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM)


GOOD = fresh()
OTHER = fresh()


@pytest.mark.parametrize(
    ("change", "words", "keeps"),
    [
        ({"ca.crt": b""}, "ca.crt is missing", False),
        ({"ca.crt": b"\xff\x00 nothing"}, "ca.crt is not a list of authorities that the operator made", False),
        ({"ca.crt": foreign_authority("acme", ca=True)}, "ca.crt is not a list of authorities", False),
        ({"ca.crt": foreign_authority("camel-ray", ca=False)}, "ca.crt is not a list of authorities", False),
        ({"ca.crt": GOOD.certificate.encode()}, "ca.crt is not a list of authorities", False),
        ({"ca.key": b""}, "ca.key has no key of an authority in ca.crt", True),
        ({"ca.key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, "ca.key cannot be read", True),
        ({"ca.key": another_key("rsa")}, "ca.key cannot be read", True),
        ({"ca.key": another_key("ec")}, "ca.key has no key of an authority in ca.crt", True),
        ({"tls.crt": b"nothing"}, "tls.crt and tls.key are not a certificate and its key", True),
        ({"tls.key": another_key("ec")}, "tls.crt and tls.key are not a certificate and its key", True),
        ({"tls.key": b""}, "tls.crt or tls.key is missing", True),
        ({"tls.crt": OTHER.data()["tls.crt"], "tls.key": OTHER.data()["tls.key"]}, "", True),
    ],
)
def test_what_cannot_be_used_is_named_and_replaced(change: dict[str, bytes], words: str, keeps: bool) -> None:
    made, trouble = renewed(GOOD.data() | change, HOSTS, START + DAY)
    assert trouble.startswith(words)
    assert "PRIVATE" not in trouble
    assert (authorities(GOOD)[0] in authorities(made)) == keeps  # pods that trust it may still meet a good replica
    assert trusts(made.bundle, made.certificate, START + DAY)
    assert at(made, START + DAY) == made


def test_what_the_library_reads_with_a_warning_is_read_as_nothing() -> None:
    lines = GOOD.data()["tls.crt"].splitlines()
    der = bytearray(base64.b64decode(b"".join(lines[1:-1])))
    version = b"\xa0\x03\x02\x01\x02"
    serial = der.index(version) + len(version) + 2  # behind its tag and its length
    der[serial] |= 0x80  # it is negative now
    text = b"\n".join([lines[0], base64.b64encode(bytes(der)), lines[-1]])
    made, trouble = renewed({**GOOD.data(), "tls.crt": text}, HOSTS, START + DAY)
    assert trouble == "tls.crt and tls.key are not a certificate and its key"
    assert made.certificate != GOOD.certificate and made.bundle == GOOD.bundle


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["ca.crt", "ca.key", "tls.crt", "tls.key"]),
        st.one_of(
            st.binary(max_size=50),
            st.sampled_from([*GOOD.data().values(), *OTHER.data().values()]),
            st.tuples(st.sampled_from([*GOOD.data().values()]), st.integers(0, 700), st.integers(0, 255)).map(
                lambda torn: torn[0][: torn[1]] + bytes([torn[2]]) + torn[0][torn[1] + 1 :]
            ),
        ),
    )
)
def test_no_contents_break_it(found: dict[str, bytes]) -> None:
    made, _ = renewed(found, HOSTS, START + DAY)
    assert trusts(made.bundle, made.certificate, START + DAY)
    serving(made.certificate.encode(), made.key.encode())
    assert at(made, START + DAY) == made


@pytest.mark.parametrize("age", [0, 364, 366, 547, 549, 725])
def test_a_real_client_agrees_at_each_age_of_the_authority(age: int) -> None:
    """OpenSSL, which cannot be told another time: the past is simulated up to now."""
    now = datetime.now(UTC)
    made = old = fresh(now - age * DAY)
    for day in range(age + 1):
        made = at(made, now - (age - day) * DAY)
    for bundle in {made.bundle, old.bundle if age < 547 else made.bundle}:
        context = ssl.create_default_context(cadata=bundle)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname=HOST)
        shown = serving(made.certificate.encode(), made.key.encode()).context
        server = shown.wrap_bio(outgoing, incoming, server_side=True)
        for side in (client, server, client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        assert client.getpeercert() is not None
        assert client.version() == "TLSv1.3"
