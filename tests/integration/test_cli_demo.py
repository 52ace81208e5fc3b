"""The demo as a person runs it: the whole story, Ctrl-C, a part that dies, and the same data the next time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cli.demo import traces
from cli.demo.layout import Layout
from tests.support.waiting import eventually_sync

DEMO = str(Path(sys.executable).parent / "moorage-demo")
READY_WITHIN_S = 120.0

pytestmark = pytest.mark.timeout(400)


def ended(process: subprocess.Popen[bytes], within: float = 60) -> int:
    return process.wait(within)


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(f"/tmp/md-{os.getpid()}")
    yield path
    traces.kill_all(path)
    shutil.rmtree(path, ignore_errors=True)


class Demo:
    """A `moorage-demo run` in the background."""

    def __init__(self, root: Path) -> None:
        self.log = root.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([DEMO, "run", "--root", str(root)], stdout=log, stderr=log)

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.unlink()

    def told(self) -> str:
        return self.log.read_text()

    def ready(self) -> str:
        """The read-write connection string, once it is shown."""

        def look() -> re.Match[str] | None:
            if self.process.poll() is not None:
                raise SystemError(f"the demo has ended: {self.told()}")
            return re.search(r"read-write +(\S+)\n.*Ctrl-C stops everything", self.told(), re.DOTALL)

        found = eventually_sync(look, within=READY_WITHIN_S, what="connection string")
        assert found is not None
        return found[1]


def test_whole_story_comes_true_and_leaves_nothing_behind() -> None:
    before = set(Path("/tmp").glob("moorage-check-*"))
    done = subprocess.run([DEMO, "check"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("etcd", "hub at", "agents enrolled", "runs:", "psql reaches", "psycopg", "kill -9", "leads in term"):
        assert step in done.stdout
    assert re.search(r"all \d+ acknowledged writes are there", done.stdout)
    assert "nothing is left" in done.stdout
    assert set(Path("/tmp").glob("moorage-check-*")) <= before


def test_demo_stops_on_ctrl_c_and_resumes_its_data(root: Path) -> None:
    with Demo(root) as demo:
        with psycopg.connect(demo.ready(), autocommit=True) as connection:
            connection.execute("create table kept as select 42 as answer")
        second = subprocess.run([DEMO, "run", "--root", str(root)], capture_output=True, text=True, timeout=60)
        assert second.returncode == 4
        assert "a demo runs here already" in second.stderr
        demo.process.send_signal(signal.SIGINT)
        assert ended(demo.process) == 0
        assert traces.processes(root) == []
    with Demo(root) as demo:
        with psycopg.connect(demo.ready(), autocommit=True) as connection:
            assert connection.execute("select answer from kept").fetchone() == (42,)
        layout = Layout(root)
        layout.load()
        os.kill(layout.memory.processes["hub"][0], signal.SIGKILL)
        assert ended(demo.process) == 8  # a part that ends ends the demo, and is named
        assert "error: hub: ended by signal 9" in demo.told()
        assert traces.processes(root) == []


def test_demo_whose_reader_goes_away_stops_everything_all_the_same(root: Path) -> None:
    with subprocess.Popen(
        [DEMO, "run", "--root", str(root)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as demo:
        assert demo.stdout is not None
        assert b"etcd" in demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(90) is not None
    assert not traces.processes(root)
