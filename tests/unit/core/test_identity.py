"""Certificates, requests and tokens: what is granted, and what is not."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core import identity
from core.clock import SystemClock
from core.errors import UserError
from core.identity import DAY_S, Identity

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def ca() -> Identity:
    return identity.make_ca(now=NOW)


def request(*, cn: str = "node-1", key: bytes | None = None) -> bytes:
    return identity.make_csr(key or identity.new_key_pem(), node=cn, address="127.0.0.11")


def signed(ca: Identity, *, node: str = "node-1", now: float = NOW) -> x509.Certificate:
    pem = identity.sign_node_csr(ca, request(cn=node), node=node, address="127.0.0.11", now=now).cert_pem
    return x509.load_pem_x509_certificate(pem)


def test_ca_may_sign_certificates_but_no_further_ca(ca: Identity) -> None:
    certificate = x509.load_pem_x509_certificate(ca.cert_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert certificate.not_valid_after_utc.timestamp() == NOW + 3650 * DAY_S


def test_node_certificate_names_node_and_address_for_both_ends_of_a_connection(ca: Identity) -> None:
    certificate = signed(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert names.get_values_for_type(x509.DNSName) == ["node-1"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.11")]
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.cert_pem))


def test_node_certificate_lives_thirty_days_and_began_five_minutes_ago(ca: Identity) -> None:
    pem = identity.sign_node_csr(ca, request(), node="node-1", address="::1", now=NOW).cert_pem
    facts = identity.certificate_facts(pem)
    assert (facts.cn, facts.hosts) == ("node-1", ("node-1", "::1"))
    assert (facts.not_before, facts.not_after) == (NOW - 300, NOW + 30 * DAY_S)
    assert not facts.renewal_due(NOW + 19 * DAY_S)
    assert facts.renewal_due(NOW + 20 * DAY_S)
    assert not facts.expired(NOW + 29 * DAY_S)
    assert facts.expired(NOW + 30 * DAY_S)


def test_node_certificate_does_not_outlive_the_ca(ca: Identity) -> None:
    late = NOW + 3640 * DAY_S
    assert signed(ca, now=late).not_valid_after_utc.timestamp() == NOW + 3650 * DAY_S
    with pytest.raises(UserError, match="CA's certificate has ended"):
        signed(ca, now=NOW + 3651 * DAY_S)


def test_request_cannot_choose_its_own_names_or_powers(ca: Identity) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node-1")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("moorage-hub")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = greedy.public_bytes(serialization.Encoding.PEM)
    issued = identity.sign_node_csr(ca, pem, node="node-1", address="127.0.0.11", now=NOW).cert_pem
    certificate = x509.load_pem_x509_certificate(issued)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert identity.certificate_facts(issued).hosts == ("node-1", "127.0.0.11")


def test_request_for_another_name_is_refused(ca: Identity) -> None:
    with pytest.raises(UserError, match="is for node-2, not for node node-1"):
        identity.sign_node_csr(ca, request(cn="node-2"), node="node-1", address="127.0.0.11", now=NOW)


def test_request_whose_signature_is_broken_is_refused(ca: Identity) -> None:
    der = bytearray(x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(UserError, match="not signed by its own key"):
        identity.sign_node_csr(ca, broken, node="node-1", address="127.0.0.11", now=NOW)


@pytest.mark.parametrize("junk", [b"", b"junk", b"x" * 20_000, identity.new_key_pem()])
def test_request_that_is_none_is_refused(ca: Identity, junk: bytes) -> None:
    with pytest.raises(UserError, match="certificate request"):
        identity.sign_node_csr(ca, junk, node="node-1", address="127.0.0.11", now=NOW)


def test_request_with_another_kind_of_key_is_refused(ca: Identity) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node-1")])
    weak = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    with pytest.raises(UserError, match="ECDSA P-256"):
        identity.check_csr(weak.public_bytes(serialization.Encoding.PEM), node="node-1")


@pytest.mark.parametrize("name", ["moorage-hub", "localhost", "Node", "", "a/b", "x" * 41])
def test_node_may_not_take_a_name_that_is_reserved_or_unfit(ca: Identity, name: str) -> None:
    with pytest.raises(UserError, match="node name"):
        identity.sign_node_csr(ca, request(), node=name, address="127.0.0.11", now=NOW)


@pytest.mark.parametrize("address", ["", "node-1", "0.0.0.0", "::", "224.0.0.1", "127.0.0.256"])
def test_address_that_is_not_of_one_machine_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="address"):
        identity.check_address(address)


def test_hub_and_node_prove_themselves_to_each_other_over_tls(tmp_path: Path) -> None:
    now = SystemClock().wall()
    ca = identity.make_ca(now=now)
    hub = identity.issue_hub_identity(ca, hosts=["127.0.0.1", "hub.example"], now=now)
    key = identity.new_key_pem()
    node = identity.sign_node_csr(ca, request(key=key), node="node-1", address="127.0.0.11", now=now)
    server = context(tmp_path, "hub", ca, hub, ssl.PROTOCOL_TLS_SERVER)
    client = context(tmp_path, "node", ca, Identity(cert_pem=node.cert_pem, key_pem=key), ssl.PROTOCOL_TLS_CLIENT)
    assert handshake(client, server, hostname="moorage-hub") == "node-1"
    assert handshake(client, server, hostname="hub.example") == "node-1"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server, hostname="node-1")


def test_hub_certificate_is_no_client_certificate(tmp_path: Path) -> None:
    now = SystemClock().wall()
    ca = identity.make_ca(now=now)
    hub = identity.issue_hub_identity(ca, hosts=[], now=now)
    server = context(tmp_path, "hub", ca, hub, ssl.PROTOCOL_TLS_SERVER)
    client = context(tmp_path, "client", ca, hub, ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLError, match=r"unsuitable|unsupported"):
        handshake(client, server, hostname="moorage-hub")


def context(directory: Path, name: str, ca: Identity, own: Identity, protocol: int) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.load_verify_locations(cadata=ca.cert_pem.decode())
    chain = directory / f"{name}.pem"
    chain.write_bytes(own.cert_pem + own.key_pem)
    made.load_cert_chain(chain)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, *, hostname: str) -> str:
    """Both ends in memory; the common name that the server sees."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(to_client, to_server, server_hostname=hostname)
    right = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for end in (left, right):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    assert done == {left, right}
    subject = dict(pair[0] for pair in (right.getpeercert() or {})["subject"])  # type: ignore[misc]
    return str(subject["commonName"])


