"""xensecure.toml: every key, its right and wrong values, and what is said of a file that cannot be used."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from xensecure.link.config import HOST_KEYS, SCHEMA, Config, HostOptions, load_config, with_option
from xensecure.proto import limits
from xensecure.proto.errors import ConfigurationError, UsageError

SAMPLE = Path(__file__).parent.parent / "packaging/xensecure.toml"

# Section and key → right values with what the field becomes, and wrong values; all as TOML.
HOST_VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "peer": ({'"hv2.example.org"': "hv2.example.org"}, ["5", '""', '"a b"', '"-x"', '"ä"', '"a/b"', "true"]),
    "address": (
        {'"192.0.2.7"': ("192.0.2.7",), '["2001:db8::7", "hv2"]': ("2001:db8::7", "hv2"), '"fe80::1%eth0"': ("fe80::1%eth0",)},
        ["5", "[]", '""', '["a", 5]', '"a b"', '["a","a","a","a","a","a","a","a","a"]', '"-o"', "{a = 1}"],
    ),
    "port": ({"1": 1, "65535": 65535}, ["0", "65536", "-1", '"8003"', "true", "8003.0", "[8003]"]),
    "bind": ({'"192.0.2.1"': "192.0.2.1", '"2001:db8::1"': "2001:db8::1"}, ["5", '""', '"hv1"', '"192.0.2.1%lo"', '"192.0.2.300"']),
    "family": ({'"any"': "any", '"inet"': "inet", '"inet6"': "inet6"}, ['"ipv4"', "4", "[]", "true"]),
    "quiet": ({"true": True, "false": False}, ['"yes"', "1", "[]"]),
    "verbose": ({"0": 0, "3": 3}, ["4", "-1", "true", '"1"']),
    "connect_timeout": ({"1": 1, "600": 600}, ["0", "601", "1.5", '"10"', "true"]),
    "keepalive": ({"1": 1, "14": 14}, ["0", "3601", "0.5", "false"]),
    "silence": ({"6": 6, "86400": 86400}, ["1", "86401", "false", '"60"']),
    "resume_window": ({"0": 0, "86400": 86400}, ["-1", "86401", "true", '"60"', '"endless"']),
    "final_window": ({"1": 1, "86400": 86400, '"endless"': limits.ENDLESS_SECONDS}, ["0", "-1", "true", '"60"', '"ENDLESS"', "1000000001"]),
    "lanes": ({"1": 1, "8": 8}, ["0", "9", "-1", "true", '"4"', "2.0"]),
    "neighbour": ({'"report"': "report", '"refuse"': "refuse", '"off"': "off"}, ["true", '"on"', '"REFUSE"', '""', "[]"]),
    "interface": ({'"eth1"': "eth1", '"bond0.100"': "bond0.100", '""': ""}, ["5", '"a b"', '"eth0:1"', '"a/b"', '"abcdefghijklmnop"', '["eth1"]']),
    "compress": ({'"off"': "off", '"auto"': "auto", '"zstd"': "zstd"}, ["true", "1", '"on"', '"ZSTD"', "[]"]),
    "bwlimit": (
        {'"off"': 0, "0": 0, "65536": 65536, '"64K"': 65536, '"800M"': 800 << 20, '"2G"': 2 << 30, '"1048576"': 1 << 20, '"0"': 0},
        ["65535", "-1", "false", "true", "0.0", "1e6", '"63K"', '"800m"', '"800MB"', '"1.5G"', '"on"', '""', '"9999999999999G"', '"1T"', "[]"],
    ),
    "elide": ({'"on"': "on", '"off"': "off"}, ["true", "false", "1", '"yes"', '"ON"', "[]"]),
}
_PATTERNS: tuple[dict[str, Any], list[str]] = (
    {'["web*", "db?"]': ("web*", "db?"), '"x"': ("x",), "[]": ()},
    ["5", "true", '[""]', "[5]", '["a\\nb"]', "[" + '"x",' * 257 + "]"],
)
_ABSOLUTE: tuple[dict[str, Any], list[str]] = ({'["/opt/x/", "/a/b*"]': ("/opt/x/", "/a/b*"), "[]": ()}, ["5", '["opt"]', '""', "[5]"])
_KEYS: tuple[dict[str, Any], list[str]] = (
    {'["pcidevs", "nics.colo_*", "b_info.type.hvm.serial=/dev/ttyS0"]': ("pcidevs", "nics.colo_*", "b_info.type.hvm.serial=/dev/ttyS0"), "[]": ()},
    ["5", '["a b"]', '["=x"]', '["disks[0].script"]', "[true]"],
)
POLICY_VALUES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "check": ({'"on"': "on", '"off"': "off"}, ["true", "1", '"ON"']),
    "send": ({"true": True, "false": False}, ['"yes"', "1"]),
    "names": _PATTERNS,
    "memory": (
        {'"off"': 0, "0": 0, "4096": 4096, '"512M"': 512, '"64G"': 64 << 10, '"2T"': 2 << 20},
        ["-1", "true", '"64"', '"64g"', '"1.5G"', "1.5", '"1025T"'],
    ),
    "vcpus": ({'"off"': 0, "0": 0, "32768": 32768}, ["-1", "32769", "true", '"4"']),
    "domains": ({'"off"': 0, "1": 1, "4096": 4096}, ["-1", "4097", "true", '"4"']),
    "free_memory": ({'"on"': "on", '"off"': "off"}, ["true", "1", '"auto"']),
    **dict.fromkeys(("disks", "bridges", "kernels", "bootloaders"), _PATTERNS),
    **dict.fromkeys(("device_models", "scripts"), _ABSOLUTE),
    **dict.fromkeys(("allow", "forbid"), _KEYS),
}
VALUES: dict[str, dict[str, tuple[dict[str, Any], list[str]]]] = {
    "paths": {
        "state": ({'"/srv/x"': Path("/srv/x")}, ['"srv"', "5", '""', '"~/x"', '["/srv"]']),
        "run": ({'"/srv/x"': Path("/srv/x")}, ['"run"', "5", f'"/{"x" * 93}"']),
        "hooks": ({'"/srv/x"': Path("/srv/x")}, ['"hooks.d"', "5", '""', '["/srv"]']),
    },
    "identity": {"name": ({'"hv1"': "hv1"}, ["5", '""', '"a b"', '".hv1"', f'"{"x" * 231}"'])},
    "trust": {
        "mode": ({'"pin"': "pin"}, ['"tls"', "5", '"PIN"']),
        "ca": ({'"/etc/ca.pem"': "/etc/ca.pem"}, ['"ca.pem"', "5"]),
        "certificate": ({'"/etc/c.pem"': "/etc/c.pem"}, ['"c.pem"', "5"]),
        "key": ({'"/etc/k.pem"': "/etc/k.pem"}, ['"k.pem"', "5"]),
    },
    "listen": {
        "addresses": ({'["192.0.2.1", "::1"]': ("192.0.2.1", "::1"), '"::"': ("::",)}, ["5", "[]", '["hv1"]', "[5]", '[["::"]]']),
        "port": ({"8004": 8004}, ["0", "65536", '"8003"']),
    },
    "receive": {
        "xl": ({'"/opt/xen/sbin/xl"': "/opt/xen/sbin/xl"}, ['"xl"', "5", '"/a\\nb"']),
        "user": ({'"nobody"': "nobody"}, ["5", '""', '"a b"', '"-u"']),
        "sessions": ({"1": 1, "4096": 4096}, ["0", "4097", '"64"']),
        "coloft_scripts": ({'["/etc/xen/colo"]': ("/etc/xen/colo",), "[]": ()}, ['"/etc/xen/colo"', '["colo"]', "[5]"]),
        "lanes": ({"1": 1, "8": 8}, ["0", "9", '"8"']),
        "window": ({"65536": 65536, "67108864": 64 << 20}, ["65535", "67108865", '"64M"']),
    },
    "engine": {"cipher": ({'"auto"': "auto", '"libcrypto"': "libcrypto", '"ipsec-mb"': "ipsec-mb"}, ['"aes"', "5", "true", '"AUTO"', "[]"])},
    "hooks": {"timeout": ({"1": 1, "600": 600}, ["0", "601", "1.5", '"30"', "true"])},
    "policy": POLICY_VALUES,
    "log": {
        "events": ({'"journal"': "journal", '"off"': "off", '"/a/b"': "/a/b"}, ['"file"', '""', "1", '["off"]']),
        "metrics": ({'"off"': "off", '"/a/b.prom"': "/a/b.prom"}, ['"journal"', '"a.prom"', "true"]),
    },
    "defaults": {name: values for name, values in HOST_VALUES.items() if name not in ("peer", "address")},
}

RIGHT = [(section, key, text, value) for section, keys in VALUES.items() for key, (right, _) in keys.items() for text, value in right.items()]
WRONG = [(section, key, text) for section, keys in VALUES.items() for key, (_, wrong) in keys.items() for text in wrong]
HOST_RIGHT = [(key, text, value) for key, (right, _) in HOST_VALUES.items() for text, value in right.items()]
HOST_WRONG = [(key, text) for key, (_, wrong) in HOST_VALUES.items() for text in wrong]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the configuration goes."""
    path = tmp_path / "xensecure.toml"
    path.touch(mode=0o644)
    path.chmod(0o644)
    return path


