#!/usr/bin/python3
"""scripts/migrate-criu where things go wrong: over a real ssh, with stand-ins for criu and predump that
do as a test wants. With the real ones it is tested where those run: guest_criu.py."""
import os
import pathlib
import select
import signal
import subprocess

import ssh_host
from ssh_host import harness

SCRIPT = harness.ROOT / "scripts/migrate-criu"

# A kernel with soft-dirty marks; a page server that has a store with one image directory.
_PREDUMP = """#!/bin/sh
case "$1" in
  --version) echo 0.0.1 ;;
  check) echo 'yes  soft-dirty   since 3.11' ;;
  page-server)
    mkdir -p "$5/1" && ln -s 1 "$5/latest" && echo pages > "$5/1/pages-1.img"
    echo listening on 127.0.0.1:7
    exec cat "$STANDIN/forever" ;;
  --pid) [ ! -e "$STANDIN/rounds-fail" ] || exit 1 ;;
esac
"""
# The dump stops the process; what the restore does, and how it ends, is in files.
_CRIU = """#!/bin/sh
case "$1" in
  --version) echo 'Version: 3.17.1' ;;
  dump)
    if [ -e "$STANDIN/dump-fails" ]; then echo 'Error (x.c:1): no dump today' > "$5/dump.log"; exit 1; fi
    echo image > "$5/core-$3.img"; echo log > "$5/dump.log"; ln -s ../rounds "$5/parent"
    kill -STOP "$3" ;;
  restore)
    ls "$3/" > "$STANDIN/restored"
    [ ! -e "$STANDIN/restore-waits" ] || { echo begun; cat "$STANDIN/go"; } > "$STANDIN/begun"
    [ ! -e "$STANDIN/restore-fails" ] || { echo 'Error (y.c:2): no room' > "$8"; exit 1; } ;;
esac
"""


