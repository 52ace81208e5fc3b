"""Puts the configuration in place: postgresql.conf, access rules, certificates, the sync set.

A parameter that the engine would not start with never reaches postgresql.conf: the candidate file is given to
`postgres -C`, which reads it as a start would, and what it names as faulty is left out and reported. What only shows
at the start itself (memory that is not there, a library that cannot be loaded) is caught by the engine's last proven
set, see `engine`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.engines.files import make_owned_directory, write_owned
from agent.engines.postgres import hba, settings
from agent.engines.postgres.control import ControlFile
from agent.engines.postgres.member import Member, own_os_user, slot_name
from agent.engines.postgres.replication import REMOTE_CA, conninfo_of_walreceiver
from agent.engines.troubles import Diagnosis, Trouble, TroubleError, diagnosis_of
from core.log import EventLog
from core.records import REMOTE, SyncRecord

log = EventLog("agent.settings")
CHECK_WITHIN_S = 20.0
CHECK_ROUNDS_MAX = 10  # each round names at least one more faulty parameter
CANDIDATE = "candidate.conf"
_NAMED = re.compile(r'parameter "([^"]+)"')


class Configuration:
    """The files of one member."""

    def __init__(self, member: Member, control: ControlFile) -> None:
        self._member = member
        self._control = control
        self.problems: tuple[str, ...] = ()
        self.slots_here: frozenset[str] = frozenset()  # of members, as they are on this primary
        self.slots_active: frozenset[str] = frozenset()  # those whose member is connected
        self.user: dict[str, str] = {}  # the parameters of the user's that are in force with the next start
        self._checked: tuple[str, dict[str, str], list[str]] | None = None

    # --- the whole --------------------------------------------------------------------------------------------------

    async def write(self) -> bool:
        """Everything but the sync set; returns whether anything changed that a reload would bring in force."""
        member, data = self._member, self._member.paths.data
        owner = member.setup.run_as
        self.user, problems = await self._admitted()
        self.problems = tuple(problems)
        if not (data / settings.SYNC_FILE).exists():
            self.write_sync(settings.closed_sync(member.desired))
        text = settings.render(settings.combine(member.desired, self.user, await self._standing()))
        changed = [
            self.write_credentials(),
            write_owned(data / "postgresql.conf", text.encode(), owner),
            write_owned(data / "postgresql.auto.conf", b"# ALTER SYSTEM is not used: see postgresql.conf\n", owner),
        ]
        if member.peers_told or not self._has_our_access_rules():
            changed.append(write_owned(data / "pg_hba.conf", self._hba().encode(), owner))
            changed.append(write_owned(data / "pg_ident.conf", self._ident().encode(), owner))
        return any(changed)

    async def _standing(self) -> settings.Standing:
        member, paths = self._member, self._member.paths
        standby = member.is_standby()
        upstream = member.peer(member.label.upstream) if standby else None
        return settings.Standing(
            address=member.setup.address,
            sockets=str(paths.sockets),
            logs=str(paths.logs),
            tls_dir=str(paths.tls) if member.tls else "",
            major=member.setup.offer.version,
            primary_conninfo=conninfo_of_walreceiver(member, upstream) if upstream else "",
            primary_slot_name=self._slot_at(upstream.member) if upstream else "",
            logical=member.logical,
            waits_for_slots=self._slots_of_successors() if not standby else (),
            durable=member.setup.durable,
            floors=(await self._control.read()).floors if standby else {},
        )

    def _slots_of_successors(self) -> tuple[str, ...]:
        """Slots of those who could lead next: what logical subscribers get must be theirs before. A member that is away
        is left out, or every subscriber would wait for it; unless commits rather wait too (strict), and all are."""
        member = self._member
        if not member.carries_slots_over:
            return ()
        able = {slot_name(peer.member) for peer in member.peers if not peer.no_failover} & self.slots_here
        strict = member.desired.replication.mode != "async" and member.desired.replication.strict
        return tuple(sorted(able & self.slots_active or (able if strict else ())))

    def _slot_at(self, upstream: str) -> str:
        """A member that is to stream from a replica has its slot there; the leader it may fall back to keeps none. At
        the remote primary it has what the document names."""
        member = self._member
        if upstream == REMOTE:
            return member.desired.standby.slot if member.desired.standby is not None else ""
        return slot_name(member.name) if member.desired.upstream in ("", upstream) else ""

    # --- parameters -------------------------------------------------------------------------------------------------

    async def _admitted(self) -> tuple[dict[str, str], list[str]]:
        member, wanted = self._member, self._member.desired.parameters
        if wanted and wanted == member.label.refused:
            faulty = ", ".join(_differing(member))
            return dict(member.label.proven), [f"the engine does not start with {faulty}: the former values are kept"]
        good, problems = settings.admit(wanted)
        key = settings.render({**good, "": str(member.desired.memory_bytes)}, include_sync=False)
        if self._checked is None or self._checked[0] != key:
            kept, faults = await self._check(good)
            self._checked = (key, kept, faults)
        return dict(self._checked[1]), [*problems, *self._checked[2]]

    async def _check(self, user: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
        """What of the user's parameters the engine accepts, and why not the others."""
        kept, faults = dict(user), list[str]()
        for _ in range(CHECK_ROUNDS_MAX):
            if not kept:
                break
            said = await self._objection(kept)
            if said is None:
                break
            named = [name for name in kept if name in _NAMED.findall(said)] or list(kept)
            for name in named:
                reason = next((line for line in said.splitlines() if f'"{name}"' in line), said.strip())
                faults.append(f"parameter {name} = {kept.pop(name)} was left out: {_plain(reason)}")
        for fault in faults:
            log.warning("parameter_refused", member=self._member.subject, why=fault)
        return kept, faults

    async def _objection(self, user: Mapping[str, str]) -> str | None:
        """What the engine says against a configuration with these parameters; None when it has no objection."""
        member = self._member
        candidate = member.paths.tls / CANDIDATE  # a directory that the engine's user can read
        make_owned_directory(member.paths.tls, member.setup.run_as)
        values = settings.combine(member.desired, user, await self._standing())
        write_owned(candidate, settings.render(values, include_sync=False).encode(), member.setup.run_as)
        output = await member.tools.attempt(
            *("postgres", "-D", str(member.paths.data), f"--config-file={candidate}", "-C", "port"),
            within_s=CHECK_WITHIN_S,
        )
        return output.stderr if output.status != 0 else None

    # --- access -----------------------------------------------------------------------------------------------------

    def _has_our_access_rules(self) -> bool:
        try:
            return (self._member.paths.data / "pg_hba.conf").read_text().startswith(hba.HEADER)
        except OSError:
            return False

    def _hba(self) -> str:
        member = self._member
        neighbours = [
            hba.Neighbour(node=p.node, address=p.address, tls=p.engine_tls) for p in member.peers if p.address
        ]
        return hba.render_hba(
            own_address=member.setup.address,
            neighbours=neighbours,
            tls=member.tls,
            user=member.replication_user,
            followers=member.desired.followers,
        )

    def _ident(self) -> str:
        member = self._member
        users = [own_os_user(), member.setup.run_as.name if member.setup.run_as else ""]
        nodes = [peer.node for peer in member.peers if peer.node]
        return hba.render_ident(os_users=users, nodes=nodes, user=member.replication_user)

    def write_credentials(self) -> bool:
        """Certificate, key, CA and the password file, for the engine and its tools."""
        member, paths, owner = self._member, self._member.paths, self._member.setup.run_as
        make_owned_directory(paths.tls, owner)
        password = member.replication_password.replace("\\", "\\\\").replace(":", "\\:")
        changed = [write_owned(paths.passfile, f"*:*:*:*:{password}\n".encode(), owner)]
        if member.desired.standby is not None and member.desired.standby.ca:
            changed.append(write_owned(paths.tls / REMOTE_CA, member.desired.standby.ca.encode(), owner))
        if member.tls and (files := member.setup.tls_files) is not None:
            pairs = ((files.cert, "node.crt"), (files.key, "node.key"), (files.ca, "ca.crt"))
            try:
                changed += [write_owned(paths.tls / name, source.read_bytes(), owner) for source, name in pairs]
            except OSError as error:
                diagnosis = diagnosis_of(error) or Diagnosis(trouble=Trouble.TLS_UNREADABLE, evidence=str(error))
                raise TroubleError(diagnosis, object=member.subject) from error
        return any(changed)

    # --- the sync set -----------------------------------------------------------------------------------------------

    def write_sync(self, sync: SyncRecord) -> bool:
        """Each start writes it anew, so it need not survive a power cut; clients wait for it while a disk is busy."""
        member = self._member
        text = settings.render_sync(sync)
        path = member.paths.data / settings.SYNC_FILE
        return write_owned(path, text.encode(), member.setup.run_as, durable=False)

    def sync_file(self) -> str:
        try:
            return (self._member.paths.data / settings.SYNC_FILE).read_text()
        except OSError:
            return ""


def _differing(member: Member) -> list[str]:
    wanted, proven = member.label.refused, member.label.proven
    return sorted(f"{name} = {value}" for name, value in wanted.items() if proven.get(name) != value)


def _plain(line: str) -> str:
    """A log line without its time, level and file."""
    return re.sub(r'^.*?(LOG|FATAL|ERROR|DETAIL|HINT):\s+|\s+in file ".*?" line \d+', "", line).strip()
