#!/usr/bin/python3
"""Moves by soft-dirty marks and process_vmsplice, on kernels that have them; else what is said."""
import os
import resource
import sys

import harness

# As in test_moves.py, for an emulated processor that others want, too: it carries few pages a
# second, and a thread that wants to run may wait for seconds. Not "threads", which judges timeouts to
# the millisecond.
WORKLOADS = {
    "heart": ("heart", ["--size-mib", "64", "--threads", "2"], 300),
    "churn": ("churn", ["--pages-per-second", "2000"], 50),
    "huge": ("huge", ["--size-mib", "64"], 50),
    "sparse": ("sparse", [], 50),
    "file-reads": ("direct-io", [], 5),
}
ROUNDS = ["--rounds", "4"]
SECONDS = 300

SOFT_DIRTY = ["--tracker", "soft-dirty"]
PROCESS_VMSPLICE = ["--source", "process_vmsplice"]


class OnThisKernel(harness.E2eTest):
    def why_not(self, *means):
        """What the kernel lacks for these, as the engine says it, or None."""
        workload = self.lab.workload("heart", "--size-mib", "1")
        # Means are chosen before anything is sent: a page server that nobody has is enough to ask.
        result = self.lab.engine(workload.pid, self.lab.server_at(self.lab.target).address,
                                 *means, "--rounds", "1", "--leave-running").result(60)
        self.assert_finishes_well(workload)
        if "this kernel lacks" not in result["stderr"]:
            self.assert_exit(result, harness.COMPLETED)
            return None
        self.assertNotEqual(result["exit"], harness.COMPLETED)
        return next(line for line in result["stderr"].splitlines() if "this kernel lacks" in line)

    def need(self, *means):
        why = self.why_not(*means)
        if why:
            self.skipTest(why)

    def there_and_back(self, name, means, check):
        program, options, steps = WORKLOADS[name]
        workload = self.lab.workload(program, *options)
        for _ in range(2):
            result = self.lab.move(workload, "--verify", *ROUNDS, *means, seconds=SECONDS)
            self.assertGreater(result["pages-verified"], 0)
            check(result)
            self.assert_goes_on(workload, steps, 120)
        self.assert_finishes_well(workload)


class SoftDirtyMoves(OnThisKernel):
    def check(self, result):
        self.assertEqual(result["tracker"], "soft-dirty")
        for number, record in enumerate(result["rounds"]):
            # The price of this tracker is measured and shown, round by round.
            self.assertGreater(record["frozen-ms"], 0)
            self.assertGreaterEqual(record["scan-ms"], record["frozen-ms"])
            print(f"  round {number}: {record['pages']} pages, {record['frozen-ms']:.1f} ms frozen",
                  file=sys.stderr)


class ReadvWithoutBpf(SoftDirtyMoves):
    def check(self, result):
        super().check(result)
        self.assertEqual(result["source"], "readv")


class ProcessVmsplice(SoftDirtyMoves):
    def check(self, result):
        super().check(result)
        self.assertEqual(result["source"], "process_vmsplice")
        # Nothing is put into the process.
        self.assertEqual(result["setup-stop-ms"], 0)


def _add(case, kind, means, names):
    for name in names:
        def test(self, name=name):
            self.need(*means)
            self.there_and_back(name, means, self.check)
        setattr(case, f"test_{kind}_{name.replace('-', '_')}", test)


_add(ProcessVmsplice, "process_vmsplice", SOFT_DIRTY + PROCESS_VMSPLICE,
     WORKLOADS)
_add(ReadvWithoutBpf, "readv_without_bpf", SOFT_DIRTY + ["--source", "readv", "--no-bpf"],
     ["heart", "churn"])


class Auto(OnThisKernel):
    def test_the_call_is_preferred_to_a_helper(self):
        self.need(*PROCESS_VMSPLICE)

        def check(result):
            self.assertEqual(result["tracker"], "uffd-wp")
            self.assertEqual(result["source"], "process_vmsplice")

        self.there_and_back("churn", [], check)

    def test_a_process_without_room_for_a_userfaultfd_is_followed_by_its_marks(self):
        self.need(*SOFT_DIRTY)
        workload = self.lab.workload("heart", "--size-mib", "16")
        used = {int(name) for name in os.listdir(f"/proc/{workload.pid}/fd")}
        lowest_free = next(number for number in range(len(used) + 1) if number not in used)
        hard = resource.prlimit(workload.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(workload.pid, resource.RLIMIT_NOFILE, (lowest_free, hard))
        result = self.lab.move(workload, "--verify", *ROUNDS, seconds=SECONDS)
        self.assertEqual(result["tracker"], "soft-dirty")
        self.assert_goes_on(workload, 300, 120)
        self.assert_finishes_well(workload)


if __name__ == "__main__":
    sys.exit(harness.main())
