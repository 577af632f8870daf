#!/usr/bin/python3
"""Processes move between two virtual machines, each with a kernel and clocks of its own.

The machines are joined by one cable, which is a socketpair of ours. Without arguments every means
of DEFAULT_MOVES is tried; else those named as TRACKER:SOURCE.
"""
import argparse
import re
import socket
import sys

import guest
import harness

DEFAULT_MOVES = ["soft-dirty:process_vmsplice", "uffd-wp:helper"]

TARGET, SOURCE = "10.0.0.2", "10.0.0.1"
# Of each machine; the redis-server that moves holds 64 MiB.
MEMORY_MIB = 768
# Both boots, and for each means; the machines are emulated.
BOOT_S, MOVE_S = 180, 300


def means(text):
    if not re.fullmatch(r"[a-z0-9_-]+:[a-z0-9_-]+", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not TRACKER:SOURCE, as {DEFAULT_MOVES[0]} is")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("move", nargs="*", type=means, metavar="TRACKER:SOURCE",
                        default=DEFAULT_MOVES)
    arguments = parser.parse_args()
    guest.require("qemu-system-x86_64", "redis-server", "redis-cli")

    seconds = 2 * BOOT_S + MOVE_S * len(arguments.move)
    program = [harness.PYTHON, guest.ROOT / "tests/lab/guest_machine.py"]
    ends = socket.socketpair()
    target = guest.Guest("target", [*program, "target", "--address", TARGET], "--address",
                         f"{TARGET}/24", seconds=seconds, memory=MEMORY_MIB,
                         wire=ends[0].fileno(), prefix="target| ")
    ends[0].close()
    try:
        # The source starts later also for this: its CLOCK_MONOTONIC is behind the target's.
        target.console.wait_for("^target: ready", BOOT_S)
        command = [*program, "source", "--address", SOURCE, "--peer", TARGET]
        for one in arguments.move:
            command += ["--move", one]
        source = guest.Guest("source", command, "--address", f"{SOURCE}/24", seconds=seconds,
                             memory=MEMORY_MIB, wire=ends[1].fileno(), prefix="source| ")
        ends[1].close()
        codes = [source.wait()]
        # The source has told it to end; a source that broke could not.
        codes.append(target.wait() if codes[0] == 0 else target.end())
    except harness.HarnessError as error:
        target.end()
        sys.exit(f"two machines: FAILED: {error}")
    if any(codes):
        sys.exit(f"two machines: FAILED: source {codes[0]}, target {codes[1]}; the consoles are "
                 "above")
    guest.write_summary("two-machines", source.summary())


if __name__ == "__main__":
    main()
