"""Numbers of timelines are never used twice.

PostgreSQL gives a new timeline the first number after its own for which it finds no history file. A replica that has
not followed the last primary would use that one's number again, for another log, and nothing could tell the two apart:
a standby of the one would join the other. So before a promotion the numbers that may have been used are taken, each by
a history file that says nothing: such a timeline has no ancestors, so nobody is ever led to it.
"""

from __future__ import annotations

from agent.engines.files import write_owned
from agent.engines.postgres.member import Member
from core.log import EventLog

log = EventLog("agent.engine")
TAKEN = b"# Another member may have used this number; Moorage leaves it out.\n"
TAKEN_MAX = 1000  # a higher number is not believed


def pass_over(member: Member, above: int) -> None:
    """Before a promotion: its timeline gets a higher number than `above`."""
    wal = member.paths.data / "pg_wal"
    names = [f"{number:08X}.history" for number in range(2, min(above, TAKEN_MAX) + 1)]
    own = max((int(path.name[:8], 16) for path in wal.glob("????????????????????????")), default=0)
    for name in names:
        if int(name[:8], 16) > own and not (wal / name).exists():
            write_owned(wal / name, TAKEN, member.setup.run_as)
            log.info("timeline_passed_over", member=member.subject, number=int(name[:8], 16))
