#!/usr/bin/python3
"""scripts/pre-dump-loop with our page server: it decides when rounds are enough, and what comes then.
With CRIU's final dump it is tested where that runs: guest_criu.py."""
import os
import pathlib
import signal
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

import harness  # noqa: E402

SCRIPT = harness.ROOT / "scripts/pre-dump-loop"


class PreDumpLoop(harness.E2eTest):
    def start(self, *arguments):
        environment = {**os.environ,
                       "PATH": f"{os.path.dirname(harness.PREDUMP)}:{os.environ['PATH']}"}
        return self.lab.source.popen([SCRIPT, *arguments], dies_with_us=True, env=environment,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True)

    def state(self):
        return ["--", "--state-dir", self.lab.source_state(self.lab.source)]

    def loop(self, *arguments):
        """(exit code, what it said)"""
        process = self.start(*arguments, *self.state())
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def test_rounds_end_when_they_bring_little(self):
        workload = self.lab.workload("heart", "--size-mib", "32")
        server = self.lab.server()
        code, output = self.loop("--enough", "100000", workload.pid, server.address)
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn("enough after round 0: it brought no more than 100000 pages", output)
        self.assertIn(f"the process runs on; {server.address} has 1 rounds of it", output)
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_rounds_end_when_they_no_longer_shrink(self):
        workload = self.lab.workload("churn", "--pages-per-second", "50000")
        server = self.lab.server()
        code, output = self.loop("--enough", "0", "--shrink", "99", "--interval", "1", workload.pid,
                                 server.address)
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn("it brought not even 99% fewer pages than the one before", output)
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_rounds_end_at_their_limit(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        server = self.lab.server()
        code, output = self.loop("--enough", "0", "--shrink", "0", "--max-rounds", "1",
                                 workload.pid, server.address)
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn("enough after round 0: these were 1 rounds", output)
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_then_it_moves(self):
        workload = self.lab.workload("heart", "--size-mib", "32")
        server = self.lab.server()
        before = set(self.lab.target.processes())
        code, output = self.loop("--then", "move", workload.pid, server.address)
        self.assertEqual(code, harness.COMPLETED, output)
        arrived = [pid for pid in self.lab.target.processes() if pid not in before and
                   harness.read_file(f"/proc/{pid}/comm") == "heart\n"]
        self.assertEqual(len(arrived), 1, output)
        workload.moved_to(self.lab.target, arrived[0])
        self.assert_goes_on(workload, 50)
        self.assert_finishes_well(workload)

    def test_killed_before_the_move_it_leaves_the_process(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        server = self.lab.server()
        process = self.start("--then", "move", "--enough", "0", "--shrink", "0", "--interval", "300",
                             workload.pid, server.address, *self.state())
        said = harness.LineReader(process.stdout)
        said.wait_for("round 0: ", 60)
        process.kill()
        process.wait()
        # The requests of predump end with it, and that is not "freeze".
        said.wait_for("nobody had asked to freeze; process", 60)
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_told_to_end_it_cancels(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        server = self.lab.server()
        process = self.start("--enough", "0", "--shrink", "0", "--interval", "300", workload.pid,
                             server.address, *self.state())
        said = harness.LineReader(process.stdout)
        said.wait_for("round 0: ", 60)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), harness.CANCELLED, said.text())
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_the_end_of_the_process_ends_it(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        server = self.lab.server()
        process = self.start("--enough", "0", "--shrink", "0", "--interval", "300", workload.pid,
                             server.address, *self.state())
        said = harness.LineReader(process.stdout)
        said.wait_for("round 0: ", 60)
        self.assert_finishes_well(workload)
        self.assertEqual(process.wait(60), harness.TARGET_GONE, said.text())

    def test_a_server_that_dies_between_rounds_is_said(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        server = self.lab.server()
        process = self.start("--enough", "0", "--shrink", "0", "--interval", "1", workload.pid,
                             server.address, *self.state())
        said = harness.LineReader(process.stdout)
        said.wait_for("round 0: ", 60)
        for pid in server.sessions():
            harness.end_process(pid)
        self.assertEqual(process.wait(60), harness.FAILED, said.text())
        self.assertIn("runs on here, unchanged", said.text())
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_wrong_use_touches_nothing(self):
        for arguments, said in (
                ([], "give the process and where to"),
                (["1"], "give the process and where to"),
                (["x", "h:1"], "PID takes a number"),
                (["--enough", "-1", "1", "h:1"], "--enough takes a number"),
                (["--shrink", "101", "1", "h:1"], "--shrink takes a number from 0 to 100"),
                (["--interval"], "--interval needs a value"),
                (["--then", "fly", "1", "h:1"], "--then takes nothing, move or criu-dump"),
                (["--then", "criu-dump", "1", "h:1"], "needs --images-dir"),
                (["--then", "criu-dump", "--images-dir", "/x", "1", "ssh://h"],
                 "criu dump needs HOST:PORT"),
                (["--then", "move", "--images-dir", "/x", "1", "h:1"], "--images-dir is for"),
                (["--criu-option", "-j", "1", "h:1"], "--criu-option is for"),
                (["1", "h:1", "--", "--json"], "--json cannot stand behind --: predump's standard"),
                (["--no-such"], "there is no option '--no-such'")):
            with self.subTest(arguments=arguments):
                process = self.start(*arguments)
                output, _ = process.communicate(timeout=30)
                self.assertEqual(process.returncode, harness.USAGE, output)
                self.assertIn(said, output)


if __name__ == "__main__":
    harness.main()