def _holder(config: Config, section: str) -> object:
    """Whose fields a section's keys set."""
    return {"defaults": config.defaults, "policy": config.policy}.get(section, config)


def _load(file: Path, text: str | bytes) -> Config:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(str(file))


def _refused(file: Path, text: str | bytes) -> str:
    """What is said of that text, without the file's name."""
    with pytest.raises(ConfigurationError) as caught:
        _load(file, text)
    said = str(caught.value)
    assert said.startswith(f"{file}:")
    assert said.isprintable(), "one line"
    assert caught.value.exit_code == 3
    return said.removeprefix(str(file))


def test_values_cover_schema() -> None:
    """The tables above have every section and key of the schema."""
    assert {section: set(keys) for section, keys in VALUES.items()} == {section: set(keys) for section, keys in SCHEMA.items()}
    assert set(HOST_VALUES) == set(HOST_KEYS)


def test_every_host_option_is_a_key() -> None:
    """Every option that a host can have can be set in its section."""
    assert {key.target for key in HOST_KEYS.values()} == {field.name for field in fields(HostOptions)}


@pytest.mark.parametrize(("section", "key", "text", "value"), RIGHT)
def test_right_value(file: Path, section: str, key: str, text: str, value: object) -> None:
    """A right value becomes the field's."""
    config = _load(file, f"[{section}]\n{key} = {text}\n")
    assert getattr(_holder(config, section), SCHEMA[section][key].target) == value


