#!/usr/bin/python3
"""One step of pairing a fleet, for one host and all of its pairs at once.

Tokens never leave a host in the clear: the host that joins makes a key pair for this one run, the host that invites encrypts
each token to it (CMS, RFC 5652, by openssl), and what the controller carries is that. On either host the token passes through pipes alone.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: xensecure_pairing
short_description: One step of pairing a fleet with xensecure
description: The role's own; roles/xensecure/tasks/pair.yml has the order of the steps.
options:
  step:
    description: survey tells whom the host knows; prepare, invite and join follow each other; clear is for where they broke off.
    choices: [survey, prepare, invite, join, clear]
    required: true
    type: str
  command: {description: The xensecurectl to run, type: str, default: xensecurectl}
  jobs: {description: How many pairs a host works on at the same time, type: int, default: 4}
  name: {description: "survey: what the host will be called, for a check", type: str}
  forget: {description: "prepare: names of the peers to forget", type: list, elements: str, default: []}
  joins: {description: "prepare: whether this host will join others", type: bool, default: false}
  guests: {description: "invite: the certificate of each host that will join", type: dict, default: {}}
  ttl: {description: "invite: how long the tokens work, as xensecurectl takes it", type: str, default: 10m}
  tokens: {description: "join: the encrypted token of each host that invites", type: dict, default: {}}
  rotate: {description: "join: names of the peers to make a new link key with", type: list, elements: str, default: []}
author: xensecure
"""

EXAMPLES = """
- name: See whom this host has met
  xensecure_pairing:
    step: survey
"""

RETURN = """
survey:
  description: JSON with name and pin of the host, damaged (peers' files that cannot be read), and for each of its peers the pin, the ids of
    the shared keys, and the age of the newest in seconds
  returned: survey
  type: str
certificate: {description: "prepare: what tokens for this host are encrypted to", returned: prepare, type: str}
tokens: {description: "invite: an encrypted token for each guest", returned: invite, type: dict}
failures: {description: A line for each pair that failed, returned: invite and join, type: list}
"""

KEY_FILE = "ansible.key"  # in the state folder, from prepare to join
COMMAND_SECONDS = 120  # for one xensecurectl: a join tries eight addresses, for some seconds each
UNREACHED = (20, 21)  # exit statuses of xensecurectl: no connection, or one that broke; the token is not used up then
PAUSES = (1.0, 3.0)  # seconds before a pair is tried again: a destination turns connections away while too many are unproved


class Failure(Exception):
    """A command that failed; its own last words, which never hold a secret."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status


def run(words: list[str], *, stdin: bytes = b"", allowed: Iterable[int] = (0,), keep: Iterable[int] = ()) -> bytes:
    """A command's standard output. Failure if its status is not one of those allowed; ``keep``: descriptors that it inherits."""
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=COMMAND_SECONDS, check=False, pass_fds=tuple(keep))
    except OSError as error:
        raise Failure(f"{words[0]}: {error.strerror}", -1) from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{words[0]} has not ended within {COMMAND_SECONDS} s", -1) from None
    if done.returncode not in allowed:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failure(said[-1] if said else f"{words[0]} ended with status {done.returncode}", done.returncode)
    return done.stdout


# ---- tokens on their way


def make_key(path: Path) -> str:
    """A key pair for this run in that file, 0600; returns its certificate, which is public."""
    path.unlink(missing_ok=True)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "1", "-subj", "/CN=xensecure pairing", "-keyout", str(path)]
    try:
        certificate = run(words)
        path.chmod(0o600)
        with path.open("ab") as file:
            file.write(certificate)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return certificate.decode()


def seal(token: bytes, certificate: str) -> str:
    """A token encrypted to a host's certificate of this run."""
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, certificate.encode())
        recipient = ["-recip", f"/proc/self/fd/{descriptor}", "-keyopt", "ecdh_kdf_md:sha256"]
        sealed = run(["openssl", "cms", "-encrypt", "-binary", "-outform", "DER", "-aes-256-gcm", *recipient], stdin=token, keep=[descriptor])
    finally:
        os.close(descriptor)
    return base64.b64encode(sealed).decode()


def unseal(sealed: str, path: Path) -> bytes:
    """The token again."""
    words = ["openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-inkey", str(path), "-recip", str(path)]
    return run(words, stdin=base64.b64decode(sealed))


# ---- the steps


