#!/usr/bin/python3
"""The kernel's selftest, and our suites that test against the kernel, in the patched kernel.

suites.txt says which, and what has to run there. A filter is a regular expression, looked for in
names like pagemap_mirror_test:Suite.Test or kernel_selftest; everything runs without one. --quick
starts a guest for each processor (four at most), for a suite hardly ever uses two; the long ones
partly do, so that there is one guest with all processors otherwise.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

import guest
import guest_suites
import harness

MEMORY_MIB = 2048


def start(name, prefix, programs, arguments, *options):
    return guest.Guest(
        name, [harness.PYTHON, guest.ROOT / "tests/lab/guest_suites.py", "--build", harness.BUILD,
               "--programs", programs, *options],
        "--variant", arguments.variant, "--cpus", str(1 if arguments.quick else os.cpu_count()),
        seconds=arguments.seconds, memory=MEMORY_MIB, prefix=prefix)


def start_shares(programs, arguments, plan):
    return [start(f"suites-{number}", f"{number}| ", programs, arguments, "--quick",
                  "--only", ",".join(share))
            for number, share in enumerate(plan.shares(min(os.cpu_count(), 4)), 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="patched", help="of the kernel (patched)")
    parser.add_argument("--seconds", type=int, default=1500, help="time limit of a guest (1500)")
    parser.add_argument("--quick", action="store_true", help="without what takes long")
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    if arguments.quick and arguments.filter:
        parser.error("--quick is for all suites; a filter chooses its own")
    guest.require("qemu-system-x86_64")

    plan = guest_suites.Plan.read(guest_suites.PLAN)
    if arguments.quick:
        plan = plan.quick()
    guest.RESULTS.mkdir(exist_ok=True)
    # Not in /tmp, on which the guest has a tmpfs of its own.
    with tempfile.TemporaryDirectory(prefix="selftest-", dir=guest.RESULTS) as programs:
        subprocess.run([guest.LAB / "selftest", "--build-into", programs], check=True)
        if arguments.quick:
            guests = start_shares(programs, arguments, plan)
        else:
            guests = [start("suites", "", programs, arguments, "--", arguments.filter)]
        codes = [one.wait() for one in guests]
    summary = [line for one in guests for line in one.summary()]
    if any(codes):
        sys.exit(f"suites: FAILED ({codes}); the console is above")
    ran = {match[1] for line in summary if (match := re.match(r"ok +(\w+): ", line))}
    forgotten = {*plan.suites, *plan.long} - ran
    if not arguments.filter and forgotten:
        sys.exit(f"suites: FAILED: {', '.join(sorted(forgotten))} did not run")
    guest.write_summary("suites", summary)


if __name__ == "__main__":
    main()
