"""A configuration that cannot be right is refused with file, line, field, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config import load_config, split_host_port
from core.errors import UserError
from hub.config import HubConfig

GOOD = """\
name: hub-1
etcd_endpoints: [127.0.0.1:2379]
listen_agents: 127.0.0.1:7400
listen_operators: 127.0.0.1:7401
data_dir: data
"""


def load(tmp_path: Path, text: str) -> HubConfig:
    path = tmp_path / "hub.yaml"
    path.write_text(text)
    return load_config(path, HubConfig)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as refused:
        load(tmp_path, text)
    return str(refused.value).replace(str(tmp_path), "")


def test_defaults_fill_what_is_not_said(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.agents_address == "127.0.0.1:7400"
    assert config.operators_address == "127.0.0.1:7401"
    assert (config.lease_ttl_s, config.silent_after_s, config.port_range) == (6, 12.0, (15000, 15999))


def test_relative_paths_count_from_the_files_folder(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.data_dir == tmp_path / "data"
    assert config.seal_key_path == tmp_path / "data" / "seal.key"
    assert config.admin_token_path == tmp_path / "data" / "admin.token"
    moved = load(tmp_path, GOOD + "seal_key_file: /etc/moorage/seal.key\n")
    assert moved.seal_key_path == Path("/etc/moorage/seal.key")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lease_ttl: 6\n", "/hub.yaml:6: lease_ttl: is not a known field; check the spelling"),
        ("lease_ttl_s: soon\n", "/hub.yaml:6: lease_ttl_s: input should be a valid integer"),
        ("lease_ttl_s: 1\n", "/hub.yaml:6: lease_ttl_s: input should be greater than or equal to 3, got 1"),
        ("etcd_tls:\n  ca: x\n  cert: y\n", "/hub.yaml:6: etcd_tls.key: is required"),
        ("etcd_tls:\n  ca: x\n  cret: y\n  key: z\n", "etcd_tls.cert: is required"),
        ("silent_after_s: 6\n", "/hub.yaml:6: silent_after_s: must be twice heartbeat_idle_s"),
        ("port_range: [9, 8]\n", "/hub.yaml:6: port_range: must be [LOW, HIGH]"),
        ("hold_min_s: 58\n", "/hub.yaml:6: hold_min_s: must not be above hold_max_s"),
        ("hold_max_s: 90\n", "hold_max_s: input should be less than or equal to 60"),
        ("log_level: loud\n", "/hub.yaml:6: log_level: must be one of debug, info, warning, error"),
        ("advertise_agents: here\n", "/hub.yaml:6: advertise_agents: 'here' is not an address: write HOST:PORT"),
        ("name: hub-2\n", "/hub.yaml:6: name: is given twice; keep one of them"),
        ("name: [\n", "/hub.yaml: not valid YAML: line"),
    ],
)
def test_a_wrong_field_is_named_with_its_line_and_the_way_out(tmp_path, text, said):
    assert said in refusal(tmp_path, GOOD + text)


def test_a_hub_that_listens_everywhere_must_say_how_it_is_reached(tmp_path):
    said = refusal(tmp_path, GOOD.replace("listen_agents: 127.0.0.1:7400", "listen_agents: 0.0.0.0:7400"))
    assert "advertise_agents: is required" in said


def test_several_problems_are_told_at_once(tmp_path):
    said = refusal(tmp_path, GOOD.replace("hub-1", "Hub 1").replace("127.0.0.1:7401", "7401"))
    assert "/hub.yaml:1: name: name 'Hub 1' is not valid" in said
    assert "listen_operators: must be text HOST:PORT" in said


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n"])
def test_a_file_that_is_no_mapping_of_fields_is_refused(tmp_path, text):
    assert "/hub.yaml" in refusal(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot be read: No such file.*--config"):
        load_config(tmp_path / "nowhere.yaml", HubConfig)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a.b-c:1", ("a.b-c", 1)), ("[fd00::5]:7400", ("fd00::5", 7400)), ("10.0.0.1:65535", ("10.0.0.1", 65535))],
)
def test_addresses_are_split(text, parts):
    assert split_host_port(text) == parts


@pytest.mark.parametrize("text", ["a", "a:0", "a:65536", ":1", "fd00::5:1", "a:b", "a:1:2"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_host_port(text)


def test_control_characters_are_refused_like_any_other_mistake(tmp_path):
    assert "not valid YAML" in refusal(tmp_path, GOOD + "log_level: \x01\n")
