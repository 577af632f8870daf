#!/usr/bin/python3
"""The moments of DESIGN 10 at which the right to run passes on: whoever dies, one copy goes on."""
import os
import signal
import sys

import harness

_PATIENCE_MS = "6000"
_PREPARE, _COMMIT, _RUNNING = "up:5", "up:10", "down:11"


class Handover(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.server = self.lab.server()
        # It stands still for as long as nobody decides; that is not what is judged here.
        self.workload = self.lab.workload("threads", "--late-ms", _PATIENCE_MS)
        self.before = harness.settled_snapshot(self.workload)
        self.state = self.lab.source_state(self.lab.source)

    def hold(self, at):
        """An engine and a proxy that holds that message."""
        proxy = harness.Proxy(self.lab, self.server.address, at)
        engine = self.lab.engine(self.workload.pid, proxy.address, "--verify")
        proxy.wait_until_holding()
        return engine, proxy

    def kill(self, *pids):
        for pid in pids:
            harness.end_process(pid)

    def restart_server(self):
        self.server = self.lab.server(state=self.server.state, port=self.server.port)

    def resolve(self, *options):
        done = self.lab.source.run([harness.PREDUMP, "resolve", "--state-dir", self.state, *options])
        return done.returncode, done.stdout + done.stderr

    def resolve_through(self):
        """Asks the server itself: the proxy is gone by then."""
        return self.resolve("--to", self.server.address)

    def copies(self):
        """Processes that have the workload's report mapped, helpers and landings among them."""
        found = []
        for host in (self.lab.source, self.lab.target):
            for pid in host.processes():
                try:
                    if self.workload.report_path in harness.read_file(f"/proc/{pid}/maps"):
                        found.append(pid)
                except (OSError, ProcessLookupError):
                    pass
        return found

    def assert_only_copy(self, pid):
        harness.wait_until(lambda: self.copies() == [pid], 20, lambda: f"one copy: {self.copies()}")
        self.assertNotIn(harness.process_state(pid), "TtZX")

    def assert_stop_reported(self, result):
        """It stayed, and was frozen for a while: not without saying so."""
        self.assertNotIn("downtime-ms", result)
        stop = result["stops"][-1]
        self.assertRegex(stop["what"], "^freeze called off: .")
        self.assertGreater(stop["milliseconds"], 0)
        self.assertIn(f"stopped {stop['milliseconds']:.3f} ms: freeze called off", result["stderr"])

    def assert_parked(self):
        # Whoever traced it has just died.
        harness.wait_until(lambda: harness.process_state(self.workload.pid) == "T", 10,
                           lambda: f"state T: {harness.process_state(self.workload.pid)}")
        self.assertEqual(len(self.journal()), 1)

    def journal(self):
        """Handovers that are not settled; what was only prepared does not count."""
        return [name for name in harness.parked(self.state)
                if name.endswith(".json")]

    def assert_at_source(self):
        self.assert_only_copy(self.workload.pid)
        self.assert_unchanged(self.before, self.workload)
        self.assert_goes_on(self.workload, 50)
        self.assertEqual(self.journal(), [])
        # And can be moved all the same.
        result = self.lab.engine(self.workload.pid, self.server.address, "--verify").result()
        self.assert_exit(result, harness.COMPLETED)
        self.workload.moved_to(self.lab.target, result["restored-pid"])
        self.assert_finishes_well(self.workload)

    def assert_at_target(self):
        [pid] = harness.wait_until(
            lambda: self.copies() if self.workload.pid not in self.copies() else None, 20,
            "the original to end")
        self.workload.moved_to(self.lab.target, pid)
        self.assert_only_copy(pid)
        self.assert_goes_on(self.workload, 50)
        self.assertEqual(self.journal(), [])
        self.assert_finishes_well(self.workload)

    def test_engine_killed_before_prepare(self):
        engine, proxy = self.hold(_PREPARE)
        self.kill(engine.pid)
        proxy.tell("cut")
        self.assert_at_source()

    def test_session_killed_before_prepare(self):
        engine, proxy = self.hold(_PREPARE)
        self.kill(*self.server.sessions())
        proxy.tell("forward")
        result = engine.result()
        self.assert_exit(result, harness.FAILED)
        self.assert_stop_reported(result)
        self.assert_at_source()

    def test_engine_killed_before_commit_arrives(self):
        engine, proxy = self.hold(_COMMIT)
        self.kill(engine.pid)
        self.assert_parked()
        proxy.tell("cut")
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assertIn("goes on here", text)
        self.assert_at_source()

    def test_engine_and_server_killed_before_commit_arrives(self):
        engine, proxy = self.hold(_COMMIT)
        self.kill(engine.pid, *self.server.sessions(), self.server.process.pid)
        self.assert_parked()
        proxy.tell("cut")
        code, text = self.resolve_through()
        self.assertEqual(code, harness.PARKED, text)
        self.assert_parked()
        self.restart_server()
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assert_at_source()

    def test_session_killed_before_commit_arrives(self):
        engine, proxy = self.hold(_COMMIT)
        self.kill(*self.server.sessions())
        proxy.tell("forward")
        result = engine.result()
        self.assert_exit(result, harness.FAILED)
        self.assert_stop_reported(result)
        self.assert_at_source()

    def test_landing_killed_before_commit_arrives(self):
        engine, proxy = self.hold(_COMMIT)
        ours = {self.server.process.pid, *self.server.sessions()}
        self.kill(*[pid for pid in self.lab.target.processes() if pid not in ours])
        proxy.tell("forward")
        result = engine.result()
        self.assert_exit(result, harness.FAILED)
        self.assert_stop_reported(result)
        self.assert_at_source()

    def test_engine_killed_before_running_arrives(self):
        engine, proxy = self.hold(_RUNNING)
        self.kill(engine.pid)
        self.assert_parked()
        proxy.tell("cut")
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assertIn("runs at the target", text)
        self.assert_at_target()

    def test_engine_and_server_killed_before_running_arrives(self):
        engine, proxy = self.hold(_RUNNING)
        self.kill(engine.pid, *self.server.sessions(), self.server.process.pid)
        self.assert_parked()
        proxy.tell("cut")
        self.restart_server()
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assert_at_target()

    def test_the_answer_to_commit_is_lost(self):
        engine, proxy = self.hold(_COMMIT)
        proxy.tell("mute")
        # It asks again, on a new connection, once it has waited for the answer long enough.
        result = engine.result(90)
        self.assert_exit(result, harness.COMPLETED)
        self.assert_at_target()

    def test_nobody_can_be_asked_after_commit(self):
        engine, proxy = self.hold(_RUNNING)
        proxy.tell("cut")
        result = engine.result(120)
        self.assert_exit(result, harness.PARKED)
        self.assertEqual(result["status"], "parked")
        self.assertIn("predump resolve", result["message"])
        self.assert_parked()
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assert_at_target()

    def test_a_person_decides_for_the_source(self):
        engine, proxy = self.hold(_COMMIT)
        self.kill(engine.pid, *self.server.sessions(), self.server.process.pid)
        self.assert_parked()
        proxy.tell("cut")
        code, text = self.resolve("--pid", self.workload.pid, "--resume")
        self.assertEqual(code, 0, text)
        self.restart_server()
        self.assert_at_source()

    def test_a_person_decides_for_the_target(self):
        engine, proxy = self.hold(_RUNNING)
        self.kill(engine.pid)
        self.assert_parked()
        proxy.tell("cut")
        code, text = self.resolve("--pid", self.workload.pid, "--end")
        self.assertEqual(code, 0, text)
        self.assert_at_target()

    def die(self, instant):
        engine = self.lab.engine(self.workload.pid, self.server.address, "--verify", die_at=instant)
        self.assert_exit(engine.result(), -signal.SIGKILL)

    def test_engine_dies_before_the_journal(self):
        self.die("before-journal")
        self.assert_at_source()

    def test_engine_dies_between_journal_and_stop(self):
        self.die("after-journal")
        self.assert_only_copy(self.workload.pid)
        self.assertEqual(len(self.journal()), 1)
        # It runs on, but may not be moved before that entry is settled.
        result = self.lab.engine(self.workload.pid, self.server.address).result()
        self.assert_exit(result, harness.REFUSED)
        self.assertIn("predump resolve", result["blockers"][0])
        checked = self.lab.source.run([harness.PREDUMP, "check", "--pid", self.workload.pid,
                                       "--state-dir", self.state])
        self.assertEqual(checked.returncode, harness.REFUSED, checked.stderr)
        self.assertIn("predump resolve", checked.stdout)
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assert_at_source()

    def test_engine_dies_right_after_the_stop(self):
        self.die("after-stop")
        self.assert_parked()
        code, text = self.resolve_through()
        self.assertEqual(code, 0, text)
        self.assertIn("goes on here", text)
        self.assert_at_source()

    def test_a_damaged_entry_keeps_no_other_from_being_settled(self):
        self.die("after-stop")
        self.assert_parked()
        damaged = os.path.join(self.state, "source", "00.json")
        with open(damaged, "w", encoding="ascii") as file:
            file.write("{")
        code, text = self.resolve_through()
        self.assertEqual(code, harness.FAILED, text)
        self.assertIn("goes on here", text)
        self.assertIn(damaged, text)
        # It may speak of this process: nothing is moved before somebody has looked at it.
        result = self.lab.engine(self.workload.pid, self.server.address).result()
        self.assert_exit(result, harness.REFUSED)
        self.assertIn(damaged, result["blockers"][0])
        os.unlink(damaged)
        self.assert_at_source()

    def test_nothing_is_parked(self):
        code, text = self.resolve()
        self.assertEqual(code, 0, text)
        self.assertIn("nothing is parked", text)
        code, text = self.resolve("--pid", self.workload.pid)
        self.assertEqual(code, harness.FAILED, text)
        self.assert_at_source()


if __name__ == "__main__":
    sys.exit(harness.main())
