#!/usr/bin/python3
"""How long a large process stands still, by its own watch, when tracking of 4 GiB is taken down.

Asserted is that the middle one of five times is at most 10 ms (taken down in one piece it is 33 to 40
ms, each time) and the longest at most 50 ms: one time alone says little on a machine that does other
work, but a stall that users would notice is one even if it is rare. Where the process, left alone just
before, was kept waiting for more than half of that, twice that wait is the bound: then the machine and
not the engine sets it.
"""
import statistics
import sys

import harness

_GIB = 4
_MOST_MS = 10
_LONGEST_MS = 50
_TIMES = 5
_QUIET_STEPS = 1000


class Gaps(harness.E2eTest):
    def test_a_cancelled_move_of_4_gib_stalls_the_process_little(self):
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
