"""The file of contexts: for each hub or set of hubs, where it is, who we are, and whose certificate we trust.

    current: prod
    contexts:
      prod:
        hubs: [10.0.0.1:7401, 10.0.0.2:7401]
        token: mo1...              # or token_file: PATH
        ca: |                      # or ca_file: PATH
          -----BEGIN CERTIFICATE-----

It holds secrets: it is written with mode 0600, whole or not at all, and a file that others can read is told of.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, model_validator

from cli import output
from core.config import Config, FilePath, HostPort, Name, load_config, require
from core.errors import NotFoundError, UserError

TOKEN_PREFIX = "mo1."  # noqa: S105 - what every operator token begins with, not one
CA_MARK = b"-----BEGIN CERTIFICATE-----"
MAX_SECRET_BYTES = 64 << 10  # a token has about 50 bytes, a bundle of CA certificates a few thousand


class ContextConfig(Config):
    """One context."""

    hubs: tuple[HostPort, ...] = Field(min_length=1)
    token: str = Field(default="", repr=False)
    token_file: FilePath | None = None
    ca: str = ""
    ca_file: FilePath | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        require(not (self.token and self.token_file), "token_file", "give token or token_file, not both")
        require(not (self.ca and self.ca_file), "ca_file", "give ca or ca_file, not both")
        return self


class ContextsConfig(Config):
    """The whole file."""

    current: str = ""
    contexts: dict[Name, ContextConfig] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which hubs to ask, as whom, trusting which CA. No repr of the token."""

    name: str
    hubs: tuple[str, ...] = ()
    token: str = field(default="", repr=False)
    ca_pem: bytes = field(default=b"", repr=False)

    def checked(self) -> Target:
        """Itself, when nothing is missing; UserError otherwise."""
        where = f"context {self.name}"
        if not self.hubs:
            raise UserError("no hub address", object=where, hint="Give --hub HOST:PORT or set it in the context.")
        if not self.token.startswith(TOKEN_PREFIX):
            what = "holds no operator token" if self.token else "has no operator token"
            hint = "It is one line that starts with mo1.; `moorage-hub init` wrote the first one to admin.token."
            raise UserError(what, object=where, hint=hint)
        if CA_MARK not in self.ca_pem:
            what = "CA is not a certificate in PEM" if self.ca_pem else "has no CA certificate"
            raise UserError(what, object=where, hint="Take ca.crt from the hub's data_dir, and give it with --ca-file.")
        return self


def config_path() -> Path:
    """Where contexts are kept by default."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "moorage" / "config.yaml"


def read_secret_file(path: Path, what: str) -> str:
    """The file's text without blanks around it; `-` is standard input. UserError names `what`."""
    try:
        with open(0 if str(path) == "-" else path, "rb", closefd=str(path) != "-") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        text = data.decode().strip()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", object=f"{what} {path}") from error
    except UnicodeDecodeError as error:
        raise UserError("is not text", object=f"{what} {path}") from error
    if not text or len(data) > MAX_SECRET_BYTES:
        raise UserError("is empty" if not text else "is too large", object=f"{what} {path}")
    return text


@dataclass(slots=True)
class ContextFile:
    """The file and what is in it; absent counts as empty."""

    path: Path
    config: ContextsConfig

    @staticmethod
    def load(path: Path) -> ContextFile:
        """UserError names file, line and field of what is wrong."""
        if not path.exists():
            return ContextFile(path, ContextsConfig())
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            output.note(f"warning: {path} can be read by others; run chmod 600 {path}")
        return ContextFile(path, load_config(path, ContextsConfig))

    def context(self, name: str = "") -> tuple[str, ContextConfig]:
        """The named context, or the current one. UserError tells which there are."""
        chosen = name or self.config.current
        if not chosen:
            raise UserError(
                "no context is chosen",
                object=str(self.path),
                hint="Make one: moorctl context set NAME --hub HOST:PORT --token-file FILE --ca-file FILE",
            )
        if chosen not in self.config.contexts:
            known = ", ".join(sorted(self.config.contexts)) or "none"
            raise NotFoundError(f"context {chosen!r} does not exist", object=str(self.path), hint=f"There is: {known}.")
        return chosen, self.config.contexts[chosen]

    def target(self, name: str = "") -> Target:
        """What the context means, with the files it points to read."""
        chosen, context = self.context(name)
        token, ca = context.token, context.ca
        if context.token_file is not None:
            token = read_secret_file(context.token_file, f"context {chosen}: token_file")
        if context.ca_file is not None:
            ca = read_secret_file(context.ca_file, f"context {chosen}: ca_file")
        return Target(name=chosen, hubs=context.hubs, token=token, ca_pem=ca.encode())

    def save(self) -> None:
        """Write the file whole, mode 0600, in a folder of mode 0700 when it has to be made."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=".config-")  # mode 0600
            with open(handle, "w") as file:
                yaml.safe_dump(_document(self.config), file, sort_keys=False, width=200)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}", object=str(self.path)) from error


def _document(config: ContextsConfig) -> dict[str, object]:
    return config.model_dump(mode="json", exclude_defaults=True)
