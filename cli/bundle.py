"""`moorctl bundle`: everything for machines without a network in one signed file."""

from __future__ import annotations

import os
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cli import bundle_file as bundles
from cli import output
from cli.collecting import EVERYTHING, collect
from cli.session import Noun, Session, pass_session, tell
from core.errors import ConflictError, UserError

_file = click.Path(dir_okay=False, path_type=Path)


@click.group(cls=Noun)
def bundle() -> None:
    """Bundles: everything for machines without a network, in one signed file.

    On a machine with a network and the release of the others: `key` once, `create`. Carry the file and the public key
    to the others by two ways; there `verify`, or the install.sh inside, shows that it is what was signed.
    """


@bundle.command("key")
@click.argument("path", type=_file)
@pass_session
def make_key(session: Session, path: Path) -> None:
    """Make a key to sign bundles with: PATH, and PATH.pub to be handed out."""
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConflictError("exists already", object=str(path), hint="Take another name, or keep that key.") from error
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", object=str(path)) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    mark = bundles.fingerprint(key.public_key())
    tell(session, {"key": str(path), "public": str(public), "fingerprint": mark}, f"{path}, {public}: {mark}")


@bundle.command()
@click.option("--key", "key_file", type=_file, required=True, help="The private key to sign with.")
@click.option(
    "--packages",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder with Moorage's packages, as ./dev package or a release gives it.",
)
@click.option(
    "--with",
    "roots",
    multiple=True,
    help=f"Package of the distribution to take along; default: {' '.join(EVERYTHING)}.",
)
@click.argument("path", type=_file)
@pass_session
def create(session: Session, key_file: Path, packages: Path, roots: tuple[str, ...], path: Path) -> None:
    """Collect Moorage's packages, etcd, engines and all that they depend on into PATH.

    Packages come from this machine's own package sources, for its release and architecture. Nothing is installed here,
    and no root is needed.
    """
    key = bundles.private_key(key_file)
    with collect(packages, roots or EVERYTHING, say=output.note) as found:
        bundles.write(path, found.files, found.manifest, key, found.epoch_s)
    _show(session, found.manifest, path, bundles.fingerprint(key.public_key()))


@bundle.command()
@click.option("--key", "key_file", type=_file, required=True, help="The public key of who made it.")
@click.argument("path", type=_file)
@pass_session
def verify(session: Session, key_file: Path, path: Path) -> None:
    """Check that PATH is signed by this key, and holds what was signed and nothing else."""
    key = bundles.public_key(key_file)
    _show(session, bundles.verify(path, key), path, bundles.fingerprint(key))


def _show(session: Session, manifest: bundles.Manifest, path: Path, mark: str) -> None:
    facts = {
        "bundle": str(path),
        "bytes": path.stat().st_size,
        "moorage": manifest.moorage,
        "release": manifest.release,
        "architecture": manifest.architecture,
        "made_at": manifest.made_at,
        "signed_by": mark,
        "packages": {package.name: package.version for package in manifest.packages},
    }
    if session.output != "table":
        output.dump(facts, session.output)
        return
    output.say(f"{path}: Moorage {manifest.moorage} for {manifest.release} {manifest.architecture}")
    count, size = len(manifest.packages), output.size(path.stat().st_size)
    output.say(f"{count} packages, {size}, made {manifest.made_at}, signed by {mark}")
    for package in manifest.packages:
        if package.name in manifest.roots:
            output.say(f"  {package.name} {package.version}")
