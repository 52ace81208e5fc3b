"""Make the generated code of all .proto files: `./dev protos`; the test of staleness does so elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]


def generate(into: Path) -> None:
    """Write *_pb2*.py(i) for every .proto below protos/ to the same places below `into`."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos").rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet,readable_stubs:{into}",
        f"--mypy_grpc_out=quiet,only_async:{into}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]).resolve())
