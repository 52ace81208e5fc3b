"""What the packages are made from, as far as it can be seen without building them."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shutil
import subprocess
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from packaging.requirements import Requirement

from agent.config import AgentConfig
from cli.main import moorctl
from core.config import load_config
from hub.config import HubConfig

ROOT = Path(__file__).resolve().parents[2]
PACKAGING, UNITS = ROOT / "packaging", ROOT / "systemd"
# The score that `systemd-analyze security` gives at most; 0 is closed, 10 is open. Why it is not less:
# docs/operating/installing.md.
EXPOSURE_MAX = {"moorage-hub": 1.2, "moorage-agent": 3.5, "moorage-engines": 3.5}


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", PACKAGING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "model"), [("hub", HubConfig), ("agent", AgentConfig)])
def test_the_default_configuration_loads(name: str, model: type[HubConfig | AgentConfig]) -> None:
    load_config(PACKAGING / "etc" / f"{name}.yaml", model)


@pytest.mark.parametrize(("name", "model"), [("hub", HubConfig), ("agent", AgentConfig)])
def test_every_commented_default_is_one_that_exists(
    name: str, model: type[HubConfig | AgentConfig], tmp_path: Path
) -> None:
    text = (PACKAGING / "etc" / f"{name}.yaml").read_text()
    all_set = tmp_path / "all.yaml"
    all_set.write_text(re.sub(r"^# (?=(  )?[a-z_]+:( |$))", "", text, flags=re.MULTILINE))
    given = yaml.safe_load(all_set.read_text())
    assert len(given) > len(yaml.safe_load(text)) + 3
    load_config(all_set, model)


def test_the_lock_pins_what_the_project_asks_for() -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+) --hash", (PACKAGING / "wheels.amd64.lock").read_text(), flags=re.MULTILINE))
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), f"{wanted}: run ./dev package --lock"


def test_every_command_has_its_place_in_a_man_page() -> None:
    pages = recipe("manpages").pages(datetime(2026, 1, 1, tzinfo=UTC))
    text = "\n".join(pages.values()).replace("\\-", "-")

    def paths(command: click.Command, path: str) -> list[str]:
        if not isinstance(command, click.Group):
            return [path]
        return [found for name, inner in command.commands.items() for found in paths(inner, f"{path} {name}")]

    missing = [path for path in paths(moorctl, "moorctl") if f".SS {path}" not in text]
    assert not missing
    assert {name for _, name in pages} >= {"moorctl.1", "moorctl-instance.1", "moorage-hub.8", "moorage-agent.8"}


@pytest.mark.skipif(shutil.which("man") is None, reason="man is missing: apt install man-db")
def test_man_finds_nothing_wrong_with_the_pages(tmp_path: Path) -> None:
    for (_, name), text in recipe("manpages").pages(datetime(2026, 1, 1, tzinfo=UTC)).items():
        page = tmp_path / name
        page.write_text(text)
        command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin", "MANWIDTH": "120"}
        )
        assert not found.stderr, name


@pytest.mark.parametrize("unit", sorted(EXPOSURE_MAX))
def test_units_start_programs_that_the_packages_have(unit: str) -> None:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / f"{unit}.service")
    programs = recipe("environment").PROGRAMS
    for key in ("ExecStartPre", "ExecStart", "ExecStop"):
        command = parser["Service"].get(key, "/bin/true").split()[0]
        assert command == "/bin/true" or command.removeprefix("/opt/moorage/bin/") in programs


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt install systemd")
@pytest.mark.parametrize("unit", sorted(EXPOSURE_MAX))
def test_a_unit_is_as_closed_as_the_documents_say(unit: str) -> None:
    threshold = str(round(EXPOSURE_MAX[unit] * 10))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", "--no-pager"]
    judged = subprocess.run([*command, str(UNITS / f"{unit}.service")], capture_output=True, text=True, timeout=60)
    assert judged.returncode == 0, judged.stdout[-300:] + judged.stderr
