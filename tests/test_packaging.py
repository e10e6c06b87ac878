"""The packages' files against the code; scripts/deb-check.sh builds and tries the packages themselves."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xensecure import __version__
from xensecure.link.config import HOST_KEYS, Config
from xensecure.link.hooks import Point

ROOT = Path(__file__).resolve().parent.parent
PACKAGING = ROOT / "packaging"
BASH = PACKAGING / "completion/xensecure.bash"
ZSH = PACKAGING / "completion/_xensecure"
BIN = Path(sys.executable).parent
COMMANDS = ("xensecure", "xensecured", "xensecure-launcher", "xensecurectl")
HELP = subprocess.run([str(BIN / "xensecurectl"), "--help"], capture_output=True, text=True, check=True).stdout
SUBCOMMANDS = tuple(re.findall(r"^    (\w+)", HELP, re.MULTILINE))
needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not there")


def text(path: str) -> str:
    """A file of packaging/."""
    return (PACKAGING / path).read_text("utf-8")


def helped(*words: str) -> set[str]:
    """The options that a command's --help names."""
    done = subprocess.run([str(BIN / words[0]), *words[1:], "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z0-9][a-z-]*", done.stdout.replace("xl migrate -s", "")))


def completed(line: str, folder: Path, *, peers: str = "[]") -> set[str]:
    """What bash offers for a line whose last word is to be completed; ``peers``: what xensecurectl says of them."""
    (folder / "xensecurectl").write_text(f"#!/bin/sh\n[ \"$*\" = 'peers --json' ] && echo {shlex.quote(peers)}\n")
    (folder / "xensecurectl").chmod(0o755)
    words = line.split(" ")
    program = (
        f"source {shlex.quote(str(BASH))}; COMP_WORDS=({' '.join(shlex.quote(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        f"function=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\) .*/\\1/'); $function {words[0]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


PEERS = '[{"name": "hv2", "addresses": ["192.0.2.2"], "keys": [{"generation": 1, "id": "00"}]}, {"name": "hv2.example.org"}, {"name": "xen1"}]'


HOST_PLACES = (
    "xensecure ",
    "xensecure -v -p 9000 ",
    "xensecurectl rotate ",
    "xensecurectl --config x show ",
    "xensecurectl forget ",
    "xensecurectl doctor --domain web1 ",
)


@pytest.mark.parametrize("line", HOST_PLACES)
def test_bash_offers_the_paired_hosts(line: str, tmp_path: Path) -> None:
    """Where a host belongs, those that this one has met are offered, and those alone."""
    assert completed(line, tmp_path, peers=PEERS) == {"hv2", "hv2.example.org", "xen1"}
    assert completed(f"{line}hv", tmp_path, peers=PEERS) == {"hv2", "hv2.example.org"}


def test_bash_offers_no_host_that_it_may_not_read(tmp_path: Path) -> None:
    """Without the right to read them there is nothing, and no message in the user's line."""
    assert completed("xensecure ", tmp_path, peers="") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_every_option(command: str, tmp_path: Path) -> None:
    """All that --help names."""
    offered = completed(f"{command} -", tmp_path)
    assert helped(command) - {"-h"} <= offered | {"-h"}
    assert "--help" in offered


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_bash_offers_every_option_of_a_subcommand(subcommand: str, tmp_path: Path) -> None:
    """All that xensecurectl COMMAND --help names."""
    assert completed(f"xensecurectl {subcommand} -", tmp_path) | {"-h"} >= helped("xensecurectl", subcommand)


def test_bash_offers_the_subcommands_and_keys(tmp_path: Path) -> None:
    """Every command of xensecurectl, and every key of -o."""
    assert completed("xensecurectl ", tmp_path) == set(SUBCOMMANDS) != set()
    assert {word.partition("=")[0] for word in completed("xensecure -o ", tmp_path)} == set(HOST_KEYS)


def test_bash_offers_what_follows_the_host(tmp_path: Path) -> None:
    """Behind HOST, xl's words and nothing of ours."""
    assert completed("xensecure hv2 ", tmp_path) == {"xl"}
    assert "migrate-receive" in completed("xensecure hv2 xl ", tmp_path)


def test_zsh_names_what_bash_names(tmp_path: Path) -> None:
    """Every option, subcommand and key stands in zsh's file too."""
    words = set(SUBCOMMANDS) | {f"{key}=" for key in HOST_KEYS}
    for line in (*COMMANDS, *(f"xensecurectl {subcommand}" for subcommand in SUBCOMMANDS)):
        words |= {word for word in completed(f"{line} -", tmp_path) if word.startswith("-")}
    offered = re.findall(r"--?[a-zA-Z0-9][a-z-]*|\w+=?", ZSH.read_text("utf-8"))
    assert sorted(words - set(offered)) == []


@needs_zsh
def test_zsh_understands_the_file() -> None:
    """No syntax error."""
    assert subprocess.run(["zsh", "-n", str(ZSH)], capture_output=True, text=True, check=True).stderr == ""


# A line, a tab, and what then must stand on the terminal; -m: a pattern.
ZSH_SESSION = """
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1='% '; fpath=($1 \\$fpath); autoload -U compinit; compinit -D -u; setopt noalwayslastprompt; LISTMAX=0; echo rea''dy"
zpty -r -m z out '*ready*'
zpty -n -w z "$2"$'\\t'
zpty -r -m z out "*$3*"
print -r -- $out
"""


