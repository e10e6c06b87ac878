"""What is in the wheel and the source archive, and what an installation gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("xensecure", "xensecured", "xensecure-launcher", "xensecurectl")
# No index is asked: what builds is installed already (requirements-build.txt).
OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    """Run to success; its standard output."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=OFFLINE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked() -> list[str]:
    """The project's files, as paths in it: those that git has, or would take; outside a git tree, all but what a build leaves."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = done.stdout.splitlines() if done.returncode == 0 else []
    if not names:
        found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
        names = [name for name in found if not re.search(r"^\.|^build/|\.egg-info/|__pycache__|\.(so|o)$", name)]
    return [name for name in names if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the project, so that a build leaves nothing behind and finds nothing."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        if name.startswith(("xensecure/", "csrc/", "docs/", "man/", "packaging/")) or "/" not in name:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def build_wheel(source: Path, into: Path) -> Path:
    """The wheel of a source tree or archive."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", into, source, cwd=into)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    folder = tmp_path_factory.mktemp("archive")
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", folder, cwd=source)
    (found,) = folder.glob("*.tar.gz")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    """The package's files in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    """Python files, the type marker and one extension; no C, no tests, no build script."""
    names = sorted(contents(wheel))
    expected = [name for name in tracked() if re.fullmatch(r"xensecure/.*\.py|xensecure/py\.typed", name)]
    assert names == sorted([*expected, "xensecure/_engine.abi3.so"])


def test_wheel_serves_every_python(wheel: Path) -> None:
    """One extension for every Python from 3.11 on."""
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", wheel.name), wheel.name


def test_archive_holds_all_of_csrc(archive: Path) -> None:
    """A wheel can be built from it, and its reader finds the documents."""
    with tarfile.open(archive) as file:
        members = {member.name.partition("/")[2]: member for member in file.getmembers() if member.isfile()}
        engine = {name: pulled.read() for name, member in members.items() if name.startswith("csrc/") and (pulled := file.extractfile(member))}
    names = set(members)
    wanted = {name for name in tracked() if name.startswith(("csrc/", "docs/", "man/", "packaging/", "xensecure/"))}
    wanted = {name for name in wanted if not name.startswith("docs/") or name.endswith(".md")}
    assert wanted <= names
    assert engine == {name: (ROOT / name).read_bytes() for name in wanted if name.startswith("csrc/")}
    assert not [name for name in names if name.endswith((".o", ".so", ".pyc"))]


def test_wheel_of_the_archive_is_the_same(wheel: Path, archive: Path, tmp_path: Path) -> None:
    """What is built from the archive is what is built from the tree: the same Python files to the byte, the same extension by name."""
    ours, theirs = contents(wheel), contents(build_wheel(archive, tmp_path))
    assert sorted(theirs) == sorted(ours)
    assert [name for name in ours if name.endswith(".py") and theirs[name] != ours[name]] == []


def test_installation_gives_four_commands(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment (with this one's libraries) each command says its version."""
    folder = tmp_path / "fresh"
    venv.create(folder, with_pip=False, system_site_packages=True, symlinks=True)
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "-q", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    # The libraries of the environment that runs the tests; the package itself must come from the wheel.
    (site,) = folder.glob("lib/python3*/site-packages")
    assert (site / "xensecure/_engine.abi3.so").exists()
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "zz-libraries.pth").write_text("\n".join(libraries) + "\n")
    for command in COMMANDS:
        said = run(folder / "bin" / command, "--version", cwd=tmp_path)
        assert re.fullmatch(r"xensecure \d+\.\d+\.\d+\S*\n", said), said
    where = run(folder / "bin/python", "-c", "import xensecure._engine as engine; print(engine.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(folder)


def test_build_requirements_are_said_once() -> None:
    """requirements-build.txt and pyproject.toml ask for the same."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        required = tomllib.load(file)["build-system"]["requires"]
    lines = (ROOT / "requirements-build.txt").read_text().splitlines()
    assert sorted(line for line in lines if line and not line.startswith("#")) == sorted(required)