def test_certificate_is_told_from_one_for_another_key(ca: Identity) -> None:
    key = identity.new_key_pem()
    mine = identity.sign_node_csr(ca, request(key=key), node="node-1", address="127.0.0.11", now=NOW).cert_pem
    assert identity.key_matches(key_pem=key, cert_pem=mine)
    assert not identity.key_matches(key_pem=identity.new_key_pem(), cert_pem=mine)
    assert not identity.key_matches(key_pem=key, cert_pem=b"junk")


def test_join_token_survives_being_written_down(ca: Identity) -> None:
    token = identity.new_join_token(ca.cert_pem)
    assert identity.parse_join_token(f" {token.text()}\n") == token
    assert token.text().startswith(f"mj1.{token.id}.")


def test_operator_token_survives_being_written_down() -> None:
    token = identity.new_operator_token()
    assert identity.parse_operator_token(token.text()) == token


@pytest.mark.parametrize(
    "text", ["", "mj1", "mj1.a.b.c", "mo1.00000000." + "0" * 32, "mj1.00000000." + "0" * 32 + ".AAAA"]
)
def test_damaged_join_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UserError) as refused:
        identity.parse_join_token(text)
    assert not text or text not in str(refused.value) or text == "mj1"


@pytest.mark.parametrize("text", ["", "mo1", "mo1.x.y", "mj1.00000000." + "0" * 32, "mo1.00000000." + "0" * 31])
def test_damaged_operator_token_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not an operator token"):
        identity.parse_operator_token(text)


def test_secrets_do_not_show_in_repr(ca: Identity) -> None:
    join, operator = identity.new_join_token(ca.cert_pem), identity.new_operator_token()
    assert join.secret not in repr(join)
    assert operator.secret not in repr(operator)
    assert "PRIVATE KEY" not in repr(ca)


def test_only_the_right_secret_fits_the_digest() -> None:
    digest = identity.secret_sha256("right")
    assert identity.secret_fits("right", digest)
    assert not identity.secret_fits("wrong", digest)
    assert not identity.secret_fits("right", "")


def test_junk_is_no_certificate() -> None:
    with pytest.raises(UserError, match="not a certificate"):
        identity.certificate_facts(b"junk")