class MigrateCriu(harness.E2eTest):
    TARGET_MOUNTS = True

    def setUp(self):
        super().setUp()
        self.files = pathlib.Path(self.lab.directory("stand-ins"))
        for name, text in (("predump", _PREDUMP), ("criu", _CRIU)):
            path = self.files / name
            path.write_text(text.replace("$STANDIN", str(self.files)), encoding="ascii")
            path.chmod(0o755)
        for fifo in ("forever", "begun", "go"):
            os.mkfifo(self.files / fifo)
        self.there = ssh_host.SshHost(self.lab, self.lab.target, {
            name: self.files / name for name in ("predump", "criu")})
        self.destination = f"root@{self.lab.target.address}"
        self.workload = self.lab.workload("heart", "--size-mib", "1")
        self.images = self.lab.directory("images")

    def start(self, *options):
        process = self.lab.adopt(self.lab.source.popen(
            [SCRIPT, "--directory", self.images, *options, self.workload.pid, self.destination],
            dies_with_us=True, env=self.there.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return process, harness.LineReader(process.stdout)

    def migrate(self, *options):
        process, said = self.start(*options)
        code = process.wait(120)
        return code, said.text()

    def set(self, name):
        (self.files / name).touch()

    def assert_runs_here(self):
        self.assertNotEqual(harness.process_state(self.workload.pid), "T")
        self.assert_goes_on(self.workload)

    def assert_nothing_left(self):
        self.assertEqual(os.listdir(self.images), [])
        harness.wait_until(lambda: not self.servers(), 20, "the page server to end")

    def servers(self):
        return [pid for pid in self.lab.target.processes()
                if harness.process_state(pid) not in (None, "Z") and
                "forever" in harness.read_file(f"/proc/{pid}/cmdline")]

    def test_when_all_goes_well_the_original_ends(self):
        code, output = self.migrate()
        self.assertEqual(code, harness.COMPLETED, output)
        self.assertIn(f"runs at {self.destination}", output)
        self.assertTrue(harness.pidfd_ended(self.workload.pidfd, 10))
        # What criu left on this side went beside the pages, but for links and logs.
        restored = (self.files / "restored").read_text(encoding="ascii").split()
        self.assertEqual(restored, [f"core-{self.workload.pid}.img", "pages-1.img"])
        self.assert_nothing_left()

    def test_images_are_kept_where_asked_for(self):
        code, output = self.migrate("--keep")
        self.assertEqual(code, harness.COMPLETED, output)
        kept = {name.partition("-")[0] for name in os.listdir(self.images)}
        self.assertEqual(kept, {"source", "target"})

    def test_rounds_that_fail_leave_it(self):
        self.set("rounds-fail")
        code, output = self.migrate()
        self.assertEqual(code, harness.FAILED, output)
        self.assert_runs_here()
        self.assert_nothing_left()

    def test_a_dump_that_fails_leaves_it(self):
        self.set("dump-fails")
        code, output = self.migrate()
        self.assertEqual(code, harness.FAILED, output)
        self.assertIn("no dump today", output)
        self.assert_runs_here()
        self.assert_nothing_left()

    def test_a_restore_that_fails_lets_it_go_on(self):
        self.set("restore-fails")
        code, output = self.migrate()
        self.assertEqual(code, harness.FAILED, output)
        self.assertIn("no room", output)
        self.assertIn("runs on here", output)
        self.assert_runs_here()
        self.assert_nothing_left()

    def begin_restore(self):
        """(process, what it says); criu waits at the target until release() is called."""
        self.set("restore-waits")
        begun = os.open(self.files / "begun", os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, begun)
        process, said = self.start()
        if not select.select([begun], [], [], 60)[0]:
            self.fail("no restore has begun")
        self.assertEqual(os.read(begun, 6), b"begun\n")
        self.assertEqual(harness.process_state(self.workload.pid), "T")
        return process, said

    def release(self):
        (self.files / "go").write_text("", encoding="ascii")

    def ssh_clients(self):
        return [pid for pid in self.lab.source.processes()
                if harness.process_state(pid) not in (None, "Z") and
                harness.read_file(f"/proc/{pid}/comm") == "ssh\n"]

    def test_a_link_that_breaks_in_the_restore_is_asked_again(self):
        process, said = self.begin_restore()
        for pid in self.ssh_clients():
            harness.end_process(pid)
        said.wait_for("asking .* what became of the process", 60)
        self.assertEqual(harness.process_state(self.workload.pid), "T")
        self.release()
        self.assertEqual(process.wait(60), harness.COMPLETED, said.text())
        self.assertTrue(harness.pidfd_ended(self.workload.pidfd, 10))

    def test_a_signal_in_the_restore_waits_for_its_end(self):
        process, said = self.begin_restore()
        process.send_signal(signal.SIGTERM)
        self.release()
        self.assertEqual(process.wait(60), harness.COMPLETED, said.text())
        self.assertTrue(harness.pidfd_ended(self.workload.pidfd, 10))

    def test_while_nobody_can_know_it_stays_stopped(self):
        process, said = self.begin_restore()
        self.lab.cut_cable()
        for pid in self.ssh_clients():
            harness.end_process(pid)
        self.assertEqual(process.wait(180), harness.PARKED, said.text())
        self.assertIn("stays stopped here", said.text())
        self.assertEqual(harness.process_state(self.workload.pid), "T")
        # As it says: what it needs to be settled is still there.
        self.lab.mend_cable()
        self.release()
        store = next(name for name in os.listdir(self.images)
                     if name.startswith("target-"))
        ended = pathlib.Path(self.images, store, "ended")
        harness.wait_until(lambda: ended.exists(), 20, "the restore to end")
        self.assertEqual(ended.read_text(encoding="ascii"), "0\n")

    def test_killed_in_the_rounds_it_leaves_no_server(self):
        path = self.files / "predump"
        path.write_text(path.read_text(encoding="ascii").replace(
            "--pid) ", f"--pid) echo in rounds; cat {self.files}/go; "), encoding="ascii")
        process, said = self.start()
        said.wait_for("in rounds", 60)
        self.assertNotEqual(self.servers(), [])
        process.kill()
        process.wait()
        harness.wait_until(lambda: not self.servers(), 20, "the page server to end")
        self.assert_runs_here()

    def cancel_while_ssh_hangs(self, pattern):
        self.there.hang(pattern)
        process, said = self.start()
        said.wait_for("ssh hangs", 60)
        harness.wait_until(lambda: self.there.hanging(self.lab.source), 20, "it to hang")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), harness.CANCELLED, said.text())
        self.assertEqual(self.there.hanging(self.lab.source), [])
        self.assert_runs_here()
        self.assert_nothing_left()

    def test_told_to_end_it_does_not_wait_for_a_connection(self):
        self.cancel_while_ssh_hangs("ControlMaster=yes")

    def test_told_to_end_it_does_not_wait_for_images_to_be_copied(self):
        self.cancel_while_ssh_hangs("exec tar")

    def test_why_the_restore_failed_is_not_waited_for(self):
        self.set("restore-fails")
        self.there.hang("grep -a Error")
        process, said = self.start()
        said.wait_for("ssh hangs", 60)
        self.assert_runs_here()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), harness.FAILED, said.text())
        self.assertEqual(self.there.hanging(self.lab.source), [])
        self.assert_nothing_left()

    def test_another_version_there_is_refused(self):
        here = pathlib.Path(self.lab.directory("another"), "predump")
        here.write_text(_PREDUMP.replace("0.0.1", "0.0.2"), encoding="ascii")
        here.chmod(0o755)
        self.there.environment["PATH"] = f"{here.parent}:{self.there.environment['PATH']}"
        code, output = self.migrate()
        self.assertEqual(code, harness.REFUSED, output)
        self.assertIn("of versions 0.0.1 3.17.1 at", output)
        self.assertIn("and 0.0.2 3.17.1 here", output)
        self.assert_runs_here()
        self.assert_nothing_left()

    def test_a_pid_that_is_taken_is_refused(self):
        taken = subprocess.run(
            self.lab.source.command(["ssh", self.destination, f"echo {self.workload.pid - 1} > /proc/sys/kernel/ns_last_pid; "
             "sleep 600 > /dev/null 2>&1 & echo $!"]),
            env=self.there.environment, capture_output=True, text=True, timeout=30, check=True).stdout
        self.assertEqual(int(taken), self.workload.pid)
        code, output = self.migrate()
        self.assertEqual(code, harness.REFUSED, output)
        self.assertIn(f"process id {self.workload.pid} is taken", output)
        self.assert_runs_here()
        self.assert_nothing_left()


if __name__ == "__main__":
    harness.main()
