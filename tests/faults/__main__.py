"""Real faults on a real installation: `./dev faults`, see docs/faults.md.

    ./dev faults                        every fault once (about 12 minutes); --rounds 3 for the table of the document
    ./dev faults --only engine_kill,partition --rounds 5
    ./dev faults --pairs 10 --seed 7    two faults at a time, by a dice that falls the same way each time
    ./dev faults --mode quorum          another replication mode
    ./dev faults --list                 what there is, and what each proves
    ./dev faults --clean                remove what a run that was killed has left in /tmp

Needs root: nodes are network namespaces, and everything lives in a process namespace that dies with this program.
Ends with 1 when a write was lost, doubled or made up, when there were two primaries, or when a round failed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.faults import box, catalogue, report, runner
from tests.faults.machines import make_yard
from tests.faults.scene import Fault


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="NAME,..", help="only these faults")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of each fault")
    parser.add_argument("--mode", choices=("sync", "quorum", "async"), default="sync", help="of replication")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="two faults at a time, N times, instead")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of pairs and workload")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was seen")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep all logs of rounds that went wrong here")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/faults.md")
    parser.add_argument("--list", action="store_true", help="tell all faults, do nothing")
    parser.add_argument("--clean", action="store_true", help="remove leftovers of earlier runs, do nothing else")
    return parser.parse_args()


def main() -> int:
    want = options()
    if want.list:
        for fault in catalogue.CLASSES:
            bound = f"write gap <= {fault.bound_s:g} s" if fault.bound_s is not None else "no bound but an end"
            print(f"{fault.name:23} {fault.proves} [{bound}{', no errors' if fault.no_errors else ''}]")
        return 0
    if want.clean:
        print("\n".join(f"removed {path}" for path in box.clean()) or "nothing was left")
        return 0
    try:
        faults = catalogue.chosen(want.only, pairs=want.pairs, seed=want.seed)
    except KeyError as error:
        print(f"no such fault: {error.args[0]}; see --list", file=sys.stderr)
        return 2
    if not box.inside() and (why := box.missing()):
        print(f"cannot be run here: {why}", file=sys.stderr)
        return 3
    box.enter()
    for missed in [one for one in faults if catalogue.unplayable(one)]:
        print(f"{missed.name} is left out: {missed.needs} is not installed", file=sys.stderr)
        faults.remove(missed)
    return asyncio.run(play(want, faults))


async def play(want: argparse.Namespace, faults: list[Fault]) -> int:
    with box.folder() as root:
        async with runner.sites(root, make_yard(), want.mode) as made:
            logs = want.logs.absolute() if want.logs else None
            rounds = await runner.play_all(made, faults, rounds=want.rounds, seed=want.seed, logs=logs)
    print(report.table(faults, rounds))
    if want.json:
        report.write_json(want.json, rounds, mode=want.mode, seed=want.seed)
    if want.write_docs:
        command = " ".join(["./dev faults", *(word for word in sys.argv[1:] if word != "--write-docs")])
        report.write_document(faults, rounds, command)
    return 1 if any(one.broken or one.failure for one in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
