"""What lies beside the programs: man pages, completion, changelog, copyright, bill of materials. All of it is made from
what is in the environment, by the environment's own Python, so that it cannot be stale.

    papers.py STAGE VERSION CHANGELOG.md LOCK
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # -I leaves the script's own folder out
import manpages

PACKAGES = ("common", "hub", "agent", "cli")
MAINTAINER = "Moorage <packages@moorage.invalid>"
NO_LICENCE = "Moorage itself: no licence has been declared by its authors yet."


def write(stage: Path, version: str, changelog: Path, lock: Path) -> None:
    when = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    libraries = sorted((one for one in distributions() if one.name != "moorage"), key=lambda one: one.name.lower())
    for package in PACKAGES:
        folder = stage / package / "usr/share/doc" / f"moorage-{package}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "copyright").write_text(copyright_of(libraries if package == "common" else [], when.year))
        compressed(folder / "changelog.Debian.gz", debian_changelog(changelog.read_text(), version, when))
    bill = bill_of_materials(libraries, version, when, lock.read_text())
    (stage / "common/usr/share/doc/moorage-common/sbom.cdx.json").write_text(json.dumps(bill, indent=1) + "\n")
    for (package, name), text in manpages.pages(when).items():
        page = stage / package / "usr/share/man" / f"man{name[-1]}" / f"{name}.gz"
        page.parent.mkdir(parents=True, exist_ok=True)
        compressed(page, text)
    completion(stage, "bash", "usr/share/bash-completion/completions/moorctl")
    completion(stage, "zsh", "usr/share/zsh/vendor-completions/_moorctl")


def compressed(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def completion(stage: Path, shell: str, where: str) -> None:
    path = stage / "cli" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-I", "-c", "from cli.main import main; main()", "completion", shell]
    path.write_bytes(subprocess.run(program, check=True, stdout=subprocess.PIPE).stdout)


def debian_changelog(text: str, version: str, when: datetime) -> str:
    """The newest section of CHANGELOG.md in Debian's form."""
    newest = re.split(r"^## .*$", text, flags=re.MULTILINE)[1]
    points = [" ".join(point.split()) for point in re.split(r"^- ", newest, flags=re.MULTILINE)[1:]]
    lines = "\n".join(folded(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", point).replace("`", "")) for point in points)
    date = when.strftime("%a, %d %b %Y %H:%M:%S +0000")
    return f"moorage ({version}) bookworm; urgency=medium\n\n{lines}\n\n -- {MAINTAINER}  {date}\n"


def folded(point: str) -> str:
    lines, line = [], "  *"
    for word in point.split():
        if len(line) + len(word) >= 78:
            lines.append(line)
            line = "   "
        line += f" {word}"
    return "\n".join([*lines, line])


def licence(library: Distribution) -> str:
    """As its authors declare it: an SPDX expression, else one line of free text, else the classifier."""
    metadata = library.metadata
    for field in ("License-Expression", "License"):
        text = (metadata.get(field) or "").strip()
        if text and text != "UNKNOWN" and "\n" not in text:
            return text
    named = [one.rsplit(" :: ", 1)[1] for one in metadata.get_all("Classifier") or [] if one.startswith("License ::")]
    return " or ".join(named) or "see its own files"


def copyright_of(libraries: list[Distribution], year: int) -> str:
    text = f"{NO_LICENCE}\n\nCopyright (C) {year} the authors of Moorage.\n"
    if libraries:
        text += (
            "\nThis package carries the following libraries, unchanged, below"
            "\n/opt/moorage/lib/python3.11/site-packages. Copyright notices and full licence"
            "\ntexts lie in their folders NAME-VERSION.dist-info there. Where one is under the"
            "\nApache License 2.0 or the (L)GPL, the text is also in /usr/share/common-licenses.\n\n"
        )
        text += "".join(f"  {one.name} {one.version}: {licence(one)}\n" for one in libraries)
    return text


def bill_of_materials(libraries: list[Distribution], version: str, when: datetime, lock: str) -> dict[str, object]:
    """CycloneDX 1.5: every library with the sha256 of the wheel that it came in."""
    hashes = dict(re.findall(r"^(\S+)==\S+ --hash=sha256:(\w+)$", lock, flags=re.MULTILINE))
    components = []
    for one in libraries:
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        components.append(
            {
                "type": "library",
                "bom-ref": f"pkg:pypi/{name}@{one.version}",
                "name": name,
                "version": one.version,
                "purl": f"pkg:pypi/{name}@{one.version}",
                "licenses": [{"license": {"name": licence(one)}}],
                "hashes": [{"alg": "SHA-256", "content": hashes[name]}],
            }
        )
    product = {"type": "application", "bom-ref": "moorage", "name": "moorage", "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, version + lock)}",
        "version": 1,
        "metadata": {"timestamp": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": product},
        "components": components,
        "dependencies": [{"ref": "moorage", "dependsOn": [one["bom-ref"] for one in components]}],
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
