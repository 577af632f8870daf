#!/usr/bin/python3
"""The scripts with CRIU's own dump and restore, in a virtual machine of the lab: guest_criu.py.
Arguments are names of tests there."""
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "lab"))

import guest  # noqa: E402
from guest import harness  # noqa: E402

MEMORY_MIB = 2048
SECONDS = 1200


def main():
    guest.require("qemu-system-x86_64", "criu", "ssh", "/usr/sbin/sshd")
    machine = guest.Guest("scripts", ["env", f"PREDUMP_BUILD_DIR={harness.BUILD}", harness.PYTHON,
                                      HERE / "guest_criu.py", *sys.argv[1:]],
                          seconds=SECONDS, memory=MEMORY_MIB)
    code = machine.wait()
    if code != 0:
        sys.exit(f"scripts with CRIU: FAILED ({code}); the console is above")
    if not any(line.startswith("OK") for line in machine.console.text().splitlines()):
        sys.exit("scripts with CRIU: FAILED: no OK was seen, or tests were skipped")


if __name__ == "__main__":
    main()