class Host:
    """This host, by its xensecurectl."""

    def __init__(self, command: str, jobs: int) -> None:
        self._command = command
        self._jobs = jobs

    def ctl(self, *words: str, stdin: bytes = b"", allowed: Iterable[int] = (0,)) -> bytes:
        """Run xensecurectl."""
        return run([self._command, *words], stdin=stdin, allowed=allowed)

    def state(self) -> Path:
        """The state folder."""
        return Path(json.loads(self.ctl("show", "--json"))["state"])

    def each(self, names: Iterable[str], work: Callable[[str], Any]) -> tuple[dict[str, Any], list[str]]:
        """Do something for every name, some at the same time; what came of it, and a line for each that failed."""

        def attempt(name: str) -> tuple[str, Any, str]:
            for pause in (*PAUSES, None):
                try:
                    return name, work(name), ""
                except Failure as failure:
                    if pause is None or failure.status not in UNREACHED:
                        return name, None, f"{name}: {failure}"
                time.sleep(pause)
            raise AssertionError

        with ThreadPoolExecutor(max(1, self._jobs)) as pool:
            done = list(pool.map(attempt, names))
        return {name: result for name, result, failed in done if not failed}, [failed for _, _, failed in done if failed]

    def survey(self, name: str, *, check: bool) -> dict[str, Any]:
        """Who this host is, and whom it knows; a key for tokens that a run has left goes. A check removes nothing, and takes the name to come."""
        own = json.loads(self.ctl("show", "--json"))
        if not check:
            Path(own["state"], KEY_FILE).unlink(missing_ok=True)
        # Status 4: some files are damaged; they are missing in what is printed.
        known = json.loads(self.ctl("peers", "--json", allowed=(0, 4)))
        now = int(time.time())
        peers = {
            peer["name"]: {
                "pin": peer["pin"],
                "keys": [key["id"] for key in peer["keys"]],
                "age": now - (peer["rotated"] or peer["since"]),
            }
            for peer in known
        }
        damaged = sorted(path.stem for path in Path(own["state"], "peers").glob("*.peer") if path.stem not in peers)
        return answer(name=name if check else own["name"], pin=own["pin"], peers=peers, damaged=damaged)

    def prepare(self, forget: list[str], *, joins: bool) -> dict[str, Any]:
        """Forget peers, and make a key for tokens if this host will join others."""
        for name in forget:
            self.ctl("forget", name)
        return {"certificate": make_key(self.state() / KEY_FILE) if joins else "", "changed": bool(forget)}

    def invite(self, guests: dict[str, str], ttl: str) -> dict[str, Any]:
        """A token for each guest, encrypted to its certificate."""
        tokens, failures = self.each(guests, lambda guest: seal(self.ctl("invite", "--ttl", ttl), guests[guest]))
        return {"tokens": tokens, "failures": failures, "changed": bool(tokens)}

    def join(self, tokens: dict[str, str], rotate: list[str]) -> dict[str, Any]:
        """Use the tokens, renew the link keys that are to be renewed; the key for tokens goes."""
        key = self.state() / KEY_FILE
        try:
            opened = {inviter: unseal(sealed, key) for inviter, sealed in tokens.items()}
        finally:
            key.unlink(missing_ok=True)
        joined, failures = self.each(opened, lambda inviter: self.ctl("join", "-", stdin=opened[inviter]))
        rotated, not_rotated = self.each(rotate, lambda name: self.ctl("rotate", name))
        done = {"joined": sorted(joined), "rotated": sorted(rotated)}
        return {**done, "failures": [*failures, *not_rotated], "changed": bool(joined or rotated)}

    def clear(self) -> dict[str, Any]:
        """Remove the key for tokens, as join does where it comes to that."""
        (self.state() / KEY_FILE).unlink(missing_ok=True)
        return {"changed": False}


def answer(**survey: object) -> dict[str, Any]:
    """A survey as one text: ansible spends some 8 KB and half a millisecond on each value in a variable, and a fleet has N x N of these."""
    return {"survey": json.dumps(survey), "changed": False}


def take_step(host: Host, given: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """The step that was asked for."""
    if given["step"] == "survey":
        return host.survey(given["name"], check=check)
    if given["step"] == "clear":
        return host.clear()
    if given["step"] == "prepare":
        return host.prepare(given["forget"], joins=given["joins"])
    if given["step"] == "invite":
        return host.invite(given["guests"], given["ttl"])
    return host.join(given["tokens"], given["rotate"])


def foreseen(given: dict[str, Any]) -> dict[str, Any]:
    """What a step would return with --check; only a survey can be made then, and of a host that is set up."""
    if given["step"] == "survey":
        return answer(name=given["name"], pin="", peers={}, damaged=[])
    # The tasks run invite and join only where there is something to do.
    changed = given["step"] != "prepare" or bool(given["forget"])
    return {"certificate": "", "tokens": {}, "failures": [], "changed": changed}


def main() -> None:
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "step": {"choices": ["survey", "prepare", "invite", "join", "clear"], "required": True},
            "command": {"default": "xensecurectl"},
            "jobs": {"type": "int", "default": 4},
            "name": {},
            "forget": {"type": "list", "elements": "str", "default": []},
            "joins": {"type": "bool", "default": False},
            "guests": {"type": "dict", "default": {}},
            "ttl": {"default": "10m"},
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "rotate": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    host = Host(given["command"], given["jobs"])
    if module.check_mode and given["step"] != "survey":
        module.exit_json(**foreseen(given))
    try:
        result = take_step(host, given, check=module.check_mode)
    except Failure as failure:
        if not module.check_mode:
            module.fail_json(msg=str(failure))
        result = foreseen(given)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
