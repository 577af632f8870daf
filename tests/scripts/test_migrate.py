#!/usr/bin/python3
"""scripts/migrate, as a user calls it: a process moves over ssh to a host that is another network,
pid and mount namespace, with an sshd of the test's own."""
import os
import signal
import subprocess

import ssh_host
from ssh_host import harness

SCRIPT = harness.ROOT / "scripts/migrate"


class Migrate(harness.E2eTest):
    TARGET_MOUNTS = True

    def setUp(self):
        super().setUp()
        self.there = ssh_host.SshHost(self.lab, self.lab.target, {"predump": harness.PREDUMP})
        self.destination = f"root@{self.lab.target.address}"

    def start(self, *arguments, environment=None):
        state = self.lab.source_state(self.lab.source)
        return self.lab.source.popen([SCRIPT, "--state-dir", state, *arguments], dies_with_us=True,
                                     env=environment or self.there.environment,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True)

    def migrate(self, *arguments, environment=None):
        """(exit code, what it said)"""
        process = self.start(*arguments, environment=environment)
        output, _ = process.communicate(timeout=180)
        return process.returncode, output

    def assert_stays(self, workload):
        """It runs where it was, and nothing that served it runs at the target."""
        self.assertIsNone(self.there.process_there(workload.pid))
        self.assert_goes_on(workload)
        left = [name for name in map(self.command, self.lab.target.processes())
                if "page-server" in name]
        self.assertEqual(left, [])

    @staticmethod
    def command(pid):
        try:
            return harness.read_file(f"/proc/{pid}/cmdline").replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def test_a_process_moves(self):
        workload = self.lab.workload("heart", "--size-mib", "32")
        code, output = self.migrate(workload.pid, self.destination, "--", "--verify")
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn(f"process {workload.pid} (heart) runs at {self.destination}", output)
        self.assertIn("the same", output)  # --verify went to predump
        arrived = self.there.process_there(workload.pid)
        self.assertIsNotNone(arrived, output)
        workload.moved_to(self.lab.target, arrived)
        self.assert_goes_on(workload, 50)
        self.assert_finishes_well(workload)

    def test_a_rehearsal_leaves_it_here(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        code, output = self.migrate("--dry-run", workload.pid, self.destination)
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn("could run at", output)
        self.assert_stays(workload)
        self.assert_finishes_well(workload)

    def test_a_rehearsal_is_one_whatever_stands_behind(self):
        workload = self.lab.workload("heart", "--size-mib", "8")
        # An option that lacks its value takes no other option for it.
        code, output = self.migrate("--dry-run", workload.pid, self.destination, "--", "--log-file")
        self.assertEqual(code, harness.USAGE, output)
        self.assert_stays(workload)
        self.assert_finishes_well(workload)

    def test_what_cannot_move_is_refused_with_what_is_in_the_way(self):
        holder = self.lab.adopt(self.lab.source.popen(
            [harness.PYTHON, "-c", "import socket, subprocess, time; "
             "child = subprocess.Popen(['cat']); print('ready', flush=True); time.sleep(600)"],
            dies_with_us=True, start_new_session=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True))
        self.addCleanup(holder.stdout.close)
        self.assertEqual(holder.stdout.readline(), "ready\n")
        code, output = self.migrate(holder.pid, self.destination)
        self.assertEqual(code, harness.REFUSED, output)
        self.assertIn("cannot be moved", output)
        self.assertIn("stays here, untouched", output)
        self.assertIsNone(holder.poll())

    def test_a_host_without_predump_or_with_another_is_said_as_such(self):
        workload = self.lab.workload("heart", "--size-mib", "1")
        (self.there.programs / "predump").unlink()
        other = self.there.programs / "predump"
        here = {**self.there.environment,
                "PATH": f"{os.path.dirname(harness.PREDUMP)}:{self.there.environment['PATH']}"}
        for text, code_wanted, said in (
                ("#!/bin/sh\nexit 127\n", harness.FAILED, "there is no predump at"),
                ("#!/bin/sh\necho 0.0.7\n", harness.REFUSED, "is of version 0.0.7 at")):
            other.write_text(text, encoding="ascii")
            other.chmod(0o755)
            code, output = self.migrate(workload.pid, self.destination, environment=here)
            self.assertEqual(code, code_wanted, output)
            self.assertIn(said, output)
        self.assert_finishes_well(workload)

    def test_a_host_that_lets_nobody_in_is_said_as_such(self):
        workload = self.lab.workload("heart", "--size-mib", "1")
        (self.there.directory / "user_key.pub").write_text("", encoding="ascii")
        code, output = self.migrate(workload.pid, self.destination)
        self.assertEqual(code, harness.FAILED, output)
        self.assertIn("ssh does not get to", output)
        self.assert_finishes_well(workload)

    def test_told_to_end_it_does_not_wait_for_an_ssh_that_hangs(self):
        workload = self.lab.workload("heart", "--size-mib", "1")
        self.there.hang("predump --version")
        temporary = self.lab.directory("temporary")
        process = self.start(workload.pid, self.destination,
                             environment={**self.there.environment, "TMPDIR": temporary})
        said = harness.LineReader(process.stdout)
        said.wait_for("ssh hangs: .*-o ConnectTimeout=10 ", 60)
        harness.wait_until(lambda: self.there.hanging(self.lab.source), 20, "it to hang")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), harness.CANCELLED, said.text())
        self.assertIn(f"cancelled: process {workload.pid} runs on here", said.text())
        self.assertEqual(self.there.hanging(self.lab.source), [])
        self.assertEqual(os.listdir(temporary), [])
        self.assert_stays(workload)
        self.assert_finishes_well(workload)

    def test_told_to_end_it_cancels_and_leaves_nothing_behind(self):
        workload = self.lab.workload("heart", "--size-mib", "64")
        # So slow that it is far from its end.
        process = self.start(workload.pid, self.destination, "--", "--bandwidth", "2M")
        said = harness.LineReader(process.stdout)
        said.wait_for("tracker ", 60)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), harness.CANCELLED, said.text())
        self.assertIn("cancelled", said.text())
        self.assert_stays(workload)
        self.assert_finishes_well(workload)

    def test_a_predump_that_is_killed_leaves_nothing_parked(self):
        workload = self.lab.workload("heart", "--size-mib", "1")
        environment = {**self.there.environment, "PREDUMP_DIE_AT": "after-stop",
                       "LD_PRELOAD": f"{harness.BUILD}/tests/die_at.so"}
        code, output = self.migrate(workload.pid, self.destination, environment=environment)
        self.assertEqual(code, harness.FAILED, output)
        self.assertIn("predump was killed", output)
        self.assertIn(f"process {workload.pid} did not arrive at {self.destination}", output)
        self.assert_stays(workload)
        self.assert_finishes_well(workload)

    def test_a_link_that_is_cut_leaves_it_here(self):
        workload = self.lab.workload("heart", "--size-mib", "64")
        process = self.start(workload.pid, self.destination, "--", "--bandwidth", "2M")
        said = harness.LineReader(process.stdout)
        said.wait_for("tracker ", 60)
        # The ssh of the page server ends as if the link had.
        for pid in self.lab.source.processes():
            if "page-server --stdio" in self.command(pid) and self.command(pid).startswith("/usr/bin/ssh"):
                harness.end_process(pid)
        self.assertEqual(process.wait(120), harness.FAILED, said.text())
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)


if __name__ == "__main__":
    harness.main()
