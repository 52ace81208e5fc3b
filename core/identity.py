"""Keys, certificates and tokens: how a node, a hub and an operator prove who they are.

One CA signs everything. A node makes its own key, which never leaves it, and sends a certificate request; the CA takes
only the key and the common name from the request and writes every other field itself, so a request cannot ask for
more than the hub grants. Node certificates serve both ends of a connection (peer port, engines, proxy) and live 30
days; the agent renews at two thirds of that. `moorage-hub` is the one server name of all hubs: no node may be called
so, else it could pose as a hub.

All times are wall seconds, passed in; validity starts five minutes in the past for clocks that lag.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import UserError
from core.ids import check_name

HUB_NAME = "moorage-hub"  # in every hub's certificate; clients check this name whatever address they dial
RESERVED_NODE_NAMES = frozenset({HUB_NAME, "localhost"})  # a node's certificate carries its name as a server name

DAY_S = 86400
CA_LIFE_S = 3650 * DAY_S
NODE_LIFE_S = 30 * DAY_S
HUB_LIFE_S = 365 * DAY_S  # made afresh at every start and kept in memory only
BACKDATE_S = 300  # clocks of new machines lag
RENEW_AFTER = 2 / 3  # of the life: leaves ten days of failed attempts before a node certificate ends
MAX_CSR_BYTES = 16 << 10  # a P-256 request has about 500 bytes
SECRET_BYTES = 16  # 128 bits: not to be guessed, whatever the rate

_JOIN_TOKEN = re.compile(r"mj1\.([0-9a-f]{8})\.([0-9a-f]{32})\.([A-Za-z0-9_-]{1,8000})")
_OPERATOR_TOKEN = re.compile(r"mo1\.([0-9a-f]{8})\.([0-9a-f]{32})")


# --- keys and requests: the node's side -----------------------------------------------------------------------------


def new_key_pem() -> bytes:
    """A fresh ECDSA P-256 private key, PKCS#8 PEM without a passphrase. For a file of mode 0600."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def make_csr(key_pem: bytes, *, node: str, address: str) -> bytes:
    """A PKCS#10 request in PEM for the node's name; the address is a proposal that the hub checks."""
    names: list[x509.GeneralName] = [x509.DNSName(node), x509.IPAddress(ipaddress.ip_address(address))]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_common_name(node))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(_load_key(key_pem), hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate and its private key, both PEM."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)


# --- the CA: the hub's side -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A certificate just issued; `serial` is lower-case hexadecimal."""

    cert_pem: bytes
    serial: str


def make_ca(*, now: float) -> Identity:
    """A self-signed CA for ten years, which may sign certificates but no further CAs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name("Moorage CA")
    public = key.public_key()
    usage = _key_usage(digital_signature=False, signs_certificates=True)
    certificate = (
        _builder(subject=name, issuer=name, public=public, starts=now, life_s=CA_LIFE_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Identity(cert_pem=certificate.public_bytes(serialization.Encoding.PEM), key_pem=_key_pem(key))


def sign_node_csr(ca: Identity, csr_pem: bytes, *, node: str, address: str, now: float) -> Signed:
    """A node certificate of 30 days for the key in the request. UserError when the request does not fit the node."""
    check_node_name(node)
    public = _checked_key_of(csr_pem, node)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    return _issue(
        ca, public, name=node, hosts=[node, check_address(address)], usages=usages, now=now, life_s=NODE_LIFE_S
    )


def issue_hub_identity(ca: Identity, *, hosts: Sequence[str], now: float) -> Identity:
    """A fresh key with a server-only certificate for `moorage-hub` and the hosts (names or IP addresses)."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = list(dict.fromkeys([HUB_NAME, *hosts]))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    signed = _issue(ca, key.public_key(), name=HUB_NAME, hosts=names, usages=usages, now=now, life_s=HUB_LIFE_S)
    return Identity(cert_pem=signed.cert_pem, key_pem=_key_pem(key))


def check_csr(csr_pem: bytes, *, node: str) -> None:
    """UserError when the request cannot be signed for the node; so that a token is not used up in vain."""
    _checked_key_of(csr_pem, node)


def check_node_name(node: str) -> str:
    """The name itself; UserError when no node may have it."""
    try:
        check_name(node, "node name")
    except ValueError as error:
        raise UserError(str(error), object="node_id") from error
    if node in RESERVED_NODE_NAMES:
        raise UserError(f"node name {node!r} is reserved", object="node_id", hint="Choose another name.")
    return node


def check_address(address: str) -> str:
    """The canonical text of an IP address a node can be reached at; UserError otherwise."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise UserError(f"{address!r} is not an IP address", object="address") from error
    if parsed.is_unspecified or parsed.is_multicast:
        raise UserError(f"{address} is not an address of one machine", object="address")
    return str(parsed)


def _checked_key_of(csr_pem: bytes, node: str) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise UserError(f"certificate request has {len(csr_pem)} bytes, more than {MAX_CSR_BYTES}", object="csr_pem")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        names = [str(part.value) for part in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        signed = request.is_signature_valid
        public = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError("not a PKCS#10 certificate request in PEM", object="csr_pem") from error
    if not signed:
        raise UserError("certificate request is not signed by its own key", object="csr_pem")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise UserError("certificate request must hold an ECDSA P-256 key", object="csr_pem")
    if names != [node]:
        shown = ", ".join(names) or "none"
        raise UserError(f"certificate request is for {shown}, not for node {node}", object="csr_pem")
    return public


def _issue(
    ca: Identity,
    public: ec.EllipticCurvePublicKey,
    *,
    name: str,
    hosts: Sequence[str],
    usages: list[x509.ObjectIdentifier],
    now: float,
    life_s: float,
) -> Signed:
    issuer = x509.load_pem_x509_certificate(ca.cert_pem)
    ca_key = _load_key(ca.key_pem)
    ends = min(now + life_s, issuer.not_valid_after_utc.timestamp())
    if ends <= now:
        raise UserError("the CA's certificate has ended", object="ca", hint="Make a new CA.")
    certificate = (
        _builder(subject=_common_name(name), issuer=issuer.subject, public=public, starts=now, life_s=ends - now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True, signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Signed(cert_pem=pem, serial=f"{certificate.serial_number:x}")


def _builder(
    *, subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, starts: float, life_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_utc(starts - BACKDATE_S))
        .not_valid_after(_utc(starts + life_s))
    )


def _key_usage(*, digital_signature: bool, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _utc(wall_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(wall_s), tz=dt.UTC)


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError("not an elliptic-curve private key", object="key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# --- what a certificate says ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a certificate says: common name, serial in lower-case hexadecimal, validity in wall seconds, names."""

    cn: str
    serial: str
    not_before: float
    not_after: float
    hosts: tuple[str, ...] = ()  # DNS names and IP addresses it is good for

    @property
    def renew_at(self) -> float:
        """When two thirds of its life are over."""
        return self.not_before + (self.not_after - self.not_before) * RENEW_AFTER

    def renewal_due(self, now: float) -> bool:
        return now >= self.renew_at

    def expired(self, now: float) -> bool:
        return now >= self.not_after


def certificate_facts(cert_pem: bytes) -> CertificateFacts:
    """The facts of the first certificate in the PEM; UserError when there is none."""
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem)
    except ValueError as error:
        raise UserError("not a certificate in PEM", object="certificate") from error
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    hosts: tuple[str, ...] = ()
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = (
            *san.get_values_for_type(x509.DNSName),
            *(str(address) for address in san.get_values_for_type(x509.IPAddress)),
        )
    except x509.ExtensionNotFound:
        pass  # the CA's own certificate has none
    return CertificateFacts(
        cn=str(names[0].value) if names else "",
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        hosts=hosts,
    )


