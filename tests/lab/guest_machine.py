#!/usr/bin/python3
"""Runs in each of two virtual machines of test_two_machines.py: the target's half, the source's.

The target obeys the source: it starts a page server, keeps copies of files, looks at what has
arrived. The source holds the tests, and ends the target when they are over.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest
import xmlrpc.client
import xmlrpc.server

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import harness  # noqa: E402

AGENT_PORT = 7001
CLIENT = harness.ROOT / "tests/e2e/kv_client.py"
# How far the wall clocks of the machines are apart, and by how much longer the processes that
# watch their clocks have been up than the source itself.
WALL_CLOCK_S = 7 * 3600
UPTIME_S = 3 * 3600
# An emulated machine on a busy one is slow; what is looked for is hours, or the seconds between
# the starts of the two.
LATE_MS = 5000

REDIS_PORT = 6379
REDIS_KEYS, REDIS_VALUE_BYTES = 16384, 4096


def say(text):
    """A line of the summary (tests/lab/guest.py), after what unittest has begun to print."""
    print(f"\nlab: {text}", flush=True)


def clock_seconds():
    return {"wall": time.time(), "monotonic": time.clock_gettime(time.CLOCK_MONOTONIC),
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME)}


def run_client(action, address, *arguments):
    """A client of redis, on this machine; what it found."""
    process = subprocess.run(
        [harness.PYTHON, CLIENT, "redis", action, address, *map(str, arguments)],
        capture_output=True, text=True, timeout=300)
    if process.returncode != 0:
        raise harness.HarnessError(f"client ({action}): {process.stderr}")
    return json.loads(process.stdout)


class Machine(harness.Host):
    """All of this machine."""

    def __init__(self, address):
        self.address = address
        self._started = []

    def command(self, arguments, uid=None, dies_with_us=False):
        inside = ["setpriv", "--pdeathsig", "KILL", "--"] if dies_with_us else []
        return inside + [str(argument) for argument in arguments]

    def popen(self, arguments, uid=None, dies_with_us=False, **options):
        self._started.append(super().popen(arguments, uid, dies_with_us, **options))
        return self._started[-1]

    def close(self):
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()


class MachineLab(harness.Lab):
    """What runs on this machine. Its files have the same names on the other one."""

    def __init__(self, address):
        self.servers, self.engines, self.workloads, self._children = [], [], [], []
        self._server_of = {}
        self.root = "/tmp/two-machines"
        os.makedirs(self.root)
        self.source = self.target = Machine(address)
        self._hosts = [self.source]


class Target:
    """What the source may ask for."""

    def __init__(self, lab):
        self._lab = lab
        self.over = False

    def server(self):
        """The address of the page server."""
        return self._lab.server_at(self._lab.target).address

    def server_log(self):
        return self._lab.log_of(self._lab.server_at(self._lab.target))

    def clocks(self):
        return clock_seconds()

    def put(self, path, mode, data):
        """A file as the source has it; a folder if there are no data."""
        if data is None:
            os.makedirs(path, exist_ok=True)
        else:
            with open(path, "wb") as file:
                file.write(data.data)
        os.chmod(path, mode)

    def clocks_of(self, pid):
        """What the clocks show to that process."""
        clocks = clock_seconds()
        for line in harness.read_file(f"/proc/{pid}/timens_offsets").splitlines():
            name, seconds, nanoseconds = line.split()
            clocks[name] += int(seconds) + int(nanoseconds) / 1e9
        return clocks

    def watch(self, path, steps):
        """Once the process that reports there has gone on: what it has seen go wrong."""
        report = harness.Report(path)
        report.wait_progress(steps, 120)
        return report.trouble()

    def finish(self, pid, path):
        """Has it check everything once more and end: what it has seen go wrong."""
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended = harness.pidfd_ended(pidfd, 120)
        os.close(pidfd)
        if not ended:
            return "it does not end"
        report = harness.Report(path)
        if report.trouble() or (report.finished and report.exit_code == 0):
            return report.trouble()
        return f"it ended with {report.exit_code}" if report.finished else "it ended too early"

    def end(self, pid):
        harness.end_process(pid)

    def compare(self, address, keys, value_bytes):
        return run_client("compare", address, keys, value_bytes)

    def stop(self):
        self.over = True


def read_programs():
    """So that no time limit includes reading them from the other side for the first time."""
    subprocess.run([harness.PREDUMP, "--version"], stdout=subprocess.DEVNULL, check=True)


def run_target(arguments):
    # Hours apart from the source, whose clock is left alone.
    time.clock_settime(time.CLOCK_REALTIME, time.time() + WALL_CLOCK_S)
    with MachineLab(arguments.address) as lab:
        target = Target(lab)
        with xmlrpc.server.SimpleXMLRPCServer((arguments.address, AGENT_PORT), allow_none=True,
                                              logRequests=False) as agent:
            agent.register_instance(target)
            read_programs()
            print("target: ready", flush=True)
            while not target.over:
                agent.handle_request()
    return 0


class Moves(unittest.TestCase):
    """Filled with a test per kind of process and means below."""

    maxDiff = None

    @classmethod
    def set_up(cls, arguments):
        cls.address, cls.peer = arguments.address, arguments.peer
        cls.target = xmlrpc.client.ServerProxy(f"http://{arguments.peer}:{AGENT_PORT}",
                                               allow_none=True)

    def setUp(self):
        self.lab = MachineLab(self.address)
        self.addCleanup(self.lab.close)
        away = self.target.clocks()
        here = clock_seconds()
        self.assertGreater(away["wall"] - here["wall"], WALL_CLOCK_S - 600)
        self.assertGreater(away["monotonic"] - here["monotonic"], 1)

    def replicate(self, directory):
        """As replicas of one image, or a shared file system, would have it."""
        for path in (pathlib.Path(directory), *sorted(pathlib.Path(directory).rglob("*"))):
            if path.is_dir() or path.is_file():  # sockets are made by whoever listens
                self.target.put(str(path), path.stat().st_mode & 0o7777,
                                path.read_bytes() if path.is_file() else None)

    def move(self, pid, means, *options):
        tracker, source = means
        server = self.target.server()
        result = self.lab.engine(pid, server, "--verify", "--tracker", tracker, "--source", source,
                                 *options).result(300)
        if result["exit"] != harness.COMPLETED:
            self.fail(f"predump ended with {result['exit']}:\n{result['stderr']}\n"
                      f"page server:\n{self.target.server_log()}")
        self.assertEqual((result["tracker"], result["source"]), means)
        self.assertGreater(result["pages-verified"], 0)
        return result

    def tell(self, what, means, result):
        say(f"{what}, {means[0]} and {means[1]}: {len(result['rounds'])} rounds, "
            f"{result['total-time-ms'] / 1000:.1f} s, downtime {result['downtime-ms']:.1f} ms, "
            f"{result['pages-verified']} pages verified")

    def redis(self, means):
        directory = self.lab.directory("redis")
        here, there = f"{self.address}:{REDIS_PORT}", f"{self.peer}:{REDIS_PORT}"
        process = self.lab.source.popen(
            ["redis-server", "--bind", "0.0.0.0", "--port", REDIS_PORT, "--protected-mode", "no",
             "--save", "", "--appendonly", "no", "--dir", directory, "--logfile", "/dev/null"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, cwd=directory)
        self.replicate(directory)
        probe = ["redis-cli", "-h", self.address, "ping"]
        harness.wait_until(lambda: "PONG" in self.lab.source.run(probe).stdout, 60,
                           "redis to answer")
        filled = run_client("fill", here, REDIS_KEYS, REDIS_VALUE_BYTES)
        self.assertEqual(filled["keys"], REDIS_KEYS)

        live = self.lab.source.popen([harness.PYTHON, CLIENT, "redis", "live", here, there],
                                     dies_with_us=True, stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        output, errors = harness.LineReader(live.stdout), harness.LineReader(live.stderr)
        output.wait_for(f"^at {here}$", 60)
        result = self.move(process.pid, means, "--tcp-close")
        process.wait(60)
        output.wait_for(f"^at {there}$", 60)
        live.stdin.write("stop\n")
        live.stdin.close()
        live.wait(120)
        self.assertEqual(live.returncode, 0, errors.text())
        client = json.loads(output.text().splitlines()[-1])

        compared = self.target.compare(there, REDIS_KEYS, REDIS_VALUE_BYTES)
        self.target.end(result["restored-pid"])
        self.assertEqual(compared["different"], [])
        self.assertEqual(compared["keys"], REDIS_KEYS + client["written"])
        self.assertEqual(client["compared"], client["written"])
        self.tell(f"redis-server with {REDIS_KEYS * REDIS_VALUE_BYTES >> 20} MiB, "
                  f"{compared['keys']} keys compared", means, result)

    def watching_clocks(self, name, means, *options):
        # As if it had been started hours before the source's own clocks began.
        workload = self.lab.workload(
            name, *options, "--copied-report", "--late-ms", str(LATE_MS),
            command=["unshare", "--time", f"--monotonic={UPTIME_S}", f"--boottime={UPTIME_S}",
                     "--", harness.WORKLOADS / name])
        workload.report.wait_progress(20, 120)
        self.replicate(workload.directory)
        result = self.move(workload.pid, means)
        self.assertTrue(harness.pidfd_ended(workload.pidfd, 60), "the original does not end")
        self.assertEqual(workload.report.trouble(), "", "before the move")

        pid, path = result["restored-pid"], workload.report_path
        self.assertEqual(self.target.watch(path, 100), "", "after the move")
        there, here = self.target.clocks_of(pid), clock_seconds()
        for clock in ("monotonic", "boottime"):
            self.assertAlmostEqual(there[clock], here[clock] + UPTIME_S, delta=LATE_MS / 1000,
                                   msg=f"CLOCK_{clock.upper()} as the process sees it")
        self.assertEqual(self.target.finish(pid, path), "", "at its end")
        self.tell(f"{name}, which watches clocks and timers", means, result)

    def timers(self, means):
        # What it writes to would have to be shared by the machines; a subreaper gets no helper;
        # and files of /proc, which others of its holdings read again and again, can't move.
        left_out = ("written-file,append-log,two-descriptions,directory-listing,"
                    "attributes,descriptor-table,pending-signals")
        self.watching_clocks("files", means, "--max-jump-ms", str(LATE_MS), "--skip", left_out)

    def timeouts(self, means):
        # A socket's own timeout (SO_RCVTIMEO) counts ticks, and an emulated processor that had to
        # wait for a real one gets many of them at once.
        self.watching_clocks("threads", means, "--early-us", "200000")


def run_source(arguments):
    for means in arguments.move:
        for kind in ("redis", "timers", "timeouts"):
            def test(self, kind=kind, means=tuple(means.split(":"))):
                getattr(self, kind)(means)
            setattr(Moves, f"test_{kind}_{means.replace(':', '_').replace('-', '_')}", test)
    read_programs()
    Moves.set_up(arguments)
    try:
        program = unittest.main(module=__name__, argv=[sys.argv[0]], verbosity=2, exit=False)
    finally:
        Moves.target.stop()
    ran = program.result.testsRun
    return 0 if program.result.wasSuccessful() and ran == 3 * len(arguments.move) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["target", "source"])
    parser.add_argument("--address", required=True, help="of this machine")
    parser.add_argument("--peer", help="address of the target, for the source")
    parser.add_argument("--move", action="append", help="TRACKER:SOURCE, for the source")
    arguments = parser.parse_args()
    return run_target(arguments) if arguments.role == "target" else run_source(arguments)


if __name__ == "__main__":
    sys.exit(main())
