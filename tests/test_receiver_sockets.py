"""How connections reach receivers, and receivers the launcher: from systemd or by hand, and not from everybody."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.pair import PATIENCE, RECEIVER_USER, Pair, command, wait_for
from tests.xl.hosts import Point, alive, open_files
from xensecure.link.config import load_config
from xensecure.link.hardening import find_user
from xensecure.proto import limits

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: processes of other users are made")
FLOOD_ADDRESS = "127.0.0.2"  # Linux answers for all of 127.0.0.0/8


# ---- activation


ACTIVATE = textwrap.dedent(
    """
    import os, socket, sys
    kind, *words = sys.argv[1:]
    if kind == "stream":  # as Accept=yes
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        passed, _ = listener.accept()
        listener.close()
    else:
        passed = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passed.bind(kind)
        passed.listen()
    descriptor = passed.detach()
    if descriptor != 3:
        os.dup2(descriptor, 3)
        os.close(descriptor)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="connection")
    os.execv(words[0], words)
    """
)


def activated(pair: Pair, kind: str, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A daemon of the destination with a socket passed on as systemd does."""
    return subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, kind, *words],
        env={**pair.destination.environment(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_one_connection_from_systemd(pair: Pair) -> None:
    """A receiver with one connected socket passed on serves it, as root and confined, and ends with it."""
    process = activated(pair, "stream", command("xensecured"))
    assert process.stdout
    port = int(process.stdout.readline())
    assert pair.migrate("web1", "-e", transport=f"-p {port}").wait().status == 0
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr) == (0, "", "")
    assert pair.destination.xen.running() == ["web1"]


def test_identity_from_systemds_credentials(pair: Pair, tmp_path: Path) -> None:
    """A receiver takes its identity from CREDENTIALS_DIRECTORY where that is set, and needs no state folder then."""
    credentials = tmp_path / "credentials"
    credentials.mkdir(mode=0o700)
    for name in ("identity.key", "identity.crt"):
        (credentials / name).write_bytes((pair.destination.state / name).read_bytes())
        (credentials / name).chmod(0o400)
    config = tmp_path / "xensecure.toml"
    text = pair.destination.config.read_text()
    config.write_text(text.replace(f'state = "{pair.destination.state}"', 'state = "/nonexistent"'))
    process = activated(pair, "stream", command("xensecured"), "--config", str(config), env={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert process.stdout
    port = int(process.stdout.readline())
    outcome = pair.migrate("web1", "-e", transport=f"-p {port}").wait()
    process.communicate(timeout=PATIENCE)
    assert (outcome.status, process.returncode) == (0, 0)


def test_launcher_from_systemd(pair: Pair, tmp_path: Path) -> None:
    """A launcher with a listening socket passed on serves that one."""
    folder = pair.folder / "activated"
    folder.mkdir()
    path = folder / "launcher.sock"
    config = folder / "xensecure.toml"
    config.write_text(pair.destination.config.read_text().replace(f'run = "{pair.destination.folder / "run"}"', f'run = "{folder}"'))
    config.chmod(0o644)
    launcher = activated(pair, str(path), command("xensecure-launcher"), "--config", str(config))
    wait_for(path.exists, "the socket")
    if os.geteuid() == 0:
        path.chmod(0o666)
    receiver = activated(pair, "stream", command("xensecured"), "--config", str(config))
    assert receiver.stdout
    port = int(receiver.stdout.readline())
    try:
        assert pair.migrate("web1", "-e", transport=f"-p {port}").wait().status == 0
        receiver.communicate(timeout=PATIENCE)
    finally:
        launcher.terminate()
    _, stderr = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0
    assert "hv1: domain web1 arrived" in stderr


def test_nothing_passed_on(pair: Pair) -> None:
    """A receiver started by hand without --listen says so in one line."""
    done = subprocess.run([command("xensecured")], env=pair.destination.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "xensecured: no connection was passed on by systemd; start it with --listen to listen by hand\n"


def test_sockets_for_another_process(pair: Pair) -> None:
    """LISTEN_PID of another process: the descriptors are not ours, and are not touched."""
    environment = {**pair.destination.environment(), "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    done = subprocess.run([command("xensecured")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2


# ---- who may talk to whom


CONNECT = textwrap.dedent(
    """
    import os, socket, sys
    os.setgroups([])
    os.setresgid(*3 * [int(sys.argv[2])])
    os.setresuid(*3 * [int(sys.argv[2])])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(sys.argv[1])
    except OSError as error:
        print(type(error).__name__)
    else:
        print(sock.recv(100).hex())
    """
)


def connect_as(uid: int, path: Path) -> str:
    """What a process of that user gets from the launcher's socket."""
    done = subprocess.run([sys.executable, "-c", CONNECT, str(path), str(uid)], capture_output=True, text=True, check=True, cwd="/")
    return done.stdout.strip()


@as_root
def test_launcher_talks_to_the_receivers_user_alone(pair: Pair) -> None:
    """Another user cannot open the launcher's socket; one who can all the same is turned away before a byte, with a SECURITY line."""
    path = load_config(str(pair.destination.config)).launcher_socket
    stranger = find_user("daemon").pw_uid
    assert connect_as(stranger, path) == "PermissionError"
    mode = path.stat().st_mode & 0o777
    path.chmod(0o666)
    try:
        assert connect_as(stranger, path) == ""
    finally:
        path.chmod(mode)
    assert f"of user {stranger} wanted to be a receiver; only user" in pair.destination.log("xensecure-launcher")
    assert "SECURITY: process" in pair.destination.log("xensecure-launcher")
    challenge = bytes.fromhex(connect_as(find_user(RECEIVER_USER).pw_uid, path))
    assert len(challenge) == 1 + limits.CHALLENGE_LEN


def test_second_launcher_is_refused(pair: Pair) -> None:
    """A launcher beside a living one ends with one line, and the first goes on serving."""
    done = subprocess.run([command("xensecure-launcher")], env=pair.destination.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "another xensecure-launcher is running" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert pair.migrate("web1", "-e").wait().status == 0


def test_socket_of_a_dead_launcher_is_replaced(pair: Pair) -> None:
    """The socket that a killed launcher has left behind hinders neither a receiver's clear word nor the next launcher."""
    launcher = pair.destination.processes["xensecure-launcher"]
    launcher.kill()
    launcher.wait()
    outcome = pair.migrate("web1", "-e").wait()
    assert outcome.status == 1
    assert "exited with error status 255" in outcome.stderr
    assert pair.source.xen.domains() == {"web1": "running"}
    wait_for(lambda: "is xensecure-launcher running" in pair.destination.log("xensecured"), "the receiver's word")
    pair.destination.start_until_ready("xensecure-launcher")
    assert pair.migrate("web1", "-e").wait().status == 0


def test_garbage_stops_nothing(pair: Pair) -> None:
    """64 connections full of garbage, and as many silent ones, from one address neither stop a migration from another nor start an xl."""
    where = ("127.0.0.1", pair.destination.port)
    flood = []
    for number in range(2 * limits.UNAUTHENTICATED_MAX):
        sock = socket.create_connection(where, source_address=(FLOOD_ADDRESS, 0))
        flood.append(sock)
        if number % 2:
            try:
                sock.sendall(os.urandom(600))
            except OSError:  # turned away already
                continue
    try:
        outcome = pair.migrate("web1", "-e").wait()
        assert outcome.status == 0, outcome.stderr
        wait_for(lambda: len(pair.destination.children("xensecured")) <= limits.UNAUTHENTICATED_PER_ADDRESS_MAX, "no process but the strangers'")
        assert f"{FLOOD_ADDRESS}: turned away" in pair.destination.log("xensecured")
    finally:
        for sock in flood:
            sock.close()
    assert [entry["peer"] for entry in pair.destination.journal() if entry["event"] == "start"] == ["hv1"]
    assert len(pair.destination.xen.calls("libxl_domain_create_restore")) == 1


def test_eight_strangers_an_address(pair: Pair) -> None:
    """The ninth connection of an address that has proved nothing is closed at once; one that ends makes room again."""
    where = ("127.0.0.1", pair.destination.port)
    count = limits.UNAUTHENTICATED_PER_ADDRESS_MAX
    strangers = [socket.create_connection(where, source_address=(FLOOD_ADDRESS, 0)) for _ in range(count)]
    wait_for(lambda: len(pair.destination.children("xensecured")) == count, "a receiver each")
    with socket.create_connection(where, source_address=(FLOOD_ADDRESS, 0), timeout=5) as ninth:
        assert ninth.recv(1) == b""
    strangers.pop().close()
    wait_for(lambda: len(pair.destination.children("xensecured")) == count - 1, "a receiver's end")
    with socket.create_connection(where, source_address=(FLOOD_ADDRESS, 0)) as again:
        wait_for(lambda: len(pair.destination.children("xensecured")) == count, "a receiver for the next")
        assert not select.select([again], [], [], 0)[0]
    for stranger in strangers:
        stranger.close()


def pipes(pid: int) -> dict[str, int]:
    """A process's pipes with how each is open (O_RDONLY, O_WRONLY)."""
    found = {}
    for descriptor, target in open_files(pid).items():
        if target.startswith("pipe:"):
            with contextlib.suppress(FileNotFoundError):  # closed since
                flags = re.search(r"flags:\s+([0-7]+)", Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text())
                assert flags is not None
                found[target] = int(flags[1], 8) & os.O_ACCMODE
    return found


def test_receiver_cannot_read_what_the_listener_is_told(pair: Pair) -> None:
    """Of the listening process's pipes a receiver has one: that in which it says that its source has proved itself, to write to."""
    listener = pair.destination.processes["xensecured"].pid
    with socket.create_connection(("127.0.0.1", pair.destination.port)):
        wait_for(lambda: pair.destination.children("xensecured"), "a receiver")
        (receiver,) = pair.destination.children("xensecured")
        wait_for(lambda: len(pipes(receiver).keys() & pipes(listener).keys()) == 1, "the others to be closed")
        (shared,) = pipes(receiver).keys() & pipes(listener).keys()
        assert pipes(receiver)[shared] == os.O_WRONLY


def test_stopping_xensecured_leaves_sessions(pair: Pair) -> None:
    """SIGTERM to the listening process stops listening alone: the session that runs arrives."""
    pair.destination.xen.set_hold(Point.READY)
    running = pair.migrate("web1", "-e")
    pair.destination.xen.wait_held(Point.READY)
    session = pair.destination.session()
    listener = pair.destination.processes.pop("xensecured")
    listener.send_signal(signal.SIGTERM)
    assert listener.wait(PATIENCE) == 0
    assert alive(session.receiver)
    pair.destination.start_until_ready("xensecured", "--listen")
    pair.destination.xen.release(Point.READY)
    assert running.wait().status == 0
    wait_for(session.gone, "the session's end")


def process_limit_holds(user: int) -> bool:
    """Whether this kernel refuses a fork to that user under a limit of no processes; root it never refuses."""
    program = "import os, resource, sys; os.geteuid() or os.setuid(int(sys.argv[1])); resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); os.fork()"
    return subprocess.run([sys.executable, "-c", program, str(user)], capture_output=True, cwd="/", check=False).returncode != 0


def test_listener_survives_a_failing_fork(pair: Pair) -> None:
    """Where no process can be made for a connection, it is closed with a line in the log, and listening goes on."""
    if shutil.which("prlimit") is None or not process_limit_holds(find_user(RECEIVER_USER).pw_uid):
        pytest.skip("needs prlimit(1), and a kernel that counts the receivers' processes")
    words = ["prlimit", "--nproc=0", command("xensecured"), "--listen"]
    pair.destination.processes.pop("xensecured").terminate()
    process = subprocess.Popen(words, env=pair.destination.environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        while "listening on port" not in process.stderr.readline():
            assert process.poll() is None
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", pair.destination.port), timeout=5) as stranger:
                assert stranger.recv(1) == b""
                assert "turned away, no process for it" in process.stderr.readline()
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
        pair.destination.start_until_ready("xensecured", "--listen")


def test_journal_lines_are_json(pair: Pair) -> None:
    """Every line of the journal is one JSON object, readable by its owner alone."""
    assert pair.migrate("web1", "-e").wait().status == 0
    pair.destination.last_end()
    path = pair.destination.state / "journal.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
