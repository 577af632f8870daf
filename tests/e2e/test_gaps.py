#!/usr/bin/python3
"""How long a large process stands still, by its own watch, when tracking of 4 GiB is taken down.

Asserted is that the middle one of five times is at most 10 ms (taken down in one piece it is 33 to 40
ms, each time) and the longest at most 50 ms: one time alone says little on a machine that does other
work, but a stall that users would notice is one even if it is rare. Where the process, left alone just
before, was kept waiting for more than half of that, twice that wait is the bound: then the machine and
not the engine sets it.

Where a hypervisor keeps the page tables (PVM: 5 ms to protect 64 MiB, elsewhere 0.3), the bounds mean
nothing: each of the up to 64 pages that this process writes at a time waits for one step of the taking
down.
"""
import ctypes
import mmap
import statistics
import sys
import time

import harness

_GIB = 4
_MOST_MS = 10
_LONGEST_MS = 50
_TIMES = 5
_QUIET_STEPS = 1000
_STEP_BYTES, _SLOW_STEP_MS = 64 << 20, 2


def protecting_takes_ms():
    """How long changing the page tables of 64 MiB keeps a process from its memory here."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    memory = mmap.mmap(-1, _STEP_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    taken = []
    for _ in range(_TIMES):
        for page in range(0, _STEP_BYTES, mmap.PAGESIZE):
            memory[page] = 1
        begun = time.monotonic()
        failed = protect(start, ctypes.c_size_t(_STEP_BYTES), mmap.PROT_READ)
        taken.append((time.monotonic() - begun) * 1000)
        failed |= protect(start, ctypes.c_size_t(_STEP_BYTES), mmap.PROT_READ | mmap.PROT_WRITE)
        if failed:
            raise harness.HarnessError("mprotect failed")
    return statistics.median(taken)


class Gaps(harness.E2eTest):
    def test_a_cancelled_move_of_4_gib_stalls_the_process_little(self):
        step_ms = protecting_takes_ms()
        if step_ms > _SLOW_STEP_MS:
            self.skipTest(f"page tables are slow to change on this machine: {step_ms:.1f} ms "
                          f"for 64 MiB (a hypervisor keeps them)")
        workload = self.lab.workload("heart", "--size-mib", str(_GIB << 10))
        server = self.lab.server_at(self.lab.target)
        gaps, quiet = [], []
        for _ in range(_TIMES):
            workload.report.reset_gap()
            workload.report.wait_progress(_QUIET_STEPS)
            quiet.append(workload.report.longest_gap_ms())
            engine = self.lab.engine(workload.pid, server.address, "--rounds", "100000")
            engine.wait_for_round(1, 120)
            workload.report.reset_gap()
            engine.interrupt()
            self.assert_exit(engine.result(60), harness.CANCELLED)
            workload.report.wait_progress(100)
            gaps.append(workload.report.longest_gap_ms())
            self.assert_well(workload)
        for what, values in (("left alone", quiet), ("on disarming", gaps)):
            print(f"longest gaps {what}, ms:", " ".join(f"{gap:.1f}" for gap in values))
        self.assertLessEqual(statistics.median(gaps), max(_MOST_MS, 2 * statistics.median(quiet)))
        self.assertLessEqual(max(gaps), max(_LONGEST_MS, 2 * max(quiet)))


if __name__ == "__main__":
    sys.exit(harness.main())
