#!/usr/bin/python3
"""Processes that are stored by `predump page-server --images-dir` instead of running there."""
import json
import os
import shutil
import signal
import subprocess
import sys

import harness

# Slow enough to have time between rounds.
_SLOW = ["--bandwidth", "16M"]

# Not CRIU's, or without a header: crit has no name for them.
_NO_IMAGES = ("pages-", "predump-extra")

# Flags of pagemap entries.
_PARENT, _PRESENT = 1, 4


def decode(path):
    """What crit, a program nobody here wrote, reads in one image."""
    result = subprocess.run(["crit", "decode", "-i", path], capture_output=True, text=True,
                            timeout=60)
    if result.returncode != 0:
        raise AssertionError(f"crit decode {path}:\n{result.stderr}")
    return json.loads(result.stdout)["entries"]


class Images(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.store = self.lab.directory("images")
        self.server = None

    def serve(self, *options, die_at=None):
        environment = None
        if die_at:
            environment = {**os.environ, "LD_PRELOAD": f"{harness.BUILD}/tests/die_at.so",
                           "PREDUMP_DIE_AT": die_at}
        self.server = self.lab.server(self.lab.target, "--images-dir", self.store, *options,
                                      new_pidns=False, env=environment)

    def engine(self, workload, *options):
        return self.lab.engine(workload.pid, self.server.address, *options)

    def names(self):
        return sorted(name for name in os.listdir(self.store) if name != ".lock")

    def path(self, *names):
        return os.path.join(self.store, *names)

    def pagemap(self, number, pid):
        return decode(self.path(number, f"pagemap-{pid}.img"))[1:]

    def assert_chain(self, numbers, pid):
        """Each directory reads, builds on the one before, and only on what that one has."""
        before = set()
        for number in numbers:
            with self.subTest(directory=number):
                if number != numbers[0]:
                    self.assertEqual(os.readlink(self.path(number, "parent")),
                                     f"../{int(number) - 1}")
                else:
                    self.assertNotIn("parent", os.listdir(self.path(number)))
                present, inherited, end = set(), set(), 0
                for entry in self.pagemap(number, pid):
                    start = entry["vaddr"]
                    self.assertGreaterEqual(start, end, "ascending and disjoint")
                    end = start + entry["nr_pages"] * 4096
                    pages = range(start, end, 4096)
                    self.assertIn(entry["flags"], (_PARENT, _PRESENT))
                    (inherited if entry["flags"] == _PARENT else present).update(pages)
                self.assertLessEqual(inherited, before)
                self.assertEqual(os.path.getsize(self.path(number, "pages-1.img")),
                                 4096 * len(present))
                before = present | inherited
        self.assertTrue(before)

    def assert_crit_reads_all(self, number):
        names = [name for name in os.listdir(self.path(number))
                 if name != "parent" and not name.startswith(_NO_IMAGES)]
        self.assertGreater(len(names), 1)
        for name in names:
            self.assertTrue(decode(self.path(number, name)) or name == "seccomp.img", name)
        return names

    def assert_stored_whole(self, number, pid):
        names = self.assert_crit_reads_all(number)
        for name in ("inventory.img", "pstree.img", f"core-{pid}.img", f"mm-{pid}.img",
                     f"pagemap-{pid}.img", "files.img"):
            self.assertIn(name, names)

    def test_rounds_are_stored_one_directory_each(self):
        self.serve()
        workload = self.lab.workload("heart")
        before = harness.settled_snapshot(workload)
        result = self.engine(workload, "--rounds", "4", "--leave-running").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertEqual(self.names(), ["1", "2", "3", "4", "latest"])
        self.assertEqual(os.readlink(self.path("latest")), "4")
        self.assert_chain(["1", "2", "3", "4"], workload.pid)
        for number in ("1", "4"):
            self.assert_crit_reads_all(number)
        # Round 0 brings all, the others what was written since.
        sizes = [os.path.getsize(self.path(number, "pages-1.img")) for number in "1234"]
        self.assertGreater(sizes[0], 2 * max(sizes[1:]), sizes)
        uptimes = [decode(self.path(number, "inventory.img"))[0]["dump_uptime"]
                   for number in "1234"]
        self.assertEqual(uptimes, sorted(uptimes))
        started = int(harness.read_file(f"/proc/{workload.pid}/stat").rpartition(")")[2].split()[19])
        self.assertLess(started * 1e6 / os.sysconf("SC_CLK_TCK"), uptimes[0])
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_a_move_into_a_store_ends_it_at_the_source(self):
        for name in ("heart", "threads", "files"):
            with self.subTest(workload=name):
                shutil.rmtree(self.store)
                os.mkdir(self.store)
                self.serve()
                workload = self.lab.workload(name)
                result = self.engine(workload, "--rounds", "3", "--verify").result()
                self.assert_exit(result, harness.COMPLETED)
                self.assertGreater(result["pages-verified"], 0)
                self.assertTrue(harness.pidfd_ended(workload.pidfd, 20))
                # A freeze that found it reading a file of /proc was followed by another round.
                called_off = [stop for stop in result["stops"] if "called off" in stop["what"]]
                rounds = [str(1 + one["round"]) for one in result["rounds"]]
                self.assertEqual(len(rounds), 3 + len(called_off), result["stderr"])
                directories = [*rounds, str(1 + len(rounds))]
                self.assertEqual(self.names(), [*directories, "latest"])
                self.assert_chain(directories, workload.pid)
                self.assert_stored_whole("latest", workload.pid)
                self.assertEqual(workload.report.trouble(), "")
                harness.wait_until(lambda: not self.server.sessions(), 20, "the session to end")

    def test_a_rehearsal_is_stored_and_goes_on(self):
        self.serve()
        workload = self.lab.workload("heart")
        before = harness.settled_snapshot(workload)
        result = self.engine(workload, "--leave-running", "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertGreater(result["pages-verified"], 0)
        last = os.readlink(self.path("latest"))
        self.assert_stored_whole(last, workload.pid)
        self.assertIn(last, result["message"])
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_a_server_killed_between_rounds_leaves_whole_directories(self):
        self.serve()
        workload = self.lab.workload("heart")
        before = harness.settled_snapshot(workload)
        engine = self.engine(workload, *_SLOW, "--rounds", "1000", "--leave-running")
        engine.wait_for_round(2)
        session, = self.server.sessions()
        self.server.kill()
        os.kill(session, signal.SIGKILL)
        result = engine.result(30)
        self.assert_exit(result, harness.FAILED)
        whole = [name for name in self.names() if name.isdigit()]
        self.assertGreaterEqual(len(whole), 3)
        self.assertIn(os.readlink(self.path("latest")), whole)
        self.assert_chain(whole, workload.pid)
        # The next server tidies up and goes on counting.
        self.serve()
        self.assertEqual(self.names(), [*whole, "latest"])
        result = self.engine(workload, "--rounds", "2", "--leave-running").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assert_chain([str(len(whole) + 1), str(len(whole) + 2)], workload.pid)
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_a_session_killed_before_the_name_is_given_leaves_the_process_here(self):
        self.serve(die_at="before-publish-3")
        workload = self.lab.workload("heart")
        result = self.engine(workload, "--rounds", "2").result()
        self.assert_exit(result, harness.FAILED)
        self.assertEqual(self.names(), ["1", "2", "latest"])
        self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)

    def test_a_session_killed_after_the_name_is_given_has_stored_it(self):
        self.serve(die_at="after-publish-3")
        workload = self.lab.workload("heart")
        result = self.engine(workload, "--rounds", "2").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertTrue(harness.pidfd_ended(workload.pidfd, 20))
        self.assertEqual(self.names(), ["1", "2", "3", "latest"])
        self.assertEqual(os.readlink(self.path("latest")), "3")
        self.assert_stored_whole("latest", workload.pid)

    def test_a_directory_that_is_something_else_is_refused_at_once(self):
        with open(self.path("thesis.tex"), "w", encoding="utf-8") as file:
            file.write("years of work")
        result = self.lab.target.run([harness.PREDUMP, "page-server", "--listen", "127.0.0.1:0",
                                      "--state-dir", self.lab.directory("state"),
                                      "--images-dir", self.store])
        self.assertEqual(result.returncode, harness.FAILED)
        self.assertEqual(result.stdout, "")
        self.assertIn("thesis.tex", result.stderr)
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertEqual(os.listdir(self.store), ["thesis.tex"])

    def test_a_server_that_is_told_to_end_says_so(self):
        self.serve()
        workload = self.lab.workload("heart")
        engine = self.engine(workload, *_SLOW, "--rounds", "1000", "--leave-running")
        engine.wait_for_round(0)
        self.server.process.terminate()
        result = engine.result(20)
        self.assert_exit(result, harness.FAILED)
        self.assertIn("the page server is ending", result["message"])
        self.assert_goes_on(workload, 20)

    def test_another_predump_is_told_of_in_one_line(self):
        self.serve()
        workload = self.lab.workload("heart")
        engine = self.engine(workload, *_SLOW, "--rounds", "1000", "--leave-running")
        engine.wait_for_round(0)
        done = self.lab.source.run([harness.PREDUMP, "check", "--pid", workload.pid])
        engine.interrupt()
        engine.result(20)
        self.assertEqual(done.returncode, harness.REFUSED, done.stdout + done.stderr)
        lines = [line for line in done.stdout.splitlines() if "userfaultfd" in line]
        self.assertEqual(len(lines), 1, done.stdout)
        self.assertIn("another predump", lines[0])
        self.assert_finishes_well(workload)

    def test_a_second_source_is_told_to_wait(self):
        self.serve()
        first, second = self.lab.workload("heart"), self.lab.workload("heart")
        engine = self.engine(first, *_SLOW, "--rounds", "1000", "--leave-running")
        engine.wait_for_round(0)
        result = self.engine(second, "--rounds", "1", "--leave-running").result()
        self.assert_exit(result, harness.REFUSED)
        self.assertIn("somebody else is writing", result["stderr"])
        engine.interrupt()
        engine.result(20)
        self.assert_chain([name for name in self.names() if name.isdigit()], first.pid)
        for workload in (first, second):
            self.assert_finishes_well(workload)


class SmallDisk(harness.E2eTest):
    TARGET_MOUNTS = True

    def test_a_full_disk_is_said_and_the_process_goes_on(self):
        # Room for its memory once, not for that of a second session.
        store = self.lab.directory("images")
        target = self.lab.target
        workload = self.lab.workload("heart")
        mounted = target.run(["mount", "-t", "tmpfs", "-o", "size=80m", "predump-test", store])
        self.assertEqual(mounted.returncode, 0, mounted.stderr)
        server = self.lab.server(target, "--images-dir", store, new_pidns=False)
        before = harness.settled_snapshot(workload)
        for options in (["--rounds", "1000", "--leave-running"], []):
            with self.subTest(options=options):
                result = self.lab.engine(workload.pid, server.address, *options).result()
                self.assert_exit(result, harness.FAILED)
                # In the server's words: the source knows nothing of its files. Which of them was the
                # one too many is chance.
                self.assertRegex(result["message"],
                                 rf"{store}/\d+: .*[a-z][\w-]*(\.img)?: No space left on device")
                self.assert_unchanged(before, workload)
                self.assert_goes_on(workload, 20)
        left = target.run(["ls", "-A", store])
        self.assertNotIn("partial", left.stdout)
        self.assert_finishes_well(workload)


if __name__ == "__main__":
    sys.exit(harness.main())
