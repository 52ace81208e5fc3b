"""Every etcd key of Moorage, both ways. Nothing else knows the layout.

    /moorage/meta/store_id                                  random id of this life of etcd's data
    /moorage/meta/ca, /moorage/secrets/...                  sealed
    /moorage/nodes/<node>
    /moorage/projects/<project>
    /moorage/instances/<project>/<instance>
    /moorage/status/<project>/<instance>
    /moorage/members/<node>/<project>.<instance>.<member>
    /moorage/observed/<node>/<project>.<instance>.<member>
    /moorage/leader/<project>.<instance>                    bound to a node's lease
    /moorage/ha/<project>.<instance>
    /moorage/ballots/<project>.<instance>/<term>/<member>   lease-bound
    /moorage/silent/<node>                                  present while no hub hears of the node
    /moorage/ports/<port>                                   who has the port on every node
    /moorage/tokens/<id>   /moorage/operators/<id>   /moorage/secrets/<project>.<instance>/<user>
    /moorage/hubs/<hub>    /moorage/claims/<work>           leased
    /moorage/events/<milliseconds>-<random>
    /moorage-audit/head   /moorage-audit/entries/<number>   beside the rest: hubs do not keep it in memory

Names in keys have passed `core.ids.check_name`; every prefix ends with `/`, so node-1 never matches node-10.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.ids import InstanceRef, MemberRef

ROOT = "/moorage/"
STORE_ID = ROOT + "meta/store_id"
CA = ROOT + "meta/ca"
NODES = ROOT + "nodes/"
PROJECTS = ROOT + "projects/"
INSTANCES = ROOT + "instances/"
STATUS = ROOT + "status/"
MEMBERS = ROOT + "members/"
OBSERVED = ROOT + "observed/"
LEADER = ROOT + "leader/"
HA = ROOT + "ha/"
BALLOTS = ROOT + "ballots/"
SILENT = ROOT + "silent/"
PORTS = ROOT + "ports/"
TOKENS = ROOT + "tokens/"
OPERATORS = ROOT + "operators/"
SECRETS = ROOT + "secrets/"
HUBS = ROOT + "hubs/"
CLAIMS = ROOT + "claims/"
EVENTS = ROOT + "events/"
AUDIT_HEAD = "/moorage-audit/head"
AUDIT = "/moorage-audit/entries/"


def node(name: str) -> str:
    return NODES + name


def project(name: str) -> str:
    return PROJECTS + name


def instance(ref: InstanceRef) -> str:
    return f"{INSTANCES}{ref.project}/{ref.instance}"


def status(ref: InstanceRef) -> str:
    return f"{STATUS}{ref.project}/{ref.instance}"


def member(node_name: str, ref: MemberRef) -> str:
    return f"{MEMBERS}{node_name}/{ref.key}"


def observed(node_name: str, ref: MemberRef) -> str:
    return f"{OBSERVED}{node_name}/{ref.key}"


def leader(ref: InstanceRef) -> str:
    return LEADER + ref.key


def ha(ref: InstanceRef) -> str:
    return HA + ref.key


def ballots(ref: InstanceRef) -> str:
    """Prefix of all ballots of an instance."""
    return f"{BALLOTS}{ref.key}/"


def ballots_of_term(ref: InstanceRef, term: int) -> str:
    """Prefix of the ballots for one election."""
    return f"{BALLOTS}{ref.key}/{term}/"


def ballot(ref: InstanceRef, term: int, member_name: str) -> str:
    return ballots_of_term(ref, term) + member_name


def silent(node_name: str) -> str:
    return SILENT + node_name


def port(number: int) -> str:
    return f"{PORTS}{number}"


def token(token_id: str) -> str:
    return TOKENS + token_id


def secrets(ref: InstanceRef) -> str:
    """Prefix of all sealed secrets of an instance."""
    return f"{SECRETS}{ref.key}/"


def secret(ref: InstanceRef, user: str) -> str:
    return secrets(ref) + user


def audit(number: int) -> str:
    return f"{AUDIT}{number:012d}"


def hub(name: str) -> str:
    return HUBS + name


def claim(work: str) -> str:
    return CLAIMS + work


def event(at_ms: int, salt: str) -> str:
    return f"{EVENTS}{at_ms:015d}-{salt}"


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key taken apart: `kind` is the first path element, `parts` the others."""

    kind: str
    parts: tuple[str, ...]


def parse(key: str) -> ParsedKey | None:
    """None for keys that are not Moorage's."""
    if not key.startswith(ROOT):
        return None
    kind, *parts = key[len(ROOT) :].split("/")
    return ParsedKey(kind, tuple(parts))


def prefix_end(prefix: str) -> bytes:
    """The first key behind all keys with this prefix, as etcd's range_end wants it."""
    raw = bytearray(prefix.encode())
    while raw:
        if raw[-1] < 0xFF:
            raw[-1] += 1
            return bytes(raw)
        raw.pop()
    return b"\0"
