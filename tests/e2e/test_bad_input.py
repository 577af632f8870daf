#!/usr/bin/python3
"""Each thing that can be wrong outside the process ends in one clear message, a non-zero exit, and
a process that runs on at the source."""
import os
import subprocess
import sys

import harness

_SLOW = ["--bandwidth", "16M"]

# A page server that is none: what it does to a connection, as Python statements on `c`.
IMPOSTORS = {
    "garbage": "c.sendall(os.urandom(4096)); c.recv(1)",
    "http": "c.recv(4096); c.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')",
    "hangs-up": "c.close()",
    "endless-frame": "c.recv(4096); c.sendall(b'\\x02\\x00\\x00\\x00\\xff\\xff\\xff\\xff' + bytes(65536))",
    # ServerHello{protocol_version: 99}
    "another-version": "c.recv(4096); c.sendall(b'\\x02\\x00\\x00\\x00\\x02\\x00\\x00\\x00\\x08\\x63'); c.recv(1)",
}
# And those that stop talking: only time tells.
SILENT = {
    "nothing": "kept = c",
    "half-a-frame": "c.recv(4096); c.sendall(b'\\x02\\x00\\x00\\x00\\xff'); kept = c",
}


class BadInput(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.workload = self.lab.workload("heart")
        self.before = harness.settled_snapshot(self.workload)

    def assert_failed(self, result, code, expected):
        self.assert_exit(result, code)
        self.assertRegex(result["message"], expected)
        self.assertNotIn("\n", result["message"])
        self.assert_unchanged(self.before, self.workload)
        self.assert_goes_on(self.workload)

    def assert_serves_the_next(self, server):
        result = self.lab.engine(self.workload.pid, server.address, "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        self.workload.moved_to(self.lab.target, result["restored-pid"])
        self.assert_goes_on(self.workload)
        self.assert_finishes_well(self.workload)

    def impostor(self, what):
        script = ("import os, socket\ns = socket.create_server(('', 0))\n"
                  "print(s.getsockname()[1], flush=True)\n"
                  "while True:\n  c, _ = s.accept()\n  try:\n"
                  f"    {what}\n  except OSError: pass\n")
        process = self.lab.adopt(self.lab.target.popen(
            [harness.PYTHON, "-c", script], dies_with_us=True, stdout=subprocess.PIPE, text=True))
        self.addCleanup(process.stdout.close)
        return f"{self.lab.target.address}:{process.stdout.readline().strip()}"

    def engine(self, server, *options):
        return self.lab.engine(self.workload.pid, server.address, *options)

    def test_a_process_that_does_not_exist(self):
        server = self.lab.server_at(self.lab.target)
        ended = subprocess.Popen(["true"])
        ended.wait()
        result = self.lab.engine(ended.pid, server.address).result()
        self.assertIn(result["exit"], (harness.FAILED, harness.TARGET_GONE), result["stderr"])
        self.assertIn(str(ended.pid), result["message"])
        self.assert_serves_the_next(server)

    def test_somebody_elses_process(self):
        server = self.lab.server_at(self.lab.target)
        state = self.lab.directory("nobodys-state")
        os.chown(state, harness.NOBODY, harness.NOBODY)
        process = self.lab.source.popen(
            [harness.PREDUMP, "--pid", self.workload.pid, "--to", server.address, "--state-dir",
             state], uid=harness.NOBODY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, errors = process.communicate(timeout=30)
        self.assertEqual(process.returncode, harness.FAILED, errors)
        self.assertRegex(errors, r"(?i)permi|allowed")
        self.assert_unchanged(self.before, self.workload)
        self.assert_serves_the_next(server)

    def test_nobody_listens(self):
        port = harness.free_port(self.lab.target)
        address = f"{self.lab.target.address}:{port}"
        result = self.lab.engine(self.workload.pid, address).result(30)
        self.assert_failed(result, harness.FAILED, rf"{address}.*(?i:refused)|(?i:refused).*{address}")

    def test_no_way_to_the_target(self):
        self.lab.cut_cable()
        address = f"{self.lab.target.address}:7070"
        result = self.lab.engine(self.workload.pid, address).result(60)
        self.assert_failed(result, harness.FAILED, address)

    def test_something_else_listens(self):
        for kind, what in IMPOSTORS.items():
            with self.subTest(impostor=kind):
                address = self.impostor(what)
                result = self.lab.engine(self.workload.pid, address).result(60)
                self.assert_failed(result, harness.FAILED, address)
                if kind == "another-version":
                    self.assertRegex(result["message"], r"(?i)version.*99|99.*version")

    def test_a_server_that_stops_talking(self):
        waiting = []
        for what in SILENT.values():  # at the same time: each takes as long as we wait for an answer
            address, workload = self.impostor(what), self.lab.workload("heart")
            before = harness.settled_snapshot(workload)
            waiting.append((address, workload, before, self.lab.engine(workload.pid, address)))
        for address, self.workload, self.before, engine in waiting:
            with self.subTest(address=address):
                self.assert_failed(engine.result(60), harness.FAILED, address)

    def test_the_server_is_killed_within_a_round(self):
        server = self.lab.server()
        engine = self.engine(server, *_SLOW)
        engine.log.wait_for("set up with")
        for pid in [*server.sessions(), server.process.pid]:
            harness.end_process(pid)
        self.assert_failed(engine.result(60), harness.FAILED, "runs on here")
        self.assert_serves_the_next(self.lab.server())

    def test_the_session_is_killed_within_a_round(self):
        server = self.lab.server()
        engine = self.engine(server, *_SLOW)
        engine.log.wait_for("set up with")
        for pid in server.sessions():
            harness.end_process(pid)
        self.assert_failed(engine.result(60), harness.FAILED, "runs on here")
        self.assert_serves_the_next(server)

    def test_the_landing_is_killed_within_a_round(self):
        server = self.lab.server()
        engine = self.engine(server, *_SLOW)
        engine.log.wait_for("set up with")
        ours = {server.process.pid, *server.sessions()}
        landings = [pid for pid in self.lab.target.processes() if pid not in ours]
        self.assertTrue(landings)
        for pid in landings:
            harness.end_process(pid)
        self.assert_failed(engine.result(60), harness.FAILED, "runs on here")
        self.assert_serves_the_next(server)

    def test_the_cable_is_cut_within_a_round(self):
        server = self.lab.server()
        engine = self.engine(server, *_SLOW)
        engine.log.wait_for("set up with")
        self.lab.cut_cable()
        self.assert_failed(engine.result(90), harness.FAILED, "runs on here")
        self.lab.mend_cable()
        self.assert_serves_the_next(server)

    def test_strangers_on_the_port_do_not_disturb(self):
        server = self.lab.server()
        script = ("import os, socket, sys\nkept = []\n"
                  "for data in (b'', b'\\x00', b'GET / HTTP/1.1\\r\\n\\r\\n', os.urandom(65536),\n"
                  "             b'PRDCTL01' + os.urandom(4096), b'PRDDAT01' + os.urandom(64),\n"
                  "             b'PRDCTL01\\x01\\x00\\x00\\x00\\xff\\xff\\xff\\xff', b'PRDCTL01'):\n"
                  "  for _ in range(20):\n"
                  f"    c = socket.create_connection(('{self.lab.target.address}', {server.port}))\n"
                  "    try: c.sendall(data)\n    except OSError: pass\n    kept.append(c)\n"
                  "print('done', flush=True)\nsys.stdin.read()\n")
        strangers = self.lab.adopt(self.lab.source.popen(
            [harness.PYTHON, "-c", script], dies_with_us=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True))
        self.addCleanup(strangers.stdout.close)
        self.addCleanup(strangers.stdin.close)
        self.assertEqual(strangers.stdout.readline(), "done\n")
        self.assert_serves_the_next(server)

    def test_wrong_use_is_told_apart(self):
        for options in (["--pid", "1"], ["--to", "10.0.0.1:1"], ["--pid", "x", "--to", "a:1"],
                        ["--pid", "1", "--to", "nowhere"], ["--pid", "1", "--to", "h:99999"],
                        ["--pid", "-4", "--to", "127.0.0.1:1"], ["--no-such-option"], [],
                        ["--pid", "1", "--to", "127.0.0.1:1", "--timeout", "1:maybe"],
                        ["--pid", "1", "--to", "127.0.0.1:1", "--bandwidth", "fast"],
                        ["--pid", "1", "--to", "127.0.0.1:1", "--source", "guess"],
                        ["--pid", "1", "--to", "file:x", "--rounds", "1", "-R", "--verify"],
                        ["--pid", "1", "--to", "file:x", "--rounds", "1", "-R", "--timeout",
                         "9:force"],
                        ["--pid", "1", "--to", "/srv/store"], ["--pid", "1", "--to", "ssh://"],
                        ["page-server"], ["page-server", "--listen", "nowhere"],
                        ["page-server", "--listen", "127.0.0.1:0", "-D", "x", "--new-pidns"],
                        ["page-server", "--listen", "127.0.0.1:0", "-D", "x", "--cgroup", "/y"],
                        ["check", "--pid", "0"], ["check", "--pid", "010"],
                        ["check", "--pid", "0x10"], ["check", "--to", "127.0.0.1:1"],
                        ["resolve", "--pid", "-5"], ["resolve", "--resume"]):
            self.assert_wrong_use(options)

    def assert_wrong_use(self, options, what=""):
        with self.subTest(options=options):
            done = self.lab.source.run([harness.PREDUMP, *options])
            self.assertEqual(done.returncode, harness.USAGE, done.stdout + done.stderr)
            self.assertIn(what, done.stderr)
            self.assertTrue(done.stderr)

    def test_an_empty_value_is_no_value(self):
        """As from a variable of a script that was never set."""
        move = ["--pid", "1", "--to", "file:x"]
        serve = ["page-server", "--listen", "127.0.0.1:0"]
        restore = ["restore", "-D", "/nowhere"]
        for options in ([*move, "--rounds", ""], [*move, "--bandwidth", ""],
                        [*move, "--timeout", ""], [*move, "--images-dir", ""],
                        [*move, "--log-file", ""], ["--pid", "", "--to", "file:x"],
                        [*serve, "--images-dir", ""], [*serve, "--state-dir", ""],
                        [*serve, "--cgroup", ""], [*restore, "--pidfile", ""],
                        ["check", "--pid", ""], ["check", "--pid", "1", "--to", ""],
                        ["resolve", "--pid", ""], ["show", "-D", "/nowhere", "--image", ""],
                        ["core", "--pid", "1", "-o", ""]):
            self.assert_wrong_use(options, options[-2] if options[-1] == "" else "--pid")

    def test_an_option_of_another_command_is_not_dropped(self):
        for options in (["page-server", "--listen", "127.0.0.1:0", "--bandwidth", "1M"],
                        ["--pid", "1", "check"], ["check", "--pid", "1", "--json"],
                        ["restore", "-D", "/nowhere", "--rounds", "3"],
                        ["show", "-D", "/nowhere", "--leave-running"],
                        ["resolve", "--verify"], ["core", "--pid", "1", "-o", "x", "--to", "a:1"]):
            self.assert_wrong_use(options, "is no option of")

    def test_a_pidfile_replaces_no_more_than_a_file(self):
        there = self.lab.directory("pidfiles")
        os.symlink("target", there + "/link")
        os.mkfifo(there + "/fifo")
        with open(there + "/file", "w", encoding="utf-8") as file:
            file.write("1")
        restore = [harness.PREDUMP, "restore", "-d", "-D", "/nowhere", "--pidfile"]
        for name in (there, there + "/link", there + "/fifo", there + "/none/pid"):
            with self.subTest(pidfile=name):
                done = self.lab.source.run([*restore, name])
                self.assertEqual(done.returncode, harness.USAGE, done.stderr)
                self.assertIn("--pidfile: ", done.stderr)
        for name in (there + "/file", there + "/new"):
            done = self.lab.source.run([*restore, name])
            self.assertEqual(done.returncode, harness.FAILED, done.stderr)
            self.assertIn("/nowhere", done.stderr)

    def test_output_that_cannot_be_written_is_told(self):
        pid = self.workload.pid
        for options, code in ((["check"], harness.FAILED), (["check", "--pid", pid], harness.FAILED),
                              (["resolve"], harness.FAILED),
                              (["--pid", pid, "--to", "file:" + self.lab.directory("x"), "--rounds",
                                "1", "-R", "--json"], harness.COMPLETED)):
            with self.subTest(options=options):
                done = self.lab.source.run(["sh", "-c", 'exec "$@" > /dev/full', "sh",
                                            harness.PREDUMP, *options])
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn("standard output", done.stderr)
                self.assertIn("No space left on device", done.stderr)


class Cables(harness.E2eTest):
    def test_a_cable_cut_between_prepare_and_ready(self):
        # It stands still until --freeze-timeout is over.
        workload = self.lab.workload("threads", "--late-ms", "4000")
        before = harness.settled_snapshot(workload)
        server = self.lab.server()
        proxy = harness.Proxy(self.lab, server.address, "up:5")
        engine = self.lab.engine(workload.pid, proxy.address, "--freeze-timeout", "1s")
        proxy.wait_until_holding()
        self.lab.cut_cable()
        proxy.tell("forward")
        result = engine.result(60)
        self.assert_exit(result, harness.FAILED)
        self.assertIn("runs on here", result["message"])
        self.assert_unchanged(before, workload)
        self.assert_goes_on(workload, 20)
        self.lab.mend_cable()
        result = self.lab.engine(workload.pid, server.address, "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        workload.moved_to(self.lab.target, result["restored-pid"])
        self.assert_goes_on(workload, 20)
        self.assert_finishes_well(workload)


if __name__ == "__main__":
    sys.exit(harness.main())
