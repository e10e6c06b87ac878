"""How the code hangs together: which module may import which, and that what stands in two places is the same in both."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import xensecure
from scripts import state_diagram
from tests.inmemory import HV1
from xensecure.proto import errors, limits
from xensecure.proto.errors import Reason, XensecureError
from xensecure.proto.messages import ExitKind, FrameType, MessageType, Purpose, SourceHello
from xensecure.proto.request import Flag

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xensecure"
# Each package may import those in front of it; source and destination stand beside each other.
RANK = {"proto": 0, "link": 1, "source": 2, "destination": 2, "cli": 3}
# What would give the protocol a world of its own: sockets, files, clocks, threads, randomness (an argument, there).
IMPURE = {"socket", "os", "time", "threading", "select", "subprocess", "random", "secrets", "pathlib", "asyncio", "multiprocessing", "tempfile"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The full names of all that a module imports, at its top or inside."""
    package = ["xensecure", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])] if node.level else [node.module or ""]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def part(name: str) -> str:
    """The package of ours that a module's full name lies in; "" for others and for the top."""
    words = name.split(".")
    return words[1] if words[0] == "xensecure" and len(words) > 1 and words[1] in RANK else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lead_downwards(path: Path) -> None:
    """Layers: proto ← link ← source, destination ← cli; source and destination know nothing of each other."""
    own = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        other = part(name)
        if own in RANK and other and other != own:
            assert RANK[other] < RANK[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "proto").glob("*.py")), ids=lambda path: path.name)
