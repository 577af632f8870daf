#!/usr/bin/python3
"""A lab that fails while it is made, or while it is taken down, leaves nothing on the machine."""
import os
import subprocess
import sys
import unittest
import unittest.mock

import harness


def children():
    pids = set()
    for thread in os.listdir("/proc/self/task"):
        pids.update(harness.read_file(f"/proc/self/task/{thread}/children").split())
    return pids


def own_links():
    shown = subprocess.run(["ip", "-oneline", "link"], check=True, capture_output=True, text=True)
    return f"pt{os.getpid() % 0x1000000:x}" in shown.stdout


class Harness(unittest.TestCase):
    def setUp(self):
        # Other labs of this machine may come and go meanwhile, with other names.
        self.made = []
        make = harness.tempfile.mkdtemp

        def mkdtemp(*arguments, **keywords):
            self.made.append(make(*arguments, **keywords))
            return self.made[-1]

        patch = unittest.mock.patch.object(harness.tempfile, "mkdtemp", mkdtemp)
        patch.start()
        self.addCleanup(patch.stop)
        self.children = children()

    def assert_nothing_left(self):
        self.assertEqual(children(), self.children)
        self.assertFalse(own_links())
        for path in self.made:
            self.assertFalse(os.path.exists(path), path)

    def failing(self, where, what):
        return unittest.mock.patch.object(where, what, side_effect=OSError("not today"))

    def test_a_host_whose_namespace_cannot_be_looked_at(self):
        with self.failing(harness.os, "readlink"), self.assertRaises(OSError):
            harness.Host()
        self.assert_nothing_left()

    def test_a_host_that_cannot_be_made(self):
        with unittest.mock.patch.object(harness, "ROOT", "/nonexistent"):
            with self.assertRaises(harness.HarnessError):
                harness.Host(own_mounts=True)
        self.assert_nothing_left()

    def test_a_lab_without_a_cable(self):
        with self.failing(harness, "connect_hosts"), self.assertRaises(OSError):
            harness.Lab()
        self.assertEqual(len(self.made), 1)
        self.assert_nothing_left()

    def test_a_cable_with_one_end(self):
        first = harness.Host()
        second = harness.Host()
        second.close()  # its namespace is gone
        with self.assertRaises(subprocess.CalledProcessError):
            harness.connect_hosts(first, second)
        self.assertFalse(own_links())
        first.close()
        self.assert_nothing_left()

    def test_what_cannot_be_taken_down_keeps_nothing_else(self):
        lab = harness.Lab()
        lab.adopt(lab.source.popen(["sleep", "600"]))
        close = lab.source.close

        def fail():
            close()
            raise OSError("not today")

        lab.source.close = fail
        with self.assertRaises(OSError):
            lab.close()
        self.assert_nothing_left()

    def test_what_is_not_in_its_host_yet_is_ended_too(self):
        lab = harness.Lab()
        with unittest.mock.patch.object(lab.source, "command", lambda arguments, *_: arguments):
            lab.adopt(lab.source.popen(["sleep", "600"]))
        lab.close()
        self.assert_nothing_left()

    def test_a_workload_that_does_not_begin(self):
        lab = harness.Lab()
        with self.failing(harness.os, "pidfd_open"), self.assertRaises(OSError):
            lab.workload("heart", command=["/bin/sleep"])
        lab.close()
        self.assert_nothing_left()


if __name__ == "__main__":
    sys.exit(harness.main())
