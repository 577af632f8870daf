#!/usr/bin/python3
"""How long a large process stands still, by its own watch: at most 10 ms when tracking of 4 GiB is
taken down."""
import sys

import harness

_GIB = 4
_MOST_MS = 10
_TIMES = 5


class Gaps(harness.E2eTest):
    def test_a_cancelled_move_of_4_gib_stalls_the_process_little(self):
        workload = self.lab.workload("heart", "--size-mib", str(_GIB << 10))
        server = self.lab.server_at(self.lab.target)
        gaps = []
        for _ in range(_TIMES):
            engine = self.lab.engine(workload.pid, server.address, "--rounds", "100000")
            engine.wait_for_round(1, 120)
            workload.report.reset_gap()
            engine.interrupt()
            self.assert_exit(engine.result(60), harness.CANCELLED)
            workload.report.wait_progress(100)
            gaps.append(workload.report.longest_gap_ms())
            self.assert_well(workload)
        print("longest gaps on disarming, ms:", " ".join(f"{gap:.1f}" for gap in gaps))
        # Other work on the machine may lengthen one; what the engine does shows in all.
        self.assertLessEqual(sorted(gaps)[len(gaps) // 2], _MOST_MS)


if __name__ == "__main__":
    sys.exit(harness.main())
