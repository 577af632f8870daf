#!/usr/bin/python3
"""What cannot move is refused in one message that names all of it, before anything was touched."""
import os
import re
import shutil
import signal
import subprocess
import sys

import harness

_HOLDER = harness.ROOT / "tests/e2e/holder.py"

# kind of holder.py: what its line among the blockers must say
BLOCKERS = {
    "connected-tcp": r"fd \d+.*(TCP|tcp)",
    "io-uring": r"fd \d+.*io_uring",
    "inotify": r"fd \d+.*inotify",
    "userfault": r"fd \d+.*userfault",
    "perf-event": r"fd \d+.*perf",
    "netlink": r"fd \d+.*(?i:netlink)",
    "packet": r"fd \d+.*(?i:packet)",
    "pidfd": r"fd \d+.*pidfd",
    "deleted-file": r"fd \d+.*deleted",
    "memory-file": r"fd \d+.*(memfd|deleted|memory)",
    "flock": r"fd \d+.*lock",
    "record-lock": r"fd \d+.*lock",
    "lease": r"fd \d+.*lease",
    "owner-of-signals": r"fd \d+.*(F_SETOWN|owner|O_ASYNC|signal)",
    "fifo": r"fd \d+.*(?i:fifo|pipe)",
    "pipe-to-another": r"fd \d+.*pipe",
    "shared-memory": r"(?i)mapping.*shared",
    "system-v-memory": r"(?i)mapping.*(SYSV|System V)",
    "posix-timer": r"(?i)timer",
    "child": r"(?i)child",
    "zombie": r"(?i)child",
    "seccomp": r"(?i)seccomp",
    "asynchronous-io": r"(?i)mapping.*aio|asynchronous",
    "own-hostname": r"(?i)uts|namespace",
    "user-dispatch": r"(?i)dispatch",
    "sealed-mapping": r"(?i)mapping.*seal",
    "guard-region": r"(?i)mapping.*guard",
    "pending-continue": r"SIGCONT",
    "traced": r"(?i)trace",
}
# Where the processor or the kernel lacks the thing itself, there is nothing to refuse.
_MAY_LACK = {"protection-key": r"(?i)protection key"}


_RT_SIGTIMEDWAIT = 128  # x86-64


_PEER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print("ready", listener.getsockname()[1], flush=True)
connection = listener.accept()[0]
print("connected", flush=True)
try:
    end = connection.recv(1) == b""
except ConnectionResetError:
    end = True
print("end" if end else "data", flush=True)
"""

# Its arguments: a port to connect to, and a file for what a SIGUSR1 finds the connection to be.
_CONNECTED = """
import errno, os, signal, socket, sys
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
output = open(sys.argv[2], "w")
print("ready", flush=True)
os.close(1)
signal.sigwait([signal.SIGUSR1])
for name, call in (("peer", connection.getpeername), ("recv", lambda: connection.recv(1)),
                   ("send", lambda: connection.send(b"x"))):
    try:
        found = repr(call())
    except OSError as error:
        found = errno.errorcode[error.errno]
    print(name, found, file=output, flush=True)