@pytest.mark.parametrize(("section", "key", "text"), WRONG)
def test_wrong_value(file: Path, section: str, key: str, text: str) -> None:
    """A wrong value is refused with file, line, key and what it must be."""
    assert _refused(file, f"# one\n[{section}]\n\n{key} = {text}\n") == f":4: '{key}' must be {SCHEMA[section][key].words}"


@pytest.mark.parametrize(("key", "text", "value"), HOST_RIGHT)
def test_right_host_value(file: Path, key: str, text: str, value: object) -> None:
    """A right value in a host's section is that host's, and no other's."""
    config = _load(file, f"[host.hv2]\n{key} = {text}\n")
    assert getattr(config.options_for("hv2"), HOST_KEYS[key].target) == value
    assert config.options_for("hv3") == HostOptions()


@pytest.mark.parametrize(("key", "text"), HOST_WRONG)
def test_wrong_host_value(file: Path, key: str, text: str) -> None:
    """A wrong value in a host's section is refused with its line."""
    assert _refused(file, f"[defaults]\n[host.hv1]\n[host.hv2]\n{key} = {text}") == f":4: '{key}' must be {HOST_KEYS[key].words}"


@pytest.mark.parametrize(("key", "text", "value"), HOST_RIGHT)
def test_right_option(key: str, text: str, value: object) -> None:
    """`-o KEY=VALUE` takes every key of a host's section, with TOML's quotes and without."""
    assert getattr(with_option(HostOptions(), f"{key}={text}"), HOST_KEYS[key].target) == value
    if text.startswith('"'):
        assert getattr(with_option(HostOptions(), f"{key} = {text[1:-1]}"), HOST_KEYS[key].target) == value


@pytest.mark.parametrize("assignment", ["port", "port=", "port=x", "prot=5", "=5", "", "quiet=yes", "address="])
def test_wrong_option(assignment: str) -> None:
    """`-o` with something else is a usage error that shows it."""
    with pytest.raises(UsageError, match=re.escape(repr(assignment))):
        with_option(HostOptions(), assignment)


def test_defaults_of_an_empty_file(file: Path) -> None:
    """An empty file means the documented defaults."""
    config = _load(file, "[identity]\nname='x'")
    assert (str(config.state), str(config.run)) == ("/var/lib/xensecure", "/run/xensecure")
    assert (config.port, config.xl, config.user, config.trust) == (8003, "/usr/sbin/xl", "_xensecure", "pin")
    assert config.listen == ("::", "0.0.0.0")  # noqa: S104 - the documented default