def test_protocol_has_no_world(path: Path) -> None:
    """No module of proto imports anything that reads a clock, a file, a socket or randomness."""
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE
    assert not any(isinstance(node, ast.Name) and node.id == "open" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_one_module_knows_the_engine() -> None:
    """Only link/engine.py imports the C engine."""
    assert [path for path in MODULES if any("_engine" in name.split(".") for name in imports(path))] == [PACKAGE / "link" / "engine.py"]


def c_constants() -> dict[str, int]:
    """The constants of csrc/engine.h, those of enumerations counted on."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc" / "engine.h").read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, int] = {}
    for body in re.findall(r"enum\s*\w*\s*\{(.*?)\}", text, flags=re.DOTALL):
        following = 0
        for entry in filter(None, (word.strip() for word in body.split(","))):
            name, _, value = (word.strip() for word in entry.partition("="))
            if value:
                left, _, right = value.partition("<<")
                following = int(left) << int(right) if right else int(value)
            found[name] = following
            following += 1
    return found


def test_engine_and_protocol_agree() -> None:
    """The engine's limits and frame types are the protocol's."""
    constants = c_constants()
    assert {name: constants[name] for name in ("XS_HEADER_LEN", "XS_TAG_LEN", "XS_KEY_LEN", "XS_IV_LEN", "XS_PAYLOAD_MAX")} == {
        "XS_HEADER_LEN": limits.FRAME_HEADER_LEN,
        "XS_TAG_LEN": limits.FRAME_TAG_LEN,
        "XS_KEY_LEN": limits.FRAME_KEY_LEN,
        "XS_IV_LEN": limits.FRAME_IV_LEN,
        "XS_PAYLOAD_MAX": limits.PAYLOAD_MAX,
    }
    assert constants["XS_XL_HEAD_MAX"] == limits.CONFIGURATION_MAX
    assert {kind.name: constants[f"XS_{kind.name}"] for kind in FrameType} == {kind.name: kind.value for kind in FrameType}


def test_version_stands_in_one_place() -> None:
    """The version is written in xensecure/__init__.py, and in no other file of ours."""
    version = re.escape(xensecure.__version__)
    files = [*MODULES, ROOT / "setup.py", ROOT / "pyproject.toml", *sorted((ROOT / "csrc").glob("*.[ch]"))]
    pattern = re.compile(rf"[\"']{version}[\"']|version\s*=\s*[\"']?{version}\b")
    assert [path for path in files if pattern.search(path.read_text(encoding="utf-8"))] == [PACKAGE / "__init__.py"]


def classes(base: type[XensecureError]) -> Iterator[type[XensecureError]]:
    """A class and all below it."""
    yield base
    for below in base.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from classes(below)


def test_exit_codes_are_distinct() -> None:
    """Each kind of error has an exit status of its own; those that only group others have none."""
    codes = {kind.__name__: kind.exit_code for kind in classes(XensecureError) if "exit_code" in vars(kind) and kind is not XensecureError}
    assert len(set(codes.values())) == len(codes)
    assert not {0, 1, errors.TRANSPORT_FAILURE} & set(codes.values())
    leaves = {kind.__name__ for kind in classes(XensecureError) if not kind.__subclasses__()}
    assert leaves <= set(codes)


def test_tree_of_errors_is_drawn_as_it_is() -> None:
    """The tree at the head of errors.py names every class, at the depth at which it stands."""
    drawn = {match[2]: len(match[1]) // 4 for match in re.finditer(r"^    ([│├└─ ]*)(\w+(?:Error|Failure))\b", errors.__doc__ or "", re.MULTILINE)}
    assert drawn == {kind.__name__: len(kind.__mro__) - len(XensecureError.__mro__) for kind in classes(XensecureError)}


def table(heading: str) -> list[list[str]]:
    """The rows of the specification's table with that first heading."""
    lines = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def listed(pattern: str) -> dict[str, int]:
    """Words and numbers of a list in the specification's text: "1 protocol fault, 2 invitation used" or "MIGRATE 1, PAIR 2"."""
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    match = re.search(pattern, text)
    assert match is not None
    return {word: int(number) for number, word in re.findall(r"(\d+) ([^,.;]+)", match[1])}


def test_messages_are_those_of_the_specification() -> None:
    """Handshake messages, frames, purposes, reasons, flags and kinds of EXIT have the numbers that docs/protocol.md gives them."""
    assert {row[0]: int(row[1]) for row in table("| message |")} == {kind.name: kind.value for kind in MessageType}
    frames = {name: int(number) for row in table("| type | number") for name, number in zip(row[0].split(", "), row[1].split(", "), strict=True)}
    assert frames == {kind.name: kind.value for kind in FrameType}
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    purposes = re.search(r"Purposes: (.*?)\.", text)
    assert purposes is not None
    assert {name: int(number) for name, number in re.findall(r"(\w+) (\d+)", purposes[1])} == {kind.name: kind.value for kind in Purpose}
    assert sorted(listed(r"\*\*Reasons\*\* \(REFUSE and ABORT\): (.*)").values()) == sorted(Reason)
    switches = listed(r"Flags: (.*?); verbosity")
    words = {"`-t`": Flag.CARRIAGE_RETURNS, "`-T`": Flag.TIMESTAMPS, "`-e`": Flag.NO_MONITOR, "`-d`": Flag.DEBUG, "`-p`": Flag.PAUSED}
    words |= {"`-r`": Flag.REMUS, "`--colo`": Flag.COLO, "`--userspace-colo-proxy`": Flag.USERSPACE_COLO_PROXY}
    assert switches == {word: int(flag) for word, flag in words.items()}
    assert [int(number) for number in re.findall(r"(?:`kind` |; )(\d): (?:exited|killed|not known)", text)] == list(ExitKind)


def test_sizes_are_those_of_the_specification() -> None:
    """The sizes in the specification's tables are those of the limits."""
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    for words, size in (
        ("challenge[{}]", limits.CHALLENGE_LEN),
        ("key_id[{}]", limits.KEY_ID_LEN),
        ("mac[{}]", limits.MAC_LEN),
        ("session_id[{}]", limits.SESSION_ID_LEN),
        ("pin[{}]", limits.PIN_LEN),
        ("secret[{}]", limits.TOKEN_SECRET_LEN),
        ("tag[{}]", limits.FRAME_TAG_LEN),
        ('"EXPORTER-xensecure-v1", "", {}', limits.EXPORTER_LEN),
    ):
        assert words.format(size) in text, words
    longest = SourceHello(purpose=Purpose.PAIR, key_id=bytes(16), contact=type(HV1)("n" * 255, 1, ("a" * 255,) * limits.ADDRESSES_MAX))
    assert len(longest.push()) <= limits.MESSAGE_MAX


def test_diagram_is_drawn_from_the_table() -> None:
    """docs/architecture.md has the diagram that scripts/state_diagram.py draws."""
    document = ROOT / "docs" / "architecture.md"
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    if state_diagram.BEGIN not in text:
        pytest.skip("docs/architecture.md has no state diagram yet")
    assert state_diagram.main(["--check", str(document)]) == 0, "run: python scripts/state_diagram.py docs/architecture.md"


def test_diagram_is_put_between_the_markers(tmp_path: Path) -> None:
    """The script changes what stands between the markers and nothing else, and tells a document without markers."""
    document = tmp_path / "document.md"
    document.write_text(f"before\n{state_diagram.BEGIN}\nold\n{state_diagram.END}\nafter\n")
    assert state_diagram.main(["--check", str(document)]) == 1
    assert state_diagram.main([str(document)]) == 0
    assert state_diagram.main(["--check", str(document)]) == 0
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{state_diagram.END}\nafter\n")
    assert "old" not in text
    assert "source_WAIT_DESTINATION_PROOF --> source_CONFIRMED: DESTINATION_PROOF" in text
    document.write_text("nothing\n")
    assert state_diagram.main([str(document)]) == 2
