#!/usr/bin/python3
"""Other ends of the same address: `--to ssh://HOST` and `--to file:DIR`.

The hosts have a passwd file each that gives root a home of the test's own: ssh and sshd find keys,
known hosts and configuration where a user's are, and nothing is said on any command line.
"""
import json
import os
import pathlib
import pty
import shutil
import subprocess

import harness

_SSHD = "/usr/sbin/sshd"
_WRAPPER = harness.ROOT / "tests/e2e/stdio_server.py"


class SshServer:
    """An sshd in the target host for whom only this test has a key."""

    def __init__(self, lab):
        self.lab = lab
        self.homes = {host: self._make_home(host, name)
                      for host, name in ((lab.source, "home-source"), (lab.target, "home-target"))}
        self.port = harness.free_port(lab.target)
        self._make_keys()
        lab.target.run(["mkdir", "-m", "0755", "/run/sshd"], check=True)
        self._start()
        self.know()

    def _make_home(self, host, name):
        home = self.lab.directory(name)
        os.mkdir(os.path.join(home, ".ssh"), 0o700)
        for file, entry in (("passwd", f"root:x:0:0:root:{home}:/bin/bash"),
                            ("shadow", "root:*:19000:0:99999:7:::")):
            lines = [entry if line.startswith("root:") else line
                     for line in harness.read_file(f"/etc/{file}").splitlines()]
            path = os.path.join(home, file)
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as own:
                own.write("\n".join(lines) + "\n")
            host.run(["mount", "--bind", path, f"/etc/{file}"], check=True)
        return home

    def path(self, host, name):
        return os.path.join(self.homes[host], ".ssh", name)

    def _make_keys(self):
        for path, passphrase in ((self.path(self.lab.source, "id_ed25519"), ""),
                                 (self.path(self.lab.target, "host_key"), "")):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path],
                           check=True)
        shutil.copy(self.path(self.lab.source, "id_ed25519.pub"),
                    self.path(self.lab.target, "authorized_keys"))

    def _start(self):
        config = os.path.join(self.homes[self.lab.target], "sshd_config")
        path = f"{pathlib.Path(harness.PREDUMP).parent}:/usr/bin:/bin"
        with open(config, "w", encoding="ascii") as file:
            file.write(f"Port {self.port}\nListenAddress {self.lab.target.address}\n"
                       f"HostKey {self.path(self.lab.target, 'host_key')}\nPidFile none\n"
                       f"UsePAM no\nPasswordAuthentication no\nSetEnv PATH={path}\n")
        self.process = self.lab.adopt(self.lab.target.popen(
            [_SSHD, "-D", "-e", "-f", config], dies_with_us=True, stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True))
        self.log = harness.LineReader(self.process.stderr)
        self.log.wait_for("Server listening on", 20)

    def know(self):
        key = harness.read_file(self.path(self.lab.target, "host_key.pub"))
        with open(self.path(self.lab.source, "known_hosts"), "w", encoding="ascii") as file:
            file.write(f"[{self.lab.target.address}]:{self.port} {key}")

    def url(self, user=""):
        return f"ssh://{user}{self.lab.target.address}:{self.port}"


def comm(pid):
    try:
        return harness.read_file(f"/proc/{pid}/comm").strip()
    except (OSError, ProcessLookupError):
        return ""