def test_hosts_inherit_defaults(file: Path) -> None:
    """A host's section adds to [defaults], wherever that stands; a host without a section has [defaults]."""
    config = _load(file, "[host.hv2]\nport = 9\n[defaults]\nquiet = true\nport = 7\n")
    assert (config.options_for("hv2").port, config.options_for("hv2").quiet) == (9, True)
    assert (config.options_for("hv3").port, config.options_for("hv3").quiet) == (7, True)


def test_host_names(file: Path) -> None:
    """Aliases, dotted names and addresses name a section; case plays no part when it is written in small letters."""
    config = _load(file, '[host.web]\npeer="hv2"\n[host."hv2.example.org"]\nport=5\n[host."2001:db8::7"]\nport=6\n[host]\nhv9 = {port = 7}\n')
    assert config.options_for("web").peer == "hv2"
    assert config.options_for("WEB").peer == "hv2"
    assert config.options_for("hv2.example.org").port == 5
    assert config.options_for("2001:db8::7").port == 6
    assert config.options_for("hv9").port == 7


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("[recieve]\n", 1, "unknown section 'recieve'"),
        ("\nname = 'x'\n", 2, "unknown key outside a section: 'name'"),
        ("paths = 5\n", 1, "'paths'"),
        ("[[paths]]\nstate='/x'\n", 1, "'paths'"),
        ("[listen]\nprot = 5\n", 2, "did you mean 'port'?"),
        ("[defaults]\n\nwindow = 70000\n", 3, "it belongs in [receive]"),
        ("[defaults]\npeer = 'hv2'\n", 2, "it belongs in [host.NAME]"),
        ("[defaults]\naddress = '192.0.2.1'\n", 2, "it belongs in [host.NAME]"),
        ("[receive]\nsudo = true\n", 2, "known are xl, user, sessions, coloft_scripts, window"),
        ("[host.hv2.example.org]\nport = 5\n", 1, 'in quotes: [host."hv2.example.org"]'),
        ("[host]\nport = 5\n", 2, "[host.NAME]"),
        ("host = 5\n", 1, "[host.NAME]"),
        ("policy = 5\n", 1, "'policy'"),
        ("[policy]\ndisk = []\n", 2, "did you mean 'disks'?"),
        ("[policy]\npeer = 5\n", 2, "[policy.peer.NAME]"),
        ("[policy.peer]\nvcpus = 5\n", 2, "[policy.peer.NAME]"),
        ("[policy.peer.'a b']\n", 1, "no peer's name"),
        ("[policy.peer.hv1.example.org]\nvcpus = 5\n", 1, 'in quotes: [policy.peer."hv1.example.org"]'),
        ("[policy.peer.hv1]\nvcpus = 5\nsends = true\n", 3, "did you mean 'send'?"),
        ("[host.'a b']\n", 1, "no host's name"),
        ("paths.state = 5\n", 1, "'state' must be"),
        ("paths = {run = '/x', state = 5}\n", 1, "'state' must be"),
        ("[listen]\naddresses = [\n  '::',\n  'x',\n]\nport = 0\n", 2, "'addresses' must be"),
        ("[listen]\naddresses = [\n  '::',\n]\n# [x]\nport = 0\n", 6, "'port' must be"),
        ("[host]\nhv2.port = 0\n", 2, "'port' must be"),
        ('[paths]\n"state" = 5\n', 2, "'state' must be"),
        ("[trust]\nca = '/a'\nmode = 'ca'\n", 3, "needs 'ca', 'certificate' and 'key'"),
        ("[defaults]\nkeepalive = 60\n", 2, "less than 'silence' (15 s)"),
        ("[defaults]\nkeepalive = 12\n[host.hv2]\nsilence = 10\n", 4, "'keepalive' (12 s) must be less"),
    ],
)
def test_structure(file: Path, text: str, place: int, words: str) -> None:
    """What is out of place is named with its line, and with what was probably meant."""
    said = _refused(file, text)
    assert said.startswith(f":{place}: ")
    assert words in said


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[paths\n", 1),
        ("[paths]\nstate = /x\n", 2),
        ("[paths]\nstate = '/x'\nstate = '/y'\n", 3),
        ("[paths]\n[paths]\n", 2),
        ("[paths]\nstate = '/x", 2),
        ('[paths]\n\nstate = """/x\n\n', 3),
        ("[paths]\nstate\n", 2),
    ],
)
def test_syntax(file: Path, text: str, place: int) -> None:
    """What is no TOML is refused with its line."""
    assert _refused(file, text).startswith(f":{place}: ")


