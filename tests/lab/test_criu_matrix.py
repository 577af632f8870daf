#!/usr/bin/python3
"""predump and CRIU capture and restore each other's processes, in one virtual machine.

In the lab, because CRIU 3.17.1, which is Debian's, works in its kernel. What is tried, what is to
pass and what is to be refused: guest_criu_matrix.py, guest_criu_pages.py. A filter is a regular
expression for names of rows, like 'redis, captured by criu, rounds by predump', or of comparisons.
"""
import argparse
import sys

import guest
import harness

MEMORY_MIB = 2048


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=1200, help="time limit of the guest (1200)")
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    guest.require("qemu-system-x86_64", "criu", "redis-server")
    machine = guest.Guest(
        "criu-matrix", ["env", f"PREDUMP_BUILD_DIR={harness.BUILD}", harness.PYTHON,
                        guest.ROOT / "tests/lab/guest_criu_matrix.py", arguments.filter],
        seconds=arguments.seconds, memory=MEMORY_MIB)
    code = machine.wait()
    guest.write_summary("criu-matrix", machine.summary())
    if code != 0:
        sys.exit(f"criu matrix: FAILED ({code}); the console is above")


if __name__ == "__main__":
    main()