def key_matches(*, key_pem: bytes, cert_pem: bytes) -> bool:
    """Whether the certificate is for this key: false after a crash between writing the one and the other."""
    try:
        certificate = x509.load_pem_x509_certificate(cert_pem)
        return certificate.public_key() == _load_key(key_pem).public_key()
    except ValueError:
        return False


# --- tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTokenText:
    """`mj1.<id>.<secret>.<CA>`: a one-time permission to enrol, with the CA that proves the hub to the newcomer."""

    id: str
    secret: str = field(repr=False)
    ca_pem: bytes = field(repr=False)

    def text(self) -> str:
        der = x509.load_pem_x509_certificate(self.ca_pem).public_bytes(serialization.Encoding.DER)
        return f"mj1.{self.id}.{self.secret}.{base64.urlsafe_b64encode(der).decode().rstrip('=')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTokenText:
    """`mo1.<id>.<secret>`: who an operator is, until it is revoked."""

    id: str
    secret: str = field(repr=False)

    def text(self) -> str:
        return f"mo1.{self.id}.{self.secret}"


def new_join_token(ca_pem: bytes) -> JoinTokenText:
    return JoinTokenText(id=secrets.token_hex(4), secret=secrets.token_hex(SECRET_BYTES), ca_pem=ca_pem)


def new_operator_token() -> OperatorTokenText:
    return OperatorTokenText(id=secrets.token_hex(4), secret=secrets.token_hex(SECRET_BYTES))


def parse_join_token(text: str) -> JoinTokenText:
    """The token taken apart; UserError (which does not repeat it) when it is not whole."""
    match = _JOIN_TOKEN.fullmatch(text.strip())
    hint = "Copy the whole line that `moorctl node token` printed; it starts with mj1."
    if match is None:
        raise UserError("not a join token", object="token", hint=hint)
    encoded = match[3]
    try:
        der = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        ca_pem = x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)
    except ValueError as error:
        raise UserError("the CA certificate in the join token is damaged", object="token", hint=hint) from error
    return JoinTokenText(id=match[1], secret=match[2], ca_pem=ca_pem)


def parse_operator_token(text: str) -> OperatorTokenText:
    """The token taken apart; UserError (which does not repeat it) when it is not whole."""
    match = _OPERATOR_TOKEN.fullmatch(text.strip())
    if match is None:
        raise UserError("not an operator token", object="token", hint="It starts with mo1. and has three parts.")
    return OperatorTokenText(id=match[1], secret=match[2])


def secret_sha256(secret: str) -> str:
    """What is kept of a token's secret. Plain SHA-256 suffices: the secrets are random, not chosen by people."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret_fits(secret: str, sha256: str) -> bool:
    """Whether the secret is the one of the digest, in a time that tells nothing about it."""
    return hmac.compare_digest(secret_sha256(secret), sha256)
