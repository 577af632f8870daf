#!/usr/bin/python3
"""The kernel's selftest, and our suites that test against the kernel, in the patched kernel.

suites.txt says which, and what has to run there. A filter is a regular expression, looked for in
names like pagemap_mirror_test:Suite.Test or kernel_selftest; everything runs without one.
"""
import argparse
import subprocess
import sys
import tempfile

import guest
import harness

MEMORY_MIB = 2048


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="patched", help="of the kernel (patched)")
    parser.add_argument("--seconds", type=int, default=1500, help="time limit of the guest (1500)")
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    guest.require("qemu-system-x86_64")

    guest.RESULTS.mkdir(exist_ok=True)
    # Not in /tmp, on which the guest has a tmpfs of its own.
    with tempfile.TemporaryDirectory(prefix="selftest-", dir=guest.RESULTS) as programs:
        subprocess.run([guest.LAB / "selftest", "--build-into", programs], check=True)
        suites = guest.Guest(
            "suites", [harness.PYTHON, guest.ROOT / "tests/lab/guest_suites.py", "--build",
                       harness.BUILD, "--programs", programs, "--", arguments.filter],
            "--variant", arguments.variant, seconds=arguments.seconds, memory=MEMORY_MIB)
        code = suites.wait()
    if code != 0:
        sys.exit(f"suites: FAILED ({code}); the console is above")
    guest.write_summary("suites", suites.summary())


if __name__ == "__main__":
    main()
