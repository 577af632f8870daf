#!/usr/bin/python3
"""Whatever does not end in a move leaves the process as it was, and the process does not notice."""
import os
import signal
import sys

import harness

# Slow enough to have time in round 0, quick enough to end soon when nobody interrupts it.
_SLOW = ["--bandwidth", "16M"]


class Stays(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.server = self.lab.server_at(self.lab.target)

    def start(self, name="heart", *options):
        if name == "threads":  # see test_moves: a socket's own timeout begins anew
            options = ("--late-ms", "1000", *options)
        workload = self.lab.workload(name, *options)
        return workload, harness.settled_snapshot(workload)

    def engine(self, workload, *options):
        return self.lab.engine(workload.pid, self.server.address, *options)

    def assert_stayed(self, workload, before):
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload, 20)
        # Nothing of it is left at the target.
        harness.wait_until(lambda: self.lab.target.processes() == [self.server.process.pid], 20,
                           lambda: f"the target to be empty: {self.lab.target.processes()}")

    def test_rehearsal_leaves_it_running(self):
        for name in ("heart", "threads"):
            for means in ([], ["--source", "readv"], ["--no-bpf"],
                          ["--tracker", "full", "--source", "readv"]):
                with self.subTest(workload=name, means=means):
                    workload, before = self.start(name)
                    result = self.engine(workload, "--leave-running", "--verify", *means).result()
                    self.assert_exit(result, harness.COMPLETED)
                    self.assertNotIn("restored-pid", result)
                    self.assertGreater(result["pages-verified"], 0)
                    self.assert_stayed(workload, before)
                    self.assert_finishes_well(workload)

    def test_a_move_goes_on_by_copying_when_its_helper_is_killed(self):
        workload = self.lab.workload("heart")
        engine = self.engine(workload, *_SLOW, "--source", "helper", "--verify")
        engine.log.wait_for("set up with")
        known = {workload.pid, engine.process.pid}
        helper = [pid for pid in self.lab.source.processes() if pid not in known]
        self.assertEqual(len(helper), 1, "the helper and nobody else")
        os.kill(helper[0], signal.SIGKILL)
        result = engine.result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertEqual(result["source"], "readv")
        self.assertGreater(result["pages-verified"], 0)
        workload.moved_to(self.lab.target, result["restored-pid"])
        self.assert_goes_on(workload, 100)
        self.assert_finishes_well(workload)

    def test_every_stop_of_a_round_is_reported(self):
        workload, _ = self.start()
        # Without BPF reads in flight cannot be followed, and each round takes a short freeze.
        result = self.engine(workload, "--no-bpf", "--rounds", "3", "--leave-running").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertEqual(result["stops"][0],
                         {"what": "setup", "milliseconds": result["setup-stop-ms"]})
        self.assertEqual(result["stops"][1:],
                         [{"what": f"round {one['round']}", "milliseconds": one["frozen-ms"]}
                          for one in result["rounds"]])
        self.assertTrue(all(stop["milliseconds"] > 0 for stop in result["stops"]))
        self.assertRegex(result["stderr"], r"stopped \d+\.\d+ ms: setup\n")
        self.assertRegex(result["stderr"], r"stopped \d+\.\d+ ms: 3 rounds, at most")

    def test_rounds_only_sends_exactly_so_many(self):
        workload, before = self.start()
        result = self.engine(workload, "--rounds", "5", "--leave-running").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertEqual([one["round"] for one in result["rounds"]], [0, 1, 2, 3, 4])
        self.assertNotIn("restored-pid", result)
        self.assert_stayed(workload, before)

    def test_exactly_so_many_rounds_before_a_move(self):
        workload, _ = self.start()
        result = self.lab.move(workload, "--rounds", "3", "--verify")
        self.assertEqual(len(result["rounds"]), 3)
        self.assert_goes_on(workload, 100)

    def test_interrupt_within_a_round_cancels(self):
        for name in ("heart", "threads"):
            for means in (["--source", "helper"], ["--source", "readv"], ["--no-bpf"]):
                with self.subTest(workload=name, means=means):
                    workload, before = self.start(name)
                    engine = self.engine(workload, *_SLOW, *means)
                    engine.log.wait_for("set up with")
                    engine.interrupt()
                    result = engine.result(20)
                    self.assert_exit(result, harness.CANCELLED)
                    self.assertEqual(result["status"], "cancelled")
                    self.assertIn("SIGINT", result["message"])
                    self.assertIn("runs on here", result["message"])
                    self.assert_stayed(workload, before)
                    self.assert_finishes_well(workload)

    def test_interrupt_between_rounds_cancels(self):
        workload, before = self.start()
        engine = self.engine(workload, "--rounds", "100000")
        engine.wait_for_round(3)
        engine.interrupt()
        result = engine.result(20)
        self.assert_exit(result, harness.CANCELLED)
        self.assert_stayed(workload, before)

    def test_time_limit_cancels(self):
        workload, before = self.start()
        result = self.engine(workload, "--bandwidth", "4M", "--timeout", "1:cancel").result(20)
        self.assert_exit(result, harness.CANCELLED)
        self.assertLess(result["total-time-ms"], 4000)
        self.assertIn("time limit", result["message"])
        self.assert_stayed(workload, before)

    def test_time_limit_forces(self):
        workload, _ = self.start()
        self.lab.move(workload, "--max-downtime", "0", "--max-rounds", "1000000", "--timeout",
                      "2:force", "--verify")
        self.assert_goes_on(workload, 100)
        self.assert_finishes_well(workload)

    def test_round_limit_cancels_what_never_gets_within_the_downtime(self):
        workload, before = self.start()
        result = self.engine(workload, "--max-downtime", "0", "--max-rounds", "4").result(60)
        self.assert_exit(result, harness.CANCELLED)
        self.assertEqual(len(result["rounds"]), 4)
        self.assert_stayed(workload, before)

    def test_a_cancelled_process_can_be_moved_afterwards(self):
        workload, _ = self.start("threads")
        engine = self.engine(workload, "--rounds", "100000")
        engine.wait_for_round(2)
        engine.interrupt()
        self.assert_exit(engine.result(20), harness.CANCELLED)
        self.lab.move(workload, "--verify")
        self.assert_goes_on(workload, 50)
        self.assert_finishes_well(workload)

    def test_bandwidth_is_honoured(self):
        workload, _ = self.start("heart", "--dirty-pages-per-second", "0")
        result = self.engine(workload, "--bandwidth", "32M", "--rounds", "1",
                             "--leave-running").result(60)
        self.assert_exit(result, harness.COMPLETED)
        one = result["rounds"][0]
        self.assertGreater(one["bytes"], 64 << 20)
        seconds = one["milliseconds"] / 1000
        rate = one["bytes"] / seconds
        self.assertLess(rate, 1.1 * (32 << 20))
        self.assertGreater(rate, 0.7 * (32 << 20))

    def test_a_process_that_exits_meanwhile_is_reported_as_such(self):
        workload, _ = self.start()
        engine = self.engine(workload, *_SLOW)
        engine.log.wait_for("set up with")
        harness.end_process(workload.pid)
        result = engine.result(30)
        self.assert_exit(result, harness.TARGET_GONE)
        self.assertEqual(result["status"], "process-ended")


if __name__ == "__main__":
    sys.exit(harness.main())