@needs_zsh
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("xensecurectl ", "withdraw"),
        ("xensecurectl rotate ", "xen1"),
        ("xensecurectl invite --", "--address"),
        ("xensecure ", "xen1"),
        ("xensecure -o ", "connect_timeout="),
        ("xensecure hv2 xl ", "migrate-receive"),
        ("xensecured --", "--listen"),
        ("xensecure-launcher --", "--config"),
    ],
)
def test_zsh_completes(line: str, offered: str, tmp_path: Path) -> None:
    """In a zsh of its own, the tab key brings what should be offered."""
    (tmp_path / "xensecurectl").write_text(f"#!/bin/sh\necho {shlex.quote(PEERS)}\n")
    (tmp_path / "xensecurectl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb", "COLUMNS": "200"}
    words = ["zsh", "-f", "-c", ZSH_SESSION, "zsh", str(ZSH.parent), line, offered]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert offered in done.stdout
    assert "invalid argument" not in done.stdout


def test_versions_are_the_codes() -> None:
    """The changelog of the Debian package and the spec file have the version of the code."""
    assert re.match(r"xensecure \((.+?)\)", text("deb/changelog"))[1] == __version__  # type: ignore[index]
    assert re.search(r"^Version: +(\S+)$", text("rpm/xensecure.spec"), re.MULTILINE)[1] == __version__  # type: ignore[index]


def test_floors_are_those_of_setup() -> None:
    """Where the packages name a least version, it is setup.py's."""
    setup = (ROOT / "setup.py").read_text("utf-8")
    floors = dict(re.findall(r'"(\w+)>=([\d.]+)"', setup)) | {"python3": re.search(r'python_requires=">=([\d.]+)"', setup)[1]}  # type: ignore[index]
    names = {"pyOpenSSL": "python3-openssl", "pyroute2": "python3-pyroute2", "python3": "python3"}
    for name, package in names.items():
        assert f" {package} (>= {floors[name]})," in text("deb/control")
    for name, floor in floors.items():
        package = name if name == "python3" else f"python3-{name}"
        assert re.search(rf"^Requires: +{package} >= {re.escape(floor)}$", text("rpm/xensecure.spec"), re.MULTILINE), name


def test_packages_have_the_hooks_folders() -> None:
    """Both packages make a folder for each point, where the code looks for hooks, and bring the samples."""
    folders = [f"{str(Config(path='').hooks)[1:]}/{point}" for point in sorted(Point)]
    assert text("deb/xensecure.dirs").splitlines() == folders
    assert text("deb/xensecure.examples") == "hooks\npackaging/monitoring\n"
    spec = text("rpm/xensecure.spec")
    assert f"for point in {' '.join(sorted(Point))}; do\n" in spec
    assert re.search(r"^%doc .* hooks$", spec, re.MULTILINE)
    assert "graft hooks\n" in (ROOT / "MANIFEST.in").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"/(etc/xensecure/hooks\.d/[a-z-]+)", readme)) == folders


def test_identity_is_made_and_not_shipped() -> None:
    """The unit that makes the identity does so only where there is none, before anybody can connect."""
    unit = text("deb/xensecure-identity.service")
    assert "ConditionPathExists=!/var/lib/xensecure/identity.key\n" in unit
    assert "Before=xensecured.socket\n" in unit
    assert "ExecStart=xensecurectl init\n" in unit


@pytest.mark.parametrize("script", ["scripts/deb.sh", "scripts/deb-check.sh", "scripts/deb-chroot.sh", "packaging/deb/xensecure.postrm"])
def test_scripts_are_well_formed(script: str) -> None:
    """The shell understands them."""
    assert subprocess.run(["sh", "-n", str(ROOT / script)], capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpmbuild is not there")
def test_rpmbuild_accepts_the_spec_file(tmp_path: Path) -> None:
    """It makes a source package; what an archive holds is not looked at for that."""
    (tmp_path / f"xensecure-{__version__}.tar.gz").touch()
    defines = [word for name in ("_topdir", "_sourcedir", "_srcrpmdir") for word in ("--define", f"{name} {tmp_path}")]
    subprocess.run(["rpmbuild", *defines, "-bs", str(PACKAGING / "rpm/xensecure.spec")], capture_output=True, text=True, check=True)
    assert list(tmp_path.glob(f"xensecure-{__version__}-1*.src.rpm"))


def test_packages_have_the_role() -> None:
    """Both packages bring the Ansible role, the source archive has it, and its README names no variable that it does not have."""
    assert "packaging/ansible usr/share/xensecure\n" in text("deb/xensecure.install")
    assert "cp -r packaging/ansible %{buildroot}%{_datadir}/xensecure/\n" in text("rpm/xensecure.spec")
    assert "recursive-include packaging *\n" in (ROOT / "MANIFEST.in").read_text("utf-8")
    role = PACKAGING / "ansible/roles/xensecure"
    variables = set(re.findall(r"^(xensecure_\w+):", (role / "defaults/main.yml").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"`(xensecure_\w+)[:`=]", text("ansible/README.md")))
    assert named <= variables
    used = {name for path in [*role.glob("t*/*"), *role.glob("handlers/*")] for name in re.findall(r"\bxensecure_\w+", path.read_text("utf-8"))}
    filters = re.findall(r'"(xensecure_\w+)": \w+,', (role / "filter_plugins/xensecure_plan.py").read_text("utf-8"))
    registered = re.findall(r"register: (\w+)", "".join(path.read_text("utf-8") for path in role.glob("tasks/*")))
    made = {"xensecure_settled", "xensecure_pairing", *filters, *registered}
    assert used - made == variables
    assert os.access(role / "library/xensecure_pairing.py", os.X_OK)
