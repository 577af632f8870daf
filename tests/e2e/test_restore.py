#!/usr/bin/python3
"""Processes are moved into a store of images, and brought to life from it."""
import os
import signal
import subprocess

import harness


# The clocks of a process go on while its memory is loaded: its timeouts are late by as much.
PATIENT = ["--late-ms", "20000"]


class RestoreTest(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.store = self.lab.directory("store")
        self.server = self.lab.server(self.lab.target, "--images-dir", self.store, new_pidns=False)

    def put_away(self, workload, host=None):
        """Moves a workload into the store: from then on it is there and nowhere else."""
        # Every round is synced to disk, and how long that takes is not the matter here.
        result = self.lab.engine(workload.pid, self.server.address, "--rounds", "2",
                                 "--freeze-timeout", "20s", "--verify", host=host).result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertTrue(harness.pidfd_ended(workload.pidfd, 20), "the original goes on")
        harness.wait_for_free_number(workload)

    def command(self, *options):
        return [harness.PREDUMP, "restore", "--images-dir", self.store, *options]

    def restore(self, *options):
        return self.lab.target.run(self.command(*options))

    def bring_back(self, workload, *options):
        pidfile = os.path.join(workload.directory, "pid")
        done = self.restore("-d", "--pidfile", pidfile, *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(int(harness.read_file(pidfile)), workload.pid)
        workload.moved_to(self.lab.target, workload.pid)
        self.assert_goes_on(workload)

    def assert_nothing_left(self, workload):
        """No process with its number, nor anybody who would wait for one."""
        harness.wait_until(lambda: not os.path.exists(f"/proc/{workload.pid}"), 20,
                           "what was made to end")
        harness.wait_until(lambda: not [
            pid for pid in self.lab.target.processes()
            if harness.process_state(pid) not in (None, "Z") and
            harness.read_file(f"/proc/{pid}/comm") == "predump-reaper\n"], 20, "the reaper to end")


class Workloads(RestoreTest):
    """Each judges itself."""

    def there_and_back(self, *arguments):
        workload = self.lab.workload(*arguments)
        workload.report.wait_progress(3)
        self.put_away(workload)
        self.bring_back(workload)
        self.assert_finishes_well(workload)

    def test_threads_go_on(self):
        self.there_and_back("threads", *PATIENT)

    def test_python_goes_on_counting_into_its_file(self):
        self.there_and_back("python-counter")

    def test_a_process_with_files_of_every_kind_goes_on(self):
        self.there_and_back("files")

    def test_the_same_process_is_stored_again(self):
        workload = self.lab.workload("heart")
        self.put_away(workload)
        self.bring_back(workload)
        # It is in a time namespace now, and somebody else's child.
        self.put_away(workload, host=self.lab.target)
        self.bring_back(workload)
        self.assert_finishes_well(workload)


class Restores(RestoreTest):
    def setUp(self):
        super().setUp()
        self.workload = self.lab.workload("threads", *PATIENT)
        self.workload.report.wait_progress(3)
        self.put_away(self.workload)

    def test_a_process_that_runs_is_not_restored_again(self):
        self.bring_back(self.workload)
        done = self.restore("-d")
        self.assertEqual(done.returncode, harness.REFUSED, done.stderr)
        self.assertIn(f"pid {self.workload.pid}: is taken on this host", done.stderr)
        self.assert_goes_on(self.workload)
        self.assert_finishes_well(self.workload)

    def test_in_the_foreground_its_end_is_ours(self):
        waiting = self.lab.adopt(self.lab.target.popen(self.command(), stdin=subprocess.DEVNULL,
                                                       stderr=subprocess.DEVNULL,
                                                       dies_with_us=True))
        harness.wait_until(lambda: os.path.exists(f"/proc/{self.workload.pid}"), 20, "a process")
        self.workload.report.wait_progress(3)
        self.workload.moved_to(self.lab.target, self.workload.pid)
        self.assertEqual(self.workload.finish(), "")
        self.assertEqual(waiting.wait(20), 0)

    def test_in_the_foreground_a_death_by_a_signal_is_told(self):
        waiting = self.lab.adopt(self.lab.target.popen(self.command(), stdin=subprocess.DEVNULL,
                                                       stderr=subprocess.DEVNULL,
                                                       dies_with_us=True))
        self.workload.report.wait_progress(3)
        os.kill(self.workload.pid, signal.SIGKILL)
        self.assertEqual(waiting.wait(20), 128 + signal.SIGKILL)

    def test_what_is_refused_is_made_in_no_part(self):
        done = self.restore("-d", "--cgroup", "/nowhere")
        self.assertEqual(done.returncode, harness.REFUSED, done.stderr)
        self.assertIn("cgroup /nowhere", done.stderr)
        self.assert_nothing_left(self.workload)
        self.bring_back(self.workload)

    def what_became_of_it(self, progress):
        """Of what a killed restore had made: "gone", "stopped" or "runs"."""
        def look():
            state = harness.process_state(self.workload.pid)
            if state in (None, "T"):
                return "gone" if state is None else "stopped"
            return "runs" if self.workload.report.progress > progress else ""
        return harness.wait_until(look, 20, "what was made to end, to stand still or to run")

    def test_killed_at_any_moment_it_leaves_nothing_or_a_process_that_is_whole(self):
        progress = self.workload.report.progress
        instants = ["sendfile", *(f"ptrace-{number}" for number in
                                  [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, *range(100, 1000, 7)])]
        ends = []
        for instant in instants:
            done = self.lab.target.run(
                ["env", f"LD_PRELOAD={harness.BUILD}/tests/die_at.so", f"PREDUMP_DIE_AT={instant}",
                 *self.command("-d")])
            if done.returncode == 0:  # it was done before the moment came
                break
            self.assertEqual(done.returncode, -signal.SIGKILL, done.stderr)
            ends.append(self.what_became_of_it(progress))
            # At the very end it outlives us, stopped until the last step and running from there.
            if ends[-1] != "gone":
                break
            self.assert_nothing_left(self.workload)
            self.assertEqual(self.workload.report.progress, progress, f"it ran after {instant}")
        self.assertGreater(ends.count("gone"), 10)
        if ends[-1] == "stopped":
            self.assertEqual(self.workload.report.progress, progress)
            os.kill(self.workload.pid, signal.SIGCONT)
        self.workload.moved_to(self.lab.target, self.workload.pid)
        self.assert_goes_on(self.workload)
        self.assert_finishes_well(self.workload)


if __name__ == "__main__":
    harness.main()