class Ssh(harness.E2eTest):
    SOURCE_MOUNTS = True
    TARGET_MOUNTS = True

    def setUp(self):
        super().setUp()
        if not os.access(_SSHD, os.X_OK):
            self.fail("openssh-server is not installed: ./run test installs it")
        self.sshd = SshServer(self.lab)
        self.journal = self.lab.directory("journal")
        self.fates = self.lab.state_directory(self.lab.target, "fates")

    def options(self, predump=None, fates=None):
        options = ["--remote-options", f"--new-pidns --state-dir {fates or self.fates}"]
        return options if predump is None else [*options, "--remote-predump", predump]

    def engine(self, workload, *options, predump=None, fates=None, to=None, **keywords):
        return self.lab.engine(workload.pid, to or self.sshd.url(), *self.options(predump, fates),
                               *options, state=self.journal, **keywords)

    def workload(self):
        # ssh takes its time on a busy machine; that is not what is judged here.
        return self.lab.workload("threads", "--late-ms", "30000")

    def mover(self, workload, *options, **keywords):
        """An engine that freezes after a few rounds, however fast they were."""
        return self.engine(workload, "--rounds", "3", "--freeze-timeout", "20s", *options,
                           **keywords)

    def resolve(self, *options):
        done = self.lab.source.run([harness.PREDUMP, "resolve", "--state-dir", self.journal,
                                    *options])
        return done.returncode, done.stdout + done.stderr

    def wrapped(self, mode):
        """How predump is run there so that the connection breaks at Running; and the marker."""
        marker = os.path.join(self.lab.root, "broken")
        return f"{harness.PYTHON} {_WRAPPER} {mode} {marker} {harness.PREDUMP}", marker

    def ssh_of(self, engine):
        children = harness.read_file(f"/proc/{engine.pid}/task/{engine.pid}/children").split()
        return [int(pid) for pid in children if comm(pid) == "ssh"]

    def of_logins(self):
        """What a login session leaves running: servers, relays, landings."""
        return {pid: comm(pid) for pid in self.lab.target.processes()
                if pid != self.sshd.process.pid and
                comm(pid) in ("sshd", "predump", "predump-landing", "bash")}

    def assert_nothing_left_of_logins(self):
        harness.wait_until(lambda: not self.of_logins(), 20, lambda: f"an end of {self.of_logins()}")

    def assert_moved(self, workload, result):
        self.assert_exit(result, harness.COMPLETED)
        workload.moved_to(self.lab.target, result["restored-pid"])
        # Neither ssh nor the server it started is there any more, and the process does not care.
        self.assert_nothing_left_of_logins()
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)
        self.assertEqual(harness.parked(self.journal), [])

    def assert_stays(self, workload):
        self.assert_nothing_left_of_logins()
        self.assert_goes_on(workload)
        self.assertEqual(harness.parked(self.journal), [])

    def test_process_moves_and_outlives_ssh_and_server(self):
        workload = self.workload()
        result = self.mover(workload, "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertGreater(result["pages-verified"], 1000)
        self.assert_moved(workload, result)

    def test_memory_that_changes_all_the_time_arrives(self):
        workload = self.lab.workload("churn")
        self.assert_moved(workload, self.mover(workload, "--verify",
                                               to=self.sshd.url("root@")).result())

    def test_readv_moves_it_too(self):
        workload = self.workload()
        self.assert_moved(workload, self.mover(workload, "--verify", "--source", "readv").result())

    def test_rounds_and_rehearsals_leave_it_here(self):
        workload = self.workload()
        result = self.engine(workload, "--rounds", "3", "--leave-running").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assert_stays(workload)
        result = self.engine(workload, "--leave-running", "--verify", "--timeout", "3:force",
                             "--freeze-timeout", "20s").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertGreater(result["pages-verified"], 1000)
        self.assert_stays(workload)

    def test_check_asks_the_server_there(self):
        workload = self.lab.workload("threads")
        done = self.lab.source.run([harness.PREDUMP, "check", "--pid", workload.pid, "--to",
                                    self.sshd.url(), *self.options()])
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("can be moved to ssh://", done.stdout)
        # Its own pid is taken where there is no namespace for it.
        done = self.lab.source.run([harness.PREDUMP, "check", "--pid", workload.pid, "--to",
                                    self.sshd.url()])
        self.assertEqual(done.returncode, harness.REFUSED, done.stderr)
        self.assert_stays(workload)

    def in_the_rounds(self):
        workload = self.workload()
        engine = self.engine(workload, "--max-downtime", "0", "--max-rounds", "1000000")
        engine.wait_for_round(3)
        return workload, engine

    def test_ssh_killed_in_the_rounds(self):
        workload, engine = self.in_the_rounds()
        ssh, = self.ssh_of(engine)
        harness.end_process(ssh)
        result = engine.result()
        self.assert_exit(result, harness.FAILED)
        self.assertIn("runs on here", result["message"])
        self.assert_stays(workload)

    def test_engine_killed_in_the_rounds(self):
        workload, engine = self.in_the_rounds()
        ssh, = self.ssh_of(engine)
        harness.end_process(engine.pid)
        harness.wait_until(lambda: harness.process_state(ssh) is None, 20, "the end of ssh")
        self.assert_stays(workload)

    def test_cancelled_in_the_rounds(self):
        workload, engine = self.in_the_rounds()
        engine.interrupt()
        self.assert_exit(engine.result(), harness.CANCELLED)
        self.assert_stays(workload)

    def test_cut_cable_is_noticed_at_both_ends(self):
        workload, engine = self.in_the_rounds()
        self.lab.cut_cable()
        result = engine.result()
        self.assert_exit(result, harness.FAILED)
        harness.wait_until(lambda: "predump-landing" not in self.of_logins().values(), 60,
                           "the end of the landing")
        self.assert_goes_on(workload)

    def test_connection_that_breaks_at_commit_is_made_again(self):
        workload = self.workload()
        predump, marker = self.wrapped("cut")
        result = self.mover(workload, predump=predump).result()
        self.assertTrue(os.path.exists(marker), result["stderr"])
        self.assertIn("asking what became of the process", result["stderr"])
        self.assert_moved(workload, result)

    def test_resolve_asks_again_through_ssh(self):
        workload = self.workload()
        predump, marker = self.wrapped("hold")
        engine = self.mover(workload, predump=predump)
        harness.wait_until(lambda: os.path.exists(marker), 60, "the process to run at the target")
        harness.end_process(engine.pid)
        harness.wait_until(lambda: harness.process_state(workload.pid) == "T", 20, "it to be parked")
        # How predump is run there, and with what options, is in the journal.
        code, text = self.resolve()
        self.assertEqual(code, 0, text)
        self.assertIn("it runs at the target as process", text)
        pid = int(text.partition("as process ")[2].split(";")[0])
        workload.moved_to(self.lab.target, pid)
        self.assert_goes_on(workload)
        self.assertEqual(harness.parked(self.journal), [])

    def test_resolve_finds_that_it_never_ran(self):
        workload = self.workload()
        result = self.mover(workload, die_at="after-stop").result()
        self.assertLess(result["exit"], 0)
        harness.wait_until(lambda: harness.process_state(workload.pid) == "T", 20, "it to be parked")
        # Elsewhere nothing is known of it, and that does not pass for an answer.
        code, text = self.resolve("--remote-options", f"--state-dir {self.fates}-other")
        self.assertEqual(code, harness.PARKED, text)
        self.assertIn("--state-dir", text)
        code, text = self.resolve()
        self.assertEqual(code, 0, text)
        self.assertIn("it goes on here", text)
        self.assert_stays(workload)

    # What goes wrong before anything has begun: one message, and the process is not touched.

    def assert_refused(self, expected, **keywords):
        workload = self.lab.workload("threads")
        before = harness.settled_snapshot(workload)
        result = self.engine(workload, **keywords).result()
        self.assert_exit(result, harness.FAILED)
        for words in (expected if isinstance(expected, tuple) else (expected,)):
            self.assertIn(words, result["message"])
        lines = [line for line in result["stderr"].splitlines() if line.startswith("predump:")]
        self.assertEqual(len(lines), 1, result["stderr"])
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload)

    def test_nobody_listens_there(self):
        self.assert_refused(("ssh does not get there", "Connection refused"),
                            to=f"ssh://{self.lab.target.address}:1")

    def test_no_such_host(self):
        self.assert_refused(("ssh does not get there", "no-such-host.invalid"),
                            to="ssh://no-such-host.invalid")

    def test_unknown_host_key(self):
        os.remove(self.sshd.path(self.lab.source, "known_hosts"))
        self.assert_refused(("Host key verification failed", f"`ssh -p {self.sshd.port} "))

    def test_key_that_is_not_accepted(self):
        os.remove(self.sshd.path(self.lab.target, "authorized_keys"))
        self.assert_refused("Permission denied")

    def test_no_predump_there(self):
        self.assert_refused(("no predump can be run there", "--remote-predump"),
                            predump="/nowhere/predump")

    def test_server_that_does_not_start(self):
        self.assert_refused(("the page server did not start", "/proc/1/nothing"),
                            fates="/proc/1/nothing")

    def test_shell_that_talks(self):
        with open(os.path.join(self.sshd.homes[self.lab.target], ".bashrc"), "w",
                  encoding="ascii") as file:
            file.write("echo Welcome, stranger\n")
        self.assert_refused(("it is no predump that answers", "Welcome"))

    def test_options_without_their_kind_of_target(self):
        for arguments, words in (
                (["--to", "127.0.0.1:1", "--remote-predump", "x"], "ssh://"),
                (["--to", "127.0.0.1:1", "--remote-options", "x"], "ssh://"),
                (["--to", self.sshd.url(), "--congestion", "cubic"], "HOST:PORT")):
            done = self.lab.source.run([harness.PREDUMP, "--pid", "1", *arguments])
            self.assertEqual(done.returncode, harness.USAGE, done.stderr)
            self.assertIn(words, done.stderr)

    def test_person_at_the_terminal_is_asked(self):
        """A key with a passphrase: ssh asks at the terminal, and goes on with the answer."""
        path = self.sshd.path(self.lab.source, "id_ed25519")
        subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", path],
                       check=True, stdout=subprocess.DEVNULL)
        workload = self.workload()
        leader, follower = pty.openpty()
        process = self.lab.adopt(self.lab.source.popen(
            ["setsid", "--ctty", "--wait", harness.PREDUMP, "--pid", workload.pid, "--to",
             self.sshd.url(), "--state-dir", self.journal, *self.options(), "--rounds", "3",
             "--freeze-timeout", "20s", "--json"],
            stdin=follower, stdout=subprocess.PIPE, stderr=follower))
        os.close(follower)
        with os.fdopen(leader, "rb+", buffering=0) as terminal:
            shown = b""
            while b"passphrase" not in shown:
                shown += terminal.read(4096)
            terminal.write(b"open sesame\n")
            while True:  # until the last one who holds the terminal has gone
                try:
                    shown += terminal.read(4096)
                except OSError:
                    break
            text = process.stdout.read()
            process.stdout.close()
            self.assertEqual(process.wait(60), harness.COMPLETED, shown)
        workload.moved_to(self.lab.target, json.loads(text)["restored-pid"])
        self.assert_nothing_left_of_logins()
        self.assert_goes_on(workload)


