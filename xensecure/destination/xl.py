"""``xl migrate-receive`` as the launcher starts, watches and, where it was killed, tidies up after."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from ..link.config import Config
from ..proto.errors import Reason, RefusedError
from ..proto.messages import Exit
from ..proto.request import ReceiveRequest

# What a root login over ssh would give xl, less everything that a peer or a caller could have put there.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
_PIPE_BYTES = 1 << 20  # /proc/sys/fs/pipe-max-size allows everybody 1 MiB; fewer and longer switches between xl and us
_DESTROY_SECONDS = 60
# libxl takes more; a name that could be taken for an option or a path is not worth the risk here.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}")


@dataclass
class Receive:
    """A running ``xl migrate-receive``: the process and the launcher's ends of its pipes."""

    process: subprocess.Popen[bytes]
    stdin: int
    stdout: int
    stderr: int

    def descriptors(self) -> tuple[int, int, int]:
        """The ends that the receiver gets."""
        return self.stdin, self.stdout, self.stderr

    def feed(self, head: bytes, seconds: float) -> None:
        """Write into xl's standard input, all of it; RefusedError if xl does not take it in time. An xl that has ended is seen elsewhere."""
        if self.stdin < 0:
            return
        end = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.stdin, select.POLLOUT)
        left = memoryview(head)
        try:
            while left:
                if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                    raise RefusedError("xl there does not read its input", Reason.XL_FAILED)
                left = left[os.write(self.stdin, left) :]
        except BrokenPipeError:
            pass

    def forget_stdin(self) -> None:
        """The receiver holds it from now on, alone, so that xl sees the end when the receiver ends; or nobody does. It may be called again."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1


def check_request(request: ReceiveRequest, config: Config) -> None:
    """RefusedError for what this host does not allow."""
    if request.coloft_script and request.coloft_script not in config.coloft_scripts:
        raise RefusedError(
            f"the script {request.coloft_script} is not one that this host runs; name it in [receive] coloft_scripts there", Reason.NOT_ALLOWED
        )


def start_receive(request: ReceiveRequest, config: Config) -> Receive:
    """Start xl with three pipes; RefusedError if it cannot be."""
    check_request(request, config)
    pipes: list[tuple[int, int]] = []
    try:
        pipes.extend(os.pipe2(os.O_CLOEXEC) for _ in range(3))
        process = subprocess.Popen(
            [config.xl, *request.arguments()],
            stdin=pipes[0][0],
            stdout=pipes[1][1],
            stderr=pipes[2][1],
            env=_ENVIRONMENT,
            cwd="/",
            close_fds=True,
            start_new_session=True,
        )
    except OSError as error:
        for descriptor in (end for pipe in pipes for end in pipe):
            os.close(descriptor)
        raise RefusedError(f"xl cannot be started there: {config.xl}: {error.strerror}; see [receive] xl", Reason.XL_FAILED) from None
    (child_stdin, stdin), (stdout, child_stdout), (stderr, child_stderr) = pipes
    for descriptor in (child_stdin, child_stdout, child_stderr):
        os.close(descriptor)
    with contextlib.suppress(OSError):
        fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # The other end's description is another one: xl's own reads stay blocking.
    os.set_blocking(stdin, False)
    return Receive(process=process, stdin=stdin, stdout=stdout, stderr=stderr)


def kill_helpers(receive: Receive) -> None:
    """After an xl that was killed, and before it is waited for (its process group's id cannot be another's until then): end its helpers."""
    ended = os.waitid(os.P_PID, receive.process.pid, os.WEXITED | os.WNOWAIT)
    if ended is not None and ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(receive.process.pid, signal.SIGKILL)


def tidy_up(end: Exit, domain: str, config: Config, *, started: bool) -> str:
    """After an xl that was killed: its half-built domain stays. Returns what was done about it, in words.

    ``started``: the source had cleared the domain to run here, and so has let go of its own copy: then the one here is the admin's to judge.
    """
    if not domain:
        return f"xl was killed ({end.describe()}) before a domain had come"
    if not _SAFE_NAME.fullmatch(domain):
        return f"xl was killed ({end.describe()}); look for a domain whose name ends in --incoming"
    name = f"{domain}--incoming"
    if started:
        return f"xl was killed ({end.describe()}) as it started {domain}: if it is paused here, as {domain} or {name}, 'xl unpause' starts it"
    try:
        done = subprocess.run(
            [config.xl, "destroy", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            timeout=_DESTROY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"xl was killed ({end.describe()}), and 'xl destroy {name}' cannot be run; run it by hand"
    return f"xl was killed ({end.describe()}); 'xl destroy {name}' ended with status {done.returncode}"
