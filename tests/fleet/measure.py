"""What a fleet costs: `make fleet` (as root). FLEET="3 10 --host 1000"

For each number of hosts: the first run of the role, a second one, one that renews all keys, one with a host fewer. With --host N: what one
pairing and one rotation cost a host that knows N peers, and what the plan for N hosts costs the controller.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import re
import resource
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from tests.fleet.hosts import Fleet, Played, why_not
from tests.test_ansible_plan import as_said, host, met, plan_module
from xensecure.link.config import Config
from xensecure.link.peers import LinkKey, Peer, Peers
from xensecure.proto.messages import Contact

ROUNDS = 5  # of what is measured on one host; the median counts


def say(text: str) -> None:
    """One line."""
    print(text, flush=True)


def machine() -> str:
    """Where this is measured."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = f"Linux {platform.release()}, ansible-core {version('ansible-core')}, Python {platform.python_version()}"
    return f"{os.cpu_count()} CPUs ({model[1] if model else platform.machine()}), load {os.getloadavg()[0]:.1f}, {versions}"


def tasks(log: str) -> dict[str, float]:
    """Seconds from the beginning of each task to that of the next, by ansible's log."""
    found = re.findall(r"^(\S+ \S+) p=\d+ .*?\| (?:TASK|RUNNING HANDLER|PLAY RECAP) \[?(.*?)(?:\]| \*)", log, re.MULTILINE)
    moments = [(datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f"), name.removeprefix("xensecure : ")) for moment, name in found]
    return {name: (after - moment).total_seconds() for (moment, name), (after, _) in pairwise(moments)}


def run(fleet: Fleet, what: str, names: list[str], **variables: object) -> Played:
    """One run of the role, and its line."""
    log = fleet.folder / "ansible.log"
    log.write_text("")
    before = {name: fleet[name].log() for name in names}
    hosts = sum(fleet[name].cpu_seconds() for name in names)
    controller = children_seconds()
    played = fleet.play(names, **variables)
    controller = children_seconds() - controller
    assert played.status == 0, played.output[-5000:]
    new = [fleet[name].log()[len(before[name]) :] for name in names]
    connections = sum(text.count("Accepted publickey") for text in new) / len(names)
    sessions = sum(text.count("Starting session") for text in new) / len(names)
    hosts = sum(fleet[name].cpu_seconds() for name in names) - hosts
    changes = sum(played.changed.values())
    say(f"| {len(names)} | {what} | {played.seconds:.1f} | {controller:.1f} | {hosts:.1f} | {connections:.0f} | {sessions:.0f} | {changes} |")
    slow = {name: seconds for name, seconds in tasks(log.read_text()).items() if seconds >= 0.3}
    print("    " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in slow.items()), file=sys.stderr)
    return played


def measure_fleet(count: int) -> None:
    """A fleet of so many hosts, through its life."""
    with Fleet(count) as fleet:
        names = [machine.name for machine in fleet.machines]
        run(fleet, f"set up, pair ({count * (count - 1) // 2} pairs)", names)
        run(fleet, "nothing to do", names)
        run(fleet, "renew all keys", names, xensecure_rotate=True)
        run(fleet, "one host fewer", names[:-1])
        run(fleet, "one host more", names)


def children_seconds() -> float:
    """CPU time of what this process has started and that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def median(fleet: Fleet, work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that something takes, and the CPU time of all hosts in it."""
    taken, used = [], []
    for _ in range(ROUNDS):
        cpu = children_seconds() + sum(machine.cpu_seconds() for machine in fleet.machines)
        start = time.monotonic()
        work()
        taken.append(time.monotonic() - start)
        used.append(children_seconds() + sum(machine.cpu_seconds() for machine in fleet.machines) - cpu)
    return statistics.median(taken), statistics.median(used)


def measure_host(count: int) -> None:
    """What one step costs hosts that know so many others, and the plan of so many the controller."""
    with Fleet(2) as fleet:
        assert fleet.play(["hv1", "hv2"]).status == 0
        one, two = fleet.machines
        for known in (1, count - 1):
            for each in fleet.machines:
                peers = Peers(dataclasses.replace(Config(path=""), state=each.path("/var/lib/xensecure")))
                with peers.locked():
                    for number in range(2, known + 1):
                        contact = Contact(name=f"other{number}", port=8003, addresses=(f"198.51.{number // 256}.{number % 256}",))
                        key = LinkKey(generation=1, key=secrets.token_bytes(32))
                        peers.put(Peer(contact=contact, pin=secrets.token_bytes(32), keys=(key,), since=int(time.time())))

            def pair() -> None:
                one.ctl("join", "-", stdin=two.ctl("invite"))

            steps = {
                "survey": lambda: (one.ctl("show", "--json"), one.ctl("peers", "--json")),
                "invite": lambda: two.ctl("invite"),
                "invite and join": pair,
                "rotate": lambda: one.ctl("rotate", "hv2"),
            }
            for name, work in steps.items():
                taken, used = median(fleet, work)
                say(f"| {known} | {name} | {taken:.2f} | {used:.2f} |")
    names = [f"hv{number}" for number in range(count)]
    for what, fleet_of in (("none paired", as_said({name: host(name) for name in names})), ("all paired", as_said(met(*names)))):
        start = time.monotonic()
        plan_module.plan(names, fleet_of)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(f"| plan for {count} hosts, {what} | {time.monotonic() - start:.1f} s | {peak:.0f} MiB at most so far |")


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(prog="make fleet", description="Measure what the Ansible role costs.")
    options.add_argument("counts", nargs="*", type=int, metavar="N", help="fleets of so many hosts")
    options.add_argument("--host", type=int, metavar="N", help="what a step costs where N hosts are paired")
    chosen = options.parse_args()
    if reason := why_not():
        print(f"no fleet: {reason}", file=sys.stderr)
        return 1
    say(machine())
    if chosen.counts:
        columns = ("hosts", "run", "s", "CPU s, controller", "CPU s, all hosts", "ssh connections a host", "ssh sessions a host", "changes")
        say(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for count in chosen.counts:
        measure_fleet(count)
    if chosen.host:
        say("| peers known | step | s | CPU s, both hosts |\n|---|---|---|---|")
        measure_host(chosen.host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