def test_monstrous_values(file: Path) -> None:
    """Numbers and nestings beyond Python's own bounds are refused like any other."""
    for text in (f"[listen]\nport = {'9' * 5000}\n", f"[listen]\nport = {'[' * 5000}"):
        _refused(file, text)


def test_encodings(file: Path) -> None:
    """A byte order mark and CRLF do no harm, also to line numbers; another encoding is refused with its line."""
    assert _load(file, b"\xef\xbb\xbf[listen]\r\nport = 9\r\n").port == 9
    assert _refused(file, b"\xef\xbb\xbf[listen]\r\n\r\nport = 0\r\n").startswith(":3: 'port'")
    assert _refused(file, "[identity]\nname = 'hü'\n".encode("latin-1")).startswith(":2: not UTF-8")
    assert _refused(file, "[listen]\n".encode("utf-16")).startswith(":1: not UTF-8")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620])
def test_writable_by_others(file: Path, mode: int) -> None:
    """A file that others can write is not read, for it names what root runs."""
    file.chmod(mode)
    said = _refused(file, "")
    assert f"mode {mode:04o}" in said
    assert "chmod go-w" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owned_by_another(file: Path) -> None:
    """Nor is one that belongs to another user than root or the one who runs the command."""
    os.chown(file, 65534, -1)
    assert "belongs to user 65534" in _refused(file, "")


def test_which_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option comes before XENSECURE_CONFIG; a file that one of them names must exist, and be a file."""
    _load(file, "[listen]\nport = 9\n")
    monkeypatch.setenv("XENSECURE_CONFIG", str(file))
    assert load_config().port == 9
    other = tmp_path / "other.toml"
    with pytest.raises(ConfigurationError, match="no such file"):
        load_config(str(other))
    other.write_text("[listen]\nport = 10\n")
    other.chmod(0o600)
    assert load_config(str(other)).port == 10
    monkeypatch.setenv("XENSECURE_CONFIG", str(tmp_path))
    with pytest.raises(ConfigurationError, match="directory"):
        load_config()
    monkeypatch.setenv("XENSECURE_CONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="XENSECURE_CONFIG"):
        load_config()


# ---- the sample


def _sample_keys() -> dict[str, dict[str, str]]:
    """Section → key → its value as the sample has it, commented or not."""
    found: dict[str, dict[str, str]] = {}
    section = ""
    for line in SAMPLE.read_text().splitlines():
        if header := re.fullmatch(r"#? ?\[([^\]]+)\]", line):
            section = header[1]
            found[section] = {}
        elif pair := re.fullmatch(r"# ?(\w+) = (.+)", line):
            found[section][pair[1]] = pair[2]
    return found


def test_sample_is_complete() -> None:
    """The sample has every key of every section, each behind a sentence, and nothing else."""
    found = _sample_keys()
    assert {name: set(keys) for name, keys in found.items()} == {
        **{name: set(keys) for name, keys in SCHEMA.items()},
        "policy.peer.hv2": set(found["policy.peer.hv2"]) & set(SCHEMA["policy"]),
        "host.hv2": set(HOST_KEYS) - set(SCHEMA["defaults"]),
    }
    lines = SAMPLE.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.fullmatch(r"# ?(\w+) = .+", line):
            assert re.fullmatch(r"## .*[.:)]", before), line


def test_sample_shows_defaults(file: Path) -> None:
    """The values in the sample are the defaults, where there are any; it loads as it is, and uncommented."""
    plain = SAMPLE.read_text()
    assert _load(file, plain) == _load(file, "")
    uncommented = re.sub(r"(?m)^# ?(?=\[|\w+ = )", "", plain)
    assert set(tomllib.loads(uncommented)) == {*SCHEMA, "host"}
    loaded = _load(file, uncommented)
    assert loaded.options_for("hv2").peer
    assert loaded.policy_for("hv2") != loaded.policy
    default = Config(path="")
    for section, keys in _sample_keys().items():
        for key, text in keys.items() if section in SCHEMA else ():
            value = getattr(_holder(default, section), SCHEMA[section][key].target)
            if value or isinstance(value, bool):
                assert SCHEMA[section][key].convert(tomllib.loads(f"v = {text}")["v"]) == value, key