class File(harness.E2eTest):
    """Images on this host, from a server that nobody else can reach."""

    def setUp(self):
        super().setUp()
        self.store = self.lab.directory("store")
        self.state = self.lab.source_state(self.lab.source)

    def engine(self, workload, *options, store=None, **keywords):
        return self.lab.engine(workload.pid, f"file:{store or self.store}", *options, **keywords)

    def numbers(self):
        return sorted(name for name in os.listdir(self.store) if name.isdigit())

    def assert_no_server_left(self):
        harness.wait_until(lambda: "predump" not in map(comm, self.lab.source.processes()), 20,
                           "the server to end")

    def bring_back(self, workload):
        self.assertTrue(harness.pidfd_ended(workload.pidfd, 20), "the original goes on")
        harness.wait_for_free_number(workload)
        pidfile = os.path.join(workload.directory, "pid")
        done = self.lab.source.run([harness.PREDUMP, "restore", "--images-dir", self.store, "-d",
                                    "--pidfile", pidfile])
        self.assertEqual(done.returncode, 0, done.stderr)
        workload.moved_to(self.lab.source, int(harness.read_file(pidfile)))
        self.assert_goes_on(workload)
        self.assert_finishes_well(workload)

    def test_rounds_are_stored_and_the_process_stays(self):
        workload = self.lab.workload("threads")
        result = self.engine(workload, "--rounds", "3", "--leave-running").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assertEqual(self.numbers(), ["1", "2", "3"])
        self.assertEqual(os.readlink(os.path.join(self.store, "latest")), "3")
        self.assertEqual(os.readlink(os.path.join(self.store, "3", "parent")), "../2")
        self.assert_no_server_left()
        self.assert_goes_on(workload)

    def test_process_is_stored_and_brought_back(self):
        workload = self.lab.workload("churn")
        result = self.engine(workload, "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        self.assert_no_server_left()
        self.assertEqual(harness.parked(self.state), [])
        self.bring_back(workload)

    def test_engine_killed_in_the_rounds(self):
        workload = self.lab.workload("threads")
        engine = self.engine(workload, "--max-downtime", "0", "--max-rounds", "1000000")
        engine.wait_for_round(3)
        harness.end_process(engine.pid)
        self.assert_no_server_left()
        self.assert_goes_on(workload)
        self.assertFalse([name for name in os.listdir(self.store) if name.endswith(".partial")])

    def test_resolve_asks_again(self):
        workload = self.lab.workload("threads", "--late-ms", "60000")
        engine = self.engine(workload, die_at="after-stop")
        self.assertLess(engine.result()["exit"], 0)
        harness.wait_until(lambda: harness.process_state(workload.pid) == "T", 20, "it to be parked")
        self.assert_no_server_left()
        done = self.lab.source.run([harness.PREDUMP, "resolve", "--state-dir", self.state])
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("it goes on here", done.stdout)
        self.assert_goes_on(workload)

    def test_directory_that_cannot_be(self):
        path = os.path.join(self.store, "file")
        with open(path, "w", encoding="ascii"):
            pass
        workload = self.lab.workload("threads")
        result = self.engine(workload, store=path).result()
        self.assert_exit(result, harness.FAILED)
        self.assertIn("the page server did not start", result["message"])
        self.assertIn(path, result["message"])
        self.assert_goes_on(workload)


class Stdio(harness.E2eTest):
    def test_terminal_is_refused(self):
        leader, follower = pty.openpty()
        try:
            done = subprocess.run([harness.PREDUMP, "page-server", "--stdio"], stdin=follower,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  timeout=30)
        finally:
            os.close(leader)
            os.close(follower)
        self.assertEqual(done.returncode, harness.USAGE)
        self.assertIn("ssh://HOST", done.stderr)

    def test_one_way_is_chosen(self):
        for options in ([], ["--stdio", "--listen", "127.0.0.1:0"]):
            done = subprocess.run([harness.PREDUMP, "page-server", *options],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=30)
            self.assertEqual(done.returncode, harness.USAGE, done.stdout)

    def test_garbage_ends_it(self):
        state = self.lab.state_directory(self.lab.source, "stdio")
        done = self.lab.source.run([harness.PREDUMP, "page-server", "--stdio", "--state-dir",
                                    state], input="GET / HTTP/1.0\r\n\r\n")
        self.assertIn("it is no predump that answers", done.stderr)


if __name__ == "__main__":
    harness.main()
