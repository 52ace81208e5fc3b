"""`moorctl instance connect`: psql with everything it needs, or the line to paste into a program.

The password goes to psql by environment, never by argument, where `ps` would show it. The proxy's certificate is
checked in full whenever the instance serves TLS: its CA comes over the connection to the hub, which is checked itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from cli import output
from cli.client import Credentials
from core.errors import UserError

PROBE_S = 5.0
APPLICATION = "moorctl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What libpq is told about TLS; `ca_file` empty = the certificate is not checked."""

    mode: str
    ca_file: str = ""

    @property
    def parameters(self) -> dict[str, str]:
        return {"sslmode": self.mode, **({"sslrootcert": self.ca_file} if self.ca_file else {})}


def uri(credentials: Credentials, *, read_only: bool = False, tls: Tls | None = None, password: bool = True) -> str:
    """A libpq connection URI that lists every host; `tls` None leaves TLS to the driver."""
    port = credentials.ro_port if read_only else credentials.rw_port
    hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in credentials.hosts)
    secret = f":{quote(credentials.password, safe='')}" if password else ""
    query = f"?{urlencode(tls.parameters, quote_via=quote)}" if tls is not None else ""
    user, database = quote(credentials.user, safe=""), quote(credentials.database, safe="")
    return f"postgresql://{user}{secret}@{hosts}/{database}{query}"


def environment(credentials: Credentials, tls: Tls, *, read_only: bool) -> dict[str, str]:
    """What psql reads instead of arguments."""
    variables = {
        "PGHOST": ",".join(credentials.hosts),
        "PGPORT": str(credentials.ro_port if read_only else credentials.rw_port),
        "PGUSER": credentials.user,
        "PGPASSWORD": credentials.password,
        "PGDATABASE": credentials.database,
        "PGAPPNAME": APPLICATION,
        "PGSSLMODE": tls.mode,
    }
    return {**variables, **({"PGSSLROOTCERT": tls.ca_file} if tls.ca_file else {})}


def checked_tls(credentials: Credentials, folder: Path, *, known_ca: Path | None = None) -> Tls:
    """TLS with the certificate checked in full. libpq reads the CA from a file: `known_ca` when it holds just that,
    else one below `folder`."""
    if credentials.client_tls == "off":
        return Tls(mode="disable")
    if not credentials.ca_pem:
        return Tls(mode=credentials.client_tls)
    if known_ca is not None and _read(known_ca).strip() == credentials.ca_pem.strip():
        return Tls(mode="verify-full", ca_file=str(known_ca.absolute()))
    path = folder / f"ca-{hashlib.sha256(credentials.ca_pem).hexdigest()[:16]}.crt"
    if _read(path) != credentials.ca_pem:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.write_bytes(credentials.ca_pem)
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}", object=str(path)) from error
    return Tls(mode="verify-full", ca_file=str(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def find_psql(folders: Sequence[Path] = ()) -> str | None:
    """psql on PATH, else in one of the folders."""
    return shutil.which("psql") or next(
        (str(folder / "psql") for folder in folders if (folder / "psql").exists()), None
    )


def does_tls(psql: str) -> bool:
    """Whether this psql was built with TLS: one that was not refuses to demand it before it connects at all."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    nowhere = "host=/nonexistent port=1 sslmode=require connect_timeout=2"
    try:
        result = subprocess.run(
            [psql, "-X", nowhere], capture_output=True, text=True, env=environ, timeout=PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "SSL support is not compiled in" not in result.stderr


def usable_tls(psql: str, credentials: Credentials, tls: Tls) -> Tls:
    """`tls`, or none where this psql cannot do it and the instance does not demand it."""
    if tls.mode != "verify-full" or does_tls(psql):
        return tls
    if credentials.client_tls == "require":
        hint = "Install the distribution's postgresql-client, or use --print with another client."
        raise UserError(f"{psql} was built without TLS, which the instance demands", hint=hint)
    output.note(f"warning: {psql} was built without TLS: this connection is not encrypted")
    return Tls(mode="disable")


def exec_psql(psql: str, variables: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Become psql. Does not return."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name == "PGOPTIONS"}
    os.execve(psql, [psql, *arguments], {**environ, **variables})  # noqa: S606 - no shell on purpose
