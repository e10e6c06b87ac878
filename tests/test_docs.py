"""The documents against the code: commands are run, tables compared, files and links looked for."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pair import Pair, command
from tests.xl.hosts import running_copies
from tests.xl.stream import StreamSpec, make_stream
from xensecure.link.config import HOST_KEYS, SCHEMA, Config, HostOptions
from xensecure.proto import errors, limits
from xensecure.proto.launcher import Milestone
from xensecure.proto.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def text(name: str) -> str:
    """A document."""
    return (ROOT / name).read_text("utf-8")


def section(document: str, heading: str) -> str:
    """What stands under a heading, its subsections included."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, rest = document.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(part: str) -> list[list[str]]:
    """The cells of every table's rows, heads and rules left out."""
    lines = [line for line in part.splitlines() if line.startswith("|")]
    rules = [number for number, line in enumerate(lines) if set(line) <= set("|-: ")]
    skipped = {*rules, *(number - 1 for number in rules)}
    return [[cell.strip() for cell in line.strip("|").split("|")] for number, line in enumerate(lines) if number not in skipped]


def code(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


# ---- README


def blocks(document: str, where: str) -> list[str]:
    """The commands of the fenced blocks marked ``sh WHERE``, a line each."""
    found = re.findall(rf"^```sh {where}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [line for block in found for line in block.splitlines() if line]


def test_readme_commands_work(tmp_path: Path) -> None:
    """Pairing, migration and rotation as the README has them, run on two hosts; a used token is refused to another host."""
    readme = text("README.md")
    stream = make_stream(tmp_path / "stream", StreamSpec(4, seed=1))
    with Pair(met=False) as pair:
        token = ""
        pair.source.xen.create_domain("web1", stream)
        for line in blocks(readme, "hv2"):
            assert line == "xensecurectl invite"
            token = pair.destination.invite()
        for line in blocks(readme, "hv1"):
            words = shlex.split(line.replace("TOKEN", token))
            if words[0] == "xensecurectl":
                pair.source.ctl(*words[1:])
            else:
                assert words[:4] == ["xl", "migrate", "-s", "xensecure"]
                outcome = pair.migrate(words[4], host=words[5]).wait()
                assert outcome.status == 0, outcome.stderr
        assert running_copies("web1", pair.source.xen, pair.destination.xen) == [pair.destination.xen]
        assert "generation 2" in pair.source.ctl("peers").stdout
        assert "used" in pair.source.ctl("join", token, status=errors.TokenError.exit_code).stderr


def test_readme_targets_and_files_exist() -> None:
    """The Makefile has the README's targets, and the tree has the files that the README and the operations page install."""
    targets = [word for line in blocks(text("README.md"), "make") for word in re.findall(r"^make ([a-z-]+)$", line)]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", text("Makefile"), re.MULTILINE), target
    for name in ("README.md", "docs/operations.md"):
        for pattern in re.findall(r"packaging/[\w.@*/-]*[\w*/]", text(name)):
            assert list(ROOT.glob(pattern)), pattern
    assert blocks(text("README.md"), "install")


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Every link into this repository names a file, and a heading of it, that is there."""
    document = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", document):
        if "://" in target:
            continue
        name, _, wanted = target.partition("#")
        other = (path.parent / name) if name else path
        assert other.exists(), target
        if wanted:
            headings = re.findall(r"^#+ (.+)$", other.read_text("utf-8"), re.MULTILINE)
            assert wanted in map(anchor, headings), target


# ---- docs/operations.md


def test_exit_statuses() -> None:
    """The table of exit statuses names every error class with the status that it has."""
    listed = {code(name)[0]: int(status) for status, name, *_ in rows(section(text("docs/operations.md"), "## Exit statuses")) if code(name)}
    classes = {
        name: cls.exit_code
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.XensecureError) and ("exit_code" in vars(cls))
    }
    assert listed == classes


def described_default(value: object) -> str:
    """A default as the table has it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{value}`" if str(value) else ""


def test_configuration_keys() -> None:
    """The configuration table has every key of the schema, and the defaults that the code has."""
    listed = {code(key)[0]: default for key, default, *_ in rows(section(text("docs/operations.md"), "## Configuration"))}
    wanted: dict[str, type[Config] | type[HostOptions] | type[Policy]] = {}
    for table, keys in SCHEMA.items():
        wanted |= {f"[{table}] {key}": Policy if table == "policy" else Config for key in keys if table != "defaults"}
    wanted |= dict.fromkeys(HOST_KEYS, HostOptions)
    assert sorted(listed) == sorted(wanted)
    in_words = {"[identity] name", "peer", "address", "port", "bind", "interface"}
    for name, holder in wanted.items():
        table, _, key = name.rpartition(" ")
        keys = SCHEMA[table.strip("[]")] if table else HOST_KEYS
        default = {field.name: field.default for field in dataclasses.fields(holder)}[keys[key].target]
        if name in in_words:
            assert listed[name]
        else:
            assert listed[name] == described_default(default), name


UNITS = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def test_limits() -> None:
    """The table of limits has the values of proto/limits.py."""
    table = rows(section(text("docs/operations.md"), "## Limits"))
    assert table
    for name, value, *_ in table:
        number, _, unit = value.partition(" ")
        actual = getattr(limits, code(name)[0])
        # F4 counts AES blocks; people count bytes.
        assert int(number) * UNITS[unit] == (actual * 16 if "BLOCKS" in name else actual), name


def test_journal_events() -> None:
    """The journal's table has every event that is written."""
    events = {event for cell, *_ in rows(section(text("docs/operations.md"), "## The journal")) for event in code(cell)}
    unwritten = {Milestone.PROGRESS, Milestone.INPUT_ENDED, Milestone.LANE_LOST}
    assert {milestone.name.lower() for milestone in set(Milestone) - unwritten} | {"start", "end"} <= events


def skeleton(node: ast.AST) -> str | None:
    """A string's text with … for what varies; None if it is no literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


# A protocol fault is one row for all: its words are for whoever mends it.
SPOKEN = re.compile(r"(Usage|Configuration|State|Hook|Authentication|Refused|Token|Connect|LinkLost)Error|SystemFailure|Refusal|say|_error")


def calls() -> Iterator[tuple[str, str]]:
    """Every message given to an error's constructor or to say(): where, and its skeleton."""
    for path in sorted((ROOT / "xensecure").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if SPOKEN.fullmatch(name):
                for argument in node.args:
                    found = skeleton(argument)
                    if found is not None:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", found


def literals() -> str:
    """Every string of the package."""
    found = []
    for path in (ROOT / "xensecure").rglob("*.py"):
        found += [words for node in ast.walk(ast.parse(path.read_text("utf-8"))) if (words := skeleton(node)) is not None]
    return "\n".join(found)


# Said in good order and only with -v, or nothing but somebody else's words.
UNLISTED = re.compile(r"interrupted|connected to … .*|session …|works once, until .*|[…\W]*|link lost: ……; …|… went away before it had stored.*")


def phrases() -> list[re.Pattern[str]]:
    """The messages of the three tables, as patterns: … stands for what varies."""
    tables = rows(section(text("docs/operations.md"), "## Messages"))
    return [re.compile(".*".join(map(re.escape, phrase.split("…")))) for message, *_ in tables for phrase in code(message)]


def test_every_message_is_explained() -> None:
    """Every message that an operator can meet stands in one of the tables of messages, or is one of those that need no remedy."""
    known = phrases()
    missing = [f"{where}: {words}" for where, words in calls() if not UNLISTED.fullmatch(words) and not any(each.search(words) for each in known)]
    assert not missing, "docs/operations.md, Messages: " + "\n".join(missing)


def test_every_explained_message_exists() -> None:
    """No table explains a message that is not in the code."""
    said = literals()
    gone = [each.pattern for each in phrases() if not each.search(said)]
    assert not gone


# ---- docs/architecture.md


def test_files_are_listed() -> None:
    """The table of files has every file of the package and the engine, and no other."""
    listed = [name for cell, *_ in rows(section(text("docs/architecture.md"), "## Files")) for name in code(cell)]
    there = [*(ROOT / "xensecure").rglob("*.py"), *(path for path in (ROOT / "csrc").iterdir() if path.suffix in {".c", ".h", ".py", ".cdef"})]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT)) for path in there)


LAYERS = {"proto": 0, "link": 1, "source": 2, "destination": 2, "cli": 3}


def test_dependencies_run_one_way() -> None:
    """No module imports one of a layer above its own, and source and destination do not import each other."""
    for path in (ROOT / "xensecure").rglob("*/*.py"):
        own = path.parent.name
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level < 2:
                continue
            other = (node.module or "").split(".")[0]
            if other in LAYERS:
                assert LAYERS[other] < LAYERS[own] or other == own, f"{path}: {other}"


IMPURE = {
    *("asyncio", "fcntl", "io", "os", "pathlib", "random", "secrets", "select", "shutil"),
    *("socket", "subprocess", "sys", "tempfile", "threading", "time"),
}


def test_protocol_is_pure() -> None:
    """Nothing in proto/ imports what reaches the system: no socket, file, clock, thread or randomness."""
    for path in (ROOT / "xensecure/proto").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not IMPURE & {name.split(".")[0] for name in names}, path


def test_state_diagram_is_drawn_from_the_table() -> None:
    """What stands between the markers is what the script prints."""
    drawn = text("docs/architecture.md").partition("<!-- state diagram: begin -->\n")[2].partition("<!-- state diagram: end -->")[0]
    script = ROOT / "scripts/state_diagram.py"
    if not script.exists():
        pytest.skip("scripts/state_diagram.py is not there")
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert drawn.strip() == done.stdout.strip()


# ---- docs/threat-model.md, docs/reliability.md


@pytest.mark.parametrize("document", ["docs/threat-model.md", "docs/reliability.md"])
def test_cited_tests_exist(document: str) -> None:
    """Every test that the threat model and the page on reliability cite is there."""
    cited = re.findall(r"`(tests/[\w/]+\.(?:py|c))(?:::(\w+))?`", text(document))
    assert cited
    for name, function in cited:
        assert (ROOT / name).exists(), name
        assert not function or re.search(rf"def {function}\(|\b{function}\(", text(name)), function


def test_changelog_has_this_version() -> None:
    """The changelog has a section for the version that the command prints."""
    version = subprocess.run([command("xensecure"), "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert f"\n## [{version}]\n" in text("CHANGELOG.md")
