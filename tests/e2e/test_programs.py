#!/usr/bin/python3
"""Programs nobody wrote for us are moved: an interpreter, a compressor, a shell's job."""
import hashlib
import os
import pty
import re
import select
import signal
import subprocess
import sys

import harness


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Programs(harness.E2eTest):
    def test_python_goes_on_counting_into_its_file(self):
        workload = self.lab.workload("python-counter")
        for _ in range(4):
            workload.report.wait_progress(20000)
            self.lab.move(workload, "--verify")
        self.assert_goes_on(workload, 20000)
        self.assert_finishes_well(workload)  # reads the file back and compares every line

    def test_gzip_writes_what_it_would_have_written_without_moving(self):
        directory = self.lab.directory("gzip")
        plain, packed, expected = (os.path.join(directory, name)
                                   for name in ("plain", "packed", "expected"))
        subprocess.run([harness.WORKLOADS / "make-compressible", plain, "192", "7"], check=True)
        with open(expected, "wb") as output, open(plain, "rb") as given:
            subprocess.run(["gzip", "-c"], stdin=given, stdout=output, check=True)

        with open(packed, "wb") as output, open(plain, "rb") as given:
            gzip = self.lab.source.popen(["gzip", "-c"], stdin=given, stdout=output,
                                         stderr=subprocess.DEVNULL, start_new_session=True,
                                         cwd=directory)
        self.lab.adopt(gzip)
        pid, host, pidfd = gzip.pid, self.lab.source, os.pidfd_open(gzip.pid)
        for part in (1, 2, 3):
            harness.wait_until(
                lambda part=part: os.path.getsize(packed) > part * os.path.getsize(expected) // 5,
                60, "gzip to write")
            server = self.lab.server_at(self.lab.other(host))
            result = self.lab.engine(pid, server.address, "--verify", host=host).result()
            self.assert_exit(result, harness.COMPLETED)
            self.assertTrue(harness.pidfd_ended(pidfd, 10))
            os.close(pidfd)
            pid, host = result["restored-pid"], self.lab.other(host)
            pidfd = os.pidfd_open(pid)
        self.assertTrue(harness.pidfd_ended(pidfd, 120), "gzip does not end")
        os.close(pidfd)
        self.assertEqual(digest(packed), digest(expected))

    def test_a_process_of_another_user_stays_that_users(self):
        before = None
        workload = self.lab.workload("heart", uid=harness.NOBODY)
        for _ in range(2):
            if before is None:
                before = harness.snapshot(workload.pid)
            self.lab.move(workload, "--verify")
            after = harness.snapshot(workload.pid)
            for field in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                          "NoNewPrivs", "Umask", "SigBlk", "SigIgn", "SigCgt"):
                self.assertEqual(after[f"status/{field}"], before[f"status/{field}"], field)
            self.assert_goes_on(workload, 500)
        self.assert_finishes_well(workload)

    def test_descriptors_limits_and_names_are_the_same_at_the_target(self):
        workload = self.lab.workload("heart")
        before = harness.snapshot(workload.pid)
        # The innermost pid, which the process itself sees, is the last of these.
        inner = harness.read_file(f"/proc/{workload.pid}/status")
        self.lab.move(workload, "--verify")
        after = harness.snapshot(workload.pid)
        keys = [key for key in before if key.startswith(("fd/", "limits", "cmdline", "link/exe",
                                                         "link/cwd", "oom_score_adj", "timers",
                                                         "personality", "coredump_filter",
                                                         "timerslack_ns")) or
                re.fullmatch(r"fdinfo/\d+/flags|status/Name", key)]
        self.assertGreater(len(keys), 10)
        self.assertEqual({key: before[key] for key in keys},
                         {key: after.get(key) for key in keys})
        pid_of = [line.split()[1] for line in inner.splitlines() if line.startswith("NStgid:")]
        self.assertEqual(after["status/NStgid"].split()[-1], pid_of[0])
        self.assert_finishes_well(workload)

    def test_output_and_errors_go_on_sharing_one_file_position(self):
        # As every `command > file 2>&1` does: two positions would overwrite each other's lines.
        directory = self.lab.directory("shared-output")
        path = os.path.join(directory, "log")
        script = ("import os, time\nn = 0\nwhile True:\n"
                  " n += 1\n os.write(1 + n % 2, b'%09d\\n' % n)\n time.sleep(0.001)\n")
        with open(path, "wb") as output:
            child = self.lab.source.popen([harness.PYTHON, "-c", script], stdin=subprocess.DEVNULL,
                                          stdout=output, stderr=output, start_new_session=True,
                                          cwd=directory)
        self.lab.adopt(child)
        harness.wait_until(lambda: os.path.getsize(path) > 1000, 20, "lines")
        result = self.lab.engine(child.pid, self.lab.server_at(self.lab.target).address,
                                 "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        moved_at = os.path.getsize(path)
        harness.wait_until(lambda: os.path.getsize(path) > moved_at + 5000, 20,
                           "lines after the move")
        harness.end_process(result["restored-pid"])
        lines = harness.read_file(path).split("\n")[:-1]
        self.assertEqual([int(line) for line in lines], list(range(1, len(lines) + 1)))


class ShellJobs(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.ours, theirs = pty.openpty()
        self.target_ours, self.target_theirs = pty.openpty()
        self.addCleanup(os.close, self.ours)
        self.addCleanup(os.close, self.target_ours)
        self.addCleanup(os.close, self.target_theirs)
        script = ("import os, sys, time\nn = 0\nwhile True:\n"
                  " n += 1\n print('tick', n, flush=True)\n time.sleep(0.01)\n")

        # The process has a terminal as its controlling one, as a shell's foreground job has.
        self.child = self.lab.source.popen(
            ["setsid", "--ctty", "--wait", harness.PYTHON, "-c", script], stdin=theirs,
            stdout=theirs, stderr=theirs)
        self.lab.adopt(self.child)
        os.close(theirs)
        self.read_until(self.ours, b"tick 3")
        children = harness.read_file(
            f"/proc/{self.child.pid}/task/{self.child.pid}/children").split()
        self.job = int(children[0]) if children else self.child.pid

    def read_until(self, descriptor, text, seconds=20):
        seen = b""
        while text not in seen:
            ready = select.select([descriptor], [], [], seconds)[0]
            self.assertTrue(ready, f"no {text!r} on the terminal, but {seen[-200:]!r}")
            seen += os.read(descriptor, 65536)
        return seen

    def test_a_terminal_is_refused_without_shell_job(self):
        server = self.lab.server_at(self.lab.target)
        before = harness.snapshot(self.job)
        result = self.lab.engine(self.job, server.address).result()
        self.assert_exit(result, harness.REFUSED)
        self.assertRegex("\n".join(result["blockers"]), "terminal")
        self.assertEqual(harness.difference(before, harness.snapshot(self.job)), [])
        self.read_until(self.ours, b"tick")

    def test_with_shell_job_it_gets_the_servers_terminal(self):
        server = self.lab.server(
            self.lab.target, "--shell-job", stdin=self.target_theirs,
            preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, 0x540E, 0)))
        result = self.lab.engine(self.job, server.address, "--shell-job", "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        self.read_until(self.target_ours, b"tick")
        self.assertEqual(os.readlink(f"/proc/{result['restored-pid']}/fd/1"),
                         os.ttyname(self.target_theirs))
        harness.end_process(result["restored-pid"], signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(harness.main())
