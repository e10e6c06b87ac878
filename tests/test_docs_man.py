"""The manual pages against mandoc and the commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pair import command
from xensecure.link.config import HOST_KEYS, SCHEMA

MAN = Path(__file__).resolve().parent.parent / "man"
PAGES = {"xensecure": 1, "xensecured": 8, "xensecure-launcher": 8, "xensecurectl": 8}
MANDOC = shutil.which("mandoc")


def page(name: str) -> str:
    """A page's source."""
    return (MAN / f"{name}.{PAGES[name]}").read_text("utf-8")


def options_of_page(name: str) -> set[str]:
    """The options that a page's lists explain."""
    tags = re.findall(r"^\.(?:It|It Cm \w+|Op|It Cm .*) ?(.*Fl .*)$", page(name), re.MULTILINE)
    return {f"-{word}" for tag in tags for word in re.findall(r"Fl (\S+)", tag)}


def options_of_help(*words: str) -> set[str]:
    """The options that a command's own help names."""
    done = subprocess.run([command(words[0]), *words[1:], "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[A-Za-z0-9][a-z-]*", re.sub(r"xensecure-launcher|\([^)]*\)", "", done.stdout)))


@pytest.mark.skipif(MANDOC is None, reason="mandoc is not there")
@pytest.mark.parametrize("name", PAGES)
def test_mandoc_has_no_complaint(name: str) -> None:
    """Mandoc -Tlint warns of nothing; that other packages' pages are not there is none of its business."""
    done = subprocess.run([str(MANDOC), "-Tlint", str(MAN / f"{name}.{PAGES[name]}")], capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "referenced manual not found" not in line] == []


@pytest.mark.parametrize("name", PAGES)
def test_page_is_complete(name: str) -> None:
    """Every page has the sections that people look for, and names the other three."""
    source = page(name)
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO"):
        assert re.search(rf'^\.Sh "?{heading}"?$', source, re.MULTILINE), heading
    for other, number in PAGES.items():
        assert other == name or f".Xr {other} {number}" in source, other


@pytest.mark.parametrize("name", ["xensecured", "xensecure-launcher"])
def test_options_of_daemons(name: str) -> None:
    """A daemon's page explains every option of its parser, and no other."""
    assert options_of_page(name) == options_of_help(name)


def test_options_of_xensecure() -> None:
    """The page of xensecure explains every option of its usage; --config stands there in brackets."""
    assert options_of_page("xensecure") - {"--config"} == options_of_help("xensecure") - {"-s"}


def test_commands_and_options_of_xensecurectl() -> None:
    """The page of xensecurectl explains every command with its options, and no other."""
    done = subprocess.run([command("xensecurectl"), "--help"], capture_output=True, text=True, check=True)
    commands = re.findall(r"^    (\w+) ", done.stdout, re.MULTILINE)
    assert re.findall(r"^\.It Cm (\w+)", page("xensecurectl"), re.MULTILINE) == commands
    wanted = options_of_help("xensecurectl").union(*(options_of_help("xensecurectl", name) for name in commands))
    assert options_of_page("xensecurectl") == wanted


def test_configuration_keys() -> None:
    """The keys of a host stand in xensecure(1), those of the daemons in xensecured(8)."""
    for key in HOST_KEYS:
        assert f".It Cm {key}\n" in page("xensecure"), key
    tags = re.findall(r"^\.It Cm \[(\w+)\] (.*)$", page("xensecured"), re.MULTILINE)
    listed = {(table, key) for table, keys in tags for key in keys.replace(" ", "").split(",")}
    assert listed == {(table, key) for table, keys in SCHEMA.items() if table != "defaults" for key in keys}