print("done", file=output, flush=True)
"""


class Holder:
    def __init__(self, test, *kinds):
        self.test = test
        directory = test.lab.directory("holder-" + "-".join(kinds)[:40])
        self.output = os.path.join(directory, "output")
        with open(self.output, "wb") as output:
            self.process = test.lab.adopt(test.lab.source.popen(
                [harness.PYTHON, _HOLDER, directory, *kinds], stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=directory))
        harness.wait_until(self._ready, 20, lambda: f"{kinds}: {harness.read_file(self.output)}")
        self.pid = self.process.pid
        self.before = harness.snapshot(self.pid)

    def _ready(self):
        if self.process.poll() is not None:
            raise harness.HarnessError(f"holder ended: {harness.read_file(self.output)}")
        if "ready\n" not in harness.read_file(self.output):
            return False
        # In sigwait, which lifts the block of the signal it waits for while it waits.
        with open(f"/proc/{self.process.pid}/syscall") as call:
            return call.read().startswith(f"{_RT_SIGTIMEDWAIT} ")

    def assert_untouched(self):
        self.test.assertEqual(harness.difference(self.before, harness.snapshot(self.pid)), [])
        os.kill(self.pid, signal.SIGUSR1)
        harness.wait_until(lambda: "alive\n" in harness.read_file(self.output), 10, "an answer")


class Refusals(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.server = self.lab.server_at(self.lab.target)

    def blockers(self, pid, *options):
        result = self.lab.engine(pid, self.server.address, *options).result()
        self.assert_exit(result, harness.REFUSED)
        self.assertEqual(result["status"], "refused")
        self.assertTrue(result["blockers"])
        for blocker in result["blockers"]:
            self.assertIn(blocker, result["stderr"])
        return result["blockers"]

    def check(self, pid, *options):
        return self.lab.source.run([harness.PREDUMP, "check", "--pid", pid, *options])

    def test_each_kind_of_blocker_is_named(self):
        for kind, expected in BLOCKERS.items():
            with self.subTest(blocker=kind):
                holder = Holder(self, kind)
                self.assertRegex("\n".join(self.blockers(holder.pid)), expected)
                holder.assert_untouched()
                harness.end_process(holder.pid)

    def test_protection_keys_are_named_where_the_processor_has_them(self):
        for kind, expected in _MAY_LACK.items():
            try:
                holder = Holder(self, kind)
            except harness.HarnessError as error:
                self.assertIn("syscall 330", str(error))  # pkey_alloc: no such thing here
                continue
            self.assertRegex("\n".join(self.blockers(holder.pid)), expected)
            holder.assert_untouched()

    def test_all_blockers_are_named_at_once(self):
        kinds = ["inotify", "deleted-file", "shared-memory", "posix-timer", "flock", "io-uring"]
        holder = Holder(self, *kinds)
        found = self.blockers(holder.pid)
        self.assertGreaterEqual(len(found), len(kinds))
        for kind in kinds:
            self.assertTrue(any(re.search(BLOCKERS[kind], line) for line in found),
                            f"{kind} is not among {found}")
        holder.assert_untouched()

    def test_check_prints_the_same_and_touches_nothing(self):
        holder = Holder(self, "inotify", "posix-timer")
        found = self.blockers(holder.pid)
        for options in ([], ["--to", self.server.address]):
            checked = self.check(holder.pid, *options)
            self.assertEqual(checked.returncode, harness.REFUSED, checked.stderr)
            for line in found:
                self.assertIn(line, checked.stdout)
        holder.assert_untouched()

    def test_check_finds_nothing_in_what_can_move(self):
        workload = self.lab.workload("heart")
        before = harness.settled_snapshot(workload)
        for options in ([], ["--to", self.server.address], ["--no-bpf"]):
            checked = self.check(workload.pid, *options)
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
            self.assertIn("can be moved", checked.stdout)
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload)

    def script(self, script, *arguments):
        """A Python program at the source that says "ready"; the process and what it prints."""
        process = self.lab.adopt(self.lab.source.popen(
            [harness.PYTHON, "-c", script, *arguments], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            cwd=self.lab.root))
        lines = harness.LineReader(process.stdout)
        return process, lines, lines.wait_for(r"^ready ?(\d*)$", 20).group(1)

    def test_established_connections_move_with_tcp_close(self):
        peer, seen_by_peer, port = self.script(_PEER)
        output = os.path.join(self.lab.directory("connected"), "output")
        process, _, _ = self.script(_CONNECTED, port, output)
        seen_by_peer.wait_for("^connected$", 20)
        result = self.lab.engine(process.pid, self.server.address, "--tcp-close",
                                 "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        # The peer learns at once that nobody is there any more.
        seen_by_peer.wait_for("^end$", 5)
        self.assertEqual(peer.wait(20), 0)
        # And the process, by its first call, which must not be one that waits.
        os.kill(result["restored-pid"], signal.SIGUSR1)
        harness.wait_until(lambda: "done" in harness.read_file(output), 20,
                           lambda: harness.read_file(output))
        self.assertEqual(harness.read_file(output).splitlines(),
                         ["peer ENOTCONN", "recv ENOTCONN", "send EPIPE", "done"])


class TargetRefuses(harness.E2eTest):
    """What the target's side has to say; its /tmp is another one."""

    TARGET_MOUNTS = True

    def setUp(self):
        super().setUp()
        self.server = self.lab.server_at(self.lab.target)
        # A program that is at the source only.
        self.local = f"/tmp/predump-e2e-{os.getpid()}"
        os.mkdir(self.local, 0o755)
        self.addCleanup(shutil.rmtree, self.local, True)
        self.program = os.path.join(self.local, "program")
        shutil.copy(harness.WORKLOADS / "heart", self.program)

    def start(self):
        workload = harness.Workload(self.lab, self.lab.source, "heart", command=[self.program])
        return workload, harness.settled_snapshot(workload)

    def assert_refused(self, workload, before, expected):
        result = self.lab.engine(workload.pid, self.server.address).result()
        self.assert_exit(result, harness.REFUSED)
        self.assertRegex("\n".join(result["blockers"]), expected)
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload)

    def at_target(self, script):
        result = self.lab.target.run(["sh", "-ec", script])
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_a_file_the_target_has_not(self):
        workload, before = self.start()
        self.assert_refused(workload, before, rf"target: .*{self.program}")
        # The server serves the next session.
        self.at_target(f"mkdir {self.local}; cp {harness.WORKLOADS}/heart {self.program}")
        self.lab.move(workload, "--verify")
        self.assert_goes_on(workload)

    def test_another_program_under_the_same_name(self):
        workload, before = self.start()
        self.at_target(f"mkdir {self.local}; cp {harness.WORKLOADS}/huge {self.program}")
        self.assert_refused(workload, before, rf"target: .*{self.program}")

    def test_a_file_of_another_size(self):
        workload, before = self.start()
        self.at_target(f"mkdir {self.local}; cp {harness.WORKLOADS}/heart {self.program}; "
                       f"echo more >> {self.program}")
        self.assert_refused(workload, before, rf"target: .*{self.program}")

    def test_a_port_that_is_taken_at_the_target(self):
        script = ("import socket, time\ns = socket.create_server(('0.0.0.0', 7117))\n"
                  "print('ready', flush=True)\ntime.sleep(600)\n")
        directory = self.lab.directory("port")
        started = []
        for host in (self.lab.source, self.lab.target):
            output = os.path.join(directory, f"output-{len(started)}")
            with open(output, "wb") as file:
                started.append(self.lab.adopt(host.popen(
                    [harness.PYTHON, "-c", script], stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT, start_new_session=True, cwd="/var/tmp")))
            harness.wait_until(lambda: "ready" in harness.read_file(output), 10, "a listener")
        before = harness.snapshot(started[0].pid)
        result = self.lab.engine(started[0].pid, self.server.address).result()
        self.assert_exit(result, harness.REFUSED)
        self.assertRegex("\n".join(result["blockers"]), r"target: .*7117")
        self.assertEqual(harness.difference(before, harness.snapshot(started[0].pid)), [])
        # Once the port is free, it moves.
        harness.end_process(started[1].pid)
        result = self.lab.engine(started[0].pid, self.server.address, "--verify").result()
        self.assert_exit(result, harness.COMPLETED)

    def test_a_pid_that_is_taken_at_the_target(self):
        # Without a pid namespace of its own it would need the pid it has here, on this machine.
        workload, before = self.start()
        self.at_target(f"mkdir {self.local}; cp {harness.WORKLOADS}/heart {self.program}")
        self.server = self.lab.server(self.lab.target, new_pidns=False)
        self.assert_refused(workload, before, rf"target: .*{workload.pid}")


if __name__ == "__main__":
    sys.exit(harness.main())
